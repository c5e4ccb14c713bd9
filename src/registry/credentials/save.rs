//! Saves and removes credentials: in the file that podman and skopeo save theirs in, or with the
//! credential helper that the file names for the registry.

use std::fs::File as Directory;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Map, Value, json};
use zeroize::{Zeroize, Zeroizing};

use super::{
    FILE_VARIABLE, File, MAX_FILE, RUNTIME_VARIABLE, helper, normalized, primary, read, server,
    variable, wrong,
};
use crate::error::Io;
use crate::registry::error::Result;
use crate::sys::directory::replace;
use crate::sys::lock::{Mode, lock};

/// The member of a file that has the credentials.
const AUTHS: &str = "auths";

/// The file to change: `named`, or that of the environment, or the one of this user.
pub(in crate::registry) fn place(named: Option<&Path>) -> PathBuf {
    named
        .map(Path::to_owned)
        .or_else(|| variable(FILE_VARIABLE))
        .unwrap_or_else(primary)
}

/// Saves name and password for `key`: a registry, or a repository of one. Replaces those that it
/// has. Everything else in the file stays.
///
/// # Errors
/// [`Error`](super::Error); the file is unchanged then.
pub(in crate::registry) fn save(path: &Path, key: &str, user: &str, password: &str) -> Result<()> {
    change(path, |file, document| {
        if let Some(helper) = file.helper(key) {
            return helper::store(helper, server(key), user, password).map(|()| false);
        }
        let pair = Zeroizing::new(format!("{user}:{password}"));
        let auths = auths(document, path)?;
        auths.insert(key.to_owned(), json!({ "auth": STANDARD.encode(&*pair) }));
        Ok(true)
    })
}

/// Removes the credentials for `key`. Returns whether there were any.
///
/// # Errors
/// [`Error`](super::Error); the file is unchanged then.
pub(in crate::registry) fn remove(path: &Path, key: &str) -> Result<bool> {
    let mut found = false;
    change(path, |file, document| {
        if let Some(helper) = file.helper(key) {
            found = helper::erase(helper, server(key))?;
        }
        let auths = auths(document, path)?;
        let before = auths.len();
        auths.retain(|name, _| normalized(name) != key);
        found |= auths.len() < before;
        Ok(auths.len() < before)
    })?;
    Ok(found)
}

/// Removes the credentials for all registries.
///
/// # Errors
/// [`Error`](super::Error).
pub(in crate::registry) fn remove_all(path: &Path) -> Result<()> {
    change(path, |file, document| {
        for (registry, helper) in file.helpers() {
            helper::erase(helper, server(registry))?;
        }
        auths(document, path)?.clear();
        Ok(true)
    })
}

/// Changes a file as `edit` says, which returns whether it has changed the document. Two that
/// change a file at a time do it one after the other.
fn change(
    path: &Path,
    edit: impl FnOnce(&File, &mut Map<String, Value>) -> Result<bool>,
) -> Result<()> {
    // A symlink stays, and leads to the new file.
    let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let parent = directory(path)?;
    let opened = Directory::open(&parent).map_err(Io::at("opening", &parent))?;
    lock(&opened, Mode::Wait).map_err(Io::at("locking", &parent))?;
    let text = read(path, false)?.unwrap_or_default();
    if text.len() as u64 >= MAX_FILE {
        return Err(wrong(
            path.display(),
            format!("it has more than {MAX_FILE} bytes"),
        ));
    }
    let file = File::parse(&text, path)?;
    let mut document = Document(Map::new());
    if !text.trim_ascii().is_empty() {
        document.0 = serde_json::from_slice(&text).map_err(|e| wrong(path.display(), e))?;
    }
    if edit(&file, &mut document.0)? {
        let text = document.text(path)?;
        replace(path, &text)?;
    }
    Ok(())
}

/// The directory of a file, which is made if it is missing.
fn directory(path: &Path) -> Result<PathBuf> {
    let parent = crate::build::parent(path);
    let failed = || Io::at("making the directory", &parent);
    // Only the system can make this one.
    if let Some(session) = variable(RUNTIME_VARIABLE).filter(|dir| path.starts_with(dir)) {
        std::fs::metadata(&session).map_err(Io::at("finding", &session))?;
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&parent)
        .map_err(failed())?;
    Ok(parent)
}

fn auths<'a>(
    document: &'a mut Map<String, Value>,
    path: &Path,
) -> Result<&'a mut Map<String, Value>> {
    let auths = document.entry(AUTHS).or_insert(Value::Null);
    if auths.is_null() {
        *auths = json!({});
    }
    let is_no_object = || wrong(path.display(), format!("{AUTHS:?} is not an object"));
    auths.as_object_mut().ok_or_else(is_no_object)
}

/// The content of a file, wiped from memory in the end.
struct Document(Map<String, Value>);

impl Document {
    /// As podman writes it.
    fn text(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>> {
        let mut length = Length(0);
        self.write(&mut length, path)?;
        // A vector that grows leaves copies behind.
        let mut text = Zeroizing::new(Vec::with_capacity(length.0));
        self.write(&mut *text, path)?;
        Ok(text)
    }

    fn write(&self, out: impl std::io::Write, path: &Path) -> Result<()> {
        let indent = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let mut out = serde_json::Serializer::with_formatter(out, indent);
        let written = self.0.serialize(&mut out);
        written.map_err(|e| wrong(path.display(), e))
    }
}

impl Drop for Document {
    fn drop(&mut self) {
        self.0.values_mut().for_each(wipe);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(list) => list.iter_mut().for_each(wipe),
        Value::Object(map) => map.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Counts what is written.
struct Length(usize);

impl std::io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
