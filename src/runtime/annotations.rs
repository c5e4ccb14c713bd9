//! Root file systems that a container's annotations request.
//!
//! Annotations choose the root file system of a container. An image must not choose it, but its
//! annotations look like any others: podman copies annotations from an image's manifest, umoci from
//! its labels. An image always comes with a root file system, though. Annotations therefore count
//! if the container has no root file system of its own, and otherwise only as far as the
//! configuration allows. An annotation names an upper or a key by one name in a directory that only
//! root can reach, and each upper and key names the images that may use it.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

use super::error::{Error, Result};
use super::record::ImageRecord;
use super::root_mount::{RootMount, Writable, secret_of};
use crate::error::Io;
use crate::fs::Rootfs;
use crate::image;
use crate::serve::engine::Wanted as Engine;
use crate::store::{self, Config, Store};
use crate::sys::idmap::IdMap;
use crate::sys::{directory, files};
use crate::upper;
use crate::zfs::recorded;

/// The image: an absolute path, or a name in the store.
pub const IMAGE: &str = "org.lxcri-fs.image";
/// The upper: `ephemeral` (the default), `none`, or a name in [`UPPERS`].
pub const UPPER: &str = "org.lxcri-fs.upper";
/// The map of ids, as `mount --idmap` takes it.
pub const IDMAP: &str = "org.lxcri-fs.idmap";
/// What serves the image, as `mount --engine` takes it.
pub const ENGINE: &str = "org.lxcri-fs.engine";
/// Name of the key of an encrypted image in [`KEYS`].
pub const KEY_FILE: &str = "org.lxcri-fs.key-file";
/// Directory of the uppers that annotations may name.
pub const UPPERS: &str = "/var/lib/lxcri-fs/uppers";
/// Directory of the keys that annotations may name.
pub const KEYS: &str = "/etc/lxcri-fs/keys";
/// Suffix of the file beside a key that lists the images that may be opened with it.
const KEY_IMAGES: &str = ".images";
/// Longest such list, bytes.
const MAX_KEY_IMAGES: u64 = 1 << 20;
/// The root file system of containers that have none: no image can have set their annotations.
const NO_ROOT: &str = "/var/empty";

/// A root file system that annotations request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    image: ImageRecord,
    upper: Option<Writable>,
    idmap: Option<IdMap>,
    engine: Option<Engine>,
}

impl Wanted {
    /// The root file system that annotations request; `None` if they name no image. `own_root` is
    /// the container's own root file system.
    ///
    /// # Errors
    /// [`Error::Unfit`] if they are invalid, or may come from an image; [`Error::Store`] if the
    /// store has no such image.
    pub fn of<'a>(get: impl Fn(&str) -> Option<&'a str>, own_root: &Path) -> Result<Option<Self>> {
        let Some(image) = get(IMAGE) else {
            return Ok(None);
        };
        let config = Config::load(None)?;
        for annotation in [IMAGE, UPPER, IDMAP, ENGINE, KEY_FILE]
            .into_iter()
            .filter(|name| get(name).is_some())
        {
            let short = annotation.trim_start_matches(super::ANNOTATION);
            if !config
                .annotations
                .value
                .iter()
                .any(|allowed| allowed == short)
            {
                check_choice(annotation, own_root)?;
            }
        }
        let upper = match get(UPPER).unwrap_or("ephemeral") {
            "ephemeral" => Some(Writable::Ephemeral(None)),
            "none" => None,
            name => Some(Writable::Upper(named(UPPERS, UPPER, name)?.into())),
        };
        let idmap = get(IDMAP)
            .map(|text| {
                text.parse()
                    .map_err(|e| Error::unfit(format!("annotation {IDMAP}: {e}")))
            })
            .transpose()?;
        let engine = get(ENGINE)
            .map(|text| {
                text.parse()
                    .map_err(|e| Error::unfit(format!("annotation {ENGINE}: {e}")))
            })
            .transpose()?;
        let path = if image.starts_with('/') {
            PathBuf::from(image)
        } else {
            Store::open(&config)?.image(image)?.path
        };
        let key_file = get(KEY_FILE)
            .map(|name| key(Path::new(KEYS), name, image, &path))
            .transpose()?;
        let image = ImageRecord {
            path,
            name: image.to_owned(),
            root_digest: None,
            password_file: None,
            key_file,
        };
        Ok(Some(Self {
            image,
            upper,
            idmap,
            engine,
        }))
    }

    /// Makes it read-only.
    pub fn read_only(&mut self) {
        self.upper = None;
    }

    /// Opens the image, to read its configuration.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub fn open(&self) -> Result<Rootfs> {
        let secret = secret_of(&self.image)?;
        Ok(image::open(&self.image.path, secret)?)
    }

    /// The map of ids.
    pub fn idmap(&self) -> Option<&IdMap> {
        self.idmap.as_ref()
    }

    /// Mounts it, unless lxcri-fs has mounted something there already. Returns whether it mounted.
    ///
    /// # Errors
    /// As [`RootMount::mount`], and [`Error::Unfit`] if the upper must not be used.
    pub fn mount(&self, root: &Path) -> Result<bool> {
        let Self {
            image,
            upper,
            idmap,
            engine,
        } = self.clone();
        if let Some(Writable::Upper(place)) = &upper {
            make_upper(Path::new(place))?;
        }
        RootMount {
            image,
            upper,
            idmap,
            engine,
            root: root.to_owned(),
        }
        .mount()
    }
}

