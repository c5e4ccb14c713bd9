//! `lxcri-fs runtime`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;

use super::error::Error;
use crate::runtime::wrapper;

/// What the names of this program begin with under which it is an OCI runtime: `lxcri-fs-runtime`,
/// `lxcri-fs-crun`, `lxcri-fs-runc`.
const NAMES: [(&str, Option<&str>); 3] = [
    ("lxcri-fs-runtime", None),
    ("lxcri-fs-crun", Some("crun")),
    ("lxcri-fs-runc", Some("runc")),
];

/// Be an OCI runtime: mount what a container's annotations name, and go on as crun or runc
#[derive(Debug, Args)]
#[command(after_help = "\
Linked as lxcri-fs-runtime, lxcri-fs-crun or lxcri-fs-runc, this program is that runtime,
whatever its arguments.

Examples:
  lxcri-fs runtime --runtime runc -- run -b /srv/web1 web1
  ln -s $(command -v lxcri-fs) /usr/local/bin/lxcri-fs-crun
  podman --runtime /usr/local/bin/lxcri-fs-crun run --rootfs /var/empty \\
    --annotation org.lxcri-fs.image=/srv/nginx.bfc")]
pub(super) struct RuntimeArgs {
    /// The real runtime: a name, or a path (default: crun, or else runc)
    #[arg(long, value_name = "RUNTIME")]
    runtime: Option<OsString>,
    /// Its arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    args: Vec<OsString>,
}

/// Runs the command: returns only when it fails.
pub(super) fn run(args: &RuntimeArgs) -> Result<(), Error> {
    match wrapper::run(args.runtime.as_deref(), &args.args)? {}
}

/// The command line that stands for ours, when this program was started as a runtime. `None` when
/// it was not.
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
