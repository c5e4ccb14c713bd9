//! The merged tree as a tar.

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use bfc::format::{S_IFBLK, S_IFCHR, S_IFLNK, S_IFMT, S_IFREG};
use bfc::rootfs::format::Inode;

use super::WriteError;
use crate::build::content::{ContentReader, attr_of};
use crate::build::error::Error;
use crate::build::output::{Output, refuse_taken};
use crate::error::Io;
use crate::fs::{Order, ROOT, Rootfs, Seek, Step, Visit};
use crate::layer::tar::{Body, Writer};

/// Most parts of a file with holes; one with more is written without holes. Readers of tars have
/// limits for the map, which is a megabyte in some.
const MAX_PARTS: usize = 1 << 14;

/// The parts of a file that are data: offset and length. At most one more than [`MAX_PARTS`].
fn data_parts(rootfs: &Rootfs, ino: u32, inode: &Inode) -> Result<Vec<(u64, u64)>, WriteError> {
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some(start) = rootfs.seek(ino, at, Seek::Data)?
        && parts.len() <= MAX_PARTS
    {
        let hole = rootfs.seek(ino, start, Seek::Hole)?;
        at = hole.unwrap_or(inode.size);
        // The end of a search in a very long hole is none of its end.
        if at > start {
            parts.push((start, at - start));
        }
    }
    Ok(parts)
}

/// Writes the tree as a tar in canonical form: the same tree gives the same bytes.
///
/// # Errors
/// When the image is damaged, or `out` fails.
pub fn tree_tar(
    rootfs: &Rootfs,
    out: &mut dyn Write,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), WriteError> {
    let mut tar = Writer::new(out);
    // The first name of each file with several names: its directory, and its name there.
    let mut links: HashMap<u32, (u32, Vec<u8>)> = HashMap::new();
    let root = rootfs.inode(ROOT)?;
    tar.append(&[], &attr_of(rootfs, ROOT, &root)?, Body::None)?;
    let mut walk = rootfs.walk(ROOT, Order::Depth)?;
    while let Some(step) = walk.step()? {
        let Step::Enter(Visit { dir, ino, inode }) = step else {
            continue;
        };
        let path = walk.path();
        let attr = attr_of(rootfs, ino, &inode)?;
        if inode.nlink > 1 && !inode.is_dir() {
            if let Some((dir, name)) = links.get(&ino) {
                let mut first = rootfs.directory_path(*dir)?;
                if !first.is_empty() {
                    first.push(b'/');
                }
                first.extend_from_slice(name);
                tar.append(path, &attr, Body::HardLink(&first))?;
                continue;
            }
            links.insert(ino, (dir, walk.name().to_vec()));
        }
        match inode.mode & S_IFMT {
            S_IFREG => {
                let parts = data_parts(rootfs, ino, &inode)?;
                let (mut content, written);
                if parts == [(0, inode.size)] || inode.size == 0 || parts.len() > MAX_PARTS {
                    content = ContentReader::new(rootfs, ino);
                    written = tar.append(path, &attr, Body::File(inode.size, &mut content));
                } else {
                    content = ContentReader::of_parts(rootfs, ino, &parts);
                    let body = Body::Sparse(inode.size, &parts, &mut content);
                    written = tar.append(path, &attr, body);
                }
                content.checked::<WriteError>(written)?;
                progress(inode.size);
            }
            S_IFLNK => tar.append(path, &attr, Body::Symlink(&rootfs.readlink(ino)?))?,
            S_IFCHR | S_IFBLK => {
                let (major, minor) = inode.rdev();
                tar.append(path, &attr, Body::Device(major, minor))?;
            }
            _ => tar.append(path, &attr, Body::None)?,
        }
    }
    tar.finish()?;
    Ok(())
}

/// Like [`tree_tar`], into a new file, which does not exist after a failure.
///
/// # Errors
/// As [`tree_tar`], and if something exists at `path`.
pub fn tree_tar_file(
    rootfs: &Rootfs,
    path: &Path,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), Error> {
    refuse_taken(path)?;
    let output = Output::create(path, false)?;
    let mut out = BufWriter::with_capacity(1 << 18, output.file()?);
    tree_tar(rootfs, &mut out, progress).map_err(|e| e.with_output(path))?;
    let file = out
        .into_inner()
        .map_err(|e| Io::at("writing", path)(e.into_error()))?;
    file.sync_all().map_err(Io::at("writing", path))?;
    output.publish()
}
