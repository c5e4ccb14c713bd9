//! Standard input as a source, which `-` names.

use std::io::{self, IsTerminal, Read, Stdin};
use std::path::Path;

use crate::build::error::{Error, Result};

/// What names it.
const NAME: &str = "-";

/// Whether a path names standard input.
pub(super) fn is_named(path: &Path) -> bool {
    path.as_os_str() == NAME
}

/// Standard input.
///
/// # Errors
/// [`Error::Source`] if it is a terminal, as tar(1) refuses one.
pub(super) fn open() -> Result<impl Read + Send> {
    let input: Stdin = io::stdin();
    if input.is_terminal() {
        return Err(Error::Source {
            name: NAME.to_owned(),
            reason: "standard input is a terminal".to_owned(),
            hint: Some("pass the tar through a pipe, or name a file".to_owned()),
        });
    }
    Ok(input)
}
