//! The canonical form of a tar: ustar headers, and a PAX header before each entry that ustar cannot
//! express. The same entries always give the same bytes.

use std::io::{self, Read, Write};

use bfc::format::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK};
use bfc::rootfs::Attr;

use super::header::{MAX_OCTAL_7, MAX_OCTAL_11, NewHeader};
use super::{BLOCK, pax};

/// Longest name and target in a header.
const MAX_NAME: usize = 100;

/// The rest of an entry besides its path and attributes.
pub enum Body<'a> {
    /// A regular file: its length and its bytes.
    File(u64, &'a mut dyn Read),
    /// A regular file with holes: its length, the offset and length of each part that is data, in
    /// order, and the bytes of these parts.
    Sparse(u64, &'a [(u64, u64)], &'a mut dyn Read),
    /// Another name of the file at this path.
    HardLink(&'a [u8]),
    /// A symbolic link's target.
    Symlink(&'a [u8]),
    /// A device's major and minor number.
    Device(u32, u32),
    /// Nothing: a directory, a fifo, a socket.
    None,
}

impl std::fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Body::File(..) => "File",
            Body::Sparse(..) => "Sparse",
            Body::HardLink(_) => "HardLink",
            Body::Symlink(_) => "Symlink",
            Body::Device(..) => "Device",
            Body::None => "None",
        })
    }
}

/// Writes a tar.
pub struct Writer<W> {
    out: W,
}

/// The map of a sparse file of GNU's form 1.0: the number of its parts and the parts, in decimal
/// lines, in whole blocks.
fn sparse_map(size: u64, parts: &[(u64, u64)]) -> Vec<u8> {
    // The end of a file that ends in a hole is a part of no bytes.
    let end = parts.last().map_or(0, |(offset, len)| offset + len);
    let last = (end < size).then_some((size, 0));
    let mut map = format!("{}\n", parts.len() + usize::from(last.is_some())).into_bytes();
    for (offset, len) in parts.iter().copied().chain(last) {
        map.extend_from_slice(format!("{offset}\n{len}\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

impl<W> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl<W: Write> Writer<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Appends an entry. `path` is relative and ends in a slash for no entry; the root's is empty.
    ///
    /// # Errors
    /// The errors of `out` and of the file's reader; [`io::ErrorKind::UnexpectedEof`] if the file
    /// is too short.
    pub fn append(&mut self, path: &[u8], attr: &Attr, body: Body<'_>) -> io::Result<()> {
        let mut name = if path.is_empty() {
            b".".to_vec()
        } else {
            path.to_vec()
        };
        let is_link = matches!(body, Body::HardLink(_));
        let kind = match attr.mode & S_IFMT {
            _ if is_link => b'1',
            S_IFREG => b'0',
            S_IFLNK => b'2',
            S_IFCHR => b'3',
            S_IFBLK => b'4',
            S_IFDIR => {
                name.push(b'/');
                b'5'
            }
            S_IFIFO | S_IFSOCK => b'6',
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "a file of unknown type",
                ));
            }
        };
        let map = match &body {
            Body::Sparse(size, parts, _) => sparse_map(*size, parts),
            _ => Vec::new(),
        };
        let (target, size, device) = match &body {
            Body::File(size, _) => (b"".as_slice(), *size, (0, 0)),
            Body::Sparse(_, parts, _) => {
                let data: u64 = parts.iter().map(|(_, len)| len).sum();
                (b"".as_slice(), map.len() as u64 + data, (0, 0))
            }
            Body::HardLink(target) | Body::Symlink(target) => (*target, 0, (0, 0)),
            Body::Device(major, minor) => (b"".as_slice(), 0, (*major, *minor)),
            Body::None => (b"".as_slice(), 0, (0, 0)),
        };
        let mut records = Vec::new();
        let mut number = |key: &[u8], value: u64, max| {
            if value <= max {
                return value;
            }
            pax::push_record(&mut records, key, value.to_string().as_bytes());
            0
        };
        let uid = number(b"uid", u64::from(attr.uid), MAX_OCTAL_7);
        let gid = number(b"gid", u64::from(attr.gid), MAX_OCTAL_7);
        let size_field = number(b"size", size, MAX_OCTAL_11);
        let mtime = u64::try_from(attr.mtime_s)
            .ok()
            .filter(|&s| s <= MAX_OCTAL_11);
        if attr.mtime_ns != 0 || mtime.is_none() {
            pax::push_record(
                &mut records,
                b"mtime",
                pax::format_time(attr.mtime_s, attr.mtime_ns).as_bytes(),
            );
        }
        if let Body::Sparse(size, ..) = &body {
            // GNU's form 1.0: the map is in front of the data.
            for (key, value) in [
                (b"GNU.sparse.major".as_slice(), b"1".as_slice()),
                (b"GNU.sparse.minor", b"0"),
                (b"GNU.sparse.name", &name),
                (b"GNU.sparse.realsize", size.to_string().as_bytes()),
            ] {
                pax::push_record(&mut records, key, value);
            }
        } else if name.len() > MAX_NAME {
            pax::push_record(&mut records, b"path", &name);
        }
        if target.len() > MAX_NAME {
            pax::push_record(&mut records, b"linkpath", target);
        }
        if !is_link {
            let mut xattrs: Vec<_> = attr.xattrs.iter().collect();
            xattrs.sort_by(|a, b| a.name.cmp(&b.name));
            for xattr in xattrs {
                pax::push_xattr(&mut records, xattr);
            }
            if attr.mode & S_IFMT == S_IFSOCK {
                pax::push_record(&mut records, pax::TYPE, b"socket");
            }
        }
        let header = NewHeader {
            kind,
            name: &name,
            linkname: target,
            mode: attr.mode & 0o7777,
            uid,
            gid,
            size: size_field,
            mtime: mtime.unwrap_or(0),
            device,
        };
        if !records.is_empty() {
            self.pax_header(&name, &records)?;
        }
        self.out.write_all(&header.encode())?;
        if let Body::File(_, input) | Body::Sparse(_, _, input) = body {
            self.out.write_all(&map)?;
            let data = size - map.len() as u64;
            let copied = io::copy(&mut input.take(data), &mut self.out)?;
            if copied != data {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.pad(size)?;
        }
        Ok(())
    }

    fn pax_header(&mut self, name: &[u8], records: &[u8]) -> io::Result<()> {
        let base = name
            .strip_suffix(b"/")
            .unwrap_or(name)
            .rsplit(|&b| b == b'/')
            .next()
            .unwrap_or_default();
        let mut pax_name = b"PaxHeaders/".to_vec();
        pax_name.extend_from_slice(&base[..base.len().min(MAX_NAME - pax_name.len())]);
        let size = records.len() as u64;
        let header = NewHeader {
            kind: b'x',
            name: &pax_name,
            linkname: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            size,
            mtime: 0,
            device: (0, 0),
        };
        self.out.write_all(&header.encode())?;
        self.out.write_all(records)?;
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        self.out.write_all(&[0; BLOCK][..super::padding(size)])
    }

    /// Writes the end of the archive.
    ///
    /// # Errors
    /// The error of the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }
}
