//! Volumes: directories that a container writes to outside its upper, so that `commit` and a change
//! of the image leave them alone. Those that an image declares, and those that the user names.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{Gid, Mode, OFlags, RenameFlags, ResolveFlags, fchmod, fchown, openat, openat2};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::image::ContainerImage;
use super::process::Process;
use super::record::ContainerRecord;
use super::root_mount::{make_directory, root_of};
use crate::error::Io;
use crate::fs::paths;
use crate::serve::mountpoint::MountPoint;
use crate::store::{self, Name, Store, remove_tree};
use crate::sys::directory::{self, DirectoryEntry, is_there};
use crate::sys::files;
use crate::sys::idmap::IdMap;
use crate::sys::tree_copy::TreeCopy;

/// Name of the directory of a container's own volumes, in the container's directory.
pub use crate::upper::upper_dir::VOLUMES as DIRECTORY;
/// What a volume has in it, in the directory or dataset of a volume of the store.
const DATA: &str = "data";
/// Name of the file that has the map of ids of a volume of the store, beside what is in it.
const MAP: &str = "idmap";
/// What that file says of a volume without a map.
const NO_MAP: &str = "none";
/// Longest such file, bytes.
const MAX_MAP: u64 = 1 << 16;
/// Ends the name of a volume that is being filled: no volume's own name has it.
const UNFINISHED: &str = "+";
/// Longest name of a directory, bytes.
const MAX_NAME: usize = 255 - UNFINISHED.len();
/// Most volumes of a container.
const MAX_VOLUMES: usize = 1000;

/// A volume that a user asks for: `SOURCE:DESTINATION[:ro]`, or a destination alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Volume {
    /// What is mounted.
    pub source: Source,
    /// Where, an absolute path in the container.
    pub destination: String,
    /// Whether the container cannot write to it.
    pub read_only: bool,
}

/// What is mounted as a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A new directory of the container's own, which is removed with it.
    Own,
    /// A volume of the store, which is made if it is missing, and stays.
    Named(Name),
    /// A directory or file of the host.
    Host(PathBuf),
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts: Vec<&str> = text.split(':').collect();
        let read_only = match parts.last() {
            Some(&"ro") if parts.len() > 1 => true,
            Some(&"rw") if parts.len() > 1 => false,
            _ => {
                parts.push("");
                false
            }
        };
        parts.pop();
        let (source, destination) = match parts[..] {
            [destination] => (Source::Own, destination),
            [source, destination] if source.starts_with(['/', '.']) => {
                (Source::Host(source.into()), destination)
            }
            [source, destination] => {
                let name = Name::new(source).ok().filter(|name| !name.is_work());
                let name = name.ok_or_else(|| {
                    format!(
                        "{source:?} is neither the name of a volume nor a path that begins with / \
                         or ."
                    )
                })?;
                (Source::Named(name), destination)
            }
            _ => return Err("it is not SOURCE:DESTINATION[:ro]".to_owned()),
        };
        let plain = |path: &str| {
            let mut parts = Path::new(path).components();
            parts.all(|part| !matches!(part, Component::ParentDir))
        };
        if !destination.starts_with('/') || !plain(destination) {
            return Err(format!(
                "{destination:?} is not an absolute path in the container"
            ));
        }
        Ok(Self {
            source,
            destination: destination.to_owned(),
            read_only,
        })
    }
}

impl TryFrom<String> for Volume {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Volume> for String {
    fn from(volume: Volume) -> Self {
        let source = match volume.source {
            Source::Own => String::new(),
            Source::Named(name) => format!("{name}:"),
            Source::Host(path) => format!("{}:", path.display()),
        };
        let read_only = if volume.read_only { ":ro" } else { "" };
        format!("{source}{}{read_only}", volume.destination)
    }
}

/// A volume in the record of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// The directory or file that is mounted.
    #[serde(with = "paths::path")]
    pub source: PathBuf,
    /// Its name, if it is a volume of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether it is the container's own.
    #[serde(default)]
    pub own: bool,
    /// Where it is in the container.
    pub destination: String,
    /// Whether the container cannot write to it.
    #[serde(default)]
    pub read_only: bool,
}

impl VolumeRecord {
    /// Whether it is in the store, and so made and filled here.
    pub(super) fn is_in_store(&self) -> bool {
        self.own || self.name.is_some()
    }

    /// Whether it is a directory, or will be; what else a user may name is mounted over a file.
    pub(super) fn is_directory(&self) -> bool {
        self.is_in_store() || self.source.is_dir()
    }
}

