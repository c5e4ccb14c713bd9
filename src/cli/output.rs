//! What commands print: safe text, times, JSON.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;

use super::error::{Error, Exit};
use crate::error::{Report, chain};
pub(super) use crate::text::printable;
use crate::text::{is_unseen, neutral};

/// Standard output for raw bytes: a file's content, a tar, a document for another program.
#[allow(clippy::disallowed_methods)] // This is the place for it.
pub(super) fn bytes() -> io::StdoutLock<'static> {
    io::stdout().lock()
}

/// Standard output for text that may contain untrusted parts. Each `writeln!` prints one line,
/// whatever the parts contain.
pub(super) fn lines() -> Lines<io::StdoutLock<'static>> {
    Lines(bytes())
}

/// Like [`lines`], but buffered: the caller must call [`Write::flush`] at the end.
pub(super) fn many_lines() -> Lines<io::BufWriter<io::StdoutLock<'static>>> {
    Lines(io::BufWriter::new(bytes()))
}

/// Prints a line on standard output.
///
/// # Errors
/// [`Error::Output`].
pub(super) fn say(line: fmt::Arguments<'_>) -> Result<(), Error> {
    writeln!(lines(), "{line}").map_err(Error::Output)
}

/// Prints a line on standard error. If standard error is closed, the line is lost without an error.
pub(super) fn note(line: fmt::Arguments<'_>) {
    notes(&[&line.to_string()]);
}

/// Prints lines on standard error with one write: LXC logs every write separately.
pub(super) fn notes(lines: &[&str]) {
    let text: String = lines
        .iter()
        .flat_map(|line| [neutral(line), "\n".into()])
        .collect();
    #[allow(clippy::disallowed_methods)] // This is the place for it.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Prints an error's cause and hint, and returns the exit code. A closed pipe is not reported.
pub(super) fn report(error: &Error) -> ExitCode {
    if matches!(error, Error::Output(e) if e.kind() == io::ErrorKind::BrokenPipe) {
        return Exit::Failure.into();
    }
    let (cause, hint) = (
        format!("lxcri-fs: {}", chain(error)),
        error.hint().map(|hint| format!("  hint: {hint}")),
    );
    notes(
        &[Some(&*cause), hint.as_deref()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>(),
    );
    error.exit().into()
}

/// The error of a command that continued after each failure: the only one, or after printing all,
/// how many there were.
pub(super) fn all_or(mut failures: Vec<Error>, of: usize, what: &str) -> Result<(), Error> {
    let Some(last) = failures.pop() else {
        return Ok(());
    };
    if of == 1 {
        return Err(last);
    }
    let exit = failures.first().unwrap_or(&last).exit();
    failures.push(last);
    for error in &failures {
        let _ = report(error);
    }
    Err(Error::Other {
        message: format!("{} of {of} {what}", failures.len()),
        hint: None,
        exit: if exit == Exit::Usage {
            Exit::Failure
        } else {
            exit
        },
    })
}

/// Whether standard error is a terminal.
#[allow(clippy::disallowed_methods)] // This is the place for it.
pub(super) fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Writes text and makes invisible characters visible; see [`text`](crate::text).
pub(super) struct Lines<W>(W);

impl<W: Write> Write for Lines<W> {
    /// Writes text that is already divided into lines.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        for line in text.split_inclusive(|&b| b == b'\n') {
            let (line, end) = line
                .strip_suffix(b"\n")
                .map_or((line, &b""[..]), |line| (line, b"\n"));
            self.0
                .write_all(neutral(&String::from_utf8_lossy(line)).as_bytes())?;
            self.0.write_all(end)?;
        }
        Ok(text.len())
    }

    /// Writes one line, or a part of it.
    fn write_fmt(&mut self, line: fmt::Arguments<'_>) -> io::Result<()> {
        let line = line.to_string();
        let (line, end) = line
            .strip_suffix('\n')
            .map_or((&*line, ""), |line| (line, "\n"));
        self.0.write_all(neutral(line).as_bytes())?;
        self.0.write_all(end.as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Prints a value as one line of JSON. Strings keep their values; invisible characters are written
/// `\uXXXX`.
///
/// # Errors
/// [`Error::Output`].
pub(super) fn json(value: &impl Serialize) -> Result<(), Error> {
    let mut out = bytes();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Visible);
    value
        .serialize(&mut serializer)
        .map_err(|e| Error::Output(e.into()))?;
    writeln!(out).map_err(Error::Output)
}

/// Formats JSON in one line, with invisible characters as `\uXXXX`.
struct Visible;

impl serde_json::ser::Formatter for Visible {
    /// Writes a part of a string in which JSON itself escapes nothing.
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> io::Result<()> {
        for part in text.split_inclusive(is_unseen) {
            match part
                .char_indices()
                .next_back()
                .filter(|&(_, c)| is_unseen(c))
            {
                Some((at, c)) => {
                    out.write_all(&part.as_bytes()[..at])?;
                    c.encode_utf16(&mut [0; 2])
                        .iter()
                        .try_for_each(|unit| write!(out, "\\u{unit:04x}"))?;
                }
                None => out.write_all(part.as_bytes())?,
            }
        }
        Ok(())
    }
}

/// Formats a time, in seconds since 1970, as date, hours and minutes in UTC: `2026-11-21 03:06`.
pub(super) fn time(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M").to_string(),
        // Ten thousand years from now, or before.
        Err(_) => format!("{seconds} s"),
    }
}

/// Formats a number of bytes for people: `1.2 GiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    #[allow(clippy::cast_precision_loss)] // for people
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time(0), "1970-01-01 00:00");
        assert_eq!(time(-1), "1969-12-31 23:59");
        assert_eq!(time(951_782_400), "2000-02-29 00:00");
        assert_eq!(time(1_795_230_000), "2026-11-21 03:00");
        assert_eq!(time(i64::MAX), "9223372036854775807 s");
    }

    #[test]
    fn a_line_is_one_line_and_text_keeps_its_lines() {
        let mut out = Lines(Vec::new());
        let (name, text) = ("a\nb", "\u{202e}c");
        writeln!(out, "{name:<6}|{text}").unwrap();
        out.write_all(b"one\n\x1b[2Jtwo\n").unwrap();
        assert_eq!(
            String::from_utf8(out.0).unwrap(),
            "a\\nb   |\\u{202e}c\none\n\\u{1b}[2Jtwo\n"
        );
    }

    #[test]
    fn json_is_exact_and_visible() {
        let text = "\u{1b}[31m \u{9b} \u{202e}\u{e0041}\"\\ ä\n";
        let mut out = Vec::new();
        text.serialize(&mut serde_json::Serializer::with_formatter(
            &mut out, Visible,
        ))
        .unwrap();
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out, r#""\u001b[31m \u009b \u202e\udb40\udc41\"\\ ä\n""#);
        assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
    }
}
