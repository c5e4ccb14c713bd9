//! What commands print: safe text, times, JSON.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anstyle::Style;
use jiff::Timestamp;
use serde::Serialize;

use super::colour::{self, has_colours, painted};
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

/// Whether notes and progress are not wanted.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on, prints no notes and no progress.
pub(super) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Prints a line on standard error, unless notes are not wanted. If standard error is closed, the
/// line is lost without an error.
pub(super) fn note(line: fmt::Arguments<'_>) {
    if !is_quiet() {
        print_errors(&format!("{}\n", neutral(&line.to_string())));
    }
}

/// Prints the program's name and what is wrong on standard error, and a hint below it.
pub(super) fn complain(cause: &str, hint: Option<&str>) {
    let on = errors_have_colours();
    let mut text = format!(
        "{} {}\n",
        painted(colour::ERROR, "lxcri-fs:", on),
        neutral(cause)
    );
    if let Some(hint) = hint {
        let word = painted(colour::HINT, "hint:", on);
        text.push_str(&format!("  {word} {}\n", neutral(hint)));
    }
    print_errors(&text);
}

/// Prints what is wrong with a command line: what clap says, in which no argument can control the
/// terminal if `is_neutral`.
pub(super) fn usage(error: &clap::Error, is_neutral: bool) {
    let text = error.render();
    let text = if is_neutral && errors_have_colours() {
        text.ansi().to_string()
    } else {
        let text = text.to_string();
        let lines = text.trim_end().split('\n').map(neutral);
        lines.collect::<Vec<_>>().join("\n") + "\n"
    };
    print_errors(&text);
}

/// Prints text on standard error with one write: LXC logs every write separately.
fn print_errors(text: &str) {
    #[allow(clippy::disallowed_methods)] // This is the place for it.
    let _ = io::stderr().write_all(text.as_bytes());
}

#[allow(clippy::disallowed_methods)] // This is the place for it.
fn errors_have_colours() -> bool {
    has_colours(&io::stderr())
}

/// Prints an error's cause and hint, and returns the exit code. A closed pipe is not reported.
pub(super) fn report(error: &Error) -> ExitCode {
    if matches!(error, Error::Output(e) if e.kind() == io::ErrorKind::BrokenPipe) {
        return Exit::Failure.into();
    }
    complain(&chain(error), error.hint().as_deref());
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

/// Whether progress can be drawn: standard error is a terminal, and it is wanted.
#[allow(clippy::disallowed_methods)] // This is the place for it.
pub(super) fn is_terminal() -> bool {
    !is_quiet() && io::stderr().is_terminal()
}

/// Writes text and makes invisible characters visible; see [`text`](crate::text).
pub(super) struct Lines<W>(W);

impl Lines<io::StdoutLock<'static>> {
    /// Writes a part of a line, in a style where standard output has colours.
    pub(super) fn paint(&mut self, style: Style, text: &str) -> io::Result<()> {
        let text = painted(style, &neutral(text), has_colours(&self.0));
        self.0.write_all(text.as_bytes())
    }
}

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
    write_json(&mut out, value).map_err(Error::Output)?;
    writeln!(out).map_err(Error::Output)
}

/// A value as [`json`] prints it.
pub(super) fn json_text(value: &impl Serialize) -> io::Result<String> {
    let mut text = Vec::new();
    write_json(&mut text, value)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn write_json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(out, Visible);
    Ok(value.serialize(&mut serializer)?)
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

/// Formats a time, in seconds since 1970 and nanoseconds, for programs: `2026-11-21T03:06:00Z`.
/// `None` if it is after the year 9999, or before -9999.
pub(super) fn moment(seconds: i64, nanoseconds: i32) -> Option<String> {
    let time = Timestamp::new(seconds, nanoseconds).ok()?;
    Some(time.to_string())
}

/// A number of things: `1 entry`, `2 entries`.
pub(super) fn count(n: u64, one: &str, several: &str) -> String {
    let word = if n == 1 { one } else { several };
    format!("{n} {word}")
}

/// Formats a number of bytes for people: `1.2 GiB`. Options that take a size take this too.
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

    /// What is printed can be typed.
    #[test]
    fn sizes() {
        for bytes in [0, 1, 1023, 1024, 1_300_000, 5 << 30, u64::MAX >> 2] {
            let parsed = crate::store::size::parse(&size(bytes)).unwrap();
            assert!(bytes.abs_diff(parsed) <= bytes / 20, "{}", size(bytes));
        }
    }

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
