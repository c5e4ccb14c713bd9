//! The wrapper of an OCI runtime: mounts what annotations name, then becomes the real runtime.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::error::{Error, Result};
use super::{bundle, inject, roots};
use crate::error::Io;
use crate::sys::directory::replace;
use crate::sys::files;

/// The runtimes to look for, in this order.
const KNOWN: [&str; 2] = ["crun", "runc"];
/// Options before the command that take the next argument as their value.
const WITH_VALUE: [&str; 6] = [
    "--cgroup-manager",
    "--criu",
    "--log",
    "--log-format",
    "--root",
    "--rootless",
];

/// Prepares the mount for the real runtime, and becomes it. Returns only on failure.
///
/// # Errors
/// [`Error`].
pub fn run(runtime: Option<&OsStr>, args: &[OsString]) -> Result<Infallible> {
    let program = match runtime {
        Some(name) => find(name),
        None => KNOWN
            .iter()
            .find_map(|name| find(OsStr::new(name)).ok())
            .ok_or_else(|| Error::Unfit {
                what: "neither crun nor runc is installed".into(),
                hint: Some(
                    "install one of them, or name another runtime: `lxcri-fs runtime \
                            --runtime PATH`"
                        .into(),
                ),
            }),
    };
    let program = program?;
    let call = Call::parse(args);
    match call.command {
        Some(b"create" | b"run") => prepare(&call)?,
        // For a container that failed before the runtime would call its poststop hook.
        Some(b"delete") => {
            if let Some(root) = call
                .id
                .as_deref()
                .map(roots::of)
                .filter(|root| root.exists())
                && roots::release(&root).is_ok()
            {
                let _ = roots::remove(&root);
            }
        }
        _ => {}
    }
    let error = Command::new(&program).args(args).exec();
    Err(Io::at("running", &program)(error).into())
}

/// The path of a runtime. Skips this program under all its names, which would call itself for ever.
fn find(name: &OsStr) -> Result<PathBuf> {
    let own = std::fs::canonicalize("/proc/self/exe").ok();
    let named = Path::new(name);
    let path = std::env::var_os("PATH")
        .filter(|p| !p.is_empty())
        .unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    let candidates: Vec<PathBuf> = match name.as_bytes().contains(&b'/') {
        true => vec![named.to_owned()],
        false => std::env::split_paths(&path)
            .map(|dir| dir.join(named))
            .collect(),
    };
    let is_other = |path: &PathBuf| path.is_file() && path.canonicalize().ok() != own;
    candidates
        .into_iter()
        .find(is_other)
        .ok_or_else(|| Io::at("finding the runtime", named)(rustix::io::Errno::NOENT).into())
}

/// The parts of a runtime's command line that matter here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Call<'a> {
    command: Option<&'a [u8]>,
    id: Option<String>,
    bundle: PathBuf,
    /// A configuration other than the bundle's.
    config: Option<PathBuf>,
}

impl<'a> Call<'a> {
    fn parse(args: &'a [OsString]) -> Self {
        let mut call = Self {
            bundle: PathBuf::from("."),
            ..Self::default()
        };
        let mut rest = args.iter().map(|arg| arg.as_bytes());
        while let Some(arg) = rest.next() {
            if WITH_VALUE.iter().any(|option| option.as_bytes() == arg) {
                rest.next();
            } else if !arg.starts_with(b"-") {
                call.command = Some(arg);
                break;
            }
        }
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let mut last = None;
        while let Some(arg) = rest.next() {
            match arg {
                b"--bundle" | b"-b" => call.bundle = rest.next().map(path).unwrap_or_default(),
                b"--config" | b"-f" if matches!(call.command, Some(b"run" | b"create")) => {
                    call.config = rest.next().map(path)
                }
                _ => match (
                    arg.strip_prefix(b"--bundle="),
                    arg.strip_prefix(b"--config="),
                ) {
                    (Some(value), _) => call.bundle = path(value),
                    (_, Some(value)) => call.config = Some(path(value)),
                    _ => last = Some(arg),
                },
            }
        }
        // Every command that matters here ends with the id.
        call.id = last
            .filter(|arg| !arg.starts_with(b"-"))
            .map(|arg| String::from_utf8_lossy(arg).into_owned());
        call
    }
}

/// Mounts for a container that is about to be created.
fn prepare(call: &Call<'_>) -> Result<()> {
    // If the id or the configuration is missing, the runtime itself reports it.
    let Some(id) = &call.id else { return Ok(()) };
    let path = call.config.as_ref().map_or_else(
        || call.bundle.join("config.json"),
        |config| call.bundle.join(config),
    );
    let Ok(text) = files::read(&path, bundle::MAX_CONFIG) else {
        return Ok(());
    };
    let Ok(mut config) = serde_json::from_slice::<Value>(&text) else {
        return Ok(());
    };
    if !inject::root(&mut config, &call.bundle, id, true)? {
        return Ok(());
    }
    let text =
        serde_json::to_vec_pretty(&config).map_err(Error::document(path.display().to_string()))?;
    replace(&path, &text).map_err(Error::from).inspect_err(|_| {
        let root = roots::of(id);
        let _ = roots::release(&root).and_then(|()| roots::remove(&root));
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let call = |line: &str| {
            let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            let call = Call::parse(&args);
            (
                call.command
                    .map(|c| String::from_utf8_lossy(c).into_owned()),
                call.bundle,
                call.id,
            )
        };
        let of = |command: &str, bundle: &str, id: Option<&str>| {
            (
                Some(command.to_owned()),
                PathBuf::from(bundle),
                id.map(str::to_owned),
            )
        };
        assert_eq!(call("run -b /b c1"), of("run", "/b", Some("c1")));
        assert_eq!(
            call("--root /r --systemd-cgroup create --bundle=/b --pid-file /p c1"),
            of("create", "/b", Some("c1"))
        );
        assert_eq!(
            call("--log-format=json --log /run create c2"),
            of("create", ".", Some("c2"))
        );
        assert_eq!(
            call("--cgroup-manager cgroupfs --root=/r delete --force c3"),
            of("delete", ".", Some("c3"))
        );
        assert_eq!(call("run --bundle /b --detach"), of("run", "/b", None));
        assert_eq!(call("--version"), (None, PathBuf::from("."), None));
    }
}
