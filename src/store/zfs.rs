//! A store on ZFS: a dataset for each image and each container, with what is known of it as user properties, so that it goes where the dataset goes.
//!
//! ```text
//! PARENT/images/NAME          mounted, with NAME.bfc in it; org.lxcri-fs:* say the rest
//! PARENT/images/NAME@lxcri-fs-DIGEST   its state when it was complete, which clones begin from
//! PARENT/images/_w…           an image that is being written
//! PARENT/containers/NAME      a container's directory; org.lxcri-fs:image says what it is made of
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};

use super::backend::{Backend, Begun, Container, Image, ImageUse, Scan};
use super::directory::{facts_of, image_file};
use super::error::{Error, Result};
use super::extents::Usage;
use super::facts::Facts;
use super::name::Name;
use crate::upper::dataset::PROPERTIES as CONTAINER_PROPERTIES;
use crate::zfs::{self, Cause, Children, Create, Dataset, Properties, Snapshot, Source};

/// Where locks are. They concern this host's processes only, and are none of the pool's business.
const LOCKS: &str = "/run/lxcri-fs-locks";
/// Of the dataset that has the images, and inherited by them. Images are compressed already, and read in pieces of up to 64 KiB; nothing in there is to be run.
const IMAGE_PROPERTIES: [(&str, &str); 6] =
    [("compression", "off"), ("recordsize", "64K"), ("atime", "off"), ("exec", "off"), ("setuid", "off"), ("devices", "off")];
/// What snapshots of complete images are called, before the first digits of the root digest.
const SNAPSHOT: &str = "lxcri-fs-";
/// Longest list of layers that is kept as a property; a longer one is read from the image.
const MAX_VALUE: usize = 8000;

const REFERENCES: &str = "org.lxcri-fs:ref";
const ROOT_DIGEST: &str = "org.lxcri-fs:root-digest";
const MANIFEST_DIGEST: &str = "org.lxcri-fs:manifest-digest";
const CREATED: &str = "org.lxcri-fs:created";
const LAYERS: &str = "org.lxcri-fs:layers";
const COMPRESSION: &str = "org.lxcri-fs:compression";
const ENCRYPTION: &str = "org.lxcri-fs:encryption";
const SIZE: &str = "org.lxcri-fs:size";
const CONTAINER_IMAGES: &str = "org.lxcri-fs:image";
/// All that is asked of an image's dataset.
const ASKED: [&str; 12] = [
    REFERENCES,
    ROOT_DIGEST,
    MANIFEST_DIGEST,
    CREATED,
    LAYERS,
    COMPRESSION,
    ENCRYPTION,
    SIZE,
    "origin",
    "mountpoint",
    "mounted",
    "canmount",
];
/// What stands for nothing: a property cannot be empty everywhere.
const NONE: &str = "-";

/// A store on ZFS.
#[derive(Debug)]
pub struct ZfsStore {
    parent: Dataset,
    images: Dataset,
    containers: Dataset,
}

impl ZfsStore {
    /// The store below a dataset, whose own datasets are made when something is put there.
    ///
    /// # Errors
    /// [`Error::Zfs`] when the names of its datasets would be too long.
    pub fn new(parent: Dataset) -> Result<Self> {
        Ok(Self { images: parent.child("images")?, containers: parent.child("containers")?, parent })
    }

    fn image(&self, name: &Name) -> Result<Dataset> {
        Ok(self.images.child(name.as_str())?)
    }

    fn image_of(&self, name: &Name, properties: &Properties) -> Result<Image> {
        let dataset = self.image(name)?;
        let dir = match (properties.get("mounted"), properties.get("mountpoint")) {
            (Some("yes"), Some(path)) if path.starts_with('/') => PathBuf::from(path),
            _ => mounted(&dataset)?,
        };
        let path = image_file(&dir, name)?;
        let facts = match parse(properties) {
            Some(facts) => facts,
            // It came without its properties, or somebody changed them.
            None => {
                let found = facts_of(&path, name)?;
                let refs = own(properties, REFERENCES).map(references);
                Facts { refs: refs.unwrap_or(found.refs), ..found }
            }
        };
        let origin = properties.get("origin").and_then(|o| o.parse::<Snapshot>().ok()).map(|o| o.dataset());
        let parent = origin.filter(|o| o.parent().as_ref() == Some(&self.images)).and_then(|o| Name::new(o.name()).ok());
        Ok(Image { name: name.clone(), path, facts, parent })
    }