/// The volumes that an image declares and that have no place of their own: those of a read-only
/// root file system need a mount in memory.
pub(super) fn in_memory<'a>(
    process: &'a Process,
    volumes: &'a [VolumeRecord],
    read_only: bool,
) -> impl Iterator<Item = &'a String> {
    let has = |path: &String| volumes.iter().any(|volume| volume.destination == *path);
    let declared = process.volumes.iter();
    declared.filter(move |path| read_only && !has(path))
}

/// The volumes of a container: those that were asked for, and for each other one that the image
/// declares, one of its own. In the order in which they are mounted. With `declared` false, those
/// of the image are left out.
///
/// # Errors
/// [`Error::Unfit`] for a volume over the whole root file system or over the kernel's,
/// [`Error::Io`] for a path that does not exist.
pub(super) fn wanted(
    image: &ContainerImage<'_>,
    process: &Process,
    asked: &[Volume],
    declared: bool,
) -> Result<Vec<Volume>> {
    let mut all = BTreeMap::new();
    for destination in process.volumes.iter().filter(|_| declared) {
        // Others mount nothing there either.
        if !Process::is_kernels(destination) {
            all.insert(
                destination.clone(),
                Volume {
                    source: Source::Own,
                    destination: destination.clone(),
                    read_only: false,
                },
            );
        }
    }
    for volume in asked {
        let destination = image.place(&volume.destination)?;
        if Process::is_kernels(&destination) {
            return Err(Error::unfit(format!(
                "a volume on {destination} would hide files of the kernel or of the image"
            )));
        }
        let source = match &volume.source {
            // Before anything is made.
            Source::Host(path) => {
                let found = path.canonicalize();
                Source::Host(found.map_err(Io::at("finding the volume", path))?)
            }
            other => other.clone(),
        };
        let volume = Volume {
            source,
            destination: destination.clone(),
            read_only: volume.read_only,
        };
        all.insert(destination, volume);
    }
    if all.len() > MAX_VOLUMES {
        return Err(Error::unfit(format!("more than {MAX_VOLUMES} volumes")));
    }
    Ok(all.into_values().collect())
}

/// A volume of the store.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: Name,
    /// The space that it takes, bytes.
    pub bytes: u64,
    /// The names of the containers that use it.
    pub containers: Vec<String>,
}

/// The volumes of a store, ordered by name.
///
/// # Errors
/// [`Error::Store`].
pub fn all(store: &Store) -> Result<Vec<Listed>> {
    let (users, _) = users(store)?;
    let listed = store.volumes()?.into_iter().map(|name| {
        let containers = users.get(name.as_str()).cloned().unwrap_or_default();
        Ok(Listed {
            bytes: store.usage_of_volume(&name)?.bytes,
            containers,
            name,
        })
    });
    listed.collect()
}

/// Removes a volume of the store, unless a container uses it.
///
/// # Errors
/// [`store::Error::InUse`], [`store::Error::NotFound`]; the error of a container that cannot be
/// read, because nobody knows what it uses.
pub fn remove(store: &Store, name: &str) -> Result<()> {
    let name = Name::new(name)?;
    let _lock = store.lock_volume(&name)?;
    let (mut users, unknown) = users(store)?;
    match users.remove(name.as_str()) {
        Some(users) => Err(store::Error::InUse {
            kind: "volume",
            name: name.to_string(),
            users: users
                .iter()
                .map(|user| format!("container {user}"))
                .collect(),
        }
        .into()),
        None => unknown.map_or_else(|| Ok(store.remove_volume(&name)?), Err),
    }
}

/// The names of the containers that use each volume.
type Users = BTreeMap<String, Vec<String>>;

/// The containers that use each volume of a store, and the error of one that cannot be read.
fn users(store: &Store) -> Result<(Users, Option<Error>)> {
    let (mut users, mut unknown) = (Users::new(), None);
    for container in store.containers()? {
        let dir = store.reach(&container).map_err(Error::from);
        let record = match dir.and_then(|dir| ContainerRecord::read(&dir)) {
            Ok(record) => record,
            Err(error) => {
                unknown = Some(error);
                continue;
            }
        };
        for volume in record.map(|record| record.volumes).unwrap_or_default() {
            if let Some(name) = volume.name {
                let users = users.entry(name).or_default();
                users.push(container.name.to_string());
            }
        }
    }
    Ok((users, unknown))
}

