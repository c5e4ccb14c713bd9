//! LXC's hooks: mount before the start, unmount after the stop.

use std::path::Path;

use super::super::error::{Error, Result};
use super::super::record::{ContainerRecord, State};
use super::super::root_mount::{self, RootMount};
use super::super::update;
use crate::store::{Name, Store};

/// What LXC's environment variables say about the container.
#[derive(Debug, Clone, Default)]
pub struct HookVariables {
    /// `LXC_HOOK_TYPE`.
    pub hook: String,
    /// `LXC_TARGET`: `stop` or `reboot`, after the container has ended.
    pub target: Option<String>,
}

/// Runs a hook of the container with this directory. No other process creates or deletes the
/// container meanwhile.
///
/// # Errors
/// [`Error`]: LXC then does not start the container. [`crate::store::Error::Locked`] if another
/// process is at work on it for too long.
pub fn lxc(container: &Path, facts: &HookVariables) -> Result<()> {
    let found = Store::of_container(container)?;
    let lock = |(store, name): &(Store, Name)| store.lock_container_soon(name.as_str());
    let _lock = found.as_ref().map(lock).transpose()?;
    if let (Some((store, name)), "pre-start" | "pre-mount") = (&found, facts.hook.as_str()) {
        update::settle_before_start(store, name, container)?;
    }
    let own = match &found {
        Some((store, name)) => ContainerRecord::read(container)?
            .map(|record| record.is_of(store, name).map(|own| (record, own)))
            .transpose()?,
        None => None,
    };
    match facts.hook.as_str() {
        "pre-start" | "pre-mount" => {
            let record = match own {
                Some((record, false)) => return Err(record.of_another()),
                own => own.map(|(record, _)| record),
            };
            let record = record.filter(|record| record.state == State::Ready);
            let record = record.ok_or_else(|| Error::Unfit {
                what: format!(
                    "{} is not the directory of a container in a store",
                    container.display()
                ),
                hint: Some(
                    "the hook's line in LXC's configuration must name the directory of a \
                            container in the store, as `lxcri-fs create --lxc` writes it"
                        .into(),
                ),
            })?;
            RootMount::of(&record, container).mount_ready(&record)
        }
        "post-stop" => match own {
            // The container starts again at once, and must find what it keeps in memory.
            Some(_) if facts.target.as_deref() == Some("reboot") => Ok(()),
            Some((record, true)) => root_mount::unmount_ended(&record.runtime.root()),
            _ => Ok(()),
        },
        other => Err(Error::Unfit {
            what: format!("LXC's hook {other:?} cannot mount or unmount anything"),
            hint: Some(
                "use `hook lxc` for lxc.hook.pre-start and lxc.hook.post-stop, with \
                 lxc.hook.version = 1"
                    .into(),
            ),
        }),
    }
}
