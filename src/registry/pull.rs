//! Images in registries, as sources to build from.

use std::fs::File;
use std::io::Seek;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageIndex, MediaType};

use super::artifact::Artifact;
use super::download::{Blobs, Observer, RemoteLayer, Wanted};
use super::error::{Error, Result};
use super::session::{Manifest, Session};
use super::{Reference, Registries};
use crate::build::sources::{self, Documents, SourceImage, SourceLayer};
use crate::build::{self, Digest, Mismatch, Output, Platform};
use crate::error::Io;
use crate::text::hex;
use crate::trust::{self, Trust, Verdict};
use crate::{fs, reference};

/// How to pull.
#[derive(Clone)]
pub struct PullOptions {
    /// The image to choose from an index.
    pub platform: Platform,
    /// Settings of registries.
    pub registries: Registries,
    /// Below which directory blobs are kept while they are fetched.
    pub temp_dir: PathBuf,
    /// Receives the progress of downloads.
    pub observer: Arc<dyn Observer>,
}

impl std::fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("platform", &self.platform)
            .field("registries", &self.registries)
            .field("temp_dir", &self.temp_dir)
            .finish_non_exhaustive()
    }
}

/// An image in a registry.
#[derive(Debug)]
pub struct RemoteImage {
    /// Its layers, to be built: they are fetched when the first of them is read that the base does
    /// not have already.
    pub image: SourceImage,
    /// What the reference leads to: the digest of a manifest, or of an index.
    pub digest: Digest,
    /// Why it may be pulled.
    pub verdict: Verdict,
    /// What is fetched.
    pub blobs: Arc<Blobs>,
}

/// An image file in a registry.
#[derive(Debug)]
pub struct RemoteFile {
    /// The file.
    pub artifact: Artifact,
    /// What the reference leads to.
    pub digest: Digest,
    /// Why it may be pulled.
    pub verdict: Verdict,
    /// What is fetched: the file alone.
    pub blobs: Arc<Blobs>,
}

/// What a reference leads to.
#[derive(Debug)]
pub enum Fetchable {
    /// An image of the OCI or of Docker.
    Image(RemoteImage),
    /// An image file of lxcri-fs.
    File(RemoteFile),
}

impl Fetchable {
    /// What the reference leads to: the digest of a manifest, or of an index.
    pub fn digest(&self) -> Digest {
        match self {
            Self::Image(source) => source.digest,
            Self::File(file) => file.digest,
        }
    }

    /// Fetches nothing of it.
    pub fn leave(self) {
        let (Self::Image(RemoteImage { blobs, .. }) | Self::File(RemoteFile { blobs, .. })) = self;
        // Nothing has failed.
        let _ = blobs.finish(Ok(()));
    }

    /// Why it may be pulled.
    pub fn verdict(&self) -> &Verdict {
        match self {
            Self::Image(source) => &source.verdict,
            Self::File(file) => &file.verdict,
        }
    }
}

/// Understands `[docker://]NAME[:TAG][@DIGEST]`; `nginx` is `docker.io/library/nginx:latest`.
///
/// # Errors
/// [`Error::Reference`].
pub fn parse(text: &str) -> Result<Reference> {
    reference::parse(text).map_err(|reason| Error::Reference {
        text: text.to_owned(),
        reason: reason.to_owned(),
    })
}

/// The digest that a reference leads to now. Takes one request, if the registry needs no login.
///
/// # Errors
/// [`Error`].
pub fn digest(reference: &Reference, registries: &Registries) -> Result<Digest> {
    Session::new(reference, registries)?.digest(tag(reference))
}

