//! What a container runs: its image's configuration, and the options that override it.

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::image::Config;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::image::ContainerImage;
use super::signal;
use super::user::User;

/// The PATH that runtimes use if an image sets none.
pub(super) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Mount points of the kernel's file systems in a container.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Prefix of the annotations into which the image specification converts an image's fields.
const ANNOTATIONS: &str = "org.opencontainers.image.";

/// Options that override an image's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Overrides {
    /// Program to run instead of the image's entrypoint, which also drops the image's arguments.
    /// Empty for no entrypoint.
    pub entrypoint: Option<String>,
    /// Arguments instead of the image's own; if it is empty, the image's own are kept.
    pub command: Vec<String>,
    /// `NAME=VALUE`, added to the image's variables or replacing one.
    pub env: Vec<String>,
    /// User, as [`super::user::resolve`] takes it.
    pub user: Option<String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Annotations: `NAME=VALUE`, or the `NAME` of a label of the image that becomes one.
    pub annotations: Vec<String>,
}

/// The process that a container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// Environment, in its original order, without duplicates.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute.
    pub cwd: String,
    /// Who runs it.
    pub user: User,
    /// Number of the signal that asks it to stop, if the image names one.
    pub stop_signal: Option<u32>,
    /// Directories that the image declares as volumes: paths from the image's root without
    /// symlinks, as far as the image has them.
    pub volumes: Vec<String>,
    /// Other fields of the image, converted as the image specification defines.
    pub annotations: BTreeMap<String, String>,
}

/// The image's entrypoint. Docker writes one empty string where an image was made with
/// `ENTRYPOINT [""]` in order to have none.
pub(super) fn entrypoint(config: &Config) -> Vec<String> {
    let words = config.entrypoint().clone().unwrap_or_default();
    if words == [""] { Vec::new() } else { words }
}

impl Process {
    /// Resolves an image's configuration.
    ///
    /// # Errors
    /// [`Error::Unfit`] if that is impossible, for instance for an unknown user or a word with a
    /// null byte.
    pub fn of(image: &ContainerImage<'_>, overrides: &Overrides) -> Result<Self> {
        let config = image.config.config().clone().unwrap_or_default();
        let (entrypoint, command) = match (&overrides.entrypoint, &overrides.command) {
            (Some(program), command) => (
                Some(program.clone())
                    .filter(|p| !p.is_empty())
                    .into_iter()
                    .collect(),
                command.clone(),
            ),
            (None, command) if command.is_empty() => (
                entrypoint(&config),
                config.cmd().clone().unwrap_or_default(),
            ),
            (None, command) => (entrypoint(&config), command.clone()),
        };
        let mut args: Vec<String> = entrypoint;
        args.extend(command);
        if args.first().is_none_or(String::is_empty) {
            // Other tools do the same for an image without a command.
            args = vec!["sh".to_owned()];
        }
        let user = image.user(
            overrides
                .user
                .as_deref()
                .or(config.user().as_deref())
                .unwrap_or_default(),
        )?;
        let cwd = overrides
            .cwd
            .as_deref()
            .or(config.working_dir().as_deref())
            .unwrap_or_default();
        let volumes = config
            .volumes()
            .iter()
            .flatten()
            .map(|volume| image.place(volume))
            .collect::<Result<BTreeSet<_>>>()?;
        let process = Self {
            args,
            env: environment(
                config.env().iter().flatten().chain(&overrides.env),
                &user.home,
            ),
            cwd: absolute(cwd),
            stop_signal: config
                .stop_signal()
                .as_deref()
                .filter(|s| !s.is_empty())
                .map(signal::number)
                .transpose()?,
            volumes: volumes.into_iter().collect(),
            annotations: annotations(image, &config, &overrides.annotations)?,
            user,
        };
        process.check()?;
        Ok(process)
    }

