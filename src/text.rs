//! Makes untrusted text safe to print: names of files, images and registries, and messages of other
//! programs. The result cannot control a terminal.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character is not plainly visible: control characters, which control terminals;
/// Unicode's bidi controls, which reorder text; its default-ignorable code points, which are
/// invisible; and line ends.
pub fn is_unseen(c: char) -> bool {
    matches!(c,
        // Cc, and the ends of lines and paragraphs.
        '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}'
        // Bidi_Control, of which the others are below.
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
        // Default_Ignorable_Code_Point, and the marks of interlinear annotations, which are
        // invisible too.
        | '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The line, from 1, of the byte at `offset` in a text.
pub fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&b| b == b'\n').count()
}

/// Escapes every [`is_unseen`] character of a message as Rust does: `\n`, `\u{1b}`. Escaping twice
/// gives the same as escaping once.
pub fn neutral(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unseen) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    text.chars().for_each(|c| push(&mut out, c));
    out.into()
}

/// Converts a name or path to text from which the bytes can be recovered: like [`neutral`], with
/// backslashes doubled, and `\xNN` for bytes that are not UTF-8.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| {
            if c == '\\' {
                out.push_str(r"\\")
            } else {
                push(&mut out, c)
            }
        });
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

fn push(out: &mut String, c: char) {
    match c {
        '\t' | '\n' | '\r' => out.extend(c.escape_default()),
        c if is_unseen(c) => out.extend(c.escape_unicode()),
        c => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_drive_the_terminal() {
        assert_eq!(printable(b"a\x1b[31m\xff\n"), "a\\u{1b}[31m\\xff\\n");
        assert_eq!(
            printable("имя e\u{301} 日本 🦀".as_bytes()),
            "имя e\u{301} 日本 🦀"
        );
        assert_eq!(printable(br"\n"), r"\\n");
    }

    #[test]
    fn messages_show_what_is_not_seen_and_keep_the_rest() {
        let hidden = [
            '\u{1b}',
            '\u{7f}',
            '\u{9b}',
            '\u{ad}',
            '\u{61c}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{202a}',
            '\u{202e}',
            '\u{2028}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{e0041}',
        ];
        for c in hidden {
            assert_eq!(
                neutral(&format!("a{c}b")),
                format!("a\\u{{{:x}}}b", u32::from(c))
            );
        }
        assert_eq!(neutral("one\ntwo\r\x07"), r"one\ntwo\r\u{7}");
        let plain = r"C:\temp «имя» e\u{301} 日本 ä ';";
        assert!(matches!(neutral(plain), Cow::Borrowed(same) if same == plain));
        assert_eq!(neutral(&neutral("\u{202e}\\")), neutral("\u{202e}\\"));
    }
}