    /// Makes sure that a dataset of the store is there.
    fn prepare(&self, dataset: &Dataset, properties: &[(&str, &str)], mode: u32) -> Result<PathBuf> {
        if !dataset.exists()? {
            let made = dataset.create(&Create { properties, parents: true });
            // Nothing is wrong when somebody was quicker.
            made.or_else(|e| if e.cause() == Some(Cause::Exists) { Ok(()) } else { Err(e) })?;
            let dir = mounted(dataset)?;
            std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .map_err(Error::io("setting the mode of", &dir))?;
        }
        mounted(dataset)
    }

    /// The snapshot that clones of an image begin from.
    fn snapshot(&self, name: &Name, root_digest: &str) -> Result<Snapshot> {
        let digits = root_digest.get(..16).unwrap_or(root_digest);
        Ok(self.image(name)?.at(&format!("{SNAPSHOT}{digits}"))?)
    }

    /// The children of one of the store's datasets, with properties.
    fn children(&self, dataset: &Dataset, asked: &[&str]) -> Result<Vec<(Dataset, Properties)>> {
        match dataset.list(Some(1), asked) {
            Err(e) if e.cause() == Some(Cause::NotFound) && self.parent.pool().exists()? => Ok(Vec::new()),
            other => Ok(other?.into_iter().filter(|(d, _)| d != dataset).collect()),
        }
    }
}

