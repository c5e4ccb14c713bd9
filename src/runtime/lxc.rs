//! An LXC container's configuration, as LXC 5 and 6 read it.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::process::Process;
use super::volumes::{VolumeRecord, in_memory};
use crate::sys::idmap::IdMap;

/// LXC's own configuration for all containers.
pub const COMMON: &str = "/usr/share/lxc/config/common.conf";
/// LXC's own configuration for containers with a user namespace.
pub const USER_NAMESPACE: &str = "/usr/share/lxc/config/userns.conf";
/// What `update` keeps begins below this line.
pub(super) const MARKER: &str =
    "# Your own lines: `lxcri-fs update` keeps everything below this line.";
/// The signal that asks an application to stop, if its image names none.
const SIGTERM: u32 = 15;
/// Longest command, bytes: the limit for one argument of execve(2).
const MAX_COMMAND: usize = 128 << 10;

/// Settings of a container other than its process.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the root file system is mounted, absolute.
    pub root: PathBuf,
    /// Its volumes, in the order in which they are mounted.
    pub volumes: Vec<VolumeRecord>,
    /// Whether the container may write to it.
    pub read_only: bool,
    /// Host name.
    pub hostname: String,
    /// The map of ids of its user namespace; `None` for no user namespace.
    pub idmap: Option<IdMap>,
    /// Configurations that LXC reads first.
    pub defaults: Vec<PathBuf>,
    /// Keys and values of LXC's default configuration.
    pub copied: Vec<(String, String)>,
    /// Configurations that LXC reads last.
    pub includes: Vec<PathBuf>,
    /// The command line of the hook that mounts and unmounts, program first.
    pub hook: Vec<String>,
}

/// What LXC starts.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// The image's own init, which starts a whole system.
    System,
    /// One program.
    Application {
        /// The process.
        process: &'a Process,
        /// Path of its program.
        program: &'a str,
        /// Whether there is a /bin/sh.
        shell: bool,
    },
}

/// The text of the configuration.
///
/// # Errors
/// [`Error::Unfit`] if LXC's format cannot express it.
pub fn config(process: &Process, start: Start<'_>, settings: &Settings) -> Result<String> {
    let mut config = Config(String::from(
        "# Written by lxcri-fs create. What is to be different goes into a file of its own: \
         create --include FILE.\n",
    ));
    for path in &settings.defaults {
        config.path("lxc.include", "", path)?;
    }
    config.line("lxc.uts.name", &settings.hostname)?;
    config.path("lxc.rootfs.path", "dir:", &settings.root)?;
    if settings.read_only {
        config.line("lxc.rootfs.options", "ro")?;
    }
    config.line("lxc.hook.version", "1")?;
    let hook = hook_line(&settings.hook);
    for name in ["pre-start", "post-stop"] {
        config.line(&format!("lxc.hook.{name}"), &hook)?;
    }
    if let Some(map) = &settings.idmap {
        for (kind, ranges) in [
            ("u", map.uids().collect::<Vec<_>>()),
            ("g", map.gids().collect()),
        ] {
            for (inside, outside, count) in ranges {
                config.line("lxc.idmap", &format!("{kind} {inside} {outside} {count}"))?;
            }
        }
    }
    config.line("lxc.autodev", "1")?;
    config.line("lxc.mount.auto", "proc:mixed sys:mixed")?;
    config.line(
        "lxc.mount.entry",
        "tmpfs dev/shm tmpfs nosuid,nodev,noexec,mode=1777,size=65536k,create=dir 0 0",
    )?;
    for volume in &settings.volumes {
        let source = text_of(&volume.source, "lxc.mount.entry")?;
        let (source, target) = (
            fstab_word(source),
            fstab_word(volume.destination.trim_start_matches('/')),
        );
        let mut options = String::from("rbind");
        if volume.is_in_store() {
            options.push_str(",nosuid,nodev");
        }
        if volume.read_only {
            options.push_str(",ro");
        }
        let create = if volume.is_directory() { "dir" } else { "file" };
        config.line(
            "lxc.mount.entry",
            &format!("{source} {target} none {options},create={create} 0 0"),
        )?;
    }
    for volume in in_memory(process, &settings.volumes, settings.read_only) {
        let target = fstab_word(volume.trim_start_matches('/'));
        config.line(
            "lxc.mount.entry",
            &format!("tmpfs {target} tmpfs nosuid,nodev,noexec 0 0"),
        )?;
    }
    if let Some(signal) = process.stop_signal {
        config.line("lxc.signal.halt", &signal.to_string())?;
    }
    if let Start::Application {
        process,
        program,
        shell,
    } = start
    {
        application(&mut config, process, program, shell)?;
    }
    for (key, value) in &settings.copied {
        // Each was one line of LXC's own.
        let _ = writeln!(config.0, "{key} = {value}");
    }
    // Without any, the container would have the host's network.
    let mut keys = settings.copied.iter().map(|(key, _)| key);
    let has_network = keys.any(|key| key.starts_with("lxc.net") || key == "lxc.include");
    if !has_network && settings.includes.is_empty() {
        config.line("lxc.net.0.type", "empty")?;
    }
    for path in &settings.includes {
        config.path("lxc.include", "", path)?;
    }
    config.0.push_str(MARKER);
    config.0.push('\n');
    Ok(config.0)
}

