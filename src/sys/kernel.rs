//! Features of the running kernel that only its version shows.

/// Major and minor version of the kernel.
pub fn version() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or_default());
    (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    )
}

/// Whether overlayfs can find files of a FUSE mount by handle, which its `index` needs:
/// docs/SEMANTICS.md, "The fuse engine on Linux 6.16 and later".
pub fn finds_fuse_handles() -> bool {
    version() < (6, 16)
}
