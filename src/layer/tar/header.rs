//! The fields of one header block: v7, ustar, GNU and old GNU sparse.

use super::error::Reason;
use super::{BLOCK, Block};

const NAME: (usize, usize) = (0, 100);
const MODE: (usize, usize) = (100, 108);
const UID: (usize, usize) = (108, 116);
const GID: (usize, usize) = (116, 124);
const SIZE: (usize, usize) = (124, 136);
const MTIME: (usize, usize) = (136, 148);
const CHECKSUM: (usize, usize) = (148, 156);
const TYPE: usize = 156;
const LINKNAME: (usize, usize) = (157, 257);
const MAGIC: (usize, usize) = (257, 265);
const DEV_MAJOR: (usize, usize) = (329, 337);
const DEV_MINOR: (usize, usize) = (337, 345);
const PREFIX: (usize, usize) = (345, 500);
/// Old GNU sparse headers: four offset-and-length pairs, whether more follow, the length of the
/// expanded file.
const GNU_SPARSE: usize = 386;
const GNU_IS_EXTENDED: usize = 482;
const GNU_REAL_SIZE: (usize, usize) = (483, 495);
/// Extension blocks of those: 21 pairs, and whether more follow.
const EXTENSION_IS_EXTENDED: usize = 504;

const USTAR_MAGIC: &[u8] = b"ustar\x0000";
const GNU_MAGIC: &[u8] = b"ustar  \0";

/// Largest numbers of a header's octal fields; larger ones need a PAX record.
pub(super) const MAX_OCTAL_7: u64 = 0o7_777_777;
/// As [`MAX_OCTAL_7`], of the longer fields.
pub(super) const MAX_OCTAL_11: u64 = 0o77_777_777_777;

/// A header block.
pub(super) struct Header<'a>(pub &'a Block);

impl Header<'_> {
    /// Whether the block is all zero.
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|&b| b == 0)
    }

    /// Checks the checksum; old tars summed signed bytes.
    pub(super) fn check(&self) -> Result<(), Reason> {
        let stored = octal(self.field(CHECKSUM)).ok_or(Reason::Checksum)?;
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (i, &b) in self.0.iter().enumerate() {
            let b = if (CHECKSUM.0..CHECKSUM.1).contains(&i) {
                b' '
            } else {
                b
            };
            unsigned += i64::from(b);
            signed += i64::from(b.cast_signed());
        }
        let fits = |sum: i64| u64::try_from(sum).is_ok_and(|sum| sum == stored);
        if fits(unsigned) || fits(signed) {
            Ok(())
        } else {
            Err(Reason::Checksum)
        }
    }

    fn field(&self, (start, end): (usize, usize)) -> &[u8] {
        &self.0[start..end]
    }

    fn text(&self, at: (usize, usize)) -> &[u8] {
        until_nul(self.field(at))
    }

    /// The type flag.
    pub(super) fn kind(&self) -> u8 {
        self.0[TYPE]
    }

    fn is_gnu(&self) -> bool {
        self.field(MAGIC) == GNU_MAGIC
    }

    /// The name, with the prefix that ustar has for long ones.
    pub(super) fn name(&self) -> Vec<u8> {
        // GNU's header has other things where the prefix would be; star's has times behind a
        // shorter one.
        let ustar = self.field(MAGIC).starts_with(b"ustar\0");
        let star = &self.0[508..512] == b"tar\0";
        let prefix = match (ustar, star) {
            (true, false) => self.text(PREFIX),
            (true, true) => self.text((PREFIX.0, 476)),
            (false, _) => &[],
        };
        let mut name = prefix.to_vec();
        if !name.is_empty() {
            name.push(b'/');
        }
        name.extend_from_slice(self.text(NAME));
        name
    }

    /// The link's target.
    pub(super) fn linkname(&self) -> &[u8] {
        self.text(LINKNAME)
    }

    fn number(&self, at: (usize, usize), what: &'static str) -> Result<u64, Reason> {
        signed_number(self.field(at))
            .and_then(|n| u64::try_from(n).ok())
            .ok_or(Reason::Number(what))
    }

    /// Permission bits.
    pub(super) fn mode(&self) -> Result<u32, Reason> {
        let mode = self.number(MODE, "mode")?;
        #[allow(clippy::cast_possible_truncation)] // twelve bits
        Ok((mode & 0o7777) as u32)
    }

    /// Owner.
    pub(super) fn uid(&self) -> Result<u64, Reason> {
        self.number(UID, "uid")
    }

    /// Group.
    pub(super) fn gid(&self) -> Result<u64, Reason> {
        self.number(GID, "gid")
    }

    /// Length of the data that follow.
    pub(super) fn size(&self) -> Result<u64, Reason> {
        self.number(SIZE, "size")
    }

    /// Modification time, seconds.
    pub(super) fn mtime(&self) -> Result<i64, Reason> {
        signed_number(self.field(MTIME))
            .and_then(|n| i64::try_from(n).ok())
            .ok_or(Reason::Number("mtime"))
    }

    /// Device numbers.
    pub(super) fn device(&self) -> Result<(u32, u32), Reason> {
        let part =
            |at, what| u32::try_from(self.number(at, what)?).map_err(|_| Reason::Number(what));
        Ok((
            part(DEV_MAJOR, "major device number")?,
            part(DEV_MINOR, "minor device number")?,
        ))
    }

    /// Length of the expanded file, of an old GNU sparse header.
    pub(super) fn real_size(&self) -> Result<u64, Reason> {
        if !self.is_gnu() {
            return Err(Reason::Sparse("a sparse entry without a GNU header"));
        }
        self.number(GNU_REAL_SIZE, "expanded size")
    }

    /// The pairs of an old GNU sparse header or (`extension`) of a block behind it, and whether
    /// another block follows.
    pub(super) fn sparse_pairs(&self, extension: bool) -> Result<(Vec<(u64, u64)>, bool), Reason> {
        let (start, end, more) = if extension {
            (0, EXTENSION_IS_EXTENDED, EXTENSION_IS_EXTENDED)
        } else {
            (GNU_SPARSE, GNU_IS_EXTENDED, GNU_IS_EXTENDED)
        };
        let mut pairs = Vec::new();
        for at in (start..end).step_by(24) {
            // A pair without a length ends the list; one with length 0 says where the file ends.
            if self.0[at + 12] == 0 {
                break;
            }
            let number = |at| self.number((at, at + 12), "sparse map");
            pairs.push((number(at)?, number(at + 12)?));
        }
        Ok((pairs, self.0[more] != 0))
    }
}

pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

/// Octal digits with blanks around them; nothing at all is 0, as every tar reads it.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = until_nul(field).trim_ascii();
    digits.iter().try_fold(0_u64, |n, &b| match b {
        b'0'..=b'7' => n.checked_mul(8)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

/// An octal number, or GNU's base-256 one: big-endian two's complement whose first bit is replaced
/// by a mark.
fn signed_number(field: &[u8]) -> Option<i128> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field).map(i128::from);
    }
    // Seven bits of the first byte, the sign among them.
    let mut n = i128::from((first << 1).cast_signed() >> 1);
    for &b in rest {
        n = n << 8 | i128::from(b);
    }
    Some(n)
}

/// A ustar header to be written.
pub(super) struct NewHeader<'a> {
    /// Type flag.
    pub kind: u8,
    /// Name; cut off at 100 bytes, the whole of it is then in a PAX record.
    pub name: &'a [u8],
    /// Target of a link, cut off likewise.
    pub linkname: &'a [u8],
    /// Permission bits.
    pub mode: u32,
    /// Owner; 0 when it does not fit, the true one is then in a PAX record, as for the numbers that
    /// follow.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Length of the data.
    pub size: u64,
    /// Modification time, seconds.
    pub mtime: u64,
    /// Device numbers.
    pub device: (u32, u32),
}

impl NewHeader<'_> {
    /// The block.
    pub(super) fn encode(&self) -> Block {
        let mut b = [0; BLOCK];
        put_text(&mut b, NAME, self.name);
        put_text(&mut b, LINKNAME, self.linkname);
        put_octal(&mut b, MODE, u64::from(self.mode));
        put_octal(&mut b, UID, self.uid);
        put_octal(&mut b, GID, self.gid);
        put_octal(&mut b, SIZE, self.size);
        put_octal(&mut b, MTIME, self.mtime);
        put_octal(&mut b, DEV_MAJOR, u64::from(self.device.0));
        put_octal(&mut b, DEV_MINOR, u64::from(self.device.1));
        b[TYPE] = self.kind;
        b[MAGIC.0..MAGIC.1].copy_from_slice(USTAR_MAGIC);
        b[CHECKSUM.0..CHECKSUM.1].fill(b' ');
        let sum: u64 = b.iter().map(|&b| u64::from(b)).sum();
        put_octal(&mut b, (CHECKSUM.0, CHECKSUM.0 + 7), sum);
        b
    }
}

fn put_text(b: &mut Block, (start, end): (usize, usize), text: &[u8]) {
    let len = text.len().min(end - start);
    b[start..start + len].copy_from_slice(&text[..len]);
}

/// Octal digits and a NUL.
fn put_octal(b: &mut Block, (start, end): (usize, usize), mut n: u64) {
    for at in (start..end - 1).rev() {
        #[allow(clippy::cast_possible_truncation)] // three bits
        let digit = (n & 7) as u8;
        b[at] = b'0' + digit;
        n >>= 3;
    }
    b[end - 1] = 0;
}

/// A number in decimal digits, and nothing else; `None` for one that is too large.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |n, &b| match b {
        b'0'..=b'9' => n.checked_mul(10)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(signed_number(b"0000644\0"), Some(0o644));
        assert_eq!(signed_number(b"   644 \0"), Some(0o644));
        assert_eq!(signed_number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(signed_number(b"77777777"), Some(0o77_777_777));
        assert_eq!(signed_number(b"0000648\0"), None);
        assert_eq!(signed_number(b"6 4\0"), None);
        assert_eq!(signed_number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(signed_number(&[0xff; 12]), Some(-1));
        assert_eq!(
            signed_number(&[
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe
            ]),
            Some(-2)
        );
        let mut past_u64 = [0; 12];
        (past_u64[0], past_u64[1]) = (0x80, 1);
        assert!(signed_number(&past_u64).unwrap() > i128::from(u64::MAX));
    }

    #[test]
    fn the_reader_reads_what_the_writer_writes() {
        let new = NewHeader {
            kind: b'3',
            name: b"dev/null",
            linkname: b"",
            mode: 0o666,
            uid: 5,
            gid: MAX_OCTAL_7,
            size: 0,
            mtime: MAX_OCTAL_11,
            device: (1, 0xf_ffff),
        };
        let block = new.encode();
        let header = Header(&block);
        header.check().unwrap();
        assert_eq!(header.name(), b"dev/null");
        assert_eq!(
            (header.mode(), header.uid(), header.gid()),
            (Ok(0o666), Ok(5), Ok(MAX_OCTAL_7))
        );
        assert_eq!(
            (header.mtime(), header.device()),
            (Ok(0o77_777_777_777), Ok((1, 0xf_ffff)))
        );
        let mut other = block;
        other[0] ^= 1;
        assert_eq!(Header(&other).check(), Err(Reason::Checksum));
    }
}
