//! A store on ZFS: a dataset for each image and each container. Its facts are user properties, so
//! that they move with the dataset.
//!
//! ```text
//! PARENT/images/NAME          mounted, with NAME.bfc in it; org.lxcri-fs:* say the rest
//! PARENT/images/NAME@lxcri-fs-DIGEST   its state when it was complete, which clones begin from
//! PARENT/images/_w…           an image that is being written
//! PARENT/containers/NAME      a container's directory; org.lxcri-fs:image says what it is made of
//! PARENT/containers/_w…       a clone that is being made
//! PARENT/volumes/NAME         a volume
//! ```

mod facts;
mod remove;

use std::fs::File;
use std::path::{Path, PathBuf};

use super::backend::{Backend, Begun, Container, ImageUse, Scan, StoredImage};
use super::directory::{facts_of, image_file, keep_as_it_is};
use super::error::{Error, Result};
use super::facts::Facts;
use super::name::Name;
use crate::error::Io;
use crate::sys::directory::sync_file_system;
use crate::sys::extents::Usage;
use crate::upper::dataset::PROPERTIES as CONTAINER_PROPERTIES;
use crate::zfs::recorded::{CONTAINERS, IMAGES, VOLUMES};
use crate::zfs::{self, Cause, Children, Create, Dataset, Properties, Snapshot};
use facts::{ASKED, NONE, REFERENCES, own, parse, properties_of, references};

/// The directory of locks. They concern only processes of this host, so they are not in the pool.
const LOCKS: &str = "/run/lxcri-fs-locks";
/// Properties of the dataset of images, which the images inherit. Images are compressed already,
/// and read in pieces of up to 64 KiB; nothing in them should run.
const IMAGE_PROPERTIES: [(&str, &str); 6] = [
    ("compression", "off"),
    ("recordsize", "64K"),
    ("atime", "off"),
    ("exec", "off"),
    ("setuid", "off"),
    ("devices", "off"),
];
/// Prefix of the snapshots of complete images; the first digits of the root digest follow.
const SNAPSHOT: &str = "lxcri-fs-";
/// Prefix of the snapshots that clones of containers begin from, which live as long as these.
const CLONE: &str = "lxcri-fs-clone";
const CONTAINER_IMAGES: &str = "org.lxcri-fs:image";
/// Property of a container that is being created or removed: set first, and cleared last.
const UNFINISHED: &str = "org.lxcri-fs:unfinished";
/// Prefix that distinguishes a dataset from a directory.
const PREFIX: &str = "zfs:";

/// A store on ZFS.
#[derive(Debug)]
pub(super) struct ZfsStore {
    parent: Dataset,
    images: Dataset,
    containers: Dataset,
    volumes: Dataset,
}

impl ZfsStore {
    /// The store below a dataset. Its datasets are created when something is put there.
    ///
    /// # Errors
    /// [`Error::Zfs`] if the names of its datasets would be too long.
    pub(super) fn new(parent: Dataset) -> Result<Self> {
        Ok(Self {
            images: parent.child(IMAGES)?,
            containers: parent.child(CONTAINERS)?,
            volumes: parent.child(VOLUMES)?,
            parent,
        })
    }

    fn image(&self, name: &Name) -> Result<Dataset> {
        Ok(self.images.child(name.as_str())?)
    }

    fn image_of(&self, name: &Name, properties: &Properties) -> Result<StoredImage> {
        let dataset = self.image(name)?;
        let dir = match (properties.get("mounted"), properties.get("mountpoint")) {
            (Some("yes"), Some(path)) if path.starts_with('/') => {
                dataset.refuse_hidden(path.as_ref())?;
                PathBuf::from(path)
            }
            _ => dataset.reach()?,
        };
        let path = image_file(&dir, name)?;
        let facts = match parse(properties) {
            Some(facts) => facts,
            // It came without its properties, or they were changed.
            None => {
                let found = facts_of(&path, name)?;
                let refs = own(properties, REFERENCES).map(references);
                Facts {
                    refs: refs.unwrap_or(found.refs),
                    ..found
                }
            }
        };
        let origin = properties
            .get("origin")
            .and_then(|o| o.parse::<Snapshot>().ok())
            .map(|o| o.dataset());
        let parent = origin
            .filter(|o| o.parent().as_ref() == Some(&self.images))
            .and_then(|o| Name::new(o.name()).ok());
        Ok(StoredImage {
            name: name.clone(),
            path,
            facts,
            parent,
        })
    }