/// Finds an image: reads its manifest and its configuration, no layer; and asks whether it may be
/// pulled.
///
/// # Errors
/// [`Error`]; [`Error::Trust`] if it may not.
pub fn find(reference: &Reference, options: &PullOptions) -> Result<Fetchable> {
    let trust = Trust::load(options.registries.trust())?;
    trust.may_be_accepted(reference)?;
    let session = Session::new(reference, &options.registries)?;
    let top = session.manifest(tag(reference))?;
    let judge = |manifests: &[trust::Manifest]| {
        trust.judge(reference, manifests, &|digest| session.signatures(digest))
    };
    let asked = trust::Manifest {
        digest: top.digest,
        media_type: top.media_type.clone(),
        size: top.bytes.len() as u64,
    };
    if let Some(artifact) = Artifact::of(&top.bytes) {
        let verdict = judge(&[asked])?;
        let wanted = Wanted {
            digest: artifact.digest,
            size: artifact.size,
        };
        let blobs = Blobs::new(
            session,
            &[wanted],
            &options.temp_dir,
            options.observer.clone(),
        )?;
        return Ok(Fetchable::File(RemoteFile {
            artifact,
            digest: top.digest,
            verdict,
            blobs,
        }));
    }
    let remote = Remote {
        session: &session,
        name: reference.whole(),
        top: &top,
    };
    let found = sources::choose(&remote, &remote.index()?, None, &options.platform)?;
    let own = trust::Manifest {
        digest: Digest::of(&found.manifest),
        media_type: MediaType::ImageManifest.to_string(),
        size: found.manifest.len() as u64,
    };
    let verdict = if own.digest == asked.digest {
        judge(&[asked])?
    } else {
        judge(&[asked, own])?
    };

    let wanted: Vec<_> = found
        .layers
        .iter()
        .map(|l| Wanted {
            digest: l.digest,
            size: l.size,
        })
        .collect();
    let blobs = Blobs::new(
        session,
        &wanted,
        &options.temp_dir,
        options.observer.clone(),
    )?;
    let layer = |(asked, layer): (usize, sources::FoundLayer)| SourceLayer {
        name: layer.digest.to_string(),
        created_by: layer.created_by,
        diff_id: Some(layer.diff_id),
        size: layer.size,
        compressed: layer.compressed,
        tar: Box::new(RemoteLayer {
            blobs: blobs.clone(),
            asked,
            name: layer.digest.to_string(),
        }),
    };
    let layers = found.layers.into_iter().enumerate().map(layer).collect();
    Ok(Fetchable::Image(RemoteImage {
        image: SourceImage {
            layers,
            config: found.config,
            manifest: found.manifest,
        },
        digest: top.digest,
        verdict,
        blobs,
    }))
}

/// Whether one of these verdicts is of this name, under the rules that count now.
///
/// # Errors
/// [`Error::Trust`] if the rules cannot be read.
pub fn is_accepted(
    reference: &Reference,
    verdicts: &[Verdict],
    registries: &Registries,
) -> Result<bool> {
    let trust = Trust::load(registries.trust())?;
    let name = reference.whole();
    let mut verdicts = verdicts.iter().filter(|verdict| verdict.reference == name);
    Ok(verdicts.any(|verdict| trust.is_current(verdict, reference)))
}

/// Asks again whether an image may be used that was pulled earlier.
///
/// # Errors
/// [`Error`]; [`Error::Trust`] if it may not.
pub fn ask_again(verdict: &Verdict, registries: &Registries) -> Result<Verdict> {
    let reference = parse(&verdict.reference)?;
    let trust = Trust::load(registries.trust())?;
    if trust.is_current(verdict, &reference) {
        return Ok(verdict.clone());
    }
    trust.may_be_accepted(&reference)?;
    // What the store has of manifests is their digests.
    let asked = |digest: &Digest| trust::Manifest {
        digest: *digest,
        media_type: MediaType::ImageManifest.to_string(),
        size: 0,
    };
    let manifests: Vec<_> = verdict.manifests.iter().map(asked).collect();
    let session = Session::new(&reference, registries)?;
    Ok(trust.judge(&reference, &manifests, &|digest| session.signatures(digest))?)
}

/// Finds an image that is to be built of.
///
/// # Errors
/// [`Error`], also when it is an image file.
pub fn source(reference: &Reference, options: &PullOptions) -> Result<RemoteImage> {
    match find(reference, options)? {
        Fetchable::Image(source) => Ok(source),
        Fetchable::File(_) => Err(Error::Build(build::Error::Source {
            name: reference.whole(),
            reason: "it is an image file, and has no layers to build from".into(),
            hint: Some("`lxcri-fs pull` fetches it as it is".into()),
        })),
    }
}

