//! `lxcri-fs hook`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::error::Error;
use super::store::StoreArgs;
use crate::runtime::hook::{HookVariables, Moment, lxc, oci, podman_precreate};
use crate::store::{Config, Store};

/// Mount and unmount for container runtimes, which call this as a hook
#[derive(Debug, Args)]
#[command(after_help = "docs/RUNTIMES.md shows how to configure each hook.")]
pub(super) struct HookArgs {
    #[command(subcommand)]
    hook: Hook,
}

#[derive(Debug, Subcommand)]
enum Hook {
    /// Hook for LXC: lxc.hook.pre-start mounts, lxc.hook.post-stop unmounts
    Lxc {
        /// The container's directory in the store (default: the directory of the container named by
        /// LXC_NAME)
        #[arg(value_name = "DIR")]
        container: Option<PathBuf>,
        #[command(flatten)]
        store: StoreArgs,
        /// The arguments that LXC adds with lxc.hook.version = 0: name, section, hook
        #[arg(hide = true)]
        rest: Vec<String>,
    },
    /// Hook for the config.json of an OCI runtime, which passes the container's state on standard
    /// input
    Oci {
        /// The hook as which config.json calls this command
        hook: OciHook,
        /// Directory of the root file system (default: root.path of the bundle's config.json)
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Hook for podman's precreate: reads config.json on standard input, mounts what its
    /// annotations name, and writes the changed config.json to standard output
    PodmanPrecreate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OciHook {
    Prestart,
    #[value(name = "createRuntime")]
    CreateRuntime,
    Poststop,
}

pub(super) fn run(args: &HookArgs) -> Result<(), Error> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match &args.hook {
        Hook::Lxc {
            container, store, ..
        } => {
            let container = match container {
                Some(dir) => dir.clone(),
                None => {
                    store
                        .open()?
                        .container(&variable("LXC_NAME").unwrap_or_default())?
                        .path
                }
            };
            let facts = HookVariables {
                hook: variable("LXC_HOOK_TYPE").unwrap_or_default(),
                target: variable("LXC_TARGET"),
            };
            Ok(lxc(&container, &facts)?)
        }
        Hook::Oci { hook, root, store } => {
            let moment = if *hook == OciHook::Poststop {
                Moment::Stop
            } else {
                Moment::Create
            };
            Ok(oci(
                moment,
                std::io::stdin().lock(),
                root.as_deref(),
                || Ok(Store::open(&Config::load(store.store.as_ref())?)?),
            )?)
        }
        Hook::PodmanPrecreate => Ok(podman_precreate(
            std::io::stdin().lock(),
            super::output::bytes(),
        )?),
    }
}
