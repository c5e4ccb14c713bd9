//! CRC-32C in the two flavours that BFC files use (FORMAT.md, "Checksums").

/// Which CRC a file's writer computed. The polynomial is Castagnoli's in both; `header_crc` shows
/// which one a file uses, for all its CRCs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// Initial value 0 and no final inversion: what the reference tool computes with hardware CRC
    /// instructions (x86-64 with SSE4.2, arm64), and what this crate writes.
    Raw,
    /// Standard CRC-32C, initial value and final inversion all ones: the reference tool's table
    /// fallback.
    Standard,
}

impl Flavour {
    /// The CRC of `data`.
    pub fn crc(self, data: &[u8]) -> u32 {
        self.update(0, data)
    }

    /// The CRC of `len` zeros.
    pub fn of_zeros(self, len: u64) -> u32 {
        const ZEROS: [u8; 1 << 12] = [0; 1 << 12];
        if self == Flavour::Raw {
            return 0;
        }
        let (mut crc, mut left) = (0, len);
        while left > 0 {
            #[allow(clippy::cast_possible_truncation)] // at most a few thousand
            let n = left.min(ZEROS.len() as u64) as usize;
            crc = self.update(crc, &ZEROS[..n]);
            left -= n as u64;
        }
        crc
    }

    /// Continues `crc` (0 for none yet) with `data`.
    pub fn update(self, crc: u32, data: &[u8]) -> u32 {
        match self {
            Flavour::Standard => crc32c::crc32c_append(crc, data),
            Flavour::Raw => !crc32c::crc32c_append(!crc, data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Flavour;

    #[test]
    fn known_values() {
        assert_eq!(Flavour::Standard.crc(b"123456789"), 0xE306_9283);
        assert_eq!(Flavour::Raw.crc(b""), 0);
        // A raw CRC ignores leading zeros; a standard one does not.
        assert_eq!(Flavour::Raw.crc(b"\0\0x"), Flavour::Raw.crc(b"x"));
        assert_ne!(Flavour::Standard.crc(b"\0\0x"), Flavour::Standard.crc(b"x"));
    }

    #[test]
    fn update_continues() {
        for flavour in [Flavour::Raw, Flavour::Standard] {
            let whole = flavour.crc(b"hello, world");
            assert_eq!(flavour.update(flavour.crc(b"hello, "), b"world"), whole);
            for len in [0, 1, 4096, 5000] {
                let zeros = vec![0; len];
                assert_eq!(flavour.of_zeros(len as u64), flavour.crc(&zeros));
            }
        }
    }
}
