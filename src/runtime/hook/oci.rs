//! Hooks of the OCI runtime specification.

use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::runtime::State;

use super::super::annotations::Wanted;
use super::super::error::{Error, Result};
use super::super::record::{self, ContainerRecord};
use super::super::root_mount;
use super::super::{bundle, create, delete, update};
use crate::error::Io;
use crate::store::{self, Lock, Name, Store};
use crate::sys::files;
use crate::sys::mountinfo;

/// Longest state that is read, bytes.
const MAX_STATE: u64 = 1 << 20;

/// When a hook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// While the container is being created: `prestart`, `createRuntime`.
    Create,
    /// After its end: `poststop`.
    Stop,
}

/// Runs a hook. `state` is the runtime's message on standard input; `root` is the root file system,
/// if it is not the bundle's; `store` opens the store of the container that the bundle names.
///
/// # Errors
/// [`Error`]: at [`Moment::Create`], the runtime then does not start the container.
pub fn oci(
    moment: Moment,
    state: impl Read,
    root: Option<&Path>,
    store: impl FnOnce() -> Result<Store>,
) -> Result<()> {
    let state = files::take(state, MAX_STATE).map_err(Io::at(
        "reading the container's state from",
        Path::new("standard input"),
    ))?;
    let state: State = serde_json::from_slice(&state)
        .map_err(Error::document("the container's state on standard input"))?;
    // The specification demands it; this process's directory is not the runtime's.
    if !state.bundle().is_absolute() {
        return Err(Error::unfit(
            "the container's state on standard input names no absolute path of a bundle",
        ));
    }
    if moment == Moment::Stop
        && let Some(root) = root
    {
        root_mount::unmount_ended(root)?;
        return super::super::roots::remove(root);
    }
    let root = match root {
        Some(root) => root.to_owned(),
        None => root_of(state.bundle())?,
    };
    let container = match Named::lock(&state, &root, store) {
        Err(error @ Error::Store(store::Error::Locked { .. })) => return Err(error),
        other => other,
    };
    match moment {
        Moment::Stop => root_mount::unmount_ended(&root),
        Moment::Create if root_mount::is_served(&root)? => Ok(()),
        Moment::Create if is_early(&state, &root) => mount_now(&state, &root, container?),
        Moment::Create => Err(Error::Unfit {
            what: format!(
                "nothing is mounted on {}, and what this hook mounted would come too late for the \
                 runtime",
                root.display()
            ),
            hint: Some(
                "`lxcri-fs mount --all` mounts what was created; `lxcri-fs runtime` mounts what \
                 an annotation names"
                    .into(),
            ),
        }),
    }
}

/// The root file system of a bundle.
fn root_of(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("config.json");
    let config: serde_json::Value =
        serde_json::from_slice(&files::read(&path, bundle::MAX_CONFIG)?)
            .map_err(Error::document(path.display().to_string()))?;
    let root = config
        .pointer("/root/path")
        .and_then(serde_json::Value::as_str)
        .unwrap_or("rootfs");
    let root = dir.join(root);
    Ok(root.canonicalize().unwrap_or(root))
}

/// Whether the container would see a mount made now: the runtime has not bound the root file system
/// yet, and calls the hook in the container's own mount namespace. Only lxcri does so, which calls
/// OCI hooks from LXC's pre-mount; crun and runc have bound the root file system by now.
fn is_early(state: &State, root: &Path) -> bool {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = namespace("self");
    let same = state
        .pid()
        .is_some_and(|pid| pid > 0 && own.is_some() && namespace(&pid.to_string()) == own);
    let elsewhere = own != namespace("1");
    let untouched =
        mountinfo::all().is_ok_and(|mounts| !mounts.iter().any(|m| m.mountpoint.starts_with(root)));
    let by_lxc = std::env::var_os("LXC_HOOK_TYPE").is_some_and(|hook| hook == "pre-mount");
    untouched && (by_lxc || same && elsewhere)
}

/// The container that a bundle's annotation names, locked: no other process creates or deletes it
/// meanwhile.
struct Named {
    record: ContainerRecord,
    dir: PathBuf,
    _lock: Lock,
}

impl Named {
    /// Finds and locks the container; `None` without the annotation. Anybody can set an annotation;
    /// it counts only in the bundle that was created for the container.
    ///
    /// # Errors
    /// [`Error::Unfit`] in another bundle, or if the record is another container's;
    /// [`Error::Store`].
    fn lock(
        state: &State,
        root: &Path,
        store: impl FnOnce() -> Result<Store>,
    ) -> Result<Option<Self>> {
        let annotations = state.annotations().as_ref();
        let Some(name) = annotations.and_then(|all| all.get(create::CONTAINER)) else {
            return Ok(None);
        };
        let (store, name) = (store()?, Name::new(name)?);
        // A lock would create a store that does not exist.
        delete::find_named(&store, &name)?;
        let _lock = store.lock_container_soon(name.as_str())?;
        let (_, dir) = delete::find_named(&store, &name)?;
        update::settle_before_start(&store, &name, &dir)?;
        let (record, dir) = delete::find_named(&store, &name)?;
        let own = record.runtime.root();
        let own = own.canonicalize().unwrap_or(own);
        if own != root {
            return Err(Error::unfit(format!(
                "the root file system of container {name} belongs on {}, not on {}",
                own.display(),
                root.display()
            )));
        }
        if !record.is_of(&store, &name)? {
            return Err(record.of_another());
        }
        Ok(Some(Self { record, dir, _lock }))
    }
}

fn mount_now(state: &State, root: &Path, container: Option<Named>) -> Result<()> {
    if let Some(Named { record, dir, .. }) = &container {
        if record.state != record::State::Ready {
            return Err(Error::unfit(format!(
                "container {} is incomplete, or is being deleted",
                record.name
            )));
        }
        return root_mount::RootMount::of(record, dir).mount().map(drop);
    }
    let annotations = state.annotations().clone().unwrap_or_default();
    let wanted = Wanted::of(|name| annotations.get(name).map(String::as_str), root)?;
    let wanted = wanted.ok_or_else(|| Error::Unfit {
        what: format!(
            "there is no annotation that says what to mount on {}",
            root.display()
        ),
        hint: Some("name the image in the annotation org.lxcri-fs.image".into()),
    })?;
    wanted.mount(root).map(drop)
}
