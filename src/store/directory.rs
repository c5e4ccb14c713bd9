//! A store in a directory.
//!
//! ```text
//! images/NAME/NAME.bfc      the image
//! images/NAME/image.json    its facts
//! images/_w…/               an image that is being written or removed
//! containers/NAME/          a container's directory, which has its images in store.json
//! locks/                    locks that are held
//! room                      space for removals on a full file system
//! ```

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::backend::{Backend, Begun, Container, ImageUse, Scan, StoredImage};
use super::error::{Error, Result};
use super::facts::Facts;
use super::name::Name;
use super::remove_tree::{refuse_mounts, remove_tree};
use super::room;
use crate::error::Io;
use crate::sys::directory::replace;
use crate::sys::extents::{self, Usage};

/// Directory of the containers.
const CONTAINERS: &str = "containers";
/// Directory of the volumes.
const VOLUMES: &str = "volumes";
/// File with the facts of an image, beside it.
pub(super) const FACTS: &str = "image.json";
/// File with the images of a container, in its directory.
const CONTAINER: &str = "store.json";
/// Marks the directory of a container that is being created or removed.
const UNFINISHED: &str = "unfinished";
/// Longest of those files, bytes.
const MAX_JSON: u64 = 1 << 20;

/// A store in a directory.
#[derive(Debug)]
pub(super) struct DirectoryStore {
    root: PathBuf,
}

impl DirectoryStore {
    /// The store in a directory, which is created when something is put there.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    fn container_dirs(&self) -> PathBuf {
        self.root.join(CONTAINERS)
    }

    fn image(&self, name: &Name) -> Result<StoredImage> {
        let dir = self.images().join(name);
        let path = image_file(&dir, name)?;
        let facts = match read_json(&dir.join(FACTS))? {
            Some(facts) => facts,
            None => facts_of(&path, name)?,
        };
        Ok(StoredImage {
            name: name.clone(),
            path,
            facts,
            parent: None,
        })
    }
}

/// The store, and the name, of the container whose directory this is.
pub(super) fn of_container(dir: &Path) -> Option<(PathBuf, String)> {
    let all = dir.parent().filter(|all| all.ends_with(CONTAINERS))?;
    let is_one = dir.join(CONTAINER).is_file();
    let name = dir.file_name().filter(|_| is_one)?.to_str()?;
    Some((all.parent()?.to_owned(), name.to_owned()))
}

/// The facts of an image that came without them, from the image, and from its name for the
/// reference.
pub(super) fn facts_of(path: &Path, name: &Name) -> Result<Facts> {
    let file = File::open(path).map_err(Io::at("opening the image", path))?;
    Ok(Facts {
        refs: name.reference().into_iter().collect(),
        ..Facts::of(path, file)?
    })
}