impl RemoteFile {
    /// Fetches the file, checks it, and gives it its name. `force` replaces an existing file.
    ///
    /// # Errors
    /// [`Error`]; an existing file at `path` is unchanged then.
    pub fn write_to(
        &self,
        path: &Path,
        force: bool,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let output = Output::create(path, force)?;
        let mut fetched = self.blobs.file(0, progress)?;
        let writing = || Io::at("writing", path);
        let mut file = output.file()?;
        fetched
            .rewind()
            .and_then(|()| std::io::copy(&mut fetched, &mut file))
            .and_then(|_| file.sync_all())
            .map_err(writing())?;
        self.check(path, file)?;
        Ok(output.publish()?)
    }

    /// Whether it is the image that was announced.
    fn check(&self, path: &Path, file: File) -> Result<()> {
        let failed = |source| {
            Error::Build(build::Error::Fs(fs::Error::Image {
                image: path.to_owned(),
                source,
            }))
        };
        let container = bfc::Container::open(Arc::new(file)).map_err(failed)?;
        let locator = container.locator().map_err(failed)?;
        let found = locator.map(|l| hex(&l.root_digest));
        match (&self.artifact.root_digest, found) {
            (Some(wanted), found)
                if Some(wanted.trim_start_matches("blake3:")) != found.as_deref() =>
            {
                let reason = Mismatch::Digest {
                    found: found.unwrap_or_default(),
                    wanted: wanted.clone(),
                };
                Err(build::Error::Mismatch {
                    name: "the root of the image".into(),
                    reason,
                }
                .into())
            }
            _ => Ok(()),
        }
    }
}

/// How to request the manifest: by digest if there is one, or else by tag.
fn tag(reference: &Reference) -> &str {
    reference.digest().or(reference.tag()).unwrap_or("latest")
}

/// The documents of an image in a registry.
struct Remote<'a> {
    session: &'a Session,
    name: String,
    /// What the reference leads to.
    top: &'a Manifest,
}

impl Remote<'_> {
    /// An index that contains only the manifest that the reference leads to.
    fn index(&self) -> build::Result<ImageIndex> {
        let Manifest { bytes, digest, .. } = self.top;
        let (index, media_type) = sources::index_of(&self.name, bytes, digest)?;
        if media_type.is_some_and(|said| {
            said != self.top.media_type && is_manifest(&MediaType::from(&*self.top.media_type))
        }) {
            let reason = format!(
                "the registry says that it is {}, but the document itself does not",
                self.top.media_type
            );
            return Err(build::Error::document(&self.name, reason));
        }
        Ok(index)
    }
}

/// Registries keep manifests and blobs apart.
fn is_manifest(media_type: &MediaType) -> bool {
    match media_type {
        MediaType::ImageManifest | MediaType::ImageIndex => true,
        MediaType::Other(other) => {
            other.starts_with("application/vnd.docker.distribution.manifest.")
        }
        _ => false,
    }
}

impl Documents for Remote<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn document(&self, descriptor: &Descriptor) -> build::Result<Vec<u8>> {
        let digest = sources::digest_of(self, descriptor)?;
        let text = digest.to_string();
        if digest == self.top.digest {
            return Ok(self.top.bytes.clone());
        }
        let fetched = if is_manifest(descriptor.media_type()) {
            self.session.manifest(&text).map(|m| m.bytes)
        } else {
            self.session.document(&digest)
        };
        let bytes = fetched.map_err(|error| match error {
            Error::Build(error) => error,
            error => build::Error::remote(&text, error),
        })?;
        if bytes.len() as u64 != descriptor.size() {
            let reason = Mismatch::Size {
                found: bytes.len() as u64,
                wanted: descriptor.size(),
            };
            return Err(build::Error::Mismatch {
                name: format!("blob {digest}"),
                reason,
            });
        }
        Ok(bytes)
    }
}