    /// Whether a volume there would hide the kernel's file systems or the whole root file system.
    pub(super) fn is_kernels(volume: &str) -> bool {
        let is_below = |top: &str| {
            let rest = volume.strip_prefix(top);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        volume == "/" || KERNEL.iter().any(|top| is_below(top))
    }

    /// Refuses volumes over the kernel's file systems or over the whole root file system.
    ///
    /// # Errors
    /// [`Error::Unfit`].
    pub fn check_volumes(&self) -> Result<()> {
        match self.volumes.iter().find(|volume| Self::is_kernels(volume)) {
            Some(volume) => Err(Error::Unfit {
                what: format!(
                    "the image declares the volume {volume}, which would hide files of the kernel \
                     or of the image"
                ),
                hint: Some(
                    "create the container without --read-only: then nothing is mounted there"
                        .into(),
                ),
            }),
            None => Ok(()),
        }
    }

    /// Refuses null bytes, which no C string can hold.
    fn check(&self) -> Result<()> {
        let env = self.env.iter().flat_map(|(name, value)| [name, value]);
        let annotations = self
            .annotations
            .iter()
            .flat_map(|(name, value)| [name, value]);
        let mut words = self
            .args
            .iter()
            .chain(env)
            .chain(annotations)
            .chain(&self.volumes)
            .chain([&self.cwd, &self.user.home]);
        match words.find(|word| word.contains('\0')) {
            Some(word) => Err(Error::unfit(format!(
                "the image's configuration has a null byte in {word:?}"
            ))),
            None => Ok(()),
        }
    }

    /// The value of a variable.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The program's path in the image, searched as a shell would; `None` when the image has no
    /// such program.
    ///
    /// # Errors
    /// [`Error::Fs`].
    pub fn program(&self, image: &ContainerImage<'_>) -> Result<Option<String>> {
        let name = self.args[0].as_str();
        if name.contains('/') {
            let path = if name.starts_with('/') {
                name.to_owned()
            } else {
                format!("{}/{name}", self.cwd.trim_end_matches('/'))
            };
            return Ok(image.has_program(&path)?.then_some(path));
        }
        for dir in self.variable("PATH").unwrap_or(DEFAULT_PATH).split(':') {
            let path = format!(
                "{}/{name}",
                if dir.starts_with('/') {
                    dir.trim_end_matches('/')
                } else {
                    self.cwd.trim_end_matches('/')
                }
            );
            if image.has_program(&path)? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}

/// Makes a path absolute, whatever the image wrote.
fn absolute(path: &str) -> String {
    let names: Vec<&str> = path
        .split('/')
        .filter(|name| !name.is_empty() && *name != ".")
        .collect();
    format!("/{}", names.join("/"))
}

/// Variables; later ones replace earlier ones, and words without `=` are left out.
fn environment<'a>(words: impl Iterator<Item = &'a String>, home: &str) -> Vec<(String, String)> {
    let mut env = vec![
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("TERM".to_owned(), "xterm".to_owned()),
    ];
    for (name, value) in words
        .filter_map(|word| word.split_once('='))
        .filter(|(name, _)| !name.is_empty())
    {
        match env.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => env.push((name.to_owned(), value.to_owned())),
        }
    }
    // A user without an entry in passwd gets a home from the runtime.
    if !home.is_empty() && !env.iter().any(|(name, _)| name == "HOME") {
        env.push(("HOME".to_owned(), home.to_owned()));
    }
    env
}

/// The annotations: fields and labels that the image specification converts (a label wins over a
/// field), and other labels only on request, because runtimes act on annotations.
fn annotations(
    image: &ContainerImage<'_>,
    config: &Config,
    asked: &[String],
) -> Result<BTreeMap<String, String>> {
    let document = &image.config;
    let mut ports = config.exposed_ports().clone().unwrap_or_default();
    ports.sort();
    let fields = [
        ("os", Some(document.os().to_string())),
        ("architecture", Some(document.architecture().to_string())),
        ("variant", document.variant().clone()),
        ("os.version", document.os_version().clone()),
        (
            "os.features",
            document.os_features().as_ref().map(|f| f.join(",")),
        ),
        ("author", document.author().clone()),
        ("created", document.created().clone()),
        ("stopSignal", config.stop_signal().clone()),
        ("exposedPorts", Some(ports.join(","))),
    ];
    let fields = fields.into_iter().filter_map(|(name, value)| {
        Some((
            format!("{ANNOTATIONS}{name}"),
            value.filter(|v| !v.is_empty())?,
        ))
    });
    let mut annotations: BTreeMap<String, String> = fields.collect();
    let labels = config
        .labels()
        .iter()
        .flatten()
        .filter(|(name, _)| name.starts_with(ANNOTATIONS));
    annotations.extend(labels.map(|(name, value)| (name.clone(), value.clone())));
    for text in asked {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => {
                let label = config.labels().as_ref().and_then(|labels| labels.get(text));
                (
                    text.as_str(),
                    label
                        .cloned()
                        .ok_or_else(|| Error::unfit(format!("the image has no label {text:?}")))?,
                )
            }
        };
        if name.is_empty() || name.starts_with(super::ANNOTATION) {
            return Err(Error::unfit(format!("{name:?} is a reserved annotation")));
        }
        annotations.insert(name.to_owned(), value);
    }
    Ok(annotations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environments() {
        let words = ["A=1", "PATH=/bin", "B", "=x", "A=2=3", "EMPTY="].map(str::to_owned);
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let expected = vec![
            pair("PATH", "/bin"),
            pair("TERM", "xterm"),
            pair("A", "2=3"),
            pair("EMPTY", ""),
            pair("HOME", "/h"),
        ];
        assert_eq!(environment(words.iter(), "/h"), expected);
        let words = ["HOME=/mine".to_owned()];
        assert_eq!(environment(words.iter(), "/h")[2], pair("HOME", "/mine"));
    }

    #[test]
    fn paths_start_at_the_root() {
        for (path, expected) in [
            ("", "/"),
            ("app", "/app"),
            ("/a//b/./c/", "/a/b/c"),
            ("/", "/"),
            ("/a/../b", "/a/../b"),
        ] {
            assert_eq!(absolute(path), expected);
        }
    }
}
