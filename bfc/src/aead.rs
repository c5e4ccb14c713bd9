//! ChaCha20-Poly1305 (RFC 8439) over streams of any length in bounded memory.
//!
//! The `chacha20poly1305` crate needs the whole message in memory, while v1 encrypts whole files.

use std::io::{self, Read};

use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use poly1305::Poly1305;
use poly1305::universal_hash::UniversalHash;

use crate::error::{Error, Result};
use crate::key::Key;

/// Length of a nonce, bytes.
pub const NONCE_LEN: usize = 12;
/// Length of a tag, bytes.
pub const TAG_LEN: usize = 16;
/// What sealing adds: nonce and tag.
pub const OVERHEAD: usize = NONCE_LEN + TAG_LEN;

/// Seals `message`: `nonce || ciphertext || tag`.
///
/// # Errors
/// [`Error::TooLarge`] past the cipher's limit of 256 GiB.
pub fn seal(key: &Key, nonce: &[u8; NONCE_LEN], aad: &[u8], message: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(message.len() + OVERHEAD);
    out.extend_from_slice(nonce);
    out.extend_from_slice(message);
    let tag = ChaCha20Poly1305::new(key.as_bytes().into())
        .encrypt_inout_detached(nonce.into(), aad, (&mut out[NONCE_LEN..]).into())
        .map_err(|_| Error::TooLarge("a message to encrypt"))?;
    out.extend_from_slice(&tag);
    Ok(out)
}

/// Decrypts in place what [`seal`] made, and returns the message.
///
/// # Errors
/// `None` if the tag is wrong: for another key, other associated data, or changed bytes.
pub fn open<'a>(key: &Key, aad: &[u8], sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
    let (nonce, rest) = sealed.split_first_chunk_mut::<NONCE_LEN>()?;
    let (message, tag) = rest.split_last_chunk_mut::<TAG_LEN>()?;
    ChaCha20Poly1305::new(key.as_bytes().into())
        .decrypt_inout_detached(
            (&*nonce).into(),
            aad,
            (&mut *message).into(),
            (&*tag).into(),
        )
        .ok()?;
    Some(message)
}

/// Decrypts a sealed stream. The last read (the one that returns 0) fails when the tag does not
/// fit, so nothing that was read before may be used until then.
pub struct Opener<R> {
    inner: R,
    left: u64,
    cipher: ChaCha20,
    mac: Poly1305,
    /// Ciphertext that does not fill a block of the MAC yet.
    partial: Vec<u8>,
    aad_len: u64,
    len: u64,
    done: bool,
}

impl<R> std::fmt::Debug for Opener<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener")
            .field("left", &self.left)
            .field("len", &self.len)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

/// The error of an [`Opener`] whose tag does not fit, inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("the authentication tag does not fit")]
pub struct BadTag;

impl<R: Read> Opener<R> {
    /// Opens the `stored` bytes of `inner`.
    ///
    /// # Errors
    /// The errors of `inner`, or `InvalidData` if `stored` is shorter than nonce and tag.
    pub fn new(mut inner: R, stored: u64, key: &Key, aad: &[u8]) -> io::Result<Self> {
        let left = stored
            .checked_sub(OVERHEAD as u64)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, BadTag))?;
        let mut nonce = [0; NONCE_LEN];
        inner.read_exact(&mut nonce)?;
        let mut cipher = ChaCha20::new(key.as_bytes().into(), (&nonce).into());
        // The first block of the key stream keys the MAC; the message starts with the second.
        let mut block = [0; 64];
        cipher.apply_keystream(&mut block);
        let mut mac_key = [0; 32];
        mac_key.copy_from_slice(&block[..32]);
        let mut mac = Poly1305::new((&mac_key).into());
        mac.update_padded(aad);
        zeroize::Zeroize::zeroize(&mut block);
        zeroize::Zeroize::zeroize(&mut mac_key);
        Ok(Self {
            inner,
            left,
            cipher,
            mac,
            partial: Vec::new(),
            aad_len: aad.len() as u64,
            len: left,
            done: false,
        })
    }

    fn authenticate(&mut self, ciphertext: &[u8]) {
        self.partial.extend_from_slice(ciphertext);
        let whole = self.partial.len() / 16 * 16;
        self.mac.update_padded(&self.partial[..whole]);
        self.partial.drain(..whole);
    }

    fn finish(&mut self) -> io::Result<()> {
        let mut tag = [0; TAG_LEN];
        self.inner.read_exact(&mut tag)?;
        let mut mac = self.mac.clone();
        mac.update_padded(&self.partial);
        let mut lengths = [0; 16];
        lengths[..8].copy_from_slice(&self.aad_len.to_le_bytes());
        lengths[8..].copy_from_slice(&self.len.to_le_bytes());
        mac.update_padded(&lengths);
        mac.verify((&tag).into())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, BadTag))?;
        self.done = true;
        Ok(())
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            if !self.done {
                self.finish()?;
            }
            return Ok(0);
        }
        let want = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let n = self.inner.read(&mut buf[..want])?;
        if n == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.authenticate(&buf[..n]);
        self.cipher.apply_keystream(&mut buf[..n]);
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn stream_opens_what_seal_made() {
        let key = Key::from_slice(&[7; 32]).unwrap();
        // Miri is slow.
        let long = if cfg!(miri) { 200 } else { 100_000 };
        for len in [0_usize, 1, 15, 16, 17, 63, 64, 65, 1000, long] {
            #[allow(clippy::cast_possible_truncation)]
            let message: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let mut sealed = seal(&key, &[3; 12], b"path", &message).unwrap();
            let mut out = Vec::new();
            let mut opener = Opener::new(&sealed[..], sealed.len() as u64, &key, b"path").unwrap();
            opener.read_to_end(&mut out).unwrap();
            assert_eq!(out, message);
            assert!(
                Opener::new(&sealed[..], sealed.len() as u64, &key, b"other")
                    .unwrap()
                    .read_to_end(&mut out)
                    .is_err()
            );
            assert_eq!(
                open(&key, b"path", &mut sealed.clone()).unwrap(),
                &message[..]
            );
            let last = sealed.len() - 1;
            sealed[last] ^= 1;
            assert!(
                Opener::new(&sealed[..], sealed.len() as u64, &key, b"path")
                    .unwrap()
                    .read_to_end(&mut out)
                    .is_err()
            );
            assert!(open(&key, b"path", &mut sealed).is_none());
        }
    }
}