    /// Makes sure that a dataset of the store exists.
    fn prepare(
        &self,
        dataset: &Dataset,
        properties: &[(&str, &str)],
        mode: u32,
    ) -> Result<PathBuf> {
        if !dataset.exists()? {
            let made = dataset.create(&Create {
                properties,
                parents: true,
            });
            // Another process may have been quicker.
            made.or_else(|e| {
                if e.cause() == Some(Cause::Exists) {
                    Ok(())
                } else {
                    Err(e)
                }
            })?;
            let dir = dataset.reach()?;
            std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .map_err(Io::at("setting the mode of", &dir))?;
        }
        Ok(dataset.reach()?)
    }

    /// The error for the dataset of a new container that could not be made.
    fn not_new(&self, name: &Name, error: zfs::Error) -> Error {
        match error.cause() {
            Some(Cause::Exists) => Error::Exists {
                kind: "container",
                name: name.to_string(),
                store: format!("{PREFIX}{}", self.parent),
            },
            _ => error.into(),
        }
    }

    fn container(&self, name: &Name) -> Result<Dataset> {
        Ok(self.containers.child(name.as_str())?)
    }

    /// The snapshot from which clones of an image start.
    fn snapshot(&self, name: &Name, root_digest: &str) -> Result<Snapshot> {
        let digits = root_digest.get(..16).unwrap_or(root_digest);
        Ok(self.image(name)?.at(&format!("{SNAPSHOT}{digits}"))?)
    }

    /// The children of one of the store's datasets, with properties.
    fn children(&self, dataset: &Dataset, asked: &[&str]) -> Result<Vec<(Dataset, Properties)>> {
        match dataset.list(Some(1), asked) {
            Err(e) if e.cause() == Some(Cause::NotFound) && self.parent.pool().exists()? => {
                Ok(Vec::new())
            }
            other => Ok(other?.into_iter().filter(|(d, _)| d != dataset).collect()),
        }
    }
}

impl Backend for ZfsStore {
    fn locks(&self) -> PathBuf {
        let name = self.parent.as_str().replace('/', "__");
        match std::env::var_os("XDG_RUNTIME_DIR")
            .filter(|dir| !dir.is_empty() && !rustix::process::geteuid().is_root())
        {
            Some(dir) => Path::new(&dir).join("lxcri-fs-locks").join(name),
            None => Path::new(LOCKS).join(name),
        }
    }

    fn temp_dir(&self) -> Result<PathBuf> {
        self.prepare(&self.images, &IMAGE_PROPERTIES, 0o700)
    }

    fn scan(&self) -> Result<Scan> {
        let mut scan = Scan::default();
        for (dataset, properties) in self.children(&self.images, &ASKED)? {
            match Name::new(dataset.name()) {
                Err(_) => scan.strange.push(dataset.name().to_owned()),
                Ok(name) if name.is_work() => scan.work.push(name),
                Ok(name) => match self.image_of(&name, &properties) {
                    Ok(image) => scan.images.push(image),
                    // Removed since it was listed.
                    Err(_) if !dataset.exists()? => {}
                    Err(error) => scan.broken.push((name, error)),
                },
            }
        }
        Ok(scan)
    }

