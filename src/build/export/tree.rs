//! The merged tree as a tar.

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use bfc::format::{S_IFBLK, S_IFCHR, S_IFLNK, S_IFMT, S_IFREG};

use super::WriteError;
use crate::build::content::{ContentReader, attr_of};
use crate::build::error::Error;
use crate::build::output::{Output, refuse_taken};
use crate::error::Io;
use crate::fs::{Order, ROOT, Rootfs, Step, Visit};
use crate::layer::tar::{Body, Writer};

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
                let mut content = ContentReader::new(rootfs, ino);
                let written = tar.append(path, &attr, Body::File(inode.size, &mut content));
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
