//! `lxcri-fs hook`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::error::Error;
use super::store::StoreArgs;
use crate::runtime::hook::{LxcFacts, Moment, lxc, oci, podman_precreate};
use crate::store::{Config, Store};

/// What runtimes call while a container comes and goes
#[derive(Debug, Args)]
#[command(after_help = "docs/RUNTIMES.md says which hook goes where.")]
pub(super) struct HookArgs {
    #[command(subcommand)]
    hook: Hook,
}

#[derive(Debug, Subcommand)]
enum Hook {
    /// For lxc.hook.pre-start, which mounts, and lxc.hook.post-stop, which unmounts
    Lxc {
        /// The container's directory in the store (default: that of the container that LXC_NAME
        /// names)
        #[arg(value_name = "DIR")]
        container: Option<PathBuf>,
        #[command(flatten)]
        store: StoreArgs,
        /// What LXC adds with lxc.hook.version = 0: name, section, hook
        #[arg(hide = true)]
        rest: Vec<String>,
    },
    /// For the hooks of an OCI runtime's config.json
    Oci {
        /// Which hook it is
        hook: OciHook,
        /// Where the root file system is, if not where the bundle says
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// For podman's precreate hooks: config.json in, config.json out, with what the annotations
    /// name mounted
    PodmanPrecreate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OciHook {
    Prestart,
    #[value(name = "createRuntime")]
    CreateRuntime,
    Poststop,
}

/// Runs the command.
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
            let facts = LxcFacts {
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
