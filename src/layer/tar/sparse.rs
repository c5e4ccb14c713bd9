//! Sparse entries: where the stored bytes belong in the expanded file.

use std::io::{self, Read};

use super::error::Reason;
use super::header::decimal;

/// Longest map, in bytes of its text or its blocks; Go's reader has the same limit.
pub(super) const MAX_MAP: usize = 1 << 20;

/// The parts of a sparse file that are stored, in order; the rest is holes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SparseMap {
    regions: Vec<(u64, u64)>,
}

impl SparseMap {
    /// A map of `(offset, length)` pairs for a file of `size` bytes of which `stored` are stored.
    pub fn new(mut regions: Vec<(u64, u64)>, size: u64, stored: u64) -> Result<Self, Reason> {
        let (mut end, mut total) = (0_u64, 0_u64);
        for &(offset, len) in &regions {
            if offset < end {
                return Err(Reason::Sparse("its parts overlap"));
            }
            end = offset
                .checked_add(len)
                .filter(|&end| end <= size)
                .ok_or(Reason::Sparse("a part lies after the end of the file"))?;
            total += len;
        }
        if total != stored {
            return Err(Reason::Sparse(
                "its parts are not as long as the stored data",
            ));
        }
        regions.retain(|&(_, len)| len > 0);
        Ok(Self { regions })
    }

    /// The `(offset, length)` of each part, none of them empty.
    pub fn regions(&self) -> &[(u64, u64)] {
        &self.regions
    }
}

/// PAX records about a sparse file, in GNU's formats 0.0, 0.1 and 1.0.
#[derive(Debug, Clone, Default)]
pub(super) struct PaxSparse {
    /// Major and minor number of the form.
    version: (u64, u64),
    /// Name of the expanded file.
    pub name: Option<Vec<u8>>,
    /// Its length.
    pub size: Option<u64>,
    /// The map, of the forms 0.0 and 0.1.
    pub map: Option<Vec<(u64, u64)>>,
    offset: Option<u64>,
}

impl PaxSparse {
    /// Whether the map is in front of the data.
    pub(super) fn map_in_data(&self) -> bool {
        self.version == (1, 0)
    }

    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Reason> {
        let bad = || Reason::PaxValue(format!("GNU.sparse.{}", String::from_utf8_lossy(key)));
        let number = || decimal(value).ok_or_else(bad);
        match key {
            b"major" => self.version.0 = number()?,
            b"minor" => self.version.1 = number()?,
            b"size" | b"realsize" => self.size = Some(number()?),
            b"name" => {
                if value.contains(&0) {
                    return Err(Reason::Nul("a path"));
                }
                self.name = Some(value.to_vec());
            }
            b"numblocks" => self.map = Some(Vec::new()),
            b"offset" => self.offset = Some(number()?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or_else(bad)?;
                self.map.get_or_insert_default().push((offset, number()?));
            }
            b"map" => {
                let numbers = value
                    .split(|&b| b == b',')
                    .filter(|n| !n.is_empty())
                    .map(decimal)
                    .collect::<Option<Vec<_>>>();
                let numbers = numbers.filter(|n| n.len() % 2 == 0).ok_or_else(bad)?;
                self.map = Some(
                    numbers
                        .chunks_exact(2)
                        .map(|pair| (pair[0], pair[1]))
                        .collect(),
                );
            }
            _ => {}
        }
        match self.version {
            (0, 0 | 1) | (1, 0) => Ok(()),
            _ => Err(Reason::Sparse("its format is unknown")),
        }
    }
}

/// Reads the map that form 1.0 has in front of the data: lines of a number each, the first says how
/// many pairs follow.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    count: Option<u64>,
    line: Option<u64>,
    numbers: Vec<u64>,
    read: usize,
}

