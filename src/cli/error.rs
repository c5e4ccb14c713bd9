//! How commands fail: the cause, a hint, and an exit code.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::output::notes;
use crate::serve::{self, chain};
use crate::{build, fs, registry, runtime, store, upper, zfs};

/// Shown by `--help`.
pub(super) const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 an image is damaged, 4 a password or key is missing or wrong, \
5 something named does not exist, 6 busy.";

/// Exit codes of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Anything that has no code of its own.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// An image is damaged.
    Damaged = 3,
    /// A password or key is missing or wrong.
    Key = 4,
    /// Something named does not exist.
    NotFound = 5,
    /// Something is in use.
    Busy = 6,
}

impl Exit {
    /// The exit code of another process of ours.
    fn from_code(code: u8) -> Self {
        [Exit::Usage, Exit::Damaged, Exit::Key, Exit::NotFound, Exit::Busy].into_iter().find(|e| *e as u8 == code).unwrap_or(Exit::Failure)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// A failed command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An image cannot be opened or read.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// Building or exporting.
    #[error(transparent)]
    Build(#[from] build::Error),
    /// Pulling and pushing.
    #[error(transparent)]
    Registry(registry::Error),
    /// Mounting, unmounting, or what concerns mounts.
    #[error(transparent)]
    Serve(#[from] serve::Error),
    /// What a container writes.
    #[error(transparent)]
    Upper(#[from] upper::Error),
    /// What concerns datasets and snapshots.
    #[error(transparent)]
    Zfs(#[from] zfs::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Containers.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// A file operation outside any image.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done, such as "opening".
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A path of an image.
    #[error("{}: {source}", path.display())]
    InImage {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        source: fs::Error,
    },
    /// Writing to standard output.
    #[error("writing the output")]
    Output(#[source] std::io::Error),
    /// The secret is not usable.
    #[error("{what}")]
    Secret {
        /// What is wrong.
        what: String,
        /// What the system said, if it did.
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
    /// Anything else, with its exit code.
    #[error("{message}")]
    Other {
        /// What went wrong.
        message: String,
        /// What to try.
        hint: Option<String>,
        /// Exit code.
        exit: Exit,
    },
}

impl From<registry::Error> for Error {
    fn from(error: registry::Error) -> Self {
        match error {
            registry::Error::Build(error) => Error::Build(error),
            error => Error::Registry(error),
        }
    }
}

impl Error {
    /// For `map_err`: an I/O error while doing something to a path.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Error::Io { doing, path: path.to_owned(), source }
    }

    pub(super) fn exit(&self) -> Exit {
        match self {
            Error::Fs(e) | Error::InImage { source: e, .. } => fs_exit(e),
            Error::Build(e) => build_exit(e),
            Error::Registry(e) => registry_exit(e),
            Error::Serve(e) => serve_exit(e),
            Error::Upper(e) => upper_exit(e),
            Error::Zfs(e) => zfs_exit(e),
            Error::Store(e) => store_exit(e),
            Error::Runtime(e) => runtime_exit(e),
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
            Error::Secret { .. } => Exit::Key,
            Error::Other { exit, .. } => *exit,
            Error::Io { .. } | Error::Output(_) => Exit::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Error::Serve(e) => serve_hint(e),
            Error::Upper(e) => upper_hint(e),
            Error::Zfs(e) => e.hint(),
            Error::Store(e) => store_hint(e),
            Error::Runtime(e) => runtime_hint(e),
            Error::Io { source, path, .. } if source.kind() == std::io::ErrorKind::NotConnected => {
                Some(format!("nobody serves what is mounted there; `lxcri-fs umount {}` takes it away", path.display()))
            }
            Error::Fs(e) | Error::InImage { source: e, .. } => fs_hint(e).map(str::to_owned),
            Error::Other { hint, .. } | Error::Build(build::Error::Source { hint, .. }) => hint.clone(),
            Error::Build(build::Error::Fs(e)) => fs_hint(e).map(str::to_owned),
            Error::Build(e) => registry::Error::of_build(e).and_then(registry::Error::hint),
            Error::Registry(e) => e.hint(),
            Error::Secret { .. } => Some("a password is one line of text, a key file 32 raw bytes".to_owned()),
            _ => None,
        }
    }

    /// Prints cause and hint, and gives the exit code. A closed pipe is silent.
    pub(super) fn report(&self) -> ExitCode {
        if matches!(self, Error::Output(e) if e.kind() == std::io::ErrorKind::BrokenPipe) {
            return Exit::Failure.into();
        }
        let (cause, hint) = (format!("lxcri-fs: {}", chain(self)), self.hint().map(|hint| format!("  hint: {hint}")));
        notes(&[Some(&*cause), hint.as_deref()].into_iter().flatten().collect::<Vec<_>>());
        self.exit().into()
    }
}

pub(super) fn fs_exit(error: &fs::Error) -> Exit {
    match error {
        fs::Error::Image { source, .. } => match source {
            bfc::Error::KeyNeeded | bfc::Error::WrongKey | bfc::Error::KeyFile(_) => Exit::Key,
            bfc::Error::Read { .. }
            | bfc::Error::Write { .. }
            | bfc::Error::Unsupported(_)
            | bfc::Error::Outdated
            | bfc::Error::Digest { .. } => Exit::Failure,
            _ => Exit::Damaged,
        },
        fs::Error::NotFound | fs::Error::Subdir { .. } => Exit::NotFound,
        fs::Error::Shared(error) => fs_exit(error),
        _ => Exit::Failure,
    }
}

fn build_exit(error: &build::Error) -> Exit {
    use crate::layer::Error as Layer;
    match error {
        build::Error::Fs(e) => fs_exit(e),
        build::Error::Remote { .. } => registry::Error::of_build(error).map_or(Exit::Failure, registry_exit),
        build::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
        build::Error::Layer { source: Layer::Tar(_) | Layer::Entry(_) | Layer::Skeleton(_), .. }
        | build::Error::Merge { .. }
        | build::Error::Decompress { .. }
        | build::Error::Mismatch { .. }
        | build::Error::Document { .. }
        | build::Error::Archive { .. } => Exit::Damaged,
        _ => Exit::Failure,
    }
}

fn registry_exit(error: &registry::Error) -> Exit {
    match error {
        registry::Error::Reference { .. } => Exit::Usage,
        registry::Error::Denied { .. } | registry::Error::Credentials { .. } => Exit::Key,
        registry::Error::Status { status, .. } if status.as_u16() == 404 => Exit::NotFound,
        registry::Error::Build(e) => build_exit(e),
        _ => Exit::Failure,
    }
}

/// Whether an error is the image's fault.
pub(super) fn is_damage(error: &fs::Error) -> bool {
    fs_exit(error) == Exit::Damaged
}

pub(super) fn fs_hint(error: &fs::Error) -> Option<&'static str> {
    match error {
        fs::Error::Image { source, .. } => match source {
            bfc::Error::KeyNeeded => Some("give --password-file, --key-file, or LXCRI_FS_PASSWORD"),
            bfc::Error::WrongKey => Some("check the password; a key file holds the 32 raw bytes"),
            bfc::Error::NoFooter { .. } | bfc::Error::CutOff { .. } => {
                Some("the image was cut off while it was copied or written: fetch or build it again")
            }
            bfc::Error::HeaderCrc | bfc::Error::IndexCrc | bfc::Error::Index { .. } | bfc::Error::Section { .. } => {
                Some("`lxcri-fs verify` tells what can still be read; fetch or build the image again")
            }
            bfc::Error::NotBfc(_) => Some("`lxcri-fs build` makes an image of a directory, an archive or an OCI image"),
            bfc::Error::Unsupported(_) => Some("a newer version of lxcri-fs may know it"),
            _ => None,
        },
        fs::Error::Subdir { .. } => Some("`lxcri-fs ls IMAGE` shows what is in the image"),
        fs::Error::Shared(error) => fs_hint(error),
        _ => None,
    }
}

fn zfs_exit(error: &zfs::Error) -> Exit {
    match error {
        zfs::Error::Name { .. } => Exit::Usage,
        zfs::Error::Command { cause: zfs::Cause::NotFound, .. } => Exit::NotFound,
        zfs::Error::Command { cause: zfs::Cause::Busy | zfs::Cause::HasClones | zfs::Cause::HasChildren, .. } => Exit::Busy,
        _ => Exit::Failure,
    }
}

fn store_exit(error: &store::Error) -> Exit {
    match error {
        store::Error::NotFound { .. } => Exit::NotFound,
        store::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
        store::Error::InUse { .. } | store::Error::Kept { .. } => Exit::Busy,
        store::Error::Fs(e) => fs_exit(e),
        store::Error::Serve(e) => serve_exit(e),
        store::Error::Zfs(e) => zfs_exit(e),
        store::Error::Facts { .. } => Exit::Damaged,
        store::Error::Location { .. } | store::Error::Reference { .. } | store::Error::Name { .. } | store::Error::Ambiguous { .. } => {
            Exit::Usage
        }
        _ => Exit::Failure,
    }
}

fn store_hint(error: &store::Error) -> Option<String> {
    let hint = match error {
        store::Error::Fs(e) => return fs_hint(e).map(str::to_owned),
        store::Error::Serve(e) => return serve_hint(e),
        store::Error::Zfs(e) => return e.hint(),
        store::Error::NotFound { kind: "image", .. } => "`lxcri-fs list` shows what there is; what is a file may be written ./FILE",
        store::Error::Location { .. } => "such as dir:/var/lib/lxcri-fs or zfs:tank/containers",
        store::Error::Reference { .. } => "such as nginx:1.27, or registry.example.org/team/app:v2; what is a file may be written ./FILE",
        store::Error::Config { .. } => "docs/STORE.md describes the configuration",
        store::Error::Ambiguous { .. } => "give more digits",
        store::Error::Kept { .. } => "-t NEW puts another image into the store, and leaves this one as it is; -o NEW makes a file of it",
        store::Error::InUse { kind: "container", .. } => {
            "`zfs rename` moves a dataset elsewhere, `zfs destroy` removes it; what is mounted can be unmounted"
        }
        store::Error::Facts { .. } => "`lxcri-fs doctor` tells more",
        store::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            "the store of the machine is root's; another is given by --store or LXCRI_FS_STORE"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

fn serve_exit(error: &serve::Error) -> Exit {
    match error {
        serve::Error::Failed(failure) => Exit::from_code(failure.exit),
        serve::Error::Busy { .. } | serve::Error::Mounted { .. } => Exit::Busy,
        serve::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
        _ => Exit::Failure,
    }
}

fn serve_hint(error: &serve::Error) -> Option<String> {
    let hint = match error {
        serve::Error::Failed(failure) => return failure.hint.clone(),
        serve::Error::Busy { .. } => "end what uses it, or take it out of sight now with --lazy",
        serve::Error::Mounted { .. } => "`lxcri-fs umount` unmounts it",
        serve::Error::NoResend => {
            "leave the mount with the program that it has, or unmount the image when nobody uses it, and mount it again"
        }
        serve::Error::Upgrade { .. } => "unmount the image when nobody uses it, and mount it again",
        serve::Error::Silent { path } => {
            return Some(format!(
                "it goes on when its disk or its worker does; `lxcri-fs umount --force {}` takes it away",
                path.display()
            ));
        }
        serve::Error::Foreign { .. } => "umount(8) unmounts it",
        serve::Error::Untrusted { .. } => "name the directory that is meant, without symlinks (`readlink -f` shows where they lead)",
        serve::Error::Io { source, path, .. } if source.kind() == std::io::ErrorKind::NotConnected => {
            return Some(format!("nobody serves what is mounted there; `lxcri-fs umount {}` takes it away", path.display()));
        }
        serve::Error::Io { doing: "opening", path, .. } if path == Path::new("/dev/fuse") => {
            "is the fuse module loaded? try `modprobe fuse`"
        }
        serve::Error::Io { doing: "running", .. } => "install the package fuse3",
        serve::Error::Gone { .. } | serve::Error::Timeout { .. } => "run it again with --foreground to see what it says",
        _ => return None,
    };
    Some(hint.to_owned())
}

fn upper_exit(error: &upper::Error) -> Exit {
    match error {
        upper::Error::Serve(e) => serve_exit(e),
        upper::Error::Fs(e) => fs_exit(e),
        upper::Error::Zfs(e) => zfs_exit(e),
        upper::Error::Build(e) => build_exit(e),
        upper::Error::LeftUnmounted { source, .. } => upper_exit(source),
        upper::Error::NoUpper { .. } => Exit::NotFound,
        upper::Error::InUse { .. } | upper::Error::Mounted { .. } | upper::Error::NewerSnapshots { .. } | upper::Error::Busy { .. } => {
            Exit::Busy
        }
        upper::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
        _ => Exit::Failure,
    }
}

fn upper_hint(error: &upper::Error) -> Option<String> {
    let hint = match error {
        upper::Error::Serve(e) => return serve_hint(e),
        upper::Error::Fs(e) | upper::Error::Build(build::Error::Fs(e)) => return fs_hint(e).map(str::to_owned),
        upper::Error::Build(build::Error::Source { hint, .. }) => return hint.clone(),
        upper::Error::NotAllowed => "run it as root, or in a user namespace of your own (`unshare -rm`)",
        upper::Error::NoUpper { .. } => "name the directory that was given to `mount --upper`, or what is mounted over it",
        upper::Error::Busy { .. } => "unmount it first, or keep it on ZFS, where a snapshot is taken of it",
        upper::Error::Zfs(e) => return e.hint(),
        upper::Error::Unfit { property: property @ ("xattr" | "acltype"), dataset, .. } => {
            let value = if *property == "xattr" { "sa" } else { "posixacl" };
            return Some(format!("`zfs set {property}={value} {dataset}`"));
        }
        upper::Error::NoSnapshots { .. } => "copy the directory while it is not mounted, or begin with `--upper zfs:DATASET` next time",
        upper::Error::Mounted { remount: true, .. } => "unmount it, or have --force unmount it and mount it again",
        upper::Error::Mounted { .. } => "unmount it",
        upper::Error::NewerSnapshots { clone: Some(clone), .. } => {
            return Some(format!("{clone} was cloned from one of them: `zfs promote {clone}` takes it along"));
        }
        upper::Error::NewerSnapshots { .. } => "--destroy-newer destroys them",
        upper::Error::LeftUnmounted { .. } | upper::Error::NotRemounted { .. } => {
            "`lxcri-fs mount` mounts it with the image that it belongs to"
        }
        upper::Error::Unfit { .. } => "this cannot be changed: have `lxcri-fs mount` make another dataset",
        upper::Error::Occupied { .. } => {
            "take an empty directory, or one that is not there yet; an upper that was copied is whole with its lxcri-fs.json"
        }
        upper::Error::Index { .. } => {
            "`lxcri-fs commit` makes an image with all that was written, and a new upper over that goes on from there"
        }
        upper::Error::Unusable { .. } => "use a directory on a local file system, such as ext4, XFS, btrfs, tmpfs, or ZFS 2.2 or later",
        upper::Error::Foreign { .. } => {
            "mount it with what it belongs to, or take another directory; `lxcri-fs commit` makes an image of both"
        }
        upper::Error::InUse { .. } => "each mount needs an upper of its own; `lxcri-fs ps` shows who has this one",
        upper::Error::Refused { source, .. } if source.raw_os_error() == Some(libc::ESTALE) => {
            "its work directory belongs to another upper: if it was copied here, remove `work` and mount again"
        }
        upper::Error::Refused { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            "mounting an overlay needs root, or a user namespace of one's own (`unshare -rm`)"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

fn runtime_exit(error: &runtime::Error) -> Exit {
    match error {
        runtime::Error::Fs(e) => fs_exit(e),
        runtime::Error::Serve(e) => serve_exit(e),
        runtime::Error::Upper(e) => upper_exit(e),
        runtime::Error::Store(e) => store_exit(e),
        runtime::Error::Mount { exit, .. } => Exit::from_code(*exit),
        runtime::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
        _ => Exit::Failure,
    }
}

pub(super) fn runtime_hint(error: &runtime::Error) -> Option<String> {
    match error {
        runtime::Error::Fs(e) => fs_hint(e).map(str::to_owned),
        runtime::Error::Serve(serve::Error::Busy { .. }) => Some("stop the container first".to_owned()),
        runtime::Error::Serve(e) => serve_hint(e),
        runtime::Error::Upper(e) => upper_hint(e),
        runtime::Error::Store(e) => store_hint(e),
        runtime::Error::Mount { hint, .. } | runtime::Error::Unfit { hint, .. } => hint.clone(),
        _ => None,
    }
}
