//! Logging of keeper and worker: to standard error, which the command connects to a file, the
//! journal or syslog.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Stdio;

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::prelude::*;

use super::error::Result;
use crate::error::Io;
use crate::text::neutral;

/// Environment variable that selects what to log: a level (`error`, `warn`, `info`, `debug`,
/// `trace`), or several of `module=level`.
pub const FILTER_VARIABLE: &str = "LXCRI_FS_LOG";
/// This module of fuser logs replies that the kernel refuses because it has sent the request to the
/// next worker.
const UNWANTED: &str = "fuser::reply";
const JOURNAL: &str = "/run/systemd/journal/stdout";
const SYSLOG: &str = "/dev/log";
const NAME: &str = "lxcri-fs";

/// Format of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Style {
    /// Time, level and message, for files and terminals.
    Plain,
    /// Priority and message, for the journal, which adds the rest.
    Journal,
    /// Priority with facility, name and message, for syslog.
    Syslog,
}

impl Style {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Style::Plain => "plain",
            Style::Journal => "journal",
            Style::Syslog => "syslog",
        }
    }
}

/// Opens a daemon's standard error: the file if one is given, or else the journal, syslog, or
/// nothing.
///
/// # Errors
/// [`Io`] when the file cannot be opened.
pub fn open(file: Option<&Path>) -> Result<(Stdio, Style)> {
    if let Some(path) = file {
        let file = File::options()
            .append(true)
            .create(true)
            .open(path)
            .map_err(Io::at("opening the log", path))?;
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

/// Opens a stream to the journal. The header gives identifier, unit and priority, says that lines
/// have their own priority, and leaves forwarding to the journal.
fn journal() -> io::Result<UnixStream> {
    let mut socket = UnixStream::connect(JOURNAL)?;
    write!(socket, "{NAME}\n\n6\n1\n0\n0\n0\n")?;
    Ok(socket)
}

/// Prints a command's warnings, and those of the libraries that it uses, to standard error, as its
/// errors are printed; with `verbose`, also what it does: 1 for the level `debug`, 2 for `trace`.
pub fn init_command(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // What libraries say beyond warnings may have parts of what is secret.
    let filter = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target(env!("CARGO_CRATE_NAME"), level)
        .with_target("bfc", level);
    let lines = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_ansi(false)
        .with_level(false)
        .without_time()
        .with_writer(Messages);
    // A second initialisation has no effect.
    let _ = tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init();
}

/// Standard error of a command.
struct Messages;

impl<'a> MakeWriter<'a> for Messages {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(format!("{NAME}: "))
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line {
        let level = match *meta.level() {
            Level::ERROR | Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        Line(format!("{NAME}: {level}: "))
    }
}

/// Logs this process's events, and those of the libraries that it uses, to standard error.
pub fn init(style: Style) {
    let asked = std::env::var(FILTER_VARIABLE)
        .ok()
        .and_then(|text| text.parse::<Targets>().ok());
    let filter = asked.unwrap_or_else(|| {
        Targets::new()
            .with_default(Level::INFO)
            .with_target(UNWANTED, LevelFilter::OFF)
    });
    let lines = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_ansi(false)
        .with_writer(Stderr(style));
    let lines = match style {
        Style::Plain => lines.boxed(),
        Style::Journal | Style::Syslog => lines.without_time().with_level(false).boxed(),
    };
    // A second initialisation has no effect.
    let _ = tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init();
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

/// Collects a line. It is written at once and stays one line, or syslog would split it; nothing in
/// it can control a terminal.
struct Line(String);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let whole = format!("{}{}\n", std::mem::take(&mut self.0), neutral(text));
        #[allow(clippy::disallowed_methods)] // A daemon's standard error is its log.
        io::stderr().write_all(whole.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