impl MapReader {
    /// Takes the next block of the data; the map once it is complete (the rest of the block is
    /// padding).
    pub(super) fn block(&mut self, block: &[u8]) -> Result<Option<Vec<(u64, u64)>>, Reason> {
        let bad = Reason::Sparse("it is malformed");
        self.read += block.len();
        if self.read > MAX_MAP {
            return Err(Reason::TooLong("a sparse map", MAX_MAP));
        }
        for &b in block {
            match b {
                b'0'..=b'9' => {
                    let n = self
                        .line
                        .unwrap_or(0)
                        .checked_mul(10)
                        .and_then(|n| n.checked_add(u64::from(b - b'0')));
                    self.line = Some(n.ok_or_else(|| bad.clone())?);
                }
                b'\n' => {
                    let n = self.line.take().ok_or_else(|| bad.clone())?;
                    match self.count {
                        None => self.count = Some(n),
                        Some(_) => self.numbers.push(n),
                    }
                    if self.count.and_then(|pairs| pairs.checked_mul(2))
                        == Some(self.numbers.len() as u64)
                    {
                        return Ok(Some(
                            self.numbers
                                .chunks_exact(2)
                                .map(|pair| (pair[0], pair[1]))
                                .collect(),
                        ));
                    }
                }
                _ => return Err(bad),
            }
        }
        Ok(None)
    }
}

/// Reads the expanded file: `inner` gives the stored bytes, one part after the other.
pub struct Expand<'a, R> {
    inner: R,
    regions: std::slice::Iter<'a, (u64, u64)>,
    /// The rest of the hole, and of the part after it.
    hole: u64,
    data: u64,
    at: u64,
    size: u64,
}

impl<R> std::fmt::Debug for Expand<'_, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Expand")
            .field("at", &self.at)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl<'a, R: Read> Expand<'a, R> {
    /// Expands a file of `size` bytes.
    pub fn new(inner: R, map: &'a SparseMap, size: u64) -> Self {
        Self {
            inner,
            regions: map.regions.iter(),
            hole: 0,
            data: 0,
            at: 0,
            size,
        }
    }
}

impl<R: Read> Read for Expand<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || self.at == self.size {
            return Ok(0);
        }
        if self.hole == 0 && self.data == 0 {
            let (offset, len) = self.regions.next().copied().unwrap_or((self.size, 0));
            (self.hole, self.data) = (offset - self.at, len);
        }
        let room = buf.len();
        let within = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(room);
        let n = if self.hole > 0 {
            let n = within(self.hole);
            buf[..n].fill(0);
            self.hole -= n as u64;
            n
        } else {
            let n = self.inner.read(&mut buf[..within(self.data)])?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.data -= n as u64;
            n
        };
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn maps_that_lie() {
        let map =
            |regions: &[(u64, u64)], size, stored| SparseMap::new(regions.to_vec(), size, stored);
        assert_eq!(
            map(&[(0, 2), (4, 2), (8, 0)], 8, 4).unwrap().regions(),
            [(0, 2), (4, 2)]
        );
        assert!(map(&[], 8, 0).is_ok());
        for (regions, size, stored) in [
            (vec![(4, 2), (0, 2)], 8, 4),
            (vec![(0, 3), (2, 2)], 8, 5),
            (vec![(0, 9)], 8, 9),
            (vec![(u64::MAX, 2)], u64::MAX, 2),
            (vec![(0, 2)], 8, 3),
        ] {
            assert!(map(&regions, size, stored).is_err(), "{regions:?}");
        }
    }

    #[test]
    fn expansion() {
        let map = SparseMap::new(vec![(1, 2), (3, 1), (6, 1), (9, 0)], 9, 4).unwrap();
        let mut out = Vec::new();
        Expand::new(b"abcd".as_slice(), &map, 9)
            .read_to_end(&mut out)
            .unwrap();
        assert_eq!(out, b"\0abc\0\0d\0\0");
        assert!(
            Expand::new(b"abc".as_slice(), &map, 9)
                .read_to_end(&mut Vec::new())
                .is_err()
        );
    }

    #[test]
    fn maps_in_data() {
        let mut reader = MapReader::default();
        assert_eq!(reader.block(b"2\n0\n1").unwrap(), None);
        assert_eq!(
            reader.block(b"0\n20\n5\n\0\0\0").unwrap(),
            Some(vec![(0, 10), (20, 5)])
        );
        assert_eq!(
            MapReader::default().block(b"0\n\0\0").unwrap(),
            Some(vec![])
        );
        for bad in ["\n", "x\n", "2\n1 \n", "99999999999999999999999\n"] {
            assert!(MapReader::default().block(bad.as_bytes()).is_err(), "{bad}");
        }
        let mut endless = MapReader::default();
        assert!(
            (0..)
                .find_map(|_| endless.block(&[b'1', b'\n'].repeat(256)).err())
                .is_some()
        );
    }
}
