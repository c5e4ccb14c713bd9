//! Passwords and keys: from files, descriptors, the environment or a prompt, never from the command line.

use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bfc::format::{HEADER_LEN, Header};
use bfc::{Key, Secret};
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::error::Error;
use crate::serve::protocol::ImageKey;
use crate::text::neutral;

/// Environment variable that holds a password.
pub const PASSWORD_VARIABLE: &str = "LXCRI_FS_PASSWORD";
const TERMINAL: &str = "/dev/tty";
/// Longest password, bytes.
const MAX_PASSWORD: u64 = 64 << 10;

/// Where the password or key of an encrypted image comes from.
#[derive(Debug, Clone, Default, Args)]
pub struct SecretArgs {
    /// Read the password from FILE (its first line; - is standard input)
    #[arg(long, value_name = "FILE", group = "secret")]
    pub password_file: Option<PathBuf>,
    /// Read the password from this inherited file descriptor (its first line)
    #[arg(long, value_name = "N", group = "secret")]
    pub password_fd: Option<u32>,
    /// Read the key from FILE: exactly 32 bytes
    #[arg(long, value_name = "FILE", group = "secret")]
    pub key_file: Option<PathBuf>,
}

impl SecretArgs {
    /// What the arguments or `LXCRI_FS_PASSWORD` give; `None` when they give nothing.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Secret`].
    pub fn load(&self) -> Result<Option<Secret>, Error> {
        if let Some(path) = &self.key_file {
            let mut bytes = Zeroizing::new(Vec::with_capacity(64));
            let file = File::open(path).map_err(Error::io("opening the key file", path))?;
            file.take(33).read_to_end(&mut bytes).map_err(Error::io("reading the key file", path))?;
            let key = Key::from_slice(&bytes)
                .map_err(|e| Error::Secret { what: format!("key file {}", path.display()), source: Some(Box::new(e)) })?;
            return Ok(Some(Secret::Key(key)));
        }
        if let Some(path) = &self.password_file {
            if path == Path::new("-") {
                return first_line(std::io::stdin().lock(), path).map(Some);
            }
            let file = File::open(path).map_err(Error::io("opening the password file", path))?;
            return first_line(file, path).map(Some);
        }
        if let Some(fd) = self.password_fd {
            let path = PathBuf::from(format!("/proc/self/fd/{fd}"));
            let file = File::open(&path).map_err(Error::io("opening the password's descriptor", &path))?;
            return first_line(file, &path).map(Some);
        }
        Ok(std::env::var_os(PASSWORD_VARIABLE).map(|value| {
            use std::os::unix::ffi::OsStringExt;
            Secret::Password(Zeroizing::new(value.into_vec()))
        }))
    }
}

fn first_line(input: impl Read, path: &Path) -> Result<Secret, Error> {
    let mut line = Zeroizing::new(Vec::with_capacity(256));
    std::io::BufReader::new(input.take(MAX_PASSWORD)).read_until(b'\n', &mut line).map_err(Error::io("reading the password from", path))?;
    strip_line_end(&mut line);
    if line.is_empty() {
        return Err(Error::Secret { what: format!("no password in {}", path.display()), source: None });
    }
    Ok(Secret::Password(line))
}

fn strip_line_end(line: &mut Vec<u8>) {
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    }
}

/// Where a password can be asked for; `None` where nobody is.
pub fn terminal() -> Option<File> {
    if super::output::is_terminal() { File::options().read(true).write(true).open(TERMINAL).ok() } else { None }
}

/// Asks for the password of `image` on the terminal, without echo.
///
/// # Errors
/// [`Error::Io`] when the terminal fails.
pub fn prompt(image: &Path, mut terminal: File) -> Result<Secret, Error> {
    let failed = Error::io("asking for the password on", Path::new(TERMINAL));
    let ask = |terminal: &mut File| -> std::io::Result<Zeroizing<Vec<u8>>> {
        write!(terminal, "Password for {}: ", neutral(&image.to_string_lossy()))?;
        let mut line = Zeroizing::new(Vec::with_capacity(256));
        {
            let fd = terminal.try_clone()?;
            let _echo = NoEcho::new(fd.as_fd())?;
            std::io::BufReader::new(terminal.take(MAX_PASSWORD)).read_until(b'\n', &mut line)?;
        }
        writeln!(terminal)?;
        Ok(line)
    };
    let mut line = ask(&mut terminal).map_err(failed)?;
    strip_line_end(&mut line);
    Ok(Secret::Password(line))
}

/// Terminal echo off while this lives.
struct NoEcho<'fd>(BorrowedFd<'fd>, rustix::termios::Termios);

impl<'fd> NoEcho<'fd> {
    fn new(fd: BorrowedFd<'fd>) -> std::io::Result<Self> {
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

/// Whether the image says that something in it is encrypted with a password.
pub(super) fn is_encrypted(file: &File) -> bool {
    let mut bytes = [0; HEADER_LEN];
    file.read_exact_at(&mut bytes, 0).is_ok() && Header::parse(&bytes).salt != [0; 32]
}

/// The key that the secret is for this image. Password and salt stay here; the daemon gets the key alone. An image that says
/// that nothing in it is encrypted gets none.
pub(super) fn image_key(path: &Path, file: &File, secret: Option<&Secret>) -> Result<Option<ImageKey>, Error> {
    let Some(secret) = secret else { return Ok(None) };
    let mut bytes = [0; HEADER_LEN];
    if file.read_exact_at(&mut bytes, 0).is_err() {
        // Too short to be an image: the daemon says so.
        return Ok(None);
    }
    let header = Header::parse(&bytes);
    if header.salt == [0; 32] && matches!(secret, Secret::Password(_)) {
        return Ok(None);
    }
    let key = secret.key(&header.salt).map_err(|source| crate::fs::Error::Image { image: path.to_owned(), source })?;
    Ok(Some(ImageKey(key)))
}
