//! LXC's hooks: mount before the start, unmount after the stop.

use std::path::Path;

use super::super::error::{Error, Result};
use super::super::record::{ContainerRecord, State};
use super::super::root_mount::{self, RootMount};
use crate::store;
use crate::zfs::recorded;

/// What LXC's environment variables say about the container.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// `LXC_HOOK_TYPE`.
    pub hook: String,
    /// `LXC_TARGET`: `stop` or `reboot`, after the container has ended.
    pub target: Option<String>,
}

/// Runs a hook of the container with this directory.
///
/// # Errors
/// [`Error`]: LXC then does not start the container.
pub fn lxc(container: &Path, facts: &Facts) -> Result<()> {
    let record = match ContainerRecord::read(container) {
        // Its dataset may not be mounted yet.
        Ok(None) if recorded::reach_directory(container).map_err(store::Error::from)? => {
            ContainerRecord::read(container)?
        }
        read => read?,
    };
    match facts.hook.as_str() {
        "pre-start" | "pre-mount" => {
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
            RootMount::of(&record, container).mount()?;
            root_mount::make_directory(&record.runtime.root(), &record.cwd, record.idmap.as_ref())
        }
        "post-stop" => match record {
            // The container starts again at once, and must find what it keeps in memory.
            Some(_) if facts.target.as_deref() == Some("reboot") => Ok(()),
            Some(record) => root_mount::unmount_ended(&record.runtime.root()),
            None => Ok(()),
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
