//! Which extended attributes a file of a layer can have. What every kernel refuses would make the
//! file unusable where it is mounted, or copied up, so it is left out with a warning.

use bfc::format::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use bfc::rootfs::{Attr, Xattr};

use super::acl;

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
const CAPABILITY: &[u8] = b"security.capability";
/// Permissions of owner, group and others in a mode.
const PERMISSIONS: u32 = 0o777;

/// Whether it is an access control list.
pub(super) fn is_list(name: &[u8]) -> bool {
    [ACCESS, DEFAULT].contains(&name)
}

/// How many warnings there are for a layer: a tar of another system may have such attributes at
/// every file.
const MAX_WARNINGS: u32 = 10;

/// Leaves out what a file of this type cannot have, and makes mode and access control list agree,
/// as chmod and setfacl do. A hard link counts as a regular file: nothing is known of its target.
/// `left_out` counts in the layer.
pub(super) fn fit(path: &[u8], attr: &mut Attr, left_out: &mut u32) {
    let file_type = attr.mode & S_IFMT;
    for xattr in std::mem::take(&mut attr.xattrs) {
        if can_have(file_type, &xattr) {
            attr.xattrs.push(xattr);
            continue;
        }
        *left_out = left_out.saturating_add(1);
        match *left_out {
            ..=MAX_WARNINGS => tracing::warn!(
                "{}: the attribute {} is left out, which kernels refuse there",
                path.escape_ascii(),
                xattr.name.escape_ascii()
            ),
            n if n == MAX_WARNINGS + 1 => {
                tracing::warn!("more attributes are left out that kernels refuse");
            }
            _ => {}
        }
        if xattr.name == ACCESS && file_type != S_IFLNK {
            // The mode has the mask in the place of the group's permissions.
            attr.mode &= !(!acl::group_of(&xattr.value) << 3 & 0o070);
        }
    }
    let Some(at) = attr.xattrs.iter().position(|xattr| xattr.name == ACCESS) else {
        return;
    };
    match acl::mode(&attr.xattrs[at].value) {
        acl::Mode::None => {
            attr.xattrs.remove(at);
        }
        acl::Mode::Whole(permissions) => {
            attr.mode = attr.mode & !PERMISSIONS | permissions;
            attr.xattrs.remove(at);
        }
        acl::Mode::Part(permissions) => attr.mode = attr.mode & !PERMISSIONS | permissions,
    }
}

/// Whether the kernel lets a file of this type have it: `xattr_permission` in fs/xattr.c, and what
/// each namespace asks for (xattr(7)).
fn can_have(file_type: u32, xattr: &Xattr) -> bool {
    match &*xattr.name {
        ACCESS => file_type != S_IFLNK && acl::is_valid(&xattr.value),
        DEFAULT => file_type == S_IFDIR && acl::is_valid(&xattr.value),
        CAPABILITY => is_capability(&xattr.value),
        name if name.starts_with(b"user.") => matches!(file_type, S_IFDIR | S_IFREG),
        name => name.starts_with(b"trusted.") || name.starts_with(b"security."),
    }
}

/// Whether it is the value of a file capability: `struct vfs_cap_data` or `vfs_ns_cap_data` of
/// linux/capability.h, by length and revision.
fn is_capability(value: &[u8]) -> bool {
    let revision = value.get(3);
    matches!(
        (value.len(), revision),
        (12, Some(1)) | (20, Some(2)) | (24, Some(3))
    )
}