/// The image in a directory: the file with its name, or else the only one.
pub(super) fn image_file(dir: &Path, name: &Name) -> Result<PathBuf> {
    let own = dir.join(format!("{name}.bfc"));
    if own.symlink_metadata().is_ok_and(|m| m.is_file()) {
        return Ok(own);
    }
    let failed = |e| Io::at("looking for an image in", dir)(e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if Path::new(&entry.file_name())
            .extension()
            .is_some_and(|e| e == "bfc")
            && entry.file_type().is_ok_and(|t| t.is_file())
        {
            found.push(entry.path());
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([path]) => Ok(path),
        Err(_) => Err(failed(io::ErrorKind::NotFound.into()).into()),
    }
}

impl Backend for DirectoryStore {
    fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    fn scan(&self) -> Result<Scan> {
        let mut scan = Scan::default();
        for name in entries(&self.images())? {
            match Name::new(&name) {
                Err(_) if name.starts_with('.') => {}
                Err(_) => scan.strange.push(name),
                Ok(name) if name.is_work() => scan.work.push(name),
                Ok(name) => match self.image(&name) {
                    Ok(image) => scan.images.push(image),
                    // Removed since it was listed.
                    Err(_) if !self.images().join(&name).exists() => {}
                    Err(error) => scan.broken.push((name, error)),
                },
            }
        }
        let digests: HashMap<String, Name> = scan
            .images
            .iter()
            .map(|i| (i.facts.root_digest.clone(), i.name.clone()))
            .collect();
        for image in &mut scan.images {
            // An image that does not exist any more is named by its digest.
            let named = |digest: &String| {
                digests
                    .get(digest)
                    .cloned()
                    .or_else(|| Name::new(digest).ok())
            };
            image.parent = image.facts.parent.as_ref().and_then(named);
        }
        Ok(scan)
    }

    fn temp_dir(&self) -> Result<PathBuf> {
        // Images may hold secrets such as keys and hashes of passwords.
        make_dir(&self.root, 0o711)?;
        make_dir(&self.images(), 0o700)?;
        Ok(self.images())
    }

    fn begin(&self, work: &Name, _base: Option<&StoredImage>) -> Result<Begun> {
        let dir = self.temp_dir()?.join(work);
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(Io::at("making the directory", &dir))?;
        // The writer copies what it needs of the base, with a reflink if the file system supports
        // it.
        Ok(Begun {
            dir,
            is_clone: false,
        })
    }

    fn publish(&self, work: &Name, name: &Name, facts: &Facts) -> Result<()> {
        let (from, to) = (self.images().join(work), self.images().join(name));
        let failed = |e: io::Error| Io::at("putting an image into", &to)(e);
        let file = image_file(&from, work)?;
        keep_as_it_is(&file)?;
        std::fs::rename(&file, from.join(format!("{name}.bfc"))).map_err(failed)?;
        write_json(&from, FACTS, facts)?;
        renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE)
            .map_err(|e| failed(e.into()))?;
        room::take(&self.root);
        sync(&self.images())
    }

    fn replace(&self, name: &Name, new: &Path) -> Result<()> {
        let dir = self.images().join(name);
        let old = image_file(&dir, name)?;
        keep_as_it_is(new)?;
        std::fs::rename(new, &old).map_err(Io::at("replacing", &old))?;
        sync(&dir)
    }

    fn set_facts(&self, name: &Name, facts: &Facts) -> Result<()> {
        let dir = self.images().join(name);
        match write_json(&dir, FACTS, facts) {
            // It may be an image without the last of its names, which is to be removed.
            Err(Error::Io(e)) if e.is_full() && room::give(&self.root) => {
                write_json(&dir, FACTS, facts)
            }
            written => written,
        }
    }

    fn usage(&self, name: &Name) -> Result<Usage> {
        Ok(extents::tree_usage(&self.images().join(name))?)
    }

    fn container_usage(&self, name: &Name) -> Result<Usage> {
        Ok(extents::tree_usage(&self.container_dirs().join(name))?)
    }

    fn free(&self) -> Result<u64> {
        let there = self
            .root
            .ancestors()
            .find(|path| path.exists())
            .unwrap_or(&self.root);
        let stat =
            rustix::fs::statvfs(there).map_err(Io::at("reading the free space of", there))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn dependents(&self, _name: &Name) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn remove(&self, name: &Name, _held: Option<File>) -> Result<u64> {
        let freed = self.usage(name)?.own();
        remove_dir(&self.images(), name)?;
        Ok(freed)
    }

    fn containers(&self) -> Result<(Vec<Container>, Vec<Name>)> {
        let (mut containers, mut work) = (Vec::new(), Vec::new());
        for name in entries(&self.container_dirs())?
            .iter()
            .filter_map(|name| Name::new(name).ok())
        {
            let path = self.container_dirs().join(&name);
            // What is no directory is nobody's container.
            let is_directory = path.is_dir();
            if name.is_work() {
                work.push(name);
            } else if is_directory {
                let images = match read_json(&path.join(CONTAINER)) {
                    Err(Error::Facts { .. }) => None,
                    read => Some(read?.unwrap_or_default()),
                };
                let unfinished = path.join(UNFINISHED).exists();
                containers.push(Container {
                    name,
                    path,
                    dataset: None,
                    images,
                    unfinished,
                });
            }
        }
        Ok((containers, work))
    }

    fn create_container(&self, name: &Name, images: &[ImageUse]) -> Result<Container> {
        let (all, work) = (self.container_dirs(), Name::work()?);
        make_dir(&self.root, 0o711)?;
        make_dir(&all, 0o711)?;
        let (new, path) = (all.join(&work), all.join(name));
        let failed = |e: io::Error| Io::at("making the container's directory", &path)(e);
        DirBuilder::new().mode(0o700).create(&new).map_err(failed)?;
        let made = mark(&new)
            .and_then(|()| write_json(&new, CONTAINER, &images))
            .and_then(|()| {
                renameat_with(CWD, &new, CWD, &path, RenameFlags::NOREPLACE).map_err(|e| match e {
                    Errno::EXIST | Errno::NOTEMPTY => Error::Exists {
                        kind: "container",
                        name: name.to_string(),
                        store: format!("dir:{}", self.root.display()),
                    },
                    other => failed(other.into()).into(),
                })
            });
        if let Err(error) = made {
            let _ = std::fs::remove_dir_all(&new);
            return Err(error);
        }
        sync(&all)?;
        Ok(Container {
            name: name.clone(),
            path,
            dataset: None,
            images: Some(images.to_vec()),
            unfinished: true,
        })
    }

    fn clone_container(
        &self,
        _from: &Container,
        _snapshot: Option<&str>,
        _name: &Name,
        _without: &str,
    ) -> Result<Option<Container>> {
        Ok(None)
    }

    fn reach(&self, name: &Name) -> Result<PathBuf> {
        Ok(self.container_dirs().join(name))
    }

    fn set_images(&self, name: &Name, images: &[ImageUse]) -> Result<()> {
        write_json(&self.container_dirs().join(name), CONTAINER, &images)
    }

    fn mark(&self, name: &Name, unfinished: bool) -> Result<()> {
        let dir = self.container_dirs().join(name);
        if unfinished {
            return mark(&dir);
        }
        match std::fs::remove_file(dir.join(UNFINISHED)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Io::at("removing", &dir.join(UNFINISHED))(e).into())
            }
            _ => sync(&dir),
        }
    }

    fn in_the_way(&self, _name: &Name) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn place(&self, name: &Name) -> Result<String> {
        let dir = self.container_dirs().join(name);
        // The record is text, so a path that is not UTF-8 is escaped.
        Ok(format!(
            "dir:{}",
            dir.canonicalize()
                .map_err(Io::at("finding", &dir))?
                .display()
        ))
    }

    fn remove_container(&self, name: &Name) -> Result<()> {
        remove_dir(&self.container_dirs(), name)
    }

    fn volume(&self, name: &Name) -> Result<PathBuf> {
        let all = self.root.join(VOLUMES);
        make_dir(&self.root, 0o711)?;
        make_dir(&all, 0o711)?;
        let dir = all.join(name);
        make_dir(&dir, 0o700)?;
        sync(&all)?;
        sweep(&all)?;
        Ok(dir)
    }

    fn volumes(&self) -> Result<Vec<Name>> {
        let all = self.root.join(VOLUMES);
        let names = entries(&all)?;
        let names = names.iter().filter_map(|n| Name::new(n).ok());
        let is_volume = |name: &Name| !name.is_work() && all.join(name).is_dir();
        Ok(names.filter(is_volume).collect())
    }

    fn volume_usage(&self, name: &Name) -> Result<Usage> {
        Ok(extents::tree_usage(&self.root.join(VOLUMES).join(name))?)
    }

    fn remove_volume(&self, name: &Name) -> Result<()> {
        let all = self.root.join(VOLUMES);
        refuse_mounts(&all.join(name))?;
        remove_dir(&all, name)?;
        sweep(&all)
    }
}