    fn begin(&self, work: &Name, base: Option<&StoredImage>) -> Result<Begun> {
        self.prepare(&self.images, &IMAGE_PROPERTIES, 0o700)?;
        let dataset = self.image(work)?;
        let Some(base) = base else {
            dataset.create(&Create::default())?;
            return Ok(Begun {
                dir: private(&dataset)?,
                is_clone: false,
            });
        };
        let snapshot = self.snapshot(&base.name, &base.facts.root_digest)?;
        if !snapshot.exists()? {
            snapshot.take()?;
        }
        // Clones do not inherit properties that are set on the image itself.
        snapshot.clone_to(&dataset, &[])?;
        let dir = private(&dataset)?;
        let file = image_file(&dir, &base.name)?;
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .map_err(Io::at("setting the mode of", &file))?;
        std::fs::rename(&file, dir.join(format!("{work}.bfc")))
            .map_err(Io::at("renaming", &file))?;
        Ok(Begun {
            dir,
            is_clone: true,
        })
    }

    fn publish(&self, work: &Name, name: &Name, facts: &Facts) -> Result<()> {
        let (dataset, dir) = (self.image(work)?, self.image(work)?.reach()?);
        let file = image_file(&dir, work)?;
        keep_as_it_is(&file)?;
        std::fs::rename(&file, dir.join(format!("{name}.bfc")))
            .map_err(Io::at("renaming", &file))?;
        File::open(&dir)
            .and_then(|d| d.sync_all())
            .map_err(Io::at("syncing", &dir))?;
        self.snapshot(work, &facts.root_digest)?.take()?;
        let properties = properties_of(facts);
        let mut all: Vec<(&str, &str)> = properties
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        all.push(("readonly", "on"));
        dataset.set(&all)?;
        Ok(dataset.rename(&self.image(name)?)?)
    }

    fn replace(&self, name: &Name, new: &Path) -> Result<()> {
        let (dataset, dir) = (self.image(name)?, self.image(name)?.reach()?);
        let old = image_file(&dir, name)?;
        dataset.set(&[("readonly", "off")])?;
        let replaced = replace_file(&old, new);
        dataset.set(&[("readonly", "on")])?;
        replaced?;
        // New clones start from this state; clones of the previous state keep it.
        for info in dataset
            .snapshots()?
            .into_iter()
            .filter(|info| info.snapshot.name().starts_with(SNAPSHOT))
        {
            if info.clones.is_empty() && info.holds == 0 {
                info.snapshot.destroy()?;
            } else {
                info.snapshot
                    .rename(&format!("{SNAPSHOT}before-{}", info.creation))?;
            }
        }
        Ok(())
    }

    fn set_facts(&self, name: &Name, facts: &Facts) -> Result<()> {
        let properties = properties_of(facts);
        let all: Vec<(&str, &str)> = properties
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        Ok(self.image(name)?.set(&all)?)
    }

    fn usage(&self, name: &Name) -> Result<Usage> {
        usage(&self.image(name)?)
    }

    fn container_usage(&self, name: &Name) -> Result<Usage> {
        usage(&self.container(name)?)
    }

    fn free(&self) -> Result<u64> {
        let there = [&self.images, &self.parent]
            .into_iter()
            .find(|d| d.exists().is_ok_and(|e| e));
        Ok(there.unwrap_or(&self.parent.pool()).space()?.available)
    }

    fn dependents(&self, name: &Name) -> Result<Vec<String>> {
        let dataset = self.image(name)?;
        let snapshots = dataset.snapshots()?;
        let clones = snapshots
            .iter()
            .flat_map(|info| &info.clones)
            .filter(|clone| clone.parent().as_ref() != Some(&self.images));
        let mut all: Vec<String> = clones.map(|clone| format!("clone {clone}")).collect();
        all.extend(remove::in_the_way(&dataset, &snapshots)?);
        Ok(all)
    }

    fn remove(&self, name: &Name, held: Option<File>) -> Result<u64> {
        // An open file keeps a dataset mounted: a process that opens it from now on makes the
        // unmount fail, and is reported.
        drop(held);
        remove::destroy(&self.image(name)?)
    }

