//! Passwords and keys, which come from files, descriptors, the environment or a prompt, but never
//! from the command line.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bfc::Secret;
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::error::{Error, Exit};
use crate::error::Io;
use crate::image::secret::{self, MAX_PASSWORD, strip_line_end};
use crate::text::neutral;

const TERMINAL: &str = "/dev/tty";

/// Where the password or key of an encrypted image comes from.
#[derive(Debug, Clone, Default, Args)]
pub struct SecretArgs {
    /// Read the password from the first line of FILE; - is standard input (default:
    /// LXCRI_FS_PASSWORD, if it is set)
    #[arg(long, value_name = "FILE", group = "secret")]
    pub password_file: Option<PathBuf>,
    /// Read the password from the first line of this inherited file descriptor
    #[arg(long, value_name = "N", group = "secret")]
    pub password_fd: Option<u32>,
    /// Read the key from FILE, which holds exactly 32 bytes, instead of using a password
    #[arg(long, value_name = "FILE", group = "secret")]
    pub key_file: Option<PathBuf>,
}

impl SecretArgs {
    /// Refuses to read the password and a source from standard input.
    ///
    /// # Errors
    /// [`Error::Other`].
    pub(super) fn refuse_both(&self, sources: &[OsString]) -> Result<(), Error> {
        let reads = self.password_file.as_deref() == Some(Path::new("-"));
        let is_stdin = |source: &OsString| source.as_bytes().ends_with(b":-");
        if !reads || !sources.iter().any(is_stdin) {
            return Ok(());
        }
        Err(Error::Other {
            message: "standard input cannot be both a source and the password".to_owned(),
            hint: Some("--password-fd and LXCRI_FS_PASSWORD pass a password otherwise".to_owned()),
            exit: Exit::Usage,
        })
    }

    /// The secret that the arguments or else `LXCRI_FS_PASSWORD` give; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Image`].
    pub fn load(&self) -> Result<Option<Secret>, Error> {
        if let Some(path) = &self.key_file {
            return Ok(Some(secret::key_file(path)?));
        }
        if let Some(path) = &self.password_file {
            let is_stdin = path == Path::new("-");
            return Ok(Some(if is_stdin {
                secret::password(io::stdin().lock(), path)?
            } else {
                secret::password_file(path)?
            }));
        }
        if let Some(fd) = self.password_fd {
            let path = PathBuf::from(format!("/proc/self/fd/{fd}"));
            let file =
                File::open(&path).map_err(Io::at("opening the password's descriptor", &path))?;
            return Ok(Some(secret::password(file, &path)?));
        }
        Ok(secret::from_environment())
    }
}

/// The terminal to ask for a password on; `None` if there is none.
pub(super) fn terminal() -> Option<File> {
    if super::output::is_terminal() {
        File::options().read(true).write(true).open(TERMINAL).ok()
    } else {
        None
    }
}

/// Asks for the password of `image` on the terminal, without echo.
///
/// # Errors
/// [`Error::Io`] when the terminal fails.
pub(super) fn prompt(image: &Path, terminal: File) -> Result<Secret, Error> {
    let question = format!("Password for {}: ", neutral(&image.to_string_lossy()));
    ask_secretly(&question, terminal)
}

/// Asks for a password on the terminal, without echo.
///
/// # Errors
/// [`Error::Io`] when the terminal fails.
pub(super) fn ask_secretly(question: &str, mut terminal: File) -> Result<Secret, Error> {
    let failed = Io::at("asking for the password on", Path::new(TERMINAL));
    let asked = |terminal: &mut File| {
        let fd = terminal.try_clone()?;
        let _echo = NoEcho::new(fd.as_fd())?;
        let line = ask_line(question, terminal)?;
        writeln!(terminal)?;
        Ok(line)
    };
    Ok(Secret::Password(
        asked(&mut terminal).map_err(|e: io::Error| failed(e))?,
    ))
}

/// Asks for a line on the terminal.
///
/// # Errors
/// [`Error::Io`] when the terminal fails.
pub(super) fn ask(question: &str, terminal: &mut File) -> Result<Zeroizing<Vec<u8>>, Error> {
    let failed = Io::at("asking on", Path::new(TERMINAL));
    Ok(ask_line(question, terminal).map_err(failed)?)
}

fn ask_line(question: &str, terminal: &mut File) -> io::Result<Zeroizing<Vec<u8>>> {
    write!(terminal, "{question}")?;
    let mut line = Zeroizing::new(Vec::with_capacity(256));
    io::BufReader::new(terminal.take(MAX_PASSWORD)).read_until(b'\n', &mut line)?;
    strip_line_end(&mut line);
    Ok(line)
}

/// Keeps the terminal's echo off while it exists.
struct NoEcho<'fd>(BorrowedFd<'fd>, rustix::termios::Termios);

impl<'fd> NoEcho<'fd> {
    fn new(fd: BorrowedFd<'fd>) -> io::Result<Self> {
        let before = tcgetattr(fd)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(fd, OptionalActions::Flush, &silent)?;
        Ok(Self(fd, before))
    }
}

impl Drop for NoEcho<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.0, OptionalActions::Flush, &self.1);
    }
}