/// A hook's command line as a value of LXC's.
pub(super) fn hook_line(hook: &[String]) -> String {
    let words: Vec<String> = hook.iter().map(|word| shell_word(word)).collect();
    words.join(" ")
}

fn application(config: &mut Config, process: &Process, program: &str, shell: bool) -> Result<()> {
    let (user, mut script) = (&process.user, String::new());
    for (name, value) in &process.env {
        // LXC strips blanks, and a line end ends a value.
        let plain = value.trim() == value
            && !value.contains(char::is_control)
            && name.bytes().all(|b| b.is_ascii_graphic());
        match plain {
            true => config.line("lxc.environment", &format!("{name}={value}"))?,
            false if is_shell_name(name) => {
                script.push_str(&format!("export {name}={}; ", single_quoted(value)))
            }
            false => {
                return Err(Error::unfit(format!(
                    "LXC cannot pass the variable {name:?} to a container"
                )));
            }
        }
    }
    if process.variable("HOME").is_none() {
        config.line("lxc.environment", "HOME=/")?;
    }
    let args = [program]
        .into_iter()
        .chain(process.args[1..].iter().map(String::as_str));
    let command = if script.is_empty() && args.clone().all(is_plain) {
        args.collect::<Vec<_>>().join(" ")
    } else if shell {
        let words: Vec<String> = args.map(single_quoted).collect();
        script.push_str(&format!("exec {}", words.join(" ")));
        in_shell(&script)
    } else {
        return Err(Error::Unfit {
            what: "LXC has no way to pass arguments or variables with blanks, quotes or line \
                   ends, and the image has no /bin/sh that could"
                .into(),
            hint: Some(
                "`create --bundle` makes a container for crun or runc, which can pass any".into(),
            ),
        });
    };
    if command.len() > MAX_COMMAND {
        return Err(Error::unfit("the command is longer than LXC can pass"));
    }
    config.line("lxc.init.cmd", &command)?;
    config.line("lxc.init.cwd", &process.cwd)?;
    config.line("lxc.init.uid", &user.uid.to_string())?;
    config.line("lxc.init.gid", &user.gid.to_string())?;
    if !user.groups.is_empty() {
        config.line(
            "lxc.init.groups",
            &user
                .groups
                .iter()
                .map(u32::to_string)
                .collect::<Vec<_>>()
                .join(","),
        )?;
    }
    if process.stop_signal.is_none() {
        config.line("lxc.signal.halt", &SIGTERM.to_string())?;
    }
    Ok(())
}

/// Lines of a configuration.
struct Config(String);

impl Config {
    /// Adds a line. Nothing in a value can begin another line.
    fn line(&mut self, key: &str, value: &str) -> Result<()> {
        if value.contains(char::is_control) || value.trim() != value || value.is_empty() {
            return Err(Error::unfit(format!(
                "{value:?} is not a valid value of {key}"
            )));
        }
        let _ = writeln!(self.0, "{key} = {value}");
        Ok(())
    }

    fn path(&mut self, key: &str, prefix: &str, path: &Path) -> Result<()> {
        self.line(key, &format!("{prefix}{}", text_of(path, key)?))
    }
}

/// A path as text, which LXC's configuration is.
fn text_of<'a>(path: &'a Path, key: &str) -> Result<&'a str> {
    path.to_str().ok_or_else(|| {
        let path = path.display();
        Error::unfit(format!("{key} must be UTF-8, but this path is not: {path}"))
    })
}

/// Whether LXC 5, which splits at blanks, and LXC 6, which understands quotes, both leave a word
/// unchanged.
fn is_plain(word: &str) -> bool {
    !word.is_empty()
        && word
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-./:=+,@%^".contains(&b))
}

fn is_shell_name(name: &str) -> bool {
    !name.as_bytes().first().is_none_or(u8::is_ascii_digit)
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// A command that makes /bin/sh run a script, without blanks or quotes, at which LXC would split:
/// printf decodes the script.
fn in_shell(script: &str) -> String {
    let mut command = String::from("/bin/sh -c eval${IFS}\"$(printf${IFS}%b${IFS}'");
    for &byte in script.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"_-./=".contains(&byte) {
            command.push(char::from(byte));
        } else {
            let _ = write!(command, "\\0{byte:03o}");
        }
    }
    command.push_str("')\"");
    command
}

