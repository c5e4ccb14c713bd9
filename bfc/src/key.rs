//! Keys, from a password as the reference tool derives them, or from a key file.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Associated data of the empty message that checks a key for a rootfs section.
pub const CHECK_AAD: &[u8] = b"BFC key check";

/// Length of a key, bytes.
pub const KEY_LEN: usize = 32;

/// A user's secret: a password, from which each image derives its own key, or the key itself.
#[derive(Clone)]
pub enum Secret {
    /// A password, bytes as typed, without a line end.
    Password(Zeroizing<Vec<u8>>),
    /// The 32 bytes of a key file.
    Key(Key),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Secret::Password(_) => "Secret::Password(..)",
            Secret::Key(_) => "Secret::Key(..)",
        })
    }
}

/// A salt for a new image.
///
/// # Errors
/// [`Error::Input`] when the system has no randomness.
pub fn new_salt() -> Result<[u8; 32]> {
    let mut salt = [0; 32];
    getrandom::fill(&mut salt).map_err(|e| Error::Input(std::io::Error::other(e)))?;
    Ok(salt)
}

impl Secret {
    /// The key for an image with this salt. A password costs 64 MiB and some 0.1 s.
    pub fn key(&self, salt: &[u8; 32]) -> Result<Key> {
        match self {
            Secret::Key(key) => Ok(key.clone()),
            Secret::Password(password) => Key::derive(password, salt),
        }
    }
}

/// A ChaCha20-Poly1305 key, wiped when the last copy is dropped. Copies share its bytes, which stay
/// where they are.
#[derive(Clone)]
pub struct Key(Arc<Zeroizing<[u8; KEY_LEN]>>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// A key from the content of a key file.
    ///
    /// # Errors
    /// [`Error::KeyFile`] unless there are exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self> {
        if bytes.len() != KEY_LEN {
            return Err(Error::KeyFile(bytes.len() as u64));
        }
        let mut key = Zeroizing::new([0; KEY_LEN]);
        key.copy_from_slice(bytes);
        Ok(Self(Arc::new(key)))
    }

    /// Argon2id v1.3, three passes over 64 MiB, one lane, over the first 16 bytes of the salt
    /// (libsodium's `crypto_pwhash` takes no more).
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a password of 4 GiB or more.
    pub fn derive(password: &[u8], salt: &[u8; 32]) -> Result<Self> {
        let too_large = |_| Error::TooLarge("the password");
        let params = argon2::Params::new(64 * 1024, 3, 1, Some(KEY_LEN)).map_err(too_large)?;
        let kdf = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let mut key = Zeroizing::new([0; KEY_LEN]);
        kdf.hash_password_into(password, &salt[..16], &mut *key)
            .map_err(too_large)?;
        Ok(Self(Arc::new(key)))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}
