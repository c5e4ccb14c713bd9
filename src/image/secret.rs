//! Passwords and keys of encrypted images.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bfc::format::{HEADER_LEN, Header};
use bfc::{Key, Secret};
use zeroize::Zeroizing;

use super::error::{Error, Result};
use crate::error::Io;
use crate::serve::protocol::ImageKey;

/// Environment variable that holds a password.
pub const PASSWORD_VARIABLE: &str = "LXCRI_FS_PASSWORD";
/// Longest password, bytes.
pub const MAX_PASSWORD: u64 = 64 << 10;

/// Reads a key from a file of exactly 32 bytes.
///
/// # Errors
/// [`Error::Io`], [`Error::Secret`].
pub fn key_file(path: &Path) -> Result<Secret> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(64));
    let file = File::open(path).map_err(Io::at("opening the key file", path))?;
    file.take(33)
        .read_to_end(&mut bytes)
        .map_err(Io::at("reading the key file", path))?;
    let wrong = |source| Error::Secret {
        what: format!("key file {}", path.display()),
        source: Some(source),
    };
    Ok(Secret::Key(Key::from_slice(&bytes).map_err(wrong)?))
}

/// Reads a password from the first line of a file.
///
/// # Errors
/// [`Error::Io`], [`Error::Secret`].
pub fn password_file(path: &Path) -> Result<Secret> {
    password(
        File::open(path).map_err(Io::at("opening the password file", path))?,
        path,
    )
}

/// Reads a password from the first line of `input`; errors name it `path`.
///
/// # Errors
/// [`Error::Io`], [`Error::Secret`].
pub fn password(input: impl Read, path: &Path) -> Result<Secret> {
    let mut line = Zeroizing::new(Vec::with_capacity(256));
    let mut input = BufReader::new(input.take(MAX_PASSWORD));
    input
        .read_until(b'\n', &mut line)
        .map_err(Io::at("reading the password from", path))?;
    strip_line_end(&mut line);
    if line.is_empty() {
        return Err(Error::Secret {
            what: format!("there is no password in {}", path.display()),
            source: None,
        });
    }
    Ok(Secret::Password(line))
}

/// The password in [`PASSWORD_VARIABLE`].
pub fn from_environment() -> Option<Secret> {
    use std::os::unix::ffi::OsStringExt;
    std::env::var_os(PASSWORD_VARIABLE)
        .map(|value| Secret::Password(Zeroizing::new(value.into_vec())))
}

/// Removes the end of a line.
pub fn strip_line_end(line: &mut Vec<u8>) {
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    }
}

/// Whether an image has content that is encrypted with a password.
pub fn is_encrypted(file: &File) -> bool {
    let mut bytes = [0; HEADER_LEN];
    file.read_exact_at(&mut bytes, 0).is_ok() && Header::parse(&bytes).salt != [0; 32]
}

/// The key of an image, derived from a secret. Password and salt stay in this process; the keeper
/// gets only the key. An image without encrypted content has none.
///
/// # Errors
/// [`Error::Fs`].
pub fn image_key(path: &Path, file: &File, secret: Option<&Secret>) -> Result<Option<ImageKey>> {
    let Some(secret) = secret else {
        return Ok(None);
    };
    let mut bytes = [0; HEADER_LEN];
    if file.read_exact_at(&mut bytes, 0).is_err() {
        // Too short to be an image, which the keeper will report.
        return Ok(None);
    }
    let header = Header::parse(&bytes);
    if header.salt == [0; 32] && matches!(secret, Secret::Password(_)) {
        return Ok(None);
    }
    let key = secret
        .key(&header.salt)
        .map_err(|source| crate::fs::Error::Image {
            image: path.to_owned(),
            source,
        })?;
    Ok(Some(ImageKey(key)))
}
