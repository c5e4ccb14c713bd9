//! Where keeper and worker log: to their standard error, which the command makes a file, the journal, or syslog.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Stdio;

use clap::ValueEnum;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::error::{Error, Result};

/// Environment variable that says what is logged, in the syntax of `tracing_subscriber`.
pub const FILTER_VARIABLE: &str = "LXCRI_FS_LOG";
/// What is logged otherwise. fuser complains of answers that are refused because the kernel has sent the request to the next worker.
const DEFAULT_FILTER: &str = "info,fuser::reply=off";
const JOURNAL: &str = "/run/systemd/journal/stdout";
const SYSLOG: &str = "/dev/log";
const NAME: &str = "lxcri-fs";

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Style {
    /// Time, level, message: for files and terminals.
    Plain,
    /// Priority, message: for the journal, which adds the rest.
    Journal,
    /// Priority with facility, name, message: for syslog.
    Syslog,
}

impl Style {
    /// The name that the command line knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Style::Plain => "plain",
            Style::Journal => "journal",
            Style::Syslog => "syslog",
        }
    }
}

/// A daemon's standard error: the file if one is given, else the journal, else syslog, else nothing.
///
/// # Errors
/// [`Error::Io`] when the file cannot be opened.
pub fn open(file: Option<&Path>) -> Result<(Stdio, Style)> {
    if let Some(path) = file {
        let file = File::options().append(true).create(true).open(path).map_err(Error::io("opening the log", path))?;
        return Ok((file.into(), Style::Plain));
    }
    if let Ok(socket) = journal() {
        return Ok((OwnedFd::from(socket).into(), Style::Journal));
    }
    let syslog = UnixDatagram::unbound().and_then(|socket| socket.connect(SYSLOG).map(|()| socket));
    match syslog {
        Ok(socket) => Ok((OwnedFd::from(socket).into(), Style::Syslog)),
        Err(_) => Ok((Stdio::null(), Style::Plain)),
    }
}

/// A stream to the journal: identifier, unit, priority, and whether lines have a priority of their own, forwarding left to the journal.
fn journal() -> io::Result<UnixStream> {
    let mut socket = UnixStream::connect(JOURNAL)?;
    write!(socket, "{NAME}\n\n6\n1\n0\n0\n0\n")?;
    Ok(socket)
}

/// Logs this process's events, and those of the libraries that it uses, to standard error.
pub fn init(style: Style) {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(false).with_writer(Stderr(style));
    // A second initialisation is none.
    let _ = match style {
        Style::Plain => subscriber.try_init(),
        Style::Journal | Style::Syslog => subscriber.without_time().with_level(false).try_init(),
    };
}

/// Standard error, in a style.
struct Stderr(Style);

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(String::new())
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line {
        let severity = match *meta.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        Line(match self.0 {
            Style::Plain => String::new(),
            Style::Journal => format!("<{severity}>"),
            // Facility 3: system daemons.
            Style::Syslog => format!("<{}>{NAME}[{}]: ", 3 << 3 | severity, std::process::id()),
        })
    }
}

/// What comes before the line. A line is written in one piece, or syslog would take it for two.
struct Line(String);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut whole = std::mem::take(&mut self.0).into_bytes();
        whole.extend_from_slice(line);
        io::stderr().write_all(&whole)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
