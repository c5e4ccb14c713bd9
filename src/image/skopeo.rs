//! Images in the storage of other engines, which skopeo reads.

use std::ffi::OsStr;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use super::error::Result;
use crate::build::{self, Platform, SourceImage, sources};
use crate::error::Io;
use crate::text::printable;

/// The skopeo transports that are read through it: podman's, CRI-O's and buildah's storage,
/// and Docker's.
const TRANSPORTS: [&str; 2] = ["containers-storage:", "docker-daemon:"];
/// How many bytes of skopeo's messages are kept.
const MAX_MESSAGES: u64 = 64 << 10;

/// The image that `text` names, if that is in the storage of another engine.
pub(super) fn reference(text: &OsStr) -> Option<&str> {
    let is_one = |text: &&str| TRANSPORTS.iter().any(|t| text.starts_with(t));
    text.to_str()
        .filter(is_one)
        .filter(|text| !Path::new(text).exists())
}

/// Reads an image through skopeo into a temporary file.
///
/// # Errors
/// [`build::Error::Source`] if skopeo is missing or fails, and those of a docker archive.
pub(super) fn read(reference: &str, options: &sources::SourceOptions) -> Result<SourceImage> {
    let failed = |reason: String, hint: &str| build::Error::Source {
        name: reference.to_owned(),
        reason,
        hint: Some(hint.to_owned()),
    };
    let doing = || Io::doing("running skopeo");
    let mut messages = tempfile::tempfile().map_err(doing())?;
    let Platform {
        os,
        architecture,
        variant,
        ..
    } = &options.platform;
    let mut command = Command::new("skopeo");
    command.args(["--override-os", os, "--override-arch", architecture]);
    if let Some(variant) = variant {
        command.args(["--override-variant", variant]);
    }
    let spawned = command
        .args(["copy", "--quiet", reference, "docker-archive:/dev/stdout"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(messages.try_clone().map_err(doing())?)
        .spawn();
    let mut child = match spawned {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let reason = "only skopeo reads it, which is not installed".to_owned();
            let hint = "install skopeo, or save the image with its own engine: `podman save` and \
                        `docker save` make archives that can be built from";
            return Err(failed(reason, hint).into());
        }
        other => other.map_err(doing())?,
    };
    let read = match child.stdout.take() {
        Some(output) => sources::read_docker_archive(reference, output, options),
        None => Err(Io::doing("running skopeo")(io::ErrorKind::BrokenPipe).into()),
    };
    let status = child.wait().map_err(doing())?;
    match read {
        // It ended because nobody read on.
        Err(error @ (build::Error::Io(_) | build::Error::Source { .. })) => Err(error.into()),
        _ if !status.success() => {
            messages.seek(SeekFrom::Start(0)).map_err(doing())?;
            let reason = why(messages, status).map_err(doing())?;
            Err(failed(reason, "`skopeo inspect` with the same name tells more").into())
        }
        read => Ok(read?),
    }
}

/// What skopeo said last.
fn why(messages: impl Read, status: ExitStatus) -> io::Result<String> {
    let mut text = Vec::new();
    messages.take(MAX_MESSAGES).read_to_end(&mut text)?;
    let mut lines = text.split(|byte| *byte == b'\n');
    let last = lines.rfind(|line| !line.is_empty());
    Ok(last.map_or_else(
        || format!("skopeo ended with {status}"),
        |line| format!("skopeo says: {}", printable(line)),
    ))
}