impl Backend for ZfsStore {
    fn locks(&self) -> PathBuf {
        Path::new(LOCKS).join(self.parent.as_str().replace('/', "__"))
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

    fn begin(&self, work: &Name, base: Option<&Image>) -> Result<Begun> {
        self.prepare(&self.images, &IMAGE_PROPERTIES, 0o700)?;
        let dataset = self.image(work)?;
        let Some(base) = base else {
            dataset.create(&Create::default())?;
            return Ok(Begun { dir: private(&dataset)?, is_clone: false });
        };
        let snapshot = self.snapshot(&base.name, &base.facts.root_digest)?;
        if !snapshot.exists()? {
            snapshot.take()?;
        }
        // What is set for the image itself is not inherited by its clones.
        snapshot.clone_to(&dataset, &[])?;
        let dir = private(&dataset)?;
        let file = image_file(&dir, &base.name)?;
        std::fs::rename(&file, dir.join(format!("{work}.bfc"))).map_err(Error::io("renaming", &file))?;
        Ok(Begun { dir, is_clone: true })
    }

    fn publish(&self, work: &Name, name: &Name, facts: &Facts) -> Result<()> {
        let (dataset, dir) = (self.image(work)?, mounted(&self.image(work)?)?);
        let file = image_file(&dir, work)?;
        std::fs::rename(&file, dir.join(format!("{name}.bfc"))).map_err(Error::io("renaming", &file))?;
        File::open(&dir).and_then(|d| d.sync_all()).map_err(Error::io("syncing", &dir))?;
        self.snapshot(work, &facts.root_digest)?.take()?;
        let properties = properties_of(facts);
        let mut all: Vec<(&str, &str)> = properties.iter().map(|(name, value)| (*name, value.as_str())).collect();
        all.push(("readonly", "on"));
        dataset.set(&all)?;
        Ok(dataset.rename(&self.image(name)?)?)
    }

    fn set_facts(&self, name: &Name, facts: &Facts) -> Result<()> {
        let properties = properties_of(facts);
        let all: Vec<(&str, &str)> = properties.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Ok(self.image(name)?.set(&all)?)
    }

    fn usage(&self, name: &Name) -> Result<Usage> {
        usage(&self.image(name)?)
    }

    fn container_usage(&self, name: &Name) -> Result<Usage> {
        usage(&self.containers.child(name.as_str())?)
    }

    fn free(&self) -> Result<u64> {
        let there = [&self.images, &self.parent].into_iter().find(|d| d.exists().is_ok_and(|e| e));
        Ok(there.unwrap_or(&self.parent.pool()).space()?.available)
    }

    fn clones(&self, name: &Name) -> Result<Vec<String>> {
        let clones = self.image(name)?.snapshots()?.into_iter().flat_map(|info| info.clones);
        Ok(clones.filter(|clone| clone.parent().as_ref() != Some(&self.images)).map(|clone| clone.to_string()).collect())
    }

    fn remove(&self, name: &Name) -> Result<u64> {
        destroy(&self.image(name)?)
    }

    fn containers(&self) -> Result<(Vec<Container>, Vec<Name>)> {
        let mut containers = Vec::new();
        for (dataset, properties) in self.children(&self.containers, &[CONTAINER_IMAGES, "mounted", "mountpoint", "canmount"])? {
            let Ok(name) = Name::new(dataset.name()) else { continue };
            let path = properties.get("mountpoint").filter(|p| p.starts_with('/')).map(PathBuf::from).unwrap_or_default();
            let images = own(&properties, CONTAINER_IMAGES).unwrap_or_default().split(' ').filter_map(|used| {
                let (name, root_digest) = used.rsplit_once('=')?;
                Some(ImageUse { name: name.to_owned(), root_digest: root_digest.to_owned() })
            });
            containers.push(Container { name, path, dataset: Some(dataset.clone()), images: images.collect() });
        }
        Ok((containers, Vec::new()))
    }

    fn create_container(&self, name: &Name, images: &[ImageUse]) -> Result<Container> {
        self.prepare(&self.containers, &[("atime", "off")], 0o711)?;
        let dataset = self.containers.child(name.as_str())?;
        let used: Vec<String> = images.iter().map(|i| format!("{}={}", i.name, i.root_digest)).collect();
        let used = if used.is_empty() { NONE.to_owned() } else { used.join(" ") };
        let mut properties = CONTAINER_PROPERTIES.to_vec();
        properties.push((CONTAINER_IMAGES, &used));
        dataset.create(&Create { properties: &properties, parents: false }).map_err(|e| match e.cause() {
            Some(Cause::Exists) => Error::Exists { kind: "container", name: name.to_string(), store: format!("zfs:{}", self.parent) },
            _ => e.into(),
        })?;
        Ok(Container { name: name.clone(), path: private(&dataset)?, dataset: Some(dataset), images: images.to_vec() })
    }

    fn remove_container(&self, name: &Name) -> Result<()> {
        destroy(&self.containers.child(name.as_str())?).map(drop)
    }
}

/// Destroys a dataset with its snapshots. What was cloned from it takes over what it needs, and goes on; says how many bytes are freed.
fn destroy(dataset: &Dataset) -> Result<u64> {
    // Each promotion makes another clone depend on the promoted one, and ends this dataset's share in one snapshot at least.
    while let Some(clone) = dataset.snapshots()?.into_iter().flat_map(|info| info.clones).next() {
        clone.promote()?;
    }
    // Without clones, all that it uses is its own.
    let zfs::Space { origin, used: mut freed, .. } = dataset.space()?;
    dataset.destroy(Children::Destroy).map_err(|e| match e.cause() {
        Some(Cause::Busy) => {
            Error::InUse { kind: "dataset", name: dataset.to_string(), users: vec!["a process has a file in it open".to_owned()] }
        }
        _ => e.into(),
    })?;
    if let Some(origin) = origin
        && let Some(left) = is_left_over(&origin)?
    {
        freed += left;
        origin.destroy()?;
    }
    Ok(freed)
}

/// How many bytes a snapshot keeps for nobody: one that came along with a promotion, and has no clones any more.
fn is_left_over(snapshot: &Snapshot) -> Result<Option<u64>> {
    let Some(digits) = snapshot.name().strip_prefix(SNAPSHOT) else { return Ok(None) };
    let dataset = snapshot.dataset();
    let of_it = dataset.properties(&[ROOT_DIGEST])?.get(ROOT_DIGEST).is_some_and(|digest| digest.starts_with(digits));
    let info = dataset.snapshots()?.into_iter().find(|info| info.snapshot == *snapshot);
    Ok(info.filter(|info| !of_it && info.clones.is_empty()).map(|info| info.used))
}

/// What a dataset takes. What a clone has from its origin is its origin's, and what clones have from it is theirs as well.
fn usage(dataset: &Dataset) -> Result<Usage> {
    let space = dataset.space()?;
    let bytes = space.referenced.max(space.used);
    let has_clones = dataset.snapshots()?.iter().any(|info| !info.clones.is_empty());
    let own = if has_clones { space.used.saturating_sub(space.referenced) } else { space.used };
    Ok(Usage { bytes, shared: bytes.saturating_sub(own) })
}

/// The directory of a dataset, which is mounted if it is not.
fn mounted(dataset: &Dataset) -> Result<PathBuf> {
    match dataset.mountpoint() {
        Err(zfs::Error::NotMounted { .. }) => dataset.mount()?,
        other => return Ok(other?),
    }
    Ok(dataset.mountpoint()?)
}

/// The directory of a new dataset, which nobody else may look into.
fn private(dataset: &Dataset) -> Result<PathBuf> {
    let dir = mounted(dataset)?;
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).map_err(Error::io("setting the mode of", &dir))?;
    Ok(dir)
}

