//! `lxcri-fs login`

use std::path::{Path, PathBuf};

use bfc::Secret;
use clap::Args;
use zeroize::Zeroizing;

use super::error::{Error, Exit};
use super::output::say;
use super::secret::{ask, ask_secretly, terminal};
use super::store::StoreArgs;
use super::tls::TlsArgs;
use crate::image::secret;
use crate::registry::login::Account;

/// Log in to a registry
///
/// Asks the registry whether it accepts name and password, and saves them where podman and skopeo
/// save theirs, so that all of them find them. What is not given is asked for on the terminal.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs login registry.example.org
  lxcri-fs login registry.example.org -u robot --password-stdin < password")]
pub(super) struct LoginArgs {
    /// The registry: HOST[:PORT], or HOST[:PORT]/REPOSITORY for a part of it
    registry: String,
    /// The user's name
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Read the password from the first line of standard input
    #[arg(long, conflicts_with = "password_file", requires = "username")]
    password_stdin: bool,
    /// Read the password from the first line of FILE
    #[arg(long, value_name = "FILE", requires = "username")]
    password_file: Option<PathBuf>,
    #[command(flatten)]
    authfile: AuthFileArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    store: StoreArgs,
}

/// Where credentials are saved.
#[derive(Debug, Args)]
pub(super) struct AuthFileArgs {
    /// The file with the credentials (default: REGISTRY_AUTH_FILE, or else containers/auth.json in
    /// XDG_RUNTIME_DIR, or else /run/containers/UID/auth.json)
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
}

pub(super) fn run(args: &LoginArgs) -> Result<(), Error> {
    let account = Account::parse(&args.registry)?;
    let registries = args.store.registries(args.tls)?;
    let user = match &args.username {
        Some(user) => user.clone(),
        None => {
            let name = ask("Username: ", &mut needed("a user name", "-u gives it")?)?;
            String::from_utf8_lossy(&name).trim().to_owned()
        }
    };
    let password = text(password(args)?)?;
    account.log_in(
        &user,
        password,
        &registries,
        args.authfile.authfile.as_deref(),
    )?;
    say(format_args!("Login Succeeded!"))
}

fn password(args: &LoginArgs) -> Result<Secret, Error> {
    if args.password_stdin {
        return Ok(secret::password(
            std::io::stdin().lock(),
            Path::new("standard input"),
        )?);
    }
    match &args.password_file {
        Some(path) => Ok(secret::password_file(path)?),
        None => {
            let hint = "--password-stdin and --password-file give it";
            ask_secretly("Password: ", needed("a password", hint)?)
        }
    }
}

/// The terminal to ask on.
fn needed(what: &str, hint: &str) -> Result<std::fs::File, Error> {
    terminal().ok_or_else(|| Error::Other {
        message: format!("{what} is needed, and there is no terminal to ask for it"),
        hint: Some(hint.to_owned()),
        exit: Exit::Usage,
    })
}

fn text(secret: Secret) -> Result<Zeroizing<String>, Error> {
    let wrong = |reason: &str| Error::Other {
        message: format!("the password {reason}"),
        hint: None,
        exit: Exit::Key,
    };
    let bytes = match secret {
        Secret::Password(bytes) => bytes,
        Secret::Key(_) => return Err(wrong("is a key")),
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong("is not UTF-8"))?;
    if text.is_empty() {
        return Err(wrong("is empty"));
    }
    Ok(Zeroizing::new(text.to_owned()))
}
