//! `lxcri-fs logout`

use clap::Args;

use super::error::Error;
use super::login::AuthFileArgs;
use super::output::say;
use crate::registry::login::{Account, log_out_of_all};

/// Log out of a registry
///
/// Removes the credentials that `lxcri-fs login`, `podman login` or `skopeo login` has saved.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs logout registry.example.org
  lxcri-fs logout --all")]
pub(super) struct LogoutArgs {
    /// The registry: HOST[:PORT][/REPOSITORY], as it was given to `login`
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    registry: Option<String>,
    /// Remove the credentials for all registries
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    authfile: AuthFileArgs,
}

pub(super) fn run(args: &LogoutArgs) -> Result<(), Error> {
    let file = args.authfile.authfile.as_deref();
    match &args.registry {
        Some(registry) => {
            let account = Account::parse(registry)?;
            account.log_out(file)?;
            say(format_args!(
                "Removed login credentials for {}",
                account.key()
            ))
        }
        None => {
            log_out_of_all(file)?;
            say(format_args!("Removed login credentials for all registries"))
        }
    }
}
