//! How commands name uppers and their snapshots.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::error::{Error, Exit};
use super::store::StoreArgs;
use crate::runtime::update;
use crate::upper::written::Written;

/// `UPPER@SNAPSHOT`, or `UPPER` alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UpperName {
    /// The part before the `@`.
    pub(super) upper: OsString,
    /// The part after the `@`. Names of snapshots have no slash.
    pub(super) snapshot: Option<String>,
}

impl UpperName {
    /// Splits an argument; a parser for clap.
    pub(super) fn parse(text: OsString) -> Self {
        let bytes = text.as_bytes();
        let name = bytes
            .iter()
            .rposition(|&b| b == b'@')
            .filter(|at| !bytes[*at..].contains(&b'/'));
        match name {
            Some(at) => {
                let snapshot = String::from_utf8_lossy(&bytes[at + 1..]).into_owned();
                Self {
                    upper: OsString::from_vec(bytes[..at].to_vec()),
                    snapshot: Some(snapshot),
                }
            }
            None => Self {
                upper: text,
                snapshot: None,
            },
        }
    }

    /// The name of the snapshot, for commands that need one.
    pub(super) fn snapshot(&self) -> Result<&str, Error> {
        self.snapshot.as_deref().ok_or_else(|| Error::Other {
            message: format!("{} does not name a snapshot", self.upper.display()),
            hint: Some("write the snapshot's name after an @, as in `web1@before`".to_owned()),
            exit: Exit::Usage,
        })
    }
}

/// Finds the upper that `upper` names: that of a container in the store, if it can be a container's
/// name, or else the upper in a dataset (`zfs:DATASET`), in a directory, or of a mount point.
pub(super) fn find(upper: &OsStr, store: &StoreArgs) -> Result<Written, Error> {
    let is_path = upper.as_bytes().contains(&b'/')
        || upper.as_bytes().starts_with(b"zfs:")
        || Path::new(upper).is_dir();
    match upper.to_str().filter(|_| !is_path) {
        Some(name) => {
            let store = store.open()?;
            update::finish(&store, name)?;
            Ok(Written::find(store.container(name)?.path.as_os_str())?)
        }
        None => Ok(Written::find(upper)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let parts = |text: &str| {
            let name = UpperName::parse(text.into());
            (name.upper.into_string().unwrap_or_default(), name.snapshot)
        };
        assert_eq!(
            parts("zfs:tank/web@before"),
            ("zfs:tank/web".into(), Some("before".into()))
        );
        assert_eq!(parts("web"), ("web".into(), None));
        assert_eq!(parts("web@"), ("web".into(), Some(String::new())));
        assert_eq!(parts("/srv/a@b/c"), ("/srv/a@b/c".into(), None));
        assert_eq!(
            parts("/srv/a@b/c@d"),
            ("/srv/a@b/c".into(), Some("d".into()))
        );
    }
}
