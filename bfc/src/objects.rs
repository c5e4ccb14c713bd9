//! Checks the objects of a file as a version 1 reader sees them: their headers must say what the
//! index says. Reading an image never needs this, because the index or the rootfs section has all
//! of it; programs that are not ours may read the headers.

use crate::container::{Container, Index};
use crate::error::{Error, Result};
use crate::format::{
    FOOTER_LEN, IndexEntry, OBJECT_LEN, ObjectHeader, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG,
};
use crate::source::{read_exact_at, read_vec_at};

/// Longest target of a symlink, bytes (PATH_MAX of Linux).
const MAX_TARGET: u64 = 4096;

impl Container {
    /// Checks the header of each object in the index, and calls `damaged` with the path and the
    /// error for each that contradicts it. Also checks symlinks' targets, and that what is reserved
    /// in the footer is zero. It does not read the contents of files.
    pub fn check_objects(&self, index: &Index, damaged: &mut dyn FnMut(&[u8], Error)) {
        if let Err(error) = self.check_footer() {
            damaged(&[], error);
        }
        for entry in index.entries() {
            if let Err(error) = self.check_object(&entry) {
                damaged(entry.path, error);
            }
        }
    }

    fn check_footer(&self) -> Result<()> {
        let mut bytes = [0; FOOTER_LEN];
        let offset = self.len() - FOOTER_LEN as u64;
        read_exact_at(&**self.source(), &mut bytes, offset)?;
        if bytes == self.footer().encode() {
            return Ok(());
        }
        Err(Error::Footer { offset })
    }

    fn check_object(&self, entry: &IndexEntry<'_>) -> Result<()> {
        let offset = entry.obj_offset;
        let damaged = |reason| Err(Error::Content { offset, reason });
        let end = offset.checked_add(entry.obj_size);
        if entry.obj_size < OBJECT_LEN as u64 || end.is_none_or(|end| end > self.len()) {
            return damaged("the object ends outside the file");
        }
        let mut bytes = [0; OBJECT_LEN];
        read_exact_at(&**self.source(), &mut bytes, offset)?;
        let object = ObjectHeader::parse(&bytes);
        if bytes != object.encode() {
            return damaged("reserved bytes of the object's header are not zero");
        }
        let kind = match entry.mode & S_IFMT {
            S_IFREG => 1,
            S_IFDIR => 2,
            S_IFLNK => 3,
            _ => return damaged("the index has an entry of an unknown type"),
        };
        if object.kind != kind {
            return damaged("the object's header contradicts the index in type");
        }
        // This project's objects are shared between paths, and have neither.
        if ![0, entry.mode].contains(&object.mode)
            || ![0, entry.mtime_ns].contains(&object.mtime_ns)
        {
            return damaged("the object's header contradicts the index in mode or time");
        }
        let content = object.content_offset();
        let said = ((entry.orig_size, entry.crc), (entry.comp, entry.enc));
        let behind = match object.check(said.0, said.1, entry.obj_size) {
            Ok(behind) => behind,
            Err(reason) => return damaged(reason),
        };
        // Only the targets of symlinks are padded.
        if behind > 0 && (kind != 3 || behind >= 16) {
            return damaged("the content does not fill its object");
        }
        let before = read_vec_at(
            &**self.source(),
            offset + OBJECT_LEN as u64,
            content - OBJECT_LEN as u64,
        )?;
        let (name, padding) = before.split_at(usize::from(object.name_len));
        if !(name.is_empty() || name == entry.path) {
            return damaged("the object has the name of another one");
        }
        if padding.iter().any(|b| *b != 0) {
            return damaged("the bytes before the content are not zero");
        }
        if kind == 3 && object.comp == 0 && object.enc == 0 {
            if object.stored_size != object.orig_size || object.orig_size > MAX_TARGET {
                return damaged("the target of a symlink has an impossible length");
            }
            let length = object.orig_size + behind;
            let mut target = read_vec_at(&**self.source(), offset + content, length)?;
            let padding = target.split_off(target.len() - usize::try_from(behind).unwrap_or(0));
            if self.flavour().crc(&target) != object.crc || padding.iter().any(|b| *b != 0) {
                return damaged("a symlink's target does not have its checksum");
            }
        }
        Ok(())
    }
}