/// Copies a container's own volumes from its directory in the store to that of another.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn copy(from: &Path, to: &Path, done: &dyn Fn(u64)) -> Result<()> {
    let (old, new) = (directory::open(from)?, directory::open(to)?);
    if !is_there(&old, DIRECTORY).map_err(Io::at("looking at", from))? {
        return Ok(());
    }
    let mut copy = TreeCopy::new(old.as_fd(), new.as_fd(), from, done);
    Ok(copy.directory(Path::new(DIRECTORY))?)
}

/// Sets the places of a container's volumes in the store, for its directory there, `dir`. Makes the
/// store's volumes that are missing.
///
/// # Errors
/// [`Error::Store`], [`Error::Unfit`].
pub(super) fn relocate(store: &Store, dir: &Path, volumes: &mut [VolumeRecord]) -> Result<()> {
    for volume in volumes {
        if let Some(name) = &volume.name {
            volume.source = store.volume(&Name::new(name)?)?.join(DATA);
        } else if volume.own {
            volume.source = dir.join(DIRECTORY).join(escaped(&volume.destination)?);
        }
    }
    Ok(())
}

/// Where the volumes of a container are on the host, whose directory in the store is `dir`. Makes
/// the store's volumes that are missing.
///
/// # Errors
/// [`Error::Store`], [`Error::Unfit`].
pub(super) fn places(store: &Store, dir: &Path, wanted: &[Volume]) -> Result<Vec<VolumeRecord>> {
    let record = |volume: &Volume| {
        let (source, name) = match &volume.source {
            // These get their places below.
            Source::Own => (PathBuf::new(), None),
            Source::Named(name) => (PathBuf::new(), Some(name.to_string())),
            Source::Host(path) => (path.clone(), None),
        };
        VolumeRecord {
            source,
            name,
            own: volume.source == Source::Own,
            destination: volume.destination.clone(),
            read_only: volume.read_only,
        }
    };
    let mut volumes: Vec<_> = wanted.iter().map(record).collect();
    relocate(store, dir, &mut volumes)?;
    Ok(volumes)
}

/// The name of a directory for a path: `/` becomes `-`, as systemd-escape(1) does it.
fn escaped(path: &str) -> Result<String> {
    let mut name = String::new();
    for byte in path.trim_matches('/').bytes() {
        match byte {
            b'/' => name.push('-'),
            b'.' if name.is_empty() => name.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' => name.push(byte.into()),
            _ => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    if name.len() > MAX_NAME {
        return Err(Error::unfit(format!(
            "the volume's path {path} is too long"
        )));
    }
    Ok(name)
}

/// Makes the mount points of volumes in a root file system that is mounted, and fills volumes that
/// are new with what the image has there.
///
/// # Errors
/// [`Error::Io`]; a volume that was not filled completely does not exist.
pub(super) fn fill(store: &Store, record: &ContainerRecord, root: &MountPoint) -> Result<()> {
    let group = record
        .idmap
        .as_ref()
        .and_then(root_of)
        .map(|(_, group)| group);
    for volume in &record.volumes {
        if volume.is_directory() {
            make_directory(root, &volume.destination, record.idmap.as_ref())?;
        }
        let name = volume.name.as_deref().map(Name::new).transpose()?;
        let _lock = name
            .as_ref()
            .map(|name| store.lock_volume(name))
            .transpose()?;
        let Some(parent) = volume.source.parent() else {
            continue;
        };
        match &name {
            Some(name) => {
                // It may have been removed since.
                drop(store.volume(name)?);
                same_map(name, parent, record.idmap.as_ref())?;
            }
            None if volume.own => {
                let at = DirectoryEntry::at(parent)?;
                drop(at.make_directory(0o711, None)?);
            }
            None => continue,
        }
        if let Some(group) = group {
            let top = if volume.own {
                parent.parent()
            } else {
                Some(parent)
            };
            top.map(|top| let_through(top, group)).transpose()?;
        }
        fill_one(volume, parent, root)?;
    }
    Ok(())
}

/// Removes the volumes of the store that a container which could not be made has made and nobody
/// has filled.
///
/// # Errors
/// [`Error::Store`].
pub(super) fn forget_unfilled(store: &Store, record: &ContainerRecord) -> Result<()> {
    for volume in &record.volumes {
        let Some(name) = volume.name.as_deref().filter(|_| !volume.source.exists()) else {
            continue;
        };
        let name = Name::new(name)?;
        let _lock = store.lock_volume(&name)?;
        if !volume.source.exists() && store.volumes()?.contains(&name) {
            store.remove_volume(&name)?;
        }
    }
    Ok(())
}

/// Refuses a container whose map of ids is not that of the volume in this directory, and sets the
/// map of a new one. With another map, files of the host's root would be in reach of the users who
/// have the ids of a container's root.
fn same_map(name: &Name, dir: &Path, map: Option<&IdMap>) -> Result<()> {
    let path = dir.join(MAP);
    let wanted = map.map_or_else(|| NO_MAP.to_owned(), ToString::to_string);
    let found = match files::read(&path, MAX_MAP) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(directory::replace(&path, wanted.as_bytes())?);
        }
        other => other?,
    };
    if found == wanted.as_bytes() {
        return Ok(());
    }
    let found = String::from_utf8_lossy(&found).into_owned();
    Err(Error::Unfit {
        what: format!("volume {name} is for containers with the map of ids {found}, not {wanted}"),
        hint: Some(match found.as_str() {
            NO_MAP => "create the container without --idmap, or name another volume".to_owned(),
            _ => format!("`create --idmap {found}` can use it; or name another volume"),
        }),
    })
}

