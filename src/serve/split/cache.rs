//! Metadata that were made before, so that only the first mount of an image waits for them.
//!
//! They are in a directory that only root can reach, one file for each image and way to open it.
//! The name of a file tells which file the image is, its length and its times, as the keeper itself
//! sees them, and the image's digest, as a worker that has it open says: no image can have another
//! one's metadata.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Metadata;
use crate::erofs::{self, Layout, MAX_METADATA};

/// Where they are.
const DIRECTORY: &str = "/var/cache/lxcri-fs/erofs";
/// How long metadata stay that no mount uses.
const UNUSED: Duration = Duration::from_secs(30 * 86400);
/// Most bytes of all of them together; the oldest go first.
const MOST: u64 = 512 << 20;
/// Length of what precedes the metadata in a file: their digest.
const HEAD: usize = blake3::OUT_LEN;

/// A place for the metadata of an image.
#[derive(Debug, Clone)]
pub(in super::super) struct Place(PathBuf);

impl Place {
    /// The place for the images with this identity, of which a worker says that they have these
    /// digests; `None` where it cannot be kept. A file of another image may have the same number,
    /// length and times where somebody else controls the file system.
    pub(in super::super) fn of(identity: &str, digests: &[String]) -> Option<Self> {
        let directory = Path::new(DIRECTORY);
        let made = DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(directory);
        let found = std::fs::symlink_metadata(directory).ok()?;
        let is_own = found.is_dir() && found.uid() == 0 && found.mode() & 0o077 == 0;
        if made.is_err() || !is_own {
            return None;
        }
        let (metadata, layout) = (erofs::VERSION, Layout::VERSION);
        let mut hasher = blake3::Hasher::new();
        for text in digests.iter().map(String::as_str).chain([identity]) {
            hasher.update(text.as_bytes()).update(&[0]);
        }
        let name = hasher.finalize().to_hex();
        Some(Self(directory.join(format!("{name}-{metadata}-{layout}"))))
    }

    /// What was kept there, if that is what it was.
    pub(in super::super) fn read(&self) -> Option<Metadata> {
        let file = File::open(&self.0).ok()?;
        let len = file.metadata().ok()?.len();
        let len = usize::try_from(len.min(MAX_METADATA + HEAD as u64)).ok()?;
        let mut bytes = Vec::with_capacity(len);
        Read::take(&file, len as u64).read_to_end(&mut bytes).ok()?;
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        if blake3::hash(rest).as_bytes() != head {
            return None;
        }
        // The time says when it was used last.
        let _ = file.set_modified(SystemTime::now());
        Some(Metadata::from(bytes.split_off(HEAD)))
    }

    /// Keeps metadata there. That they are not kept only costs time.
    pub(in super::super) fn write(&self, metadata: &Metadata) {
        if let Err(error) = self.try_write(metadata) {
            tracing::debug!(path = %self.0.display(), %error, "EROFS metadata not kept");
        }
        if let Some(directory) = self.0.parent() {
            clean(directory);
        }
    }

    fn try_write(&self, metadata: &Metadata) -> io::Result<()> {
        let directory = self.0.parent().unwrap_or(Path::new(DIRECTORY));
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(blake3::hash(metadata.bytes()).as_bytes())?;
        file.write_all(metadata.bytes())?;
        file.persist(&self.0)?;
        Ok(())
    }
}

/// Removes what was not used for long, and the oldest of what is too much.
fn clean(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some((metadata.modified().ok()?, metadata.len(), entry.path()))
        })
        .collect();
    files.sort();
    let mut bytes: u64 = files.iter().map(|(_, len, _)| len).sum();
    for (used, len, path) in files {
        let is_old = used.elapsed().is_ok_and(|unused| unused > UNUSED);
        if is_old || bytes > MOST {
            let _ = std::fs::remove_file(path);
            bytes = bytes.saturating_sub(len);
        }
    }
}