/// Whether a container has no root file system of its own, and so no image.
pub(super) fn is_none(own_root: &Path) -> bool {
    let looked = std::fs::symlink_metadata(own_root);
    own_root == Path::new(NO_ROOT) || looked.is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

/// Refuses an annotation that may come from an image: the container has a root file system of its
/// own, which may be an image's.
fn check_choice(annotation: &str, own_root: &Path) -> Result<()> {
    if is_none(own_root) {
        return Ok(());
    }
    let short = annotation.trim_start_matches(super::ANNOTATION);
    Err(Error::Unfit {
        what: format!(
            "annotation {annotation} may be an image's own: the container has a root file system \
             already, {}",
            own_root.display()
        ),
        hint: Some(format!(
            "`--rootfs {NO_ROOT}` takes no image; with `[annotations] allow = [{short:?}]` in {}, \
             it counts wherever it is",
            store::config::CONFIG
        )),
    })
}

/// The entry of `top` that an annotation names: one name, optionally after `top` itself.
fn named(top: &str, annotation: &str, text: &str) -> Result<PathBuf> {
    let name = text
        .strip_prefix(top)
        .and_then(|rest| rest.strip_prefix('/'))
        .unwrap_or(text);
    if is_name(name) {
        return Ok(Path::new(top).join(name));
    }
    Err(Error::Unfit {
        what: format!("annotation {annotation} is {text:?}"),
        hint: Some(format!(
            "it must be the name of an entry of {top}, without a slash"
        )),
    })
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\0']) && !name.starts_with('.')
}

/// Makes sure that the directory of an upper exists, in a directory that only root can write to.
fn make_upper(place: &Path) -> Result<()> {
    let (Some(top), Some(name)) = (place.parent(), place.file_name()) else {
        return Ok(());
    };
    if let Some(parent) = top.parent().filter(|parent| !parent.exists()) {
        // With the mode of the store, which by default is the parent.
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(parent)
            .map_err(Io::at("making the directory", parent))?;
    }
    match mkdirat(CWD, top, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(Io::at("making the directory", top)(e).into()),
    }
    let dir = own_directory(top, "opening")?;
    directory::set_mode(dir.as_fd(), 0o700, None).map_err(Io::at("setting the mode of", top))?;
    match mkdirat(&dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(Io::at("making the directory", place)(e).into()),
    }
    beneath(&dir, Path::new(name), OFlags::PATH | OFlags::DIRECTORY)
        .map_err(Io::at("opening", place))?;
    Ok(())
}

/// The key that an annotation names, if the image is in the key's list.
fn key(top: &Path, name: &str, image: &str, path: &Path) -> Result<PathBuf> {
    let file = named(&top.to_string_lossy(), KEY_FILE, name)?;
    let dir = own_directory(top, "opening")?;
    let mut list = file.file_name().unwrap_or_default().to_owned();
    list.push(KEY_IMAGES);
    let unknown = |what: &str| Error::Unfit {
        what: format!("{} {what}", file.display()),
        hint: Some(format!(
            "{}{KEY_IMAGES} lists them, one a line: paths, names in the store, or root digests \
             (`blake3:…`)",
            file.display()
        )),
    };
    let opened = match beneath(&dir, Path::new(&list), OFlags::RDONLY | OFlags::NONBLOCK) {
        Err(Errno::NOENT) => {
            return Err(unknown("does not say which images may be opened with it"));
        }
        other => File::from(other.map_err(Io::at("opening the list of images of", &file))?),
    };
    let text = files::take(opened, MAX_KEY_IMAGES)
        .map_err(Io::at("reading the list of images of", &file))?;
    let text = String::from_utf8_lossy(&text);
    let opened = recorded::open_image::<store::Error>(path)?;
    let digest = upper::record::identify(path, &opened)?.digest;
    if text
        .lines()
        .map(str::trim)
        .any(|line| line == image || line == digest || Path::new(line) == path)
    {
        return Ok(file);
    }
    Err(unknown(&format!("must not be used for the image {image}")))
}

/// Opens a directory that belongs to root, and that nobody else can write to.
fn own_directory(path: &Path, doing: &'static str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(Io::at(doing, path))?;
    let metadata = File::from(dir.try_clone().map_err(Io::at(doing, path))?)
        .metadata()
        .map_err(Io::at(doing, path))?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err(Error::Unfit {
            what: format!("{} is not accessible to its user alone", path.display()),
            hint: Some(format!(
                "check what is in it, then `chown root:root {0} && chmod 700 {0}`",
                path.display()
            )),
        });
    }
    Ok(dir)
}

