//! The hidden commands that our own processes are started with.

use std::path::Path;

use clap::Args;

use super::error::{Error, fs_exit, fs_hint};
use crate::fs;
use crate::serve::protocol::Failure;
use crate::serve::{chain, idmap, inherited, keeper, log, worker};

/// How the process logs.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    #[arg(long, value_enum, default_value = "plain")]
    log_style: log::Style,
}

/// Is a keeper. Its errors go to the log, and to the command that waits for it.
pub fn keeper(args: &DaemonArgs) -> Result<(), Error> {
    inherited::close_descriptors();
    log::init(args.log_style);
    Ok(keeper::main(args.log_style).inspect_err(|error| tracing::error!("{}", chain(error)))?)
}

/// Is a worker.
pub fn worker(args: &DaemonArgs) -> Result<(), Error> {
    log::init(args.log_style);
    Ok(worker::main(describe).inspect_err(|error| tracing::error!("{}", chain(error)))?)
}

/// Is a process in a user namespace of its own.
pub fn user_namespace() -> Result<(), Error> {
    idmap::namespace_main().map_err(Error::io("making", Path::new("a user namespace")))
}

/// What the command that mounts will say.
fn describe(error: &fs::Error) -> Failure {
    let key_needed = match error {
        fs::Error::Image { image, source: bfc::Error::KeyNeeded } => Some(image.clone().into_os_string()),
        _ => None,
    };
    Failure { message: chain(error), hint: fs_hint(error).map(str::to_owned), exit: fs_exit(error) as u8, key_needed }
}