/// Quotes a word for /bin/sh.
fn single_quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn shell_word(word: &str) -> String {
    if is_plain(word) {
        word.to_owned()
    } else {
        single_quoted(word)
    }
}

/// Escapes a word for fstab: blanks and backslashes become octal digits.
pub(super) fn fstab_word(word: &str) -> String {
    let mut out = String::new();
    for &byte in Path::new(word).as_os_str().as_bytes() {
        if byte.is_ascii_graphic() && byte != b'\\' {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "\\{byte:03o}");
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::runtime::user::User;

    fn process(args: &[&str], env: &[(&str, &str)]) -> Process {
        Process {
            args: args.iter().map(|&a| a.to_owned()).collect(),
            env: env
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
            cwd: "/srv".into(),
            user: User {
                uid: 1000,
                gid: 1001,
                groups: vec![33, 2000],
                home: "/".into(),
            },
            stop_signal: None,
            volumes: Vec::new(),
            annotations: std::collections::BTreeMap::new(),
        }
    }

    fn settings() -> Settings {
        Settings {
            root: "/var/lib/lxc/a b/rootfs".into(),
            volumes: Vec::new(),
            read_only: false,
            hostname: "a".into(),
            idmap: Some("0:100000:65536".parse().unwrap()),
            defaults: Vec::new(),
            copied: Vec::new(),
            includes: Vec::new(),
            hook: vec![
                "/opt/my programs/lxcri-fs".into(),
                "hook".into(),
                "lxc".into(),
            ],
        }
    }

    fn of(process: &Process, shell: bool) -> Result<String> {
        config(
            process,
            Start::Application {
                process,
                program: "/bin/app",
                shell,
            },
            &settings(),
        )
    }

    #[test]
    fn an_application() {
        let text = of(
            &process(&["app", "-v"], &[("A", "x y\"z"), ("E", "")]),
            false,
        )
        .unwrap();
        for line in [
            "lxc.rootfs.path = dir:/var/lib/lxc/a b/rootfs",
            "lxc.hook.pre-start = '/opt/my programs/lxcri-fs' hook lxc",
            "lxc.idmap = g 0 100000 65536",
            "lxc.environment = A=x y\"z",
            "lxc.environment = E=",
            "lxc.init.cmd = /bin/app -v",
            "lxc.init.uid = 1000",
            "lxc.init.groups = 33,2000",
            "lxc.signal.halt = 15",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }

    #[test]
    fn nothing_begins_another_line() {
        let evil = "x\nlxc.hook.pre-start = /bin/evil";
        let text = of(&process(&["app", evil], &[("A", evil)]), true).unwrap();
        assert_eq!(
            text.lines()
                .filter(|l| l.contains("evil")
                    && !l.starts_with("lxc.init.cmd = /bin/sh -c eval${IFS}"))
                .count(),
            0,
            "{text}"
        );
        assert!(of(&process(&["app", evil], &[]), false).is_err());
        assert!(of(&process(&["app"], &[(evil, "")]), true).is_err());
        let mut cwd = process(&["app"], &[]);
        cwd.cwd = format!("/{evil}");
        assert!(of(&cwd, true).is_err());
        let mut settings = settings();
        settings.hostname = evil.into();
        assert!(config(&process(&["app"], &[]), Start::System, &settings).is_err());
    }

    /// What /bin/sh makes of the words that LXC splits off is what was meant.
    #[test]
    fn the_shell_gets_the_very_arguments() {
        let args = [
            "a b",
            "",
            "'",
            "\"",
            "\\n\\012",
            "%s%%",
            "$HOME `id` $(id)",
            "line\nend\n",
            "имя",
            "*",
            "-n",
        ];
        let script = format!(
            "printf '[%s]' {}",
            args.iter()
                .map(|a| single_quoted(a))
                .collect::<Vec<_>>()
                .join(" ")
        );
        let command = in_shell(&script);
        let words: Vec<&str> = command.split_whitespace().collect();
        assert_eq!(words.len(), 3, "{command}");
        let output = std::process::Command::new(words[0])
            .args(&words[1..])
            .output()
            .unwrap();
        let expected: String = args.iter().map(|a| format!("[{a}]")).collect();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }

    #[test]
    fn mount_targets() {
        assert_eq!(fstab_word("a b\\c\u{e9}"), "a\\040b\\134c\\303\\251");
    }
}
