//! Extended attributes. All are shared: each name with its value is there once, and inodes refer
//! to it.

use std::collections::HashMap;

use bfc::rootfs::format::Inode as Record;

use super::super::error::{Error, Result};
use super::super::format::{
    MAX_SHARED_XATTRS, MAX_XATTR_VALUE, OVERLAY_MARKS, XATTR_ALIGN, XATTR_HEADER_LEN, XattrEntry,
    split_xattr_name,
};
use super::MAX_METADATA;
use crate::fs::Rootfs;

/// The attributes of all inodes.
pub(super) struct Xattrs<'a> {
    rootfs: &'a Rootfs,
    is_shown: bool,
    /// Bodies of the sets, by their offsets in the section.
    sets: HashMap<u32, Vec<u8>>,
    /// Numbers of the entries.
    numbers: HashMap<Vec<u8>, u32>,
    /// All entries.
    entries: Vec<u8>,
    /// How many bytes of sets were read: those of a hostile section may overlap.
    read: u64,
}

impl<'a> Xattrs<'a> {
    pub(super) fn new(rootfs: &'a Rootfs) -> Self {
        Self {
            rootfs,
            is_shown: rootfs.has_xattrs(),
            sets: HashMap::new(),
            numbers: HashMap::new(),
            entries: Vec::new(),
            read: 0,
        }
    }

    /// Appends the body of an inode's attributes; nothing if it has none.
    pub(super) fn append(&mut self, record: &Record, out: &mut Vec<u8>) -> Result<()> {
        if !self.is_shown || record.xattr == 0 {
            return Ok(());
        }
        if let Some(body) = self.sets.get(&record.xattr) {
            out.extend_from_slice(body);
            return Ok(());
        }
        let body = self.body(record)?;
        out.extend_from_slice(&body);
        self.sets.insert(record.xattr, body);
        Ok(())
    }

    fn body(&mut self, record: &Record) -> Result<Vec<u8>> {
        let inexpressible = |reason| Error::Inexpressible {
            ino: record.ino,
            reason,
        };
        let mut set = self.rootfs.section().xattrs(record)?;
        set.retain(|xattr| !xattr.name.starts_with(OVERLAY_MARKS));
        if set.len() > MAX_SHARED_XATTRS {
            return Err(inexpressible("more than 255 extended attributes"));
        }
        let mut body = Vec::new();
        for xattr in &set {
            self.read += (xattr.name.len() + xattr.value.len()) as u64;
            if self.read > MAX_METADATA {
                return Err(Error::Metadata);
            }
            let (index, name) = split_xattr_name(&xattr.name).ok_or_else(|| {
                inexpressible("an extended attribute of a name space that EROFS does not have")
            })?;
            let value_len = u16::try_from(xattr.value.len()).ok();
            let (Some(value_len), Ok(name_len)) = (value_len, u8::try_from(name.len())) else {
                return Err(inexpressible(
                    "an extended attribute has a value of more than 65,535 bytes",
                ));
            };
            debug_assert!(xattr.value.len() <= MAX_XATTR_VALUE);
            let head = XattrEntry {
                name_len,
                index,
                value_len,
            };
            let entry = [&head.encode(), name, &xattr.value].concat();
            if body.is_empty() {
                body.resize(XATTR_HEADER_LEN, 0);
                #[allow(clippy::cast_possible_truncation)] // at most 255
                {
                    body[4] = set.len() as u8;
                }
            }
            body.extend_from_slice(&self.number(entry).to_le_bytes());
        }
        Ok(body)
    }

    /// The number of an entry.
    fn number(&mut self, entry: Vec<u8>) -> u32 {
        #[allow(clippy::cast_possible_truncation)] // below MAX_METADATA
        let next = (self.entries.len() / XATTR_ALIGN) as u32;
        *self.numbers.entry(entry).or_insert_with_key(|entry| {
            self.entries.extend_from_slice(entry);
            let end = self.entries.len().next_multiple_of(XATTR_ALIGN);
            self.entries.resize(end, 0);
            next
        })
    }

    /// The entries.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.entries)
    }
}
