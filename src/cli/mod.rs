//! The command line. Each command has one file, which turns arguments into calls of the library and
//! results into text or JSON.

mod append;
mod build;
mod cat;
mod clone;
mod colour;
mod commit;
#[doc(hidden)]
pub mod complete;
mod config;
mod containers;
mod create;
mod delete;
mod df;
mod diff;
mod doctor;
#[cfg(test)]
mod documented;
mod error;
mod export;
mod extract;
mod format;
mod gc;
mod hook;
mod info;
mod inspect;
mod judgement;
mod limits;
mod list;
mod login;
mod logout;
mod ls;
mod mount;
mod mount_options;
mod open;
mod output;
mod progress;
mod ps;
mod pull;
mod push;
mod rebase;
mod rm;
mod rollback;
mod runtime;
mod secret;
mod snapshot;
mod snapshots;
mod stats;
mod store;
mod tag;
mod tls;
mod transfer;
mod umount;
mod update;
mod upgrade;
mod upper_name;
mod verify;
mod volumes;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{ArgAction, Args, Parser, Subcommand};

pub use error::{Error, Exit};

use crate::serve::{daemon, log};
use crate::store::size;
use crate::text::neutral;
pub use secret::SecretArgs;

/// Mount BFC images as container root file systems
#[derive(Debug, Parser)]
#[command(name = "lxcri-fs", version, after_help = error::EXIT_CODES, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    _store: store::StoreArgs,
    #[command(flatten)]
    talk: Talk,
    #[command(subcommand)]
    command: Command,
}

/// How much to print. An option `quiet` of a command counts as this one too.
#[derive(Debug, Args)]
struct Talk {
    /// Print no notes and no progress; errors and warnings stay
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Print what the command does, on standard error; twice, print more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(build::BuildArgs),
    Pull(pull::PullArgs),
    Push(push::PushArgs),
    Login(login::LoginArgs),
    Logout(logout::LogoutArgs),
    Append(append::AppendArgs),
    Mount(mount::MountArgs),
    Umount(umount::UmountArgs),
    Diff(diff::DiffArgs),
    Commit(commit::CommitArgs),
    Ps(ps::PsArgs),
    Stats(stats::StatsArgs),
    Upgrade(upgrade::UpgradeArgs),
    Snapshot(snapshot::SnapshotArgs),
    Snapshots(snapshots::SnapshotsArgs),
    Volumes(volumes::VolumesArgs),
    Rollback(rollback::RollbackArgs),
    Rebase(rebase::RebaseArgs),
    Update(Box<update::UpdateArgs>),
    Clone(clone::CloneArgs),
    Ls(ls::LsArgs),
    Cat(cat::CatArgs),
    Export(export::ExportArgs),
    Info(info::InfoArgs),
    Extract(extract::ExtractArgs),
    Verify(verify::VerifyArgs),
    List(list::ListArgs),
    Tag(tag::TagArgs),
    Rm(rm::RmArgs),
    Gc(gc::GcArgs),
    Df(df::DfArgs),
    Doctor(doctor::DoctorArgs),
    Config(config::ConfigArgs),
    Create(Box<create::CreateArgs>),
    Containers(containers::ContainersArgs),
    Delete(delete::DeleteArgs),
    Inspect(inspect::InspectArgs),
    Hook(hook::HookArgs),
    Runtime(runtime::RuntimeArgs),
}

/// Runs the command line `args`, which begins with the program's name, and returns the exit code
/// (listed by `--help`).
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let is_command = |arg: &OsStr| arg.to_str().is_some_and(Command::has_subcommand);
    let args = runtime::wrapper_arguments(&args)
        .or_else(|| mount_options::helper_arguments(&args, is_command))
        .unwrap_or(args);
    if let Some(result) = daemon::run(&args) {
        return exit_code(result.map_err(Error::from));
    }
    if complete::answer(&args) {
        return ExitCode::SUCCESS;
    }
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => {
            if error.use_stderr() {
                // The message has several lines and repeats arguments, such as file names that the
                // shell found: those are neutralised before clap formats it.
                let neutral = args
                    .iter()
                    .map(|arg| neutral(&arg.to_string_lossy()).into_owned());
                match Cli::try_parse_from(neutral) {
                    Err(neutral) => output::usage(&neutral, true),
                    Ok(_) => output::usage(&error, false),
                }
                return Exit::Usage.into();
            }
            // The help. A reader may close the pipe early, which is no error.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
    };
    log::init_command(cli.talk.verbose);
    if cli.talk.quiet {
        output::be_quiet();
    }
    let result = match cli.command {
        Command::Build(args) => build::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Push(args) => push::run(&args),
        Command::Login(args) => login::run(&args),
        Command::Logout(args) => logout::run(&args),
        Command::Append(args) => append::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Mount(args) => mount::run(args),
        Command::Umount(args) => umount::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Commit(args) => commit::run(&args),
        Command::Ps(args) => ps::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::Snapshot(args) => snapshot::run(&args),
        Command::Snapshots(args) => snapshots::run(&args),
        Command::Volumes(args) => volumes::run(&args),
        Command::Rollback(args) => rollback::run(&args),
        Command::Rebase(args) => rebase::run(&args),
        Command::Update(args) => update::run(&args),
        Command::Clone(args) => clone::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Cat(args) => cat::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Extract(args) => extract::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::List(args) => list::run(&args),
        Command::Tag(args) => tag::run(&args),
        Command::Rm(args) => rm::run(&args),
        Command::Gc(args) => gc::run(&args),
        Command::Df(args) => df::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Create(args) => create::run(&args),
        Command::Containers(args) => containers::run(&args),
        Command::Delete(args) => delete::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Hook(args) => hook::run(&args),
        Command::Runtime(args) => runtime::run(&args),
    };
    exit_code(result)
}

fn exit_code(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::report(&error),
    }
}
