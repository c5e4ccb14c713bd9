//! What is to run in a container: what its image says, and what was asked for instead.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{Error, Result};
use super::image::Image;
use super::signal;
use super::user::User;

/// What runtimes search when an image does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where a container has file systems of the kernel.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];
/// What the image specification calls the annotations that an image's fields become.
const ANNOTATIONS: &str = "org.opencontainers.image.";

/// What was asked for in place of what the image says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Program that is run in place of the image's entrypoint; the image's arguments go with that.
    /// Empty for none.
    pub entrypoint: Option<String>,
    /// Arguments in place of the image's own; none are no replacement.
    pub command: Vec<String>,
    /// `NAME=VALUE`, added or in place of the image's.
    pub env: Vec<String>,
    /// User, as [`super::user::resolve`] takes it.
    pub user: Option<String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Annotations: `NAME=VALUE`, or the `NAME` of a label of the image that becomes one.
    pub annotations: Vec<String>,
}

/// What is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// Environment, in the order in which it was said, without duplicates.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute.
    pub cwd: String,
    /// Who runs it.
    pub user: User,
    /// Number of the signal that asks it to stop, when the image says one.
    pub stop_signal: Option<u32>,
    /// Directories that the image declares as volumes: paths from the image's root without
    /// symlinks, as far as the image has them.
    pub volumes: Vec<String>,
    /// What else the image says, as the image specification has it converted.
    pub annotations: BTreeMap<String, String>,
}

impl Process {
    /// Resolves an image's configuration.
    ///
    /// # Errors
    /// [`Error::Unfit`] when it cannot be: an unknown user, a word with a null byte.
    pub fn of(image: &Image<'_>, overrides: &Overrides) -> Result<Self> {
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
                config.entrypoint().clone().unwrap_or_default(),
                config.cmd().clone().unwrap_or_default(),
            ),
            (None, command) => (
                config.entrypoint().clone().unwrap_or_default(),
                command.clone(),
            ),
        };
        let mut args: Vec<String> = entrypoint;
        args.extend(command);
        if args.first().is_none_or(String::is_empty) {
            // As other tools have it for an image that says nothing.
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

    /// Refuses volumes for which nothing may be mounted: what is there is the kernel's, or the
    /// whole root file system.
    ///
    /// # Errors
    /// [`Error::Unfit`].
    pub fn check_volumes(&self) -> Result<()> {
        let is_kernels = |volume: &str| {
            KERNEL.iter().any(|top| {
                volume
                    .strip_prefix(top)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        match self
            .volumes
            .iter()
            .find(|volume| *volume == "/" || is_kernels(volume))
        {
            Some(volume) => Err(Error::Unfit {
                what: format!(
                    "the image declares the volume {volume}, which would hide what the kernel or \
                     the image has there"
                ),
                hint: Some("without --read-only nothing is mounted for volumes".into()),
            }),
            None => Ok(()),
        }
    }

    /// No C program could be told a null byte.
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
    pub fn program(&self, image: &Image<'_>) -> Result<Option<String>> {
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

/// A path from the root, whatever the image wrote.
fn absolute(path: &str) -> String {
    let names: Vec<&str> = path
        .split('/')
        .filter(|name| !name.is_empty() && *name != ".")
        .collect();
    format!("/{}", names.join("/"))
}

/// Variables, later ones in the place of earlier; what is no assignment is left out.
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
    // Who has no entry in passwd gets one from the runtime.
    if !home.is_empty() && !env.iter().any(|(name, _)| name == "HOME") {
        env.push(("HOME".to_owned(), home.to_owned()));
    }
    env
}

/// The fields that the image specification has become annotations, and labels of the names that it
/// has for that; a label of the same name counts. Other labels only when they are asked for:
/// runtimes do things because of annotations.
fn annotations(
    image: &Image<'_>,
    config: &oci_spec::image::Config,
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
            return Err(Error::unfit(format!(
                "{name:?} cannot be an annotation of yours"
            )));
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
