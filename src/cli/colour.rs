//! Colours of what commands print, where the terminal has them: never in pipes and files, unless
//! `CLICOLOR_FORCE` is set, and nowhere with `NO_COLOR` or `TERM=dumb`.

use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};

/// The name of the program before an error.
pub(super) const ERROR: Style = AnsiColor::Red.on_default().bold();
/// The word before a hint.
pub(super) const HINT: Style = AnsiColor::Cyan.on_default();
/// A state in which nothing is to be done.
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
/// A state that deserves a look.
pub(super) const NOTE: Style = AnsiColor::Yellow.on_default();
/// A state in which something does not work.
pub(super) const BAD: Style = AnsiColor::Red.on_default();
/// Everything else.
pub(super) const PLAIN: Style = Style::new();

/// Whether a stream gets colours.
pub(super) fn has_colours(stream: &impl RawStream) -> bool {
    AutoStream::choice(stream) != ColorChoice::Never
}

/// Text in a style, if `on`.
pub(super) fn painted(style: Style, text: &str, on: bool) -> String {
    let style = if on { style } else { PLAIN };
    format!("{style}{text}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_painted_is_framed() {
        assert_eq!(painted(GOOD, "a", true), "\u{1b}[32ma\u{1b}[0m");
        assert_eq!(painted(PLAIN, "a", true), "a");
        assert_eq!(painted(BAD, "a", false), "a");
    }
}