    fn containers(&self) -> Result<(Vec<Container>, Vec<Name>)> {
        let (mut containers, mut work) = (Vec::new(), Vec::new());
        for (dataset, properties) in self.children(
            &self.containers,
            &[CONTAINER_IMAGES, UNFINISHED, "mountpoint"],
        )? {
            let Ok(name) = Name::new(dataset.name()) else {
                continue;
            };
            if name.is_work() {
                work.push(name);
                continue;
            }
            let path = properties
                .get("mountpoint")
                .filter(|p| p.starts_with('/'))
                .map(PathBuf::from)
                .unwrap_or_default();
            let images = own(&properties, CONTAINER_IMAGES)
                .unwrap_or_default()
                .split(' ')
                .filter_map(|used| {
                    let (name, root_digest) = used.rsplit_once('=')?;
                    Some(ImageUse {
                        name: name.to_owned(),
                        root_digest: root_digest.to_owned(),
                    })
                });
            let unfinished = own(&properties, UNFINISHED).is_some();
            containers.push(Container {
                name,
                path,
                dataset: Some(dataset.clone()),
                images: Some(images.collect()),
                unfinished,
            });
        }
        Ok((containers, work))
    }

    fn reach(&self, name: &Name) -> Result<PathBuf> {
        Ok(self.container(name)?.reach()?)
    }

    fn create_container(&self, name: &Name, images: &[ImageUse]) -> Result<Container> {
        self.prepare(&self.containers, &[("atime", "off")], 0o711)?;
        let dataset = self.container(name)?;
        let used = list(images);
        let properties = of_unfinished(&used);
        dataset
            .create(&Create {
                properties: &properties,
                parents: false,
            })
            .map_err(|e| self.not_new(name, e))?;
        let path = private(&dataset).inspect_err(|_| drop(dataset.destroy(Children::Keep)))?;
        Ok(Container {
            name: name.clone(),
            path,
            dataset: Some(dataset),
            images: Some(images.to_vec()),
            unfinished: true,
        })
    }

    fn clone_container(
        &self,
        from: &Container,
        snapshot: Option<&str>,
        name: &Name,
        without: &str,
    ) -> Result<Option<Container>> {
        let original = self.container(&from.name)?;
        let (origin, is_new) = match snapshot {
            Some(snapshot) => (original.at(snapshot)?, false),
            None => {
                sync_file_system(&original.reach()?)?;
                let snapshot = original.at(&format!("{CLONE}{}", Name::work()?))?;
                snapshot.take()?;
                (snapshot, true)
            }
        };
        let images = from.images.clone().unwrap_or_default();
        let used = list(&images);
        let properties = of_unfinished(&used);
        // It gets its name once it has nothing any more that says that it is the other container.
        let work = self.container(&Name::work()?)?;
        let dataset = self.container(name)?;
        let cloned = origin.clone_to(&work, &properties).map_err(Error::from);
        let renamed = cloned.and_then(|()| {
            let renamed = private(&work).and_then(|dir| {
                let path = dir.join(without);
                match std::fs::remove_file(&path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Io::at("removing", &path)(e).into());
                    }
                    _ => {}
                }
                work.rename(&dataset).map_err(|e| self.not_new(name, e))
            });
            renamed.inspect_err(|_| drop(work.destroy(Children::Keep)))
        });
        if is_new {
            origin.destroy_when_unused()?;
        }
        renamed?;
        Ok(Some(Container {
            name: name.clone(),
            path: dataset.reach()?,
            dataset: Some(dataset),
            images: Some(images),
            unfinished: true,
        }))
    }

    fn set_images(&self, name: &Name, images: &[ImageUse]) -> Result<()> {
        Ok(self
            .container(name)?
            .set(&[(CONTAINER_IMAGES, &list(images))])?)
    }

    fn mark(&self, name: &Name, unfinished: bool) -> Result<()> {
        let dataset = self.container(name)?;
        if unfinished {
            dataset.set(&[(UNFINISHED, "yes")])?
        } else {
            dataset.unset(UNFINISHED)?
        };
        Ok(())
    }

    fn in_the_way(&self, name: &Name) -> Result<Vec<String>> {
        let dataset = self.container(name)?;
        remove::in_the_way(&dataset, &dataset.snapshots()?)
    }

    fn remove_container(&self, name: &Name) -> Result<()> {
        remove::destroy(&self.container(name)?).map(drop)
    }

    fn volume(&self, name: &Name) -> Result<PathBuf> {
        self.prepare(&self.volumes, &[("atime", "off")], 0o711)?;
        let dataset = self.volumes.child(name.as_str())?;
        if dataset.exists()? {
            return Ok(dataset.reach()?);
        }
        dataset.create(&Create {
            properties: &CONTAINER_PROPERTIES,
            parents: false,
        })?;
        private(&dataset).inspect_err(|_| drop(dataset.destroy(Children::Keep)))
    }

    fn volumes(&self) -> Result<Vec<Name>> {
        let all = self.children(&self.volumes, &["mountpoint"])?;
        let names = all.iter().map(|(dataset, _)| Name::new(dataset.name()));
        Ok(names.filter_map(Result::ok).collect())
    }

    fn volume_usage(&self, name: &Name) -> Result<Usage> {
        usage(&self.volumes.child(name.as_str())?)
    }

    fn remove_volume(&self, name: &Name) -> Result<()> {
        remove::destroy(&self.volumes.child(name.as_str())?).map(drop)
    }

    fn place(&self, name: &Name) -> Result<String> {
        Ok(format!("{PREFIX}{}", self.container(name)?))
    }
}

