//! Programs that are asked about each image, called as containerd calls its image verifiers:
//! `PROGRAM -name NAME -digest DIGEST -stdin-media-type application/vnd.oci.descriptor.v1+json`,
//! with the manifest's descriptor on standard input. The exit code 0 accepts the image, and what is
//! printed is the reason.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use oci_spec::distribution::Reference;

use super::error::{Error, Result};
use super::{Manifest, digest_of};
use crate::build::Digest;
use crate::error::Io;

/// How many there may be, as in containerd.
const MAX_VERIFIERS: usize = 10;
/// How long one may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest reason that is read, bytes.
const MAX_REASON: u64 = 1 << 15;
/// Longest reason that is shown, characters.
const MAX_SHOWN: usize = 300;
/// Longest program, bytes.
const MAX_PROGRAM: u64 = 1 << 30;
const DESCRIPTOR: &str = "application/vnd.oci.descriptor.v1+json";

/// The programs of a directory, in the order of their names, and the digests of their contents.
pub(super) fn find(directory: &Path) -> Result<BTreeMap<PathBuf, Digest>> {
    let entries = match directory.read_dir() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries.map_err(Io::at("reading", directory))?,
    };
    let mut programs = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(Io::at("reading", directory))?.path();
        if path.is_dir() {
            continue;
        }
        if programs.len() == MAX_VERIFIERS {
            return Err(Error::TooMany {
                path: directory.to_owned(),
                limit: MAX_VERIFIERS,
            });
        }
        let digest = digest_of(&path, MAX_PROGRAM)?;
        programs.insert(path, digest);
    }
    Ok(programs)
}

/// Asks a program about an image.
///
/// # Errors
/// [`Error::Verifier`] if it does not accept the image, in time and by the exit code 0;
/// [`Error::Io`] if it cannot be started.
pub(super) fn ask(program: &Path, reference: &Reference, manifest: &Manifest) -> Result<()> {
    let refused = |reason: String| Error::Verifier {
        reference: reference.whole(),
        program: program.to_owned(),
        reason,
    };
    let descriptor = serde_json::json!({
        "mediaType": manifest.media_type,
        "digest": manifest.digest.to_string(),
        "size": manifest.size,
    });
    let mut child = Command::new(program)
        .args(["-name", &reference.whole()])
        .args(["-digest", &manifest.digest.to_string()])
        .args(["-stdin-media-type", DESCRIPTOR])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(Io::at("starting", program))?;
    if let Some(mut input) = child.stdin.take() {
        // It need not read it.
        let _ = input.write_all(descriptor.to_string().as_bytes());
    }
    let reason = output(&mut child);
    // Without its output, it has not ended either.
    let Some(reason) = reason else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(refused(format!(
            "it takes more than {} seconds",
            LIMIT.as_secs()
        )));
    };
    let ended = ended(&mut child, program)?;
    match ended {
        Some(status) if status.success() => Ok(()),
        Some(status) if reason.is_empty() => Err(refused(status.to_string())),
        Some(_) => Err(refused(reason)),
        None => Err(refused(format!(
            "it takes more than {} seconds",
            LIMIT.as_secs()
        ))),
    }
}

/// What it prints until it closes its output; none if that takes too long.
fn output(child: &mut Child) -> Option<String> {
    let stdout = child.stdout.take()?;
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut stdout = stdout;
        let mut text = Vec::new();
        let _ = (&mut stdout).take(MAX_REASON).read_to_end(&mut text);
        // The rest is not of interest; a program that cannot write would not end.
        let _ = std::io::copy(&mut stdout, &mut std::io::sink());
        let _ = send.send(text);
    });
    let text = receive.recv_timeout(LIMIT).ok()?;
    let text = String::from_utf8_lossy(&text);
    let shown = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    Some(shown.take(MAX_SHOWN).collect::<String>().trim().to_owned())
}

/// How it ended; none if it did not in time, and was killed.
fn ended(child: &mut Child, program: &Path) -> Result<Option<std::process::ExitStatus>> {
    const PAUSE: Duration = Duration::from_millis(20);
    for _ in 0..LIMIT.as_millis() / PAUSE.as_millis() {
        if let Some(status) = child.try_wait().map_err(Io::at("waiting for", program))? {
            return Ok(Some(status));
        }
        std::thread::sleep(PAUSE);
    }
    let _ = child.kill();
    let _ = child.wait();
    Ok(None)
}
