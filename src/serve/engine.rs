//! How an image becomes a file system: by FUSE alone, or by the kernel's EROFS for names and
//! attributes with FUSE for bytes.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::erofs;
use crate::error::chain;
use crate::sys::idmap::in_user_namespace;

/// What serves a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// FUSE answers every request.
    #[default]
    Fuse,
    /// EROFS has names, attributes and pages; FUSE serves the decoded devices with the bytes.
    Split,
}

/// What is asked for with `--engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// [`Engine::Split`] where host and image allow it, otherwise [`Engine::Fuse`].
    #[default]
    Auto,
    /// [`Engine::Split`] or an error.
    Split,
    /// [`Engine::Fuse`].
    Fuse,
}

impl Wanted {
    /// [`Wanted::Fuse`].
    pub(super) fn fuse() -> Self {
        Self::Fuse
    }

    /// Without what this host cannot do. A probe tells: a tiny EROFS is mounted, attached nowhere.
    pub fn on_this_host(self) -> Self {
        match self {
            Self::Auto if refusal().is_some() => Self::Fuse,
            other => other,
        }
    }

    /// What a mount by `fusermount3` can have.
    ///
    /// # Errors
    /// [`Error::Split`].
    pub(crate) fn of_user(self) -> Result<Self, Error> {
        match self {
            Self::Split => Err(Error::Split {
                reason: "only root can mount EROFS".to_owned(),
            }),
            Self::Auto | Self::Fuse => Ok(Self::Fuse),
        }
    }

    /// Whether this engine will do.
    pub fn allows(self, engine: Engine) -> bool {
        match self {
            Self::Auto => true,
            Self::Split => engine == Engine::Split,
            Self::Fuse => engine == Engine::Fuse,
        }
    }
}

impl From<Engine> for Wanted {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Fuse => Self::Fuse,
            Engine::Split => Self::Split,
        }
    }
}

/// Why this host cannot have [`Engine::Split`]; `None` if it can.
pub fn refusal() -> Option<&'static str> {
    static REFUSAL: OnceLock<Option<String>> = OnceLock::new();
    let refusal = REFUSAL.get_or_init(|| {
        if in_user_namespace() {
            return Some("in a user namespace, EROFS cannot be mounted".to_owned());
        }
        erofs::probe().err().map(|error| chain(&error))
    });
    refusal.as_deref()
}

/// The text is none of `auto`, `split` and `fuse`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an engine is auto, split or fuse")]
pub struct NoEngine;

impl FromStr for Wanted {
    type Err = NoEngine;

    fn from_str(text: &str) -> Result<Self, NoEngine> {
        match text {
            "auto" => Ok(Self::Auto),
            "split" => Ok(Self::Split),
            "fuse" => Ok(Self::Fuse),
            _ => Err(NoEngine),
        }
    }
}

impl Engine {
    /// Its name, as `--engine` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fuse => "fuse",
            Self::Split => "split",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