/// Makes a complete image read-only: lxcri-fs never writes to it again, whatever name is used for
/// it.
pub(super) fn keep_as_it_is(path: &Path) -> Result<()> {
    let mode = PermissionsExt::from_mode(0o444);
    Ok(std::fs::set_permissions(path, mode).map_err(Io::at("setting the mode of", path))?)
}

/// Marks the directory of a container that is being created or removed.
fn mark(dir: &Path) -> Result<()> {
    let path = dir.join(UNFINISHED);
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let made = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(&path);
    made.map_err(Io::at("making", &path))?;
    sync(dir)
}

/// Removes what killed processes have left of directories that they were removing.
fn sweep(all: &Path) -> Result<()> {
    for name in entries(all)? {
        if let Some(name) = Name::new(&name).ok().filter(Name::is_work) {
            remove_dir(all, &name)?;
        }
    }
    Ok(())
}

/// Removes a directory: renames it first, so that it disappears at once, and then removes its
/// contents.
fn remove_dir(all: &Path, name: &Name) -> Result<()> {
    let dir = all.join(name);
    let work = if name.is_work() {
        name.clone()
    } else {
        Name::work()?
    };
    if work != *name {
        renameat_with(CWD, &dir, CWD, all.join(&work), RenameFlags::NOREPLACE)
            .map_err(Io::at("removing", &dir))?;
    }
    remove_tree(all, work.as_str())
}

/// The names in a directory; none if it does not exist.
fn entries(dir: &Path) -> Result<Vec<String>> {
    let failed = |e| Io::at("reading", dir)(e);
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let names = entries.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.collect::<io::Result<_>>().map_err(failed)?;
    // For instance downloads of pulls.
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    Ok(names)
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    let made = match DirBuilder::new().mode(mode).create(path) {
        // Whatever the umask is.
        Ok(()) => std::fs::set_permissions(path, PermissionsExt::from_mode(mode)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o711).create(path)
        }
        other => other,
    };
    Ok(made.map_err(Io::at("making the directory", path))?)
}

fn sync(dir: &Path) -> Result<()> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    Ok(synced.map_err(Io::at("syncing", dir))?)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Io::at("opening", path))?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_JSON)
        .read_to_end(&mut bytes)
        .map_err(Io::at("reading", path))?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::Facts {
            path: path.to_owned(),
            reason: e.to_string(),
        })
}

/// Writes a file as a whole: readers find the old one or the new one.
fn write_json(dir: &Path, name: &str, value: &impl Serialize) -> Result<()> {
    let path = dir.join(name);
    let failed = || Io::at("writing", &path);
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(io::Error::from)
        .map_err(failed())?;
    bytes.push(b'\n');
    Ok(replace(&path, &bytes)?)
}
