//! registries.conf, which podman and skopeo read too, as containers-registries.conf(5) describes
//! it: other places of registries, mirrors, what is insecure or blocked, and aliases of short
//! names.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::Spanned;

use super::error::{Error, Result};
use crate::error::Io;
use crate::reference;
use crate::sys::files::{read, read_regular};
use crate::text::line_at;

/// Environment variable with the path of the first file.
const VARIABLE: &str = "CONTAINERS_REGISTRIES_CONF";
/// The directory of the system's files.
const SYSTEM: &str = "/etc/containers";
/// The directory of a user's files, in their home.
const USER: &str = ".config/containers";
const FILE: &str = "registries.conf";
/// The directory of files that add to the first one.
const DIRECTORY: &str = "registries.conf.d";
/// The aliases that podman has recorded, in root's cache or in that of a user.
const RECORDED: &str = "containers/short-name-aliases.conf";
const ROOTS_CACHE: &str = "/var/cache";
/// Longest file, bytes.
const MAX_FILE: u64 = 1 << 20;
/// A prefix that begins so stands for all hosts in a domain.
const WILDCARD: &str = "*.";

/// What the files say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RegistriesConf {
    /// By their prefixes.
    rules: BTreeMap<String, Rule>,
    /// Names with a registry, by short names.
    aliases: BTreeMap<String, String>,
}

/// What holds for the images whose names begin with a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// What stands in place of the prefix; none if names stay as they are.
    pub location: Option<String>,
    /// Whether any certificate and plain HTTP are accepted.
    pub insecure: bool,
    /// Whether nothing may be pulled or pushed.
    pub blocked: bool,
    /// To be asked first when pulling.
    pub mirrors: Vec<Mirror>,
    /// The file that says so.
    pub file: PathBuf,
}

/// A mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    /// What stands in place of the prefix.
    pub location: String,
    /// As [`Rule::insecure`].
    pub insecure: bool,
    uses: Uses,
}

impl Mirror {
    /// Whether it is to be asked for an image that has a digest, or none.
    pub(super) fn is_for(&self, digest: bool) -> bool {
        match self.uses {
            Uses::All => true,
            Uses::DigestOnly => digest,
            Uses::TagOnly => !digest,
        }
    }
}

/// What a mirror is used for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Uses {
    #[default]
    #[serde(alias = "")]
    All,
    DigestOnly,
    TagOnly,
}

/// A file. Members that are not read have no effect here.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    registry: Vec<Spanned<Table>>,
    #[serde(default)]
    aliases: BTreeMap<String, Spanned<String>>,
    /// Version 1 of the format.
    registries: Option<Spanned<IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[derive(Default)]
struct Table {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<MirrorTable>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[derive(Default)]
struct MirrorTable {
    location: String,
    insecure: bool,
    pull_from_mirror: Option<Uses>,
}

impl RegistriesConf {
    /// Reads the files of the system and of this user.
    ///
    /// # Errors
    /// [`Error::RegistriesConf`] if one of them is malformed; [`Error::Io`].
    pub(super) fn load() -> Result<Self> {
        let mut conf = Self::default();
        let home = variable("HOME");
        let users = home.as_ref().map(|home| home.join(USER));
        let named = variable(VARIABLE);
        let mut directories = Vec::new();
        let own = users.as_ref().map(|dir| dir.join(FILE));
        if let Some(path) = &named {
            conf.add(&read(path, MAX_FILE)?, path)?;
            directories.push(PathBuf::from(SYSTEM));
        } else if !conf.add_users(own.as_deref())? {
            let path = Path::new(SYSTEM).join(FILE);
            if let Some(text) = read_regular(&path, MAX_FILE)? {
                conf.add(&text, &path)?;
            }
            directories.push(PathBuf::from(SYSTEM));
        }
        directories.extend(users);
        for directory in directories {
            for path in drop_ins(&directory.join(DIRECTORY))? {
                if let Some(text) = read_regular(&path, MAX_FILE)? {
                    conf.add(&text, &path)?;
                }
            }
        }
        let cache = if rustix::process::geteuid().is_root() {
            Some(ROOTS_CACHE.into())
        } else {
            variable("XDG_CACHE_HOME").or_else(|| Some(home?.join(".cache")))
        };
        conf.add_users(cache.map(|dir| dir.join(RECORDED)).as_deref())?;
        Ok(conf)
    }