/// A property that is the dataset's own, not its parents'.
fn own<'a>(properties: &'a Properties, name: &str) -> Option<&'a str> {
    let property = properties.property(name)?;
    matches!(property.source, Source::Local | Source::Received).then_some(property.value.as_str())
}

fn references(value: &str) -> Vec<super::Reference> {
    value.split(' ').filter_map(|text| text.parse().ok()).collect()
}

fn properties_of(facts: &Facts) -> Vec<(&'static str, String)> {
    let join = |texts: Vec<String>, by: &str| if texts.is_empty() { NONE.to_owned() } else { texts.join(by) };
    let layers = join(facts.layers.iter().map(|d| d.hex()).collect(), ",");
    vec![
        (REFERENCES, join(facts.refs.iter().map(|r| r.as_str().to_owned()).collect(), " ")),
        (ROOT_DIGEST, facts.root_digest.clone()),
        (MANIFEST_DIGEST, facts.manifest_digest.map_or_else(|| NONE.to_owned(), |d| d.to_string())),
        (CREATED, facts.created.to_string()),
        (LAYERS, if layers.len() > MAX_VALUE { NONE.to_owned() } else { layers }),
        (COMPRESSION, facts.compression.clone()),
        (ENCRYPTION, facts.encryption.clone()),
        (SIZE, facts.size.to_string()),
    ]
}

/// The facts that properties say; `None` when one is missing or wrong.
fn parse(properties: &Properties) -> Option<Facts> {
    let manifest = own(properties, MANIFEST_DIGEST)?;
    let layers = own(properties, LAYERS)?;
    Some(Facts {
        refs: references(own(properties, REFERENCES)?),
        root_digest: own(properties, ROOT_DIGEST).filter(|d| d.len() == 64 && d.bytes().all(|b| b.is_ascii_hexdigit()))?.to_owned(),
        manifest_digest: if manifest == NONE { None } else { Some(crate::build::Digest::parse(manifest)?) },
        created: own(properties, CREATED)?.parse().ok()?,
        layers: layers.split(',').map(crate::build::Digest::parse_hex).collect::<Option<_>>()?,
        compression: own(properties, COMPRESSION)?.to_owned(),
        encryption: own(properties, ENCRYPTION)?.to_owned(),
        size: own(properties, SIZE)?.parse().ok()?,
        parent: None,
    })
}
