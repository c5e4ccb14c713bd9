//! `lxcri-fs runtime`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;

use super::error::Error;
use crate::runtime::wrapper;

/// Beginnings of program names under which this program acts as an OCI runtime, and the real
/// runtime that each stands for.
const NAMES: [(&str, Option<&str>); 3] = [
    ("lxcri-fs-runtime", None),
    ("lxcri-fs-crun", Some("crun")),
    ("lxcri-fs-runc", Some("runc")),
];

/// Act as an OCI runtime: mount the image that a container's annotations name, then run crun or
/// runc
///
/// The container gets the image's user, variables, working directory and entrypoint, unless the
/// engine was asked for others. Its command follows the entrypoint; `-` stands for the image's own.
#[derive(Debug, Args)]
#[command(after_help = "\
Under the names lxcri-fs-runtime, lxcri-fs-crun and lxcri-fs-runc, for instance of a symlink,
this program is that runtime, and passes all its arguments on.

Examples:
  lxcri-fs runtime --runtime runc -- run -b /srv/web1 web1
  ln -s $(command -v lxcri-fs) /usr/local/bin/lxcri-fs-crun
  podman --runtime /usr/local/bin/lxcri-fs-crun run --rootfs /var/empty \\
    --annotation org.lxcri-fs.image=/srv/nginx.bfc -")]
pub(super) struct RuntimeArgs {
    /// The real runtime, as a name or a path (default: crun, or else runc)
    #[arg(long, value_name = "RUNTIME")]
    runtime: Option<OsString>,
    /// Arguments for the real runtime
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARG"
    )]
    args: Vec<OsString>,
}

/// Runs the command: returns only when it fails.
pub(super) fn run(args: &RuntimeArgs) -> Result<(), Error> {
    match wrapper::run(args.runtime.as_deref(), &args.args)? {}
}

/// Translates the command line of a runtime to that of `lxcri-fs runtime`. `None` if this program
/// was not started under the name of a runtime.
pub(super) fn wrapper_arguments(args: &[OsString]) -> Option<Vec<OsString>> {
    let (program, rest) = args.split_first()?;
    let name = program.as_bytes().rsplit(|&b| b == b'/').next()?;
    let (_, runtime) = NAMES.iter().find(|(known, _)| known.as_bytes() == name)?;
    let mut ours: Vec<OsString> = vec![program.clone(), "runtime".into()];
    if let Some(runtime) = runtime {
        ours.extend(["--runtime".into(), runtime.into()]);
    }
    ours.push("--".into());
    ours.extend(rest.iter().cloned());
    Some(ours)
}