    /// Adds a file in a home, which may be another user's. Returns whether there is one.
    fn add_users(&mut self, path: Option<&Path>) -> Result<bool> {
        let Some(path) = path else { return Ok(false) };
        match read_regular(path, MAX_FILE) {
            Ok(Some(text)) => self.add(&text, path).map(|()| true),
            Ok(None) => Ok(false),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Adds what a file says, which counts before what was added earlier.
    pub(super) fn add(&mut self, text: &[u8], path: &Path) -> Result<()> {
        let wrong = |line: Option<usize>, reason: String| Error::RegistriesConf {
            path: path.to_owned(),
            line,
            reason,
        };
        let text = std::str::from_utf8(text).map_err(|e| wrong(None, e.to_string()))?;
        let document: Document = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|span| line_at(text, span.start));
            wrong(line, e.message().to_owned())
        })?;
        if let Some(old) = document.registries {
            let reason = "[registries] is version 1 of the format, which is not read here";
            return Err(wrong(Some(line_at(text, old.span().start)), reason.into()));
        }
        let mut rules = BTreeMap::<String, Rule>::new();
        for table in document.registry {
            let line = line_at(text, table.span().start);
            let (prefix, rule) = table
                .into_inner()
                .check(path)
                .map_err(|reason| wrong(Some(line), reason))?;
            let same = rules.entry(prefix.clone()).or_insert_with(|| rule.clone());
            if (same.insecure, same.blocked) != (rule.insecure, rule.blocked) {
                let reason = format!("it contradicts another [[registry]] with prefix {prefix:?}");
                return Err(wrong(Some(line), reason));
            }
        }
        self.rules.extend(rules);
        for (name, value) in document.aliases {
            let line = line_at(text, value.span().start);
            let value = value.into_inner();
            if !is_short(&name) {
                let reason = format!("{name:?} is not a short name, and can have no alias");
                return Err(wrong(Some(line), reason));
            }
            if value.is_empty() {
                self.aliases.remove(&name);
            } else if is_place(&value) && value.contains('/') {
                self.aliases.insert(name, value);
            } else {
                let reason = format!("{value:?} is not HOST[:PORT]/REPOSITORY");
                return Err(wrong(Some(line), reason));
            }
        }
        Ok(())
    }

    /// The rule with the longest prefix that a name of an image, with a registry and with its tag
    /// or digest if it has one, begins with; and what comes after the prefix, without tag and
    /// digest.
    pub(super) fn rule<'a>(&self, name: &'a str) -> Option<(&Rule, &'a str)> {
        let found = self
            .rules
            .iter()
            .filter_map(|(prefix, rule)| Some((prefix, rule, after(name, prefix)?)));
        // Of two that match the same part, the one without a wildcard.
        let best = found.min_by_key(|(prefix, _, rest)| (rest.len(), prefix.starts_with(WILDCARD)));
        best.map(|(_, rule, rest)| (rule, bare(rest)))
    }

    /// What a short name, without tag and digest, stands for.
    pub(super) fn alias(&self, name: &str) -> Option<&str> {
        self.aliases.get(name).map(String::as_str)
    }
}

