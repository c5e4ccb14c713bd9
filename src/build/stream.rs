//! Passes a tar from the thread that makes it (decompression, a directory walk) to the one that
//! parses it.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use sha2::{Digest as _, Sha256};

/// Length of the pieces, bytes.
const PIECE: usize = 1 << 18;
/// How many pieces may wait.
const WAITING: usize = 8;

/// The two ends of a bounded channel of bytes.
pub(super) fn channel() -> (TarWriter, TarReader) {
    let (send, receive) = sync_channel(WAITING);
    let (give_back, spare) = sync_channel(WAITING + 2);
    let writer = TarWriter {
        pieces: send,
        spare,
        piece: Vec::with_capacity(PIECE),
    };
    let reader = TarReader {
        pieces: receive,
        give_back,
        piece: Vec::new(),
        at: 0,
        hash: Sha256::new(),
        read: 0,
        ended: false,
    };
    (writer, reader)
}

/// The writing end. Dropping it ends the stream, so the last write must be flushed before.
pub(super) struct TarWriter {
    pieces: SyncSender<Vec<u8>>,
    /// Pieces that were read, to be filled again.
    spare: Receiver<Vec<u8>>,
    piece: Vec<u8>,
}

impl Write for TarWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..n]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let mut next = self
            .spare
            .try_recv()
            .unwrap_or_else(|_| Vec::with_capacity(PIECE));
        next.clear();
        let full = std::mem::replace(&mut self.piece, next);
        // The reader ends early only if it has failed, and it reports why.
        self.pieces
            .send(full)
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The reading end, which hashes what passes through.
pub(super) struct TarReader {
    pieces: Receiver<Vec<u8>>,
    give_back: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    hash: Sha256,
    read: u64,
    ended: bool,
}

impl TarReader {
    /// Whether the end was reached.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// SHA-256 and length of everything that passed through.
    pub(super) fn finish(self) -> ([u8; 32], u64) {
        (self.hash.finalize().into(), self.read)
    }
}

impl Read for TarReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            let Ok(piece) = self.pieces.recv() else {
                self.ended = true;
                return Ok(0);
            };
            self.hash.update(&piece);
            self.read += piece.len() as u64;
            let empty = std::mem::replace(&mut self.piece, piece);
            self.at = 0;
            // When there are enough spare ones already, this one is dropped.
            let _ = self.give_back.try_send(empty);
        }
        let n = buf.len().min(self.piece.len() - self.at);
        buf[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
