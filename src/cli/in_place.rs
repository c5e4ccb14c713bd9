//! Before an image is written to in place: what that would break.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::{Error, Exit};
use super::store::StoreArgs;
use crate::runtime::record::Record;
use crate::serve::overview;

/// Refuses an image of a store, and, without `force`, one that other uppers are made of: with
/// another layer, it is another image, and they do not fit it. `own` is the upper that is to be
/// that layer.
///
/// # Errors
/// [`Error::Store`], and [`Exit::Busy`] with the uppers.
pub(super) fn check(
    store: &StoreArgs,
    image: &Path,
    own: Option<&Path>,
    force: bool,
) -> Result<(), Error> {
    let store = store.open()?;
    if !image.exists() {
        return Err(Error::io("opening the image", image)(
            std::io::ErrorKind::NotFound,
        ));
    }
    store.refuse_to_change(image)?;
    let id = |path: &Path| path.metadata().ok().map(|m| (m.dev(), m.ino()));
    let is_it = |path: &Path| id(path).is_some() && id(path) == id(image);
    let mut uppers: Vec<String> = Vec::new();
    for mounted in overview::all()?
        .iter()
        .filter(|m| m.status.images.iter().any(|path| is_it(path.as_ref())))
    {
        let others = mounted
            .seen
            .iter()
            .filter_map(|seen| seen.upper.as_deref())
            .filter(|upper| Some(*upper) != own);
        uppers.extend(others.map(|upper| upper.display().to_string()));
    }
    for container in store.containers().unwrap_or_default() {
        let record = store
            .reach(&container)
            .ok()
            .and_then(|dir| Record::read(&dir).ok().flatten());
        let is_own = own.is_some_and(|own| own.starts_with(&container.path));
        if !is_own && record.is_some_and(|record| is_it(&record.image.path)) {
            uppers.push(format!("container {}", container.name));
        }
    }
    uppers.sort();
    uppers.dedup();
    if force || uppers.is_empty() {
        return Ok(());
    }
    Err(Error::Other {
        message: format!(
            "{} would be another image, and what is written over it as it is would not fit it any \
             more: {}",
            image.display(),
            uppers.join(", ")
        ),
        hint: Some("-o or -t make a new image; --force changes this one all the same".to_owned()),
        exit: Exit::Busy,
    })
}