/// The space that a dataset takes. Blocks that a clone has from its origin belong to the origin;
/// blocks that clones have from it are shared.
fn usage(dataset: &Dataset) -> Result<Usage> {
    let space = dataset.space()?;
    let bytes = space.referenced.max(space.used);
    let has_clones = dataset
        .snapshots()?
        .iter()
        .any(|info| !info.clones.is_empty());
    let own = if has_clones {
        space.used.saturating_sub(space.referenced)
    } else {
        space.used
    };
    Ok(Usage {
        bytes,
        shared: bytes.saturating_sub(own),
    })
}

/// The properties of the dataset of a container that is being made of these images.
fn of_unfinished(images: &str) -> Vec<(&str, &str)> {
    let own = [(CONTAINER_IMAGES, images), (UNFINISHED, "yes")];
    CONTAINER_PROPERTIES.into_iter().chain(own).collect()
}

/// The images of a container as the value of a property.
fn list(images: &[ImageUse]) -> String {
    let used: Vec<String> = images
        .iter()
        .map(|i| format!("{}={}", i.name, i.root_digest))
        .collect();
    match used.is_empty() {
        true => NONE.to_owned(),
        false => used.join(" "),
    }
}

/// Replaces a file by a copy of a file in another dataset.
fn replace_file(old: &Path, new: &Path) -> Result<()> {
    let copy = old.with_extension("bfc.new");
    std::fs::copy(new, &copy).map_err(Io::at("copying an image to", &copy))?;
    let replace = || -> Result<()> {
        let synced = File::open(&copy).and_then(|file| file.sync_all());
        synced.map_err(Io::at("syncing", &copy))?;
        keep_as_it_is(&copy)?;
        Ok(std::fs::rename(&copy, old).map_err(Io::at("replacing", old))?)
    };
    replace().inspect_err(|_| drop(std::fs::remove_file(&copy)))
}

/// Makes the directory of a new dataset private.
fn private(dataset: &Dataset) -> Result<PathBuf> {
    let dir = dataset.reach()?;
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .map_err(Io::at("setting the mode of", &dir))?;
    Ok(dir)
}
