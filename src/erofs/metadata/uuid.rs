//! The UUID of the file system. overlayfs tells its lowers apart by it, and finds with it what it
//! has recorded about inodes; so two trees whose inodes have different numbers have different ones.

use super::super::error::Result;
use super::{Inodes, VERSION};
use crate::fs::{ROOT, Rootfs};

/// The UUID of what is shown of these images.
pub(super) fn of(rootfs: &Rootfs, form: Inodes) -> Result<[u8; 16]> {
    let mut hasher = blake3::Hasher::new_derive_key("lxcri-fs EROFS metadata");
    hasher.update(&VERSION.to_le_bytes());
    hasher.update(&[(form == Inodes::Long).into(), rootfs.has_xattrs().into()]);
    // Its number in the section: another one, if a directory of the image is shown as the root.
    hasher.update(&rootfs.inode(ROOT)?.ino.to_le_bytes());
    for container in rootfs.containers() {
        match container.locator()? {
            Some(locator) => hasher.update(&locator.root_digest),
            None => {
                hasher.update(&container.header().uuid);
                hasher.update(&container.len().to_le_bytes())
            }
        };
    }
    let mut uuid = [0; 16];
    hasher.finalize_xof().fill(&mut uuid);
    Ok(uuid)
}
