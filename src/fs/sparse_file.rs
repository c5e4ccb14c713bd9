//! Files that are written with holes.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

use super::rootfs::is_zero;

/// Zeros of this length, bytes, become a hole; it is the length of the frames of images.
const HOLE: usize = 64 << 10;

/// Writes a new file, in which aligned runs of zeros become holes, if they are written at once.
pub(super) struct SparseFile<'a> {
    file: &'a mut File,
    /// How many bytes were written, holes included.
    at: u64,
    /// Whether the last of them are a hole, so that the file is still shorter.
    in_hole: bool,
}

impl<'a> SparseFile<'a> {
    /// Writes to a file that is empty.
    pub(super) fn new(file: &'a mut File) -> Self {
        Self {
            file,
            at: 0,
            in_hole: false,
        }
    }

    /// Gives the file its length, if it ends in a hole.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn finish(self) -> io::Result<()> {
        if self.in_hole {
            self.file.set_len(self.at)?;
        }
        Ok(())
    }
}

impl Write for SparseFile<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let is_hole = |piece: &&[u8]| piece.len() == HOLE && is_zero(piece);
        let pieces = buf.chunks(HOLE);
        let n = if pieces.clone().next().is_some_and(|first| is_hole(&first)) {
            let n = HOLE * pieces.take_while(is_hole).count();
            self.in_hole = true;
            n
        } else {
            let data: usize = pieces
                .take_while(|piece| !is_hole(piece))
                .map(<[u8]>::len)
                .sum();
            if self.in_hole {
                self.file.seek(SeekFrom::Start(self.at))?;
                self.in_hole = false;
            }
            self.file.write(&buf[..data])?
        };
        self.at += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_zeros_take_no_space() {
        let mut content = vec![0; 40 * HOLE];
        content[3] = 1;
        content[20 * HOLE - 1] = 2;
        content[20 * HOLE] = 3;
        for step in [content.len(), 3 * HOLE, HOLE + 1] {
            for end in [content.len(), 20 * HOLE + 5, 20 * HOLE, 9] {
                let mut file = tempfile::tempfile().unwrap();
                let mut sparse = SparseFile::new(&mut file);
                for piece in content[..end].chunks(step) {
                    sparse.write_all(piece).unwrap();
                }
                sparse.finish().unwrap();
                let mut read = Vec::new();
                file.rewind().unwrap();
                file.read_to_end(&mut read).unwrap();
                assert!(read == content[..end], "{step} {end}");
                if step % HOLE == 0 {
                    assert!(file.metadata().unwrap().blocks() * 512 <= 4 * HOLE as u64);
                }
            }
        }
    }
}