/// Lets the root of a container with a user namespace through a directory: LXC mounts volumes with
/// its rights.
fn let_through(path: &Path, group: Gid) -> Result<()> {
    let failed = |e: Errno| Io::at("setting the mode of", path)(e);
    let dir = readable(directory::open(path)?).map_err(failed)?;
    fchown(&dir, None, Some(group)).map_err(failed)?;
    Ok(fchmod(&dir, Mode::from_raw_mode(0o710)).map_err(failed)?)
}

fn fill_one(volume: &VolumeRecord, parent: &Path, root: &MountPoint) -> Result<()> {
    let path = &volume.source;
    let failed = |e: Errno| Io::at("making the volume", path)(e);
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| failed(Errno::INVAL))?;
    let at = directory::open(parent)?;
    if is_there(&at, name).map_err(failed)? {
        return Ok(());
    }
    let new = format!("{name}{UNFINISHED}");
    match remove_tree(parent, &new) {
        Err(store::Error::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => {}
        other => other?,
    }
    rustix::fs::mkdirat(&at, &new, Mode::RWXU).map_err(failed)?;
    let to = readable(openat(&at, &new, OFlags::PATH, Mode::empty()).map_err(failed)?);
    let to = to.map_err(failed)?;
    let from = openat2(
        root.directory()?,
        &volume.destination,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(failed)?;
    let shown = root.path().join(volume.destination.trim_start_matches('/'));
    TreeCopy::new(from.as_fd(), to.as_fd(), &shown, &|_| ())
        .without_devices()
        .directory(Path::new("."))?;
    rustix::fs::syncfs(&to).map_err(failed)?;
    rustix::fs::renameat_with(&at, &new, &at, name, RenameFlags::NOREPLACE).map_err(failed)?;
    let at = readable(at).map_err(failed)?;
    Ok(rustix::fs::fsync(&at).map_err(failed)?)
}

/// A directory that was only found, opened to be listed, changed and synced.
fn readable(found: OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(found, ".", flags, Mode::empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_users_write() {
        let volume = |text: &str| text.parse::<Volume>();
        let named = |name: &str| Source::Named(Name::new(name).unwrap());
        for (text, source, destination, read_only) in [
            ("/data", Source::Own, "/data", false),
            ("/data:ro", Source::Own, "/data", true),
            ("db:/var/lib/db", named("db"), "/var/lib/db", false),
            ("db:/x:ro", named("db"), "/x", true),
            ("/srv/x:/x:rw", Source::Host("/srv/x".into()), "/x", false),
            ("./x:/x", Source::Host("./x".into()), "/x", false),
        ] {
            let expected = Volume {
                source,
                destination: destination.to_owned(),
                read_only,
            };
            assert_eq!(
                volume(&String::from(expected.clone())),
                Ok(expected.clone())
            );
            assert_eq!(volume(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "data",
            "a:b",
            "a b:/x",
            "a:/x:z",
            "a:/b:/c:ro",
            "/x:/a/../b",
            "_wx:/a",
        ] {
            assert!(volume(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_of_directories() {
        assert_eq!(escaped("/var/lib/mysql").unwrap(), "var-lib-mysql");
        assert_eq!(escaped("/a-b/c").unwrap(), "a\\x2db-c");
        assert_eq!(escaped("/.hidden").unwrap(), "\\x2ehidden");
        assert!(escaped(&"/x".repeat(300)).is_err());
    }
}