/// Opens an entry of a directory without following a symlink.
fn beneath(dir: &OwnedFd, name: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(
        dir,
        name,
        flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
        resolve,
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn annotations_name_one_thing_in_one_directory() {
        for path in ["web1", "/var/lib/lxcri-fs/uppers/web1"] {
            assert_eq!(
                named(UPPERS, UPPER, path).unwrap(),
                Path::new(UPPERS).join("web1")
            );
        }
        for path in [
            "",
            ".",
            "/",
            "/etc",
            "..",
            "a/b",
            "a/upper/x",
            "../containers/x",
            ".hidden",
            "/var/lib/lxcri-fs/uppers",
            "/var/lib/lxcri-fs/uppers/",
            "/var/lib/lxcri-fs/uppers/a/b",
            "/var/lib/lxcri-fs/uppers/../containers",
            "zfs:tank/x/../y",
            "/var/lib/lxcri-fs/uppersx",
        ] {
            assert!(named(UPPERS, UPPER, path).is_err(), "{path}");
        }
        let annotations = |name: &str| (name == UPPER).then_some("/etc");
        assert_eq!(Wanted::of(annotations, Path::new("/")).unwrap(), None);
    }

    #[test]
    fn an_image_with_a_root_file_system_chooses_nothing() {
        assert!(check_choice(IMAGE, Path::new(NO_ROOT)).is_ok());
        assert!(check_choice(IMAGE, Path::new("/nowhere/at/all")).is_ok());
        let temp = tempfile::tempdir().unwrap();
        // Also where it is empty: an image may have no files, and annotations.
        for root in [Path::new("/"), temp.path()] {
            let refused = check_choice(IMAGE, root).unwrap_err().to_string();
            assert!(refused.contains(IMAGE), "{refused}");
        }
    }

    #[test]
    fn a_key_says_which_images_it_is_for() {
        let temp = tempfile::tempdir().unwrap();
        let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/zstd-keyfile.bfc");
        let image_text = image.to_str().unwrap();
        let of = |name: &str| key(temp.path(), name, image_text, &image);
        std::fs::write(temp.path().join("k"), "secret").unwrap();
        assert!(of("k").unwrap_err().to_string().contains("does not say"));
        std::fs::write(temp.path().join("k.images"), "/other.bfc\n").unwrap();
        assert!(
            of("k")
                .unwrap_err()
                .to_string()
                .contains("must not be used for the image")
        );
        std::fs::write(
            temp.path().join("k.images"),
            format!("/other.bfc\n{image_text}\n"),
        )
        .unwrap();
        assert_eq!(of("k").unwrap(), temp.path().join("k"));
        std::fs::rename(temp.path().join("k.images"), temp.path().join("list")).unwrap();
        std::os::unix::fs::symlink("list", temp.path().join("k.images")).unwrap();
        assert!(of("k").is_err());
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(temp.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(of("k").unwrap_err().to_string().contains("alone"));
    }
}
