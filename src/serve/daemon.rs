//! The command line of the keeper, the worker and other internal processes. It is separate from
//! that of the commands, which takes longer to build.

use std::ffi::OsString;
use std::path::Path;

use clap::{Args, Parser, Subcommand};

use super::error::Error;
use crate::error::{Io, Report, chain};
use crate::fs;
use crate::serve::Failure;
use crate::serve::{answer, keeper, log, worker};
use crate::sys::idmap::NAMESPACE_COMMAND;
use crate::sys::{descriptors, idmap};

/// The command line of an internal process.
#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    daemon: Daemon,
}

/// The kinds of internal processes.
#[derive(Debug, Subcommand)]
enum Daemon {
    Keeper(KeeperArgs),
    Worker(DaemonArgs),
    #[command(name = NAMESPACE_COMMAND)]
    UserNamespace,
    #[command(name = answer::COMMAND)]
    AskMounts {
        /// Their numbers in mountinfo
        mounts: Vec<u32>,
    },
}

/// Arguments of a keeper.
#[derive(Debug, Args)]
struct KeeperArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Start a keeper, and end
    #[arg(long)]
    orphan: bool,
}

/// Arguments for logging.
#[derive(Debug, Args)]
struct DaemonArgs {
    #[arg(long, value_enum, default_value = "plain")]
    log_style: log::Style,
}

/// Runs the internal process that the command line names, if it names one.
pub(crate) fn run(args: &[OsString]) -> Option<Result<(), Error>> {
    let name = args.get(1).and_then(|name| name.to_str())?;
    if !Daemon::has_subcommand(name) {
        return None;
    }
    Some(match Line::parse_from(args).daemon {
        Daemon::Keeper(args) => keeper(&args),
        Daemon::Worker(args) => worker(&args),
        Daemon::UserNamespace => user_namespace(),
        Daemon::AskMounts { mounts } => answer::main(&mounts),
    })
}

/// Closes inherited descriptors.
#[allow(unsafe_code)]
fn let_go() {
    // SAFETY: this is the first thing that the process does after it has read its arguments.
    unsafe { descriptors::close_all() };
}

/// Runs a keeper. Its errors go to the log, and to the command that waits for it.
fn keeper(args: &KeeperArgs) -> Result<(), Error> {
    let_go();
    let style = args.daemon.log_style;
    log::init(style);
    if args.orphan {
        return keeper::start_orphan(style);
    }
    let ended = keeper::main(style);
    match ended {
        // A command with --foreground prints its error like any other.
        Err(keeper::Ended {
            error,
            foreground: true,
        }) => Err(error),
        Err(keeper::Ended {
            error,
            foreground: false,
        }) => {
            tracing::error!("{}", chain(&error));
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}

/// Runs a worker.
fn worker(args: &DaemonArgs) -> Result<(), Error> {
    let_go();
    log::init(args.log_style);
    worker::main(describe).inspect_err(|error| tracing::error!("{}", chain(error)))
}

/// Runs a process in a user namespace of its own.
fn user_namespace() -> Result<(), Error> {
    let made = idmap::namespace_main();
    Ok(made.map_err(Io::at("making", Path::new("a user namespace")))?)
}

/// Describes an error for the command that mounts.
fn describe(error: &fs::Error) -> Failure {
    let key_needed = match error {
        fs::Error::Image {
            image,
            source: bfc::Error::KeyNeeded,
        } => Some(image.clone().into_os_string()),
        _ => None,
    };
    Failure {
        message: chain(error),
        hint: error.hint(),
        exit: error.exit() as u8,
        key_needed,
    }
}
