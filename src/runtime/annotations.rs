//! What a container's annotations ask for.
//!
//! Whoever may set annotations chooses what the container has as its root file system. An image must not: podman makes annotations of those of an image's manifest.
//! So what an annotation names for writing is bound to one directory.

use std::path::{Component, Path, PathBuf};

use super::error::{Error, Result};
use super::mount::{Mount, Writable};
use super::record::ImageRecord;
use crate::serve::idmap::IdMap;
use crate::store::{Config, Store};

/// The image: an absolute path, or a name in the store.
pub const IMAGE: &str = "org.lxcri-fs.image";
/// Where is written: `ephemeral` (the default), `none`, or a directory below [`UPPERS`].
pub const UPPER: &str = "org.lxcri-fs.upper";
/// Whose ids are seen, as `mount --idmap` takes it.
pub const IDMAP: &str = "org.lxcri-fs.idmap";
/// File with the key of an encrypted image, below [`KEYS`].
pub const KEY_FILE: &str = "org.lxcri-fs.key-file";
/// Where annotations may have something written.
pub const UPPERS: &str = "/var/lib/lxcri-fs/uppers";
/// Where annotations may have keys read.
pub const KEYS: &str = "/etc/lxcri-fs/keys";

/// A root file system that annotations ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    image: ImageRecord,
    upper: Option<Writable>,
    idmap: Option<IdMap>,
}

impl Wanted {
    /// What annotations ask for; `None` when they name no image.
    ///
    /// # Errors
    /// [`Error::Unfit`] when they cannot be followed, [`Error::Store`] when the store has no such image.
    pub fn of<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Option<Self>> {
        let Some(image) = get(IMAGE) else { return Ok(None) };
        let upper = match get(UPPER).unwrap_or("ephemeral") {
            "ephemeral" => Some(Writable::Ephemeral(None)),
            "none" => None,
            path => Some(Writable::Upper(below(UPPERS, UPPER, path)?.into())),
        };
        let key_file = get(KEY_FILE).map(|path| below(KEYS, KEY_FILE, path)).transpose()?;
        let idmap = get(IDMAP).map(|text| text.parse().map_err(|e| Error::unfit(format!("annotation {IDMAP}: {e}")))).transpose()?;
        let path = if image.starts_with('/') { PathBuf::from(image) } else { Store::open(&Config::load(None)?)?.image(image)?.path };
        let image = ImageRecord { path, name: image.to_owned(), root_digest: None, password_file: None, key_file };
        Ok(Some(Self { image, upper, idmap }))
    }

    /// Has nothing written.
    pub fn read_only(&mut self) {
        self.upper = None;
    }

    /// Mounts it, unless something of ours is mounted there; whether it was not.
    ///
    /// # Errors
    /// As [`Mount::mount`].
    pub fn mount(&self, root: &Path) -> Result<bool> {
        let Self { image, upper, idmap } = self.clone();
        Mount { image, upper, idmap, root: root.to_owned() }.mount()
    }
}

/// A path that an annotation may name: below `top`, also when it is relative.
fn below(top: &str, annotation: &str, path: &str) -> Result<PathBuf> {
    let full = Path::new(top).join(path);
    let plain = full.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if plain && full.starts_with(top) && full != Path::new(top) {
        return Ok(full);
    }
    Err(Error::Unfit { what: format!("annotation {annotation} is {path:?}"), hint: Some(format!("it may name what is below {top} only")) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn annotations_reach_no_other_place() {
        for path in ["web1", "/var/lib/lxcri-fs/uppers/web1", "a/b"] {
            assert!(below(UPPERS, UPPER, path).unwrap().starts_with(UPPERS));
        }
        for path in [
            "",
            ".",
            "/",
            "/etc",
            "..",
            "../containers/x",
            "/var/lib/lxcri-fs/uppers/../containers",
            "zfs:tank/x/../y",
            "/var/lib/lxcri-fs/uppersx",
        ] {
            assert!(below(UPPERS, UPPER, path).is_err(), "{path}");
        }
        let annotations = |name: &str| (name == UPPER).then_some("/etc");
        assert_eq!(Wanted::of(annotations).unwrap(), None);
        let annotations = |name: &str| [(IMAGE, "/x.bfc"), (UPPER, "/etc")].into_iter().find(|(n, _)| *n == name).map(|(_, v)| v);
        assert!(Wanted::of(annotations).is_err());
    }
}
