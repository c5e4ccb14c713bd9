//! Parses the names of sources, such as `oci:PATH:TAG`, and guesses the kind if the prefix is
//! missing.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::archive::Archive;
use super::blob::FilePart;
use super::stdin;
use crate::build::error::{Error, Result};

/// The kind of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A directory: a root file system, or a layer in overlayfs's or OCI's form.
    Dir,
    /// An OCI image layout.
    Oci,
    /// An OCI image layout in a tar.
    OciArchive,
    /// An archive of `docker save`.
    DockerArchive,
    /// A tar of a root file system or of a layer.
    Tar,
    /// An image of ours, or any BFC v1 image.
    Bfc,
}

impl SourceKind {
    const PREFIXES: [(&'static [u8], Self); 6] = [
        (b"dir:", Self::Dir),
        (b"oci:", Self::Oci),
        (b"oci-archive:", Self::OciArchive),
        (b"docker-archive:", Self::DockerArchive),
        (b"tar:", Self::Tar),
        (b"bfc:", Self::Bfc),
    ];

    fn has_reference(self) -> bool {
        matches!(self, Self::Oci | Self::OciArchive | Self::DockerArchive)
    }
}

/// Skopeo transports that nothing here reads.
const TRANSPORTS: [&str; 3] = ["ostree:", "sif:", "atomic:"];

/// The name of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Its kind.
    pub kind: SourceKind,
    /// Its path.
    pub path: PathBuf,
    /// The image to choose from it.
    pub reference: Option<String>,
}

impl Spec {
    /// Whether it is standard input.
    pub fn is_stdin(&self) -> bool {
        let reads_it = matches!(
            self.kind,
            SourceKind::Tar | SourceKind::OciArchive | SourceKind::DockerArchive
        );
        reads_it && stdin::is_named(&self.path)
    }

    /// Whether `text` has a prefix or names a file or directory that exists, and so cannot be the
    /// name of an image in a store. Does not read the file.
    pub fn names_file(text: &OsStr) -> bool {
        let bytes = text.as_bytes();
        let colons = bytes.iter().enumerate().filter(|(_, b)| **b == b':');
        let mut ends = colons.map(|(at, _)| at).chain([bytes.len()]);
        let prefixes = SourceKind::PREFIXES.iter().map(|(prefix, _)| *prefix);
        let mut prefixes = prefixes.chain(TRANSPORTS.iter().map(|text| text.as_bytes()));
        stdin::is_named(Path::new(text))
            || bytes.windows(3).any(|w| w == b"://")
            || prefixes.any(|prefix| bytes.starts_with(prefix))
            || ends.any(|end| Path::new(OsStr::from_bytes(&bytes[..end])).exists())
    }

    /// Parses `text`, and looks at the file if the prefix is missing.
    ///
    /// # Errors
    /// If the file does not exist or is of an unknown kind.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let bytes = text.as_bytes();
        for (prefix, kind) in SourceKind::PREFIXES {
            if let Some(rest) = bytes.strip_prefix(prefix) {
                return Ok(Self::with_kind(kind, rest));
            }
        }
        if stdin::is_named(Path::new(text)) {
            return Err(Error::Source {
                name: "-".to_owned(),
                reason: "it does not say what standard input is".to_owned(),
                hint: Some("tar:-, oci-archive:- and docker-archive:- do".to_owned()),
            });
        }
        if let Some(at) = bytes.windows(3).position(|w| w == b"://") {
            return Err(unknown(
                text,
                &format!(
                    "{}:// is not a kind of source",
                    String::from_utf8_lossy(&bytes[..at])
                ),
            ));
        }
        let path = Path::new(text);
        let transport = TRANSPORTS.iter().find(|t| bytes.starts_with(t.as_bytes()));
        if let Some(transport) = transport.filter(|_| !path.exists()) {
            return Err(Error::Source {
                name: text.to_string_lossy().into_owned(),
                reason: format!("{transport} is a skopeo transport that is not read here"),
                hint: Some(format!(
                    "`skopeo copy {} oci-archive:image.tar` makes a source of it",
                    text.to_string_lossy()
                )),
            });
        }
        if let Some(kind) = guess(path)? {
            return Ok(Self {
                kind,
                path: path.to_owned(),
                reference: None,
            });
        }
        // PATH:REFERENCE, of which PATH exists; both may have more colons.
        let colons = bytes
            .iter()
            .enumerate()
            .filter(|&(_, &b)| b == b':')
            .map(|(at, _)| at);
        for at in colons.filter(|_| !path.exists()) {
            let path = Path::new(OsStr::from_bytes(&bytes[..at]));
            if let Some(kind) = guess(path)?.filter(|kind| kind.has_reference()) {
                let reference = Some(String::from_utf8_lossy(&bytes[at + 1..]).into_owned());
                return Ok(Self {
                    kind,
                    path: path.to_owned(),
                    reference,
                });
            }
        }
        if path.exists() {
            return Err(unknown(
                text,
                "it is not a directory, a tar, an archive of an image, or a BFC image",
            ));
        }
        let name = text.to_string_lossy();
        // A name with an ending is a file's.
        let last = name.rsplit('/').next().unwrap_or_default();
        let is_image = crate::reference::parse(&name).is_ok()
            && !last.split(':').next().unwrap_or_default().contains('.');
        Err(Error::NoSource {
            hint: is_image.then(|| format!("docker://{name} names an image in a registry")),
            name: name.into_owned(),
        })
    }

    /// `PATH[:REFERENCE]`. As in skopeo, the reference follows the first colon, unless the whole
    /// text is an existing path.
    fn with_kind(kind: SourceKind, rest: &[u8]) -> Self {
        let whole = Self {
            kind,
            path: OsStr::from_bytes(rest).into(),
            reference: None,
        };
        if !kind.has_reference() || whole.path.exists() {
            return whole;
        }
        match rest.iter().position(|&b| b == b':') {
            Some(at) => Self {
                kind,
                path: OsStr::from_bytes(&rest[..at]).into(),
                reference: Some(String::from_utf8_lossy(&rest[at + 1..]).into_owned()),
            },
            None => whole,
        }
    }
}

fn unknown(text: &OsStr, reason: &str) -> Error {
    Error::Source {
        name: text.to_string_lossy().into_owned(),
        reason: reason.to_owned(),
        hint: Some(
            "name it as dir:PATH, oci:PATH[:TAG], oci-archive:FILE[:TAG], \
             docker-archive:FILE[:REF], tar:FILE or bfc:FILE"
                .into(),
        ),
    }
}

fn guess(path: &Path) -> Result<Option<SourceKind>> {
    if path.is_dir() {
        let has = |name: &str| path.join(name).is_file();
        return Ok(Some(if has("oci-layout") && has("index.json") {
            SourceKind::Oci
        } else {
            SourceKind::Dir
        }));
    }
    if !path.is_file() {
        return Ok(None);
    }
    if FilePart::whole(path)?.magic::<8>()?.starts_with(b"BFCFv1") {
        return Ok(Some(SourceKind::Bfc));
    }
    Archive::guess(path)
}
