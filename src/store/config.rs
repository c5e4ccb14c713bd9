//! The configuration: settings from a file, the environment and the command line, each with its
//! origin.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use jiff::{SignedDuration, Span, SpanRelativeTo};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::error::{Error, Result};
use super::size;
use crate::error::Io;
use crate::registry::Registries;
use crate::serve::engine::Wanted as Engine;
use crate::text::line_at;
use crate::trust;
use crate::zfs::Dataset;

/// The configuration file, unless [`CONFIG_VARIABLE`] names another.
pub const CONFIG: &str = "/etc/lxcri-fs/config.toml";
/// Environment variable with the path of the configuration.
pub const CONFIG_VARIABLE: &str = "LXCRI_FS_CONFIG";
/// Environment variable with the place of the store.
pub const STORE_VARIABLE: &str = "LXCRI_FS_STORE";
/// Environment variable with what may serve mounts.
pub const ENGINE_VARIABLE: &str = "LXCRI_FS_ENGINE";
/// Root's default store.
const STORE: &str = "/var/lib/lxcri-fs";
/// How long an image without a name is kept.
const GRACE: SignedDuration = SignedDuration::from_hours(24);
/// Longest configuration, bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// Where a store is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Location {
    /// `dir:PATH`.
    Directory(PathBuf),
    /// `zfs:POOL[/PARENT]`: datasets below this one.
    Zfs(Dataset),
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |reason: &str| Error::Location {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        if let Some(dataset) = text.strip_prefix("zfs:") {
            return dataset
                .parse()
                .map(Self::Zfs)
                .map_err(|e: crate::zfs::Error| wrong(&e.to_string()));
        }
        let path = text.strip_prefix("dir:").unwrap_or(text);
        if path.is_empty() || path == text && !text.starts_with(['/', '.']) {
            return Err(wrong("it must be dir:PATH or zfs:POOL[/PARENT]"));
        }
        std::path::absolute(path)
            .map(Self::Directory)
            .map_err(|e| wrong(&e.to_string()))
    }
}

impl TryFrom<String> for Location {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Location> for String {
    fn from(location: Location) -> Self {
        location.to_string()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
            Self::Zfs(dataset) => write!(f, "zfs:{dataset}"),
        }
    }
}

/// The origin of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The default.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(&'static str),
    /// An argument.
    Argument(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) | Self::Argument(name) => f.write_str(name),
        }
    }
}

/// A value and its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it comes from.
    pub origin: Origin,
}

impl<T> Setting<T> {
    fn new(said: Option<T>, file: &Path, default: impl FnOnce() -> T) -> Self {
        match said {
            Some(value) => Self {
                value,
                origin: Origin::File(file.to_owned()),
            },
            None => Self {
                value: default(),
                origin: Origin::Default,
            },
        }
    }
}

/// The configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where images and containers are.
    pub store: Setting<Location>,
    /// What may serve mounts, unless a command or a container says it.
    pub engine: Setting<Engine>,
    /// How long `gc` keeps an image that has no name any more.
    pub grace: Setting<SignedDuration>,
    /// What images may take before `gc` removes some that could be pulled again, bytes; 0 for no
    /// limit.
    pub max_size: Setting<u64>,
    /// What `gc` leaves free in this way, bytes; 0 for no limit.
    pub keep_free: Setting<u64>,
    /// Settings of registries.
    pub registries: Setting<Registries>,
    /// The policy that says which images may be pulled.
    pub policy: Setting<PathBuf>,
    /// The directory of programs that are asked about each image.
    pub verifiers: Setting<PathBuf>,
    /// Annotations that count even for a container with a root file system of its own, whose image
    /// may have set them: their names without the prefix `org.lxcri-fs.`.
    pub annotations: Setting<Vec<String>>,
}

/// The contents of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    store: Option<Location>,
    engine: Option<Engine>,
    gc: Gc,
    registries: Option<Registries>,
    trust: Trust,
    annotations: Annotations,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Trust {
    policy: Option<PathBuf>,
    verifiers: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Annotations {
    allow: Option<Vec<Annotation>>,
}

/// Annotations that can be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Annotation {
    Image,
    Upper,
    Idmap,
    Engine,
    KeyFile,
}