impl Table {
    /// Its prefix, and what holds for it.
    fn check(self, path: &Path) -> Result<(String, Rule), String> {
        let location = self.location.trim_end_matches('/').to_owned();
        let prefix = match self.prefix.trim_end_matches('/') {
            "" => location.clone(),
            prefix => prefix.to_owned(),
        };
        if prefix.is_empty() {
            return Err("[[registry]] has neither a prefix nor a location".into());
        }
        match prefix.strip_prefix(WILDCARD) {
            Some(domain) if domain.contains('/') || !is_place(domain) => {
                return Err(format!("{prefix:?} is not *.DOMAIN"));
            }
            Some(_) => {}
            None if location.is_empty() => {
                return Err(format!(
                    "[[registry]] with prefix {prefix:?} has no location"
                ));
            }
            None if !is_place(bare(&prefix)) => {
                return Err(format!("{prefix:?} is not HOST[:PORT][/REPOSITORY]"));
            }
            None => {}
        }
        let is_wrong = |place: &str| format!("location {place:?} is not HOST[:PORT][/REPOSITORY]");
        if !location.is_empty() && !is_place(&location) {
            return Err(is_wrong(&location));
        }
        let mirror = |table: MirrorTable| {
            let location = table.location.trim_end_matches('/').to_owned();
            if !is_place(&location) {
                return Err(is_wrong(&location));
            }
            let uses = match (self.mirror_by_digest_only, table.pull_from_mirror) {
                (false, uses) => uses.unwrap_or_default(),
                (true, None) => Uses::DigestOnly,
                (true, Some(_)) => {
                    let reason = "pull-from-mirror and mirror-by-digest-only exclude each other";
                    return Err(reason.into());
                }
            };
            let insecure = table.insecure;
            Ok(Mirror {
                location,
                insecure,
                uses,
            })
        };
        let rule = Rule {
            mirrors: self
                .mirror
                .into_iter()
                .map(mirror)
                .collect::<Result<_, _>>()?,
            location: (!location.is_empty()).then_some(location),
            insecure: self.insecure,
            blocked: self.blocked,
            file: path.to_owned(),
        };
        Ok((prefix, rule))
    }
}

/// The path in an environment variable, which counts as not set if it is empty.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
}

/// The files of a directory that add to the first file, in their order.
fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(e)
            if matches!(
                e.kind(),
                ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied
            ) =>
        {
            return Ok(Vec::new());
        }
        entries => entries.map_err(Io::at("reading", directory))?,
    };
    let paths = entries.map(|entry| entry.map(|e| e.path()));
    let mut paths: Vec<_> = paths
        .collect::<Result<_, _>>()
        .map_err(Io::at("reading", directory))?;
    paths.retain(|path| path.extension() == Some(OsStr::new("conf")));
    paths.sort();
    Ok(paths)
}

/// What comes after a prefix in a name, if the name begins with it and goes on with another part.
fn after<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let Some(domain) = prefix.strip_prefix('*') else {
        let rest = name.strip_prefix(prefix)?;
        let repository = prefix.contains('/');
        let ends =
            rest.is_empty() || rest.starts_with('/') || repository && rest.starts_with([':', '@']);
        return ends.then_some(rest);
    };
    let (host, path) = name.split_at(name.find('/').unwrap_or(name.len()));
    let bare = host.split(':').next().unwrap_or(host);
    bare.ends_with(domain).then_some(path)
}

/// A name, or the end of one, without tag and digest. Only its host may have a port.
fn bare(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    match name.rsplit_once(':') {
        Some((rest, tag)) if !tag.contains('/') && (rest.contains('/') || rest.is_empty()) => rest,
        _ => name,
    }
}

/// Whether a text is `HOST[:PORT][/REPOSITORY]`.
fn is_place(text: &str) -> bool {
    let host = text.split('/').next().unwrap_or(text);
    let parsed = reference::parse(&format!("{text}/x"));
    parsed.is_ok_and(|parsed| parsed.registry() == host)
}

/// Whether a name has neither a registry, nor a tag, nor a digest.
fn is_short(name: &str) -> bool {
    reference::is_short(name) && !name.contains([':', '@']) && reference::parse(name).is_ok()
}
