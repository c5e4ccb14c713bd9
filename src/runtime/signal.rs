//! Names and numbers of the signals that stop a container.

use super::error::{Error, Result};

/// Signals by name, numbered as on x86 and ARM.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

/// The number of a signal: `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `RTMAX-1`.
///
/// # Errors
/// [`Error::Unfit`] when there is no such signal.
pub fn number(text: &str) -> Result<u32> {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let parsed = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(RTMIN),
        (_, Some("")) => Some(RTMAX),
        (Some(more), _) => more
            .strip_prefix('+')
            .and_then(|n| n.parse().ok())
            .and_then(|n: u32| RTMIN.checked_add(n)),
        (_, Some(less)) => less
            .strip_prefix('-')
            .and_then(|n| n.parse().ok())
            .and_then(|n: u32| RTMAX.checked_sub(n))
            .filter(|n| *n >= RTMIN),
        _ => match name.parse() {
            Ok(number) => Some(number),
            Err(_) => NAMES
                .iter()
                .position(|n| *n == name)
                .and_then(|n| u32::try_from(n + 1).ok()),
        },
    };
    parsed
        .filter(|n| (1..=RTMAX).contains(n))
        .ok_or_else(|| Error::unfit(format!("{text:?} is not a signal")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::number;

    #[test]
    fn signals() {
        let known = [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SIGRTMIN", 34),
            ("SIGPWR", 30),
            ("SIGSYS", 31),
        ];
        for (text, expected) in known {
            assert_eq!(number(text).unwrap(), expected, "{text}");
        }
        for text in [
            "",
            "0",
            "65",
            "-1",
            "SIG",
            "SIGNONE",
            "RTMIN+99",
            "RTMIN-1",
            "RTMAX+1",
            "SIGTERM\nlxc.x = y",
        ] {
            assert!(number(text).is_err(), "{text}");
        }
    }
}