impl Annotation {
    fn name(self) -> String {
        let name = match self {
            Self::Image => "image",
            Self::Upper => "upper",
            Self::Idmap => "idmap",
            Self::Engine => "engine",
            Self::KeyFile => "key-file",
        };
        name.to_owned()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Gc {
    #[serde(deserialize_with = "optional_duration")]
    grace: Option<SignedDuration>,
    #[serde(rename = "max-size", deserialize_with = "optional_size")]
    max_size: Option<u64>,
    #[serde(rename = "keep-free", deserialize_with = "optional_size")]
    keep_free: Option<u64>,
}

fn optional_size<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<u64>, D::Error> {
    let text = String::deserialize(from)?;
    size::parse(&text).map(Some).map_err(D::Error::custom)
}

fn optional_duration<'de, D: Deserializer<'de>>(
    from: D,
) -> std::result::Result<Option<SignedDuration>, D::Error> {
    let text = String::deserialize(from)?;
    duration(&text).map(Some).map_err(D::Error::custom)
}

/// Parses a length of time, such as `30m`, `24h`, `7d` or `1d 12h`; a day has 24 hours.
///
/// # Errors
/// If it is none, in words for the user.
pub fn duration(text: &str) -> std::result::Result<SignedDuration, String> {
    let span: Option<Span> = text.parse().ok();
    span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok())
        .filter(|duration| !duration.is_negative())
        .ok_or_else(|| format!("`{text}` is not a length of time such as 30m, 24h or 7d"))
}

impl Config {
    /// Reads the configuration. `store` is the store that the command line names.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Location`], [`Error::Io`] if a file that the environment names
    /// cannot be read.
    pub fn load(store: Option<&Location>) -> Result<Self> {
        let named = std::env::var_os(CONFIG_VARIABLE)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from);
        let path = named.clone().unwrap_or_else(|| PathBuf::from(CONFIG));
        let file = match std::fs::File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
                File::default()
            }
            opened => {
                let mut text = String::new();
                let file = opened.map_err(Io::at("opening the configuration", &path))?;
                std::io::Read::read_to_string(
                    &mut std::io::Read::take(file, MAX_CONFIG),
                    &mut text,
                )
                .map_err(Io::at("reading the configuration", &path))?;
                parse(&text, &path)?
            }
        };
        let mut config = Self {
            store: Setting::new(file.store, &path, default_store),
            engine: Setting::new(file.engine, &path, Engine::default),
            grace: Setting::new(file.gc.grace, &path, || GRACE),
            max_size: Setting::new(file.gc.max_size, &path, || 0),
            keep_free: Setting::new(file.gc.keep_free, &path, || 0),
            registries: Setting::new(file.registries, &path, Registries::default),
            policy: Setting::new(file.trust.policy, &path, trust::default_policy),
            verifiers: Setting::new(file.trust.verifiers, &path, || trust::VERIFIERS.into()),
            annotations: Setting::new(
                file.annotations
                    .allow
                    .map(|allowed| allowed.into_iter().map(Annotation::name).collect()),
                &path,
                Vec::new,
            ),
        };
        if let Some(location) = store {
            config.store = Setting {
                value: location.clone(),
                origin: Origin::Argument("--store"),
            };
        } else if let Some(text) = std::env::var_os(STORE_VARIABLE).filter(|v| !v.is_empty()) {
            config.store = Setting {
                value: text_of(&text)?.parse()?,
                origin: Origin::Environment(STORE_VARIABLE),
            };
        }
        if let Some(text) = std::env::var_os(ENGINE_VARIABLE).filter(|v| !v.is_empty()) {
            config.engine = Setting {
                value: text.to_string_lossy().parse().map_err(|_| Error::Engine {
                    text: text.to_string_lossy().into_owned(),
                })?,
                origin: Origin::Environment(ENGINE_VARIABLE),
            };
        }
        Ok(config)
    }

    /// Which images may be pulled. A policy that the file names must exist.
    pub fn trust(&self) -> trust::Settings {
        trust::Settings {
            policy: self.policy.value.clone(),
            required: self.policy.origin != Origin::Default,
            verifiers: self.verifiers.value.clone(),
        }
    }
}

fn text_of(text: &OsStr) -> Result<&str> {
    text.to_str().ok_or_else(|| Error::Location {
        text: text.to_string_lossy().into_owned(),
        reason: "it is not UTF-8".into(),
    })
}

fn parse(text: &str, path: &Path) -> Result<File> {
    toml::from_str(text).map_err(|e| Error::Config {
        path: path.to_owned(),
        line: e.span().map(|span| line_at(text, span.start)),
        reason: e.message().to_owned(),
    })
}

/// The default store: one for root, and one for each other user.
fn default_store() -> Location {
    let home = |variable: &str| {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let own = || home("XDG_DATA_HOME").or_else(|| Some(home("HOME")?.join(".local/share")));
    match own().filter(|_| !rustix::process::geteuid().is_root()) {
        Some(data) => Location::Directory(data.join("lxcri-fs")),
        None => Location::Directory(STORE.into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        for (text, shown) in [
            ("dir:/a/b", "dir:/a/b"),
            ("/a", "dir:/a"),
            ("zfs:tank/c", "zfs:tank/c"),
        ] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), shown);
        }
        for text in ["", "dir:", "zfs:", "tank", "http://x"] {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        let hours = [
            ("30m", 0),
            ("24h", 24),
            ("7d", 168),
            ("1d 12h", 36),
            ("1w", 168),
        ];
        for (text, hours) in hours {
            assert_eq!(duration(text).unwrap().as_hours(), hours, "{text}");
        }
        assert_eq!(duration("0s").unwrap(), SignedDuration::ZERO);
        for text in ["", "7", "7x", "-1h", "1mo", "1y", "soon"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_wrong_key_is_named_with_its_line() {
        let path = Path::new("/c.toml");
        let good = "store = \"zfs:tank\"\n[gc]\ngrace = \
                    \"30m\"\n[registries.\"a:5000\"]\ninsecure = true\nmirrors = [\"m\"]\n";
        let file = parse(good, path).unwrap();
        assert_eq!(
            (file.store, file.gc.grace),
            (
                Some(Location::Zfs("tank".parse().unwrap())),
                Some(SignedDuration::from_mins(30))
            )
        );
        let cases = [
            (
                "store = \"dir:/a\"\nstroe = 1\n",
                "/c.toml, line 2: unknown field `stroe`",
            ),
            (
                "[gc]\n\ngrce = \"1h\"\n",
                "/c.toml, line 3: unknown field `grce`",
            ),
            (
                "store = \"tank\"\n",
                "/c.toml, line 1: \"tank\" is not a store",
            ),
            (
                "[gc]\ngrace = \"soon\"\n",
                "/c.toml, line 2: `soon` is not a length of time such as 30m, 24h or 7d",
            ),
            ("store = \n", "/c.toml, line 1: "),
        ];
        for (text, message) in cases {
            let found = parse(text, path).unwrap_err().to_string();
            assert!(
                found.starts_with(message) && !found.contains('\n'),
                "{found}"
            );
        }
    }
}
