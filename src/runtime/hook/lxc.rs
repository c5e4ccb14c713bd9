//! LXC's hooks: mount before the start, unmount after the stop.

use std::path::Path;

use super::super::error::{Error, Result};
use super::super::mount::{self, Mount};
use super::super::record::{Record, State};
use crate::store;
use crate::zfs::recorded;

/// What LXC says of the container in the environment.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// `LXC_HOOK_TYPE`.
    pub hook: String,
    /// `LXC_TARGET`: `stop` or `reboot`, when the container has ended.
    pub target: Option<String>,
}

/// Runs a hook of the container with this directory.
///
/// # Errors
/// [`Error`]: LXC then does not start the container.
pub fn lxc(container: &Path, facts: &Facts) -> Result<()> {
    let record = match Record::read(container) {
        // Its dataset may not be mounted.
        Ok(None) if recorded::reach_directory(container).map_err(store::Error::from)? => {
            Record::read(container)?
        }
        read => read?,
    };
    match facts.hook.as_str() {
        "pre-start" | "pre-mount" => {
            let record = record.filter(|record| record.state == State::Ready);
            let record = record.ok_or_else(|| Error::Unfit {
                what: format!(
                    "{} is not the directory of a container that was created",
                    container.display()
                ),
                hint: Some("`lxcri-fs inspect` tells of the containers that there are".into()),
            })?;
            Mount::of(&record, container).mount()?;
            mount::make_directory(&record.runtime.root(), &record.cwd, record.idmap.as_ref())
        }
        "post-stop" => match record {
            // It is started again at once, and what it has in memory is to be there.
            Some(_) if facts.target.as_deref() == Some("reboot") => Ok(()),
            Some(record) => mount::unmount_ended(&record.runtime.root()),
            None => Ok(()),
        },
        other => Err(Error::Unfit {
            what: format!("nothing can be mounted or unmounted by LXC's hook {other:?}"),
            hint: Some(
                "it is for lxc.hook.pre-start and lxc.hook.post-stop, with lxc.hook.version = 1"
                    .into(),
            ),
        }),
    }
}
