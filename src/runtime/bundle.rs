//! An OCI bundle's config.json, as the OCI runtime specification defines it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Capability, Hook, HookBuilder, HooksBuilder, Linux, LinuxBuilder,
    LinuxCapabilitiesBuilder, LinuxDeviceCgroupBuilder, LinuxIdMapping, LinuxIdMappingBuilder,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder, LinuxSeccomp, Mount,
    MountBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
    get_default_maskedpaths, get_default_mounts, get_default_namespaces,
    get_default_readonly_paths,
};

use super::error::{Error, Result};
use super::process::Process;
use super::volumes::{VolumeRecord, in_memory};
use crate::sys::idmap::IdMap;

/// The version to write: nothing newer is used, and runtimes refuse unknown versions.
const VERSION: &str = "1.0.2";
/// Longest config.json or seccomp profile that is read, bytes.
pub const MAX_CONFIG: u64 = 16 << 20;

/// The error for a config.json of others that is not as the specification says.
pub(super) fn malformed() -> Error {
    Error::unfit("the container's configuration violates the OCI runtime specification")
}

/// The group of terminals.
const TTY: u32 = 5;

/// Default capabilities, the same as podman's.
const CAPABILITIES: [Capability; 11] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Settings of a container other than its process.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the root file system is mounted, absolute.
    pub root: PathBuf,
    /// Its volumes, in the order in which they are mounted.
    pub volumes: Vec<VolumeRecord>,
    /// Whether the container may write to it.
    pub read_only: bool,
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// Host name.
    pub hostname: String,
    /// The map of ids of its user namespace; `None` for no user namespace.
    pub idmap: Option<IdMap>,
    /// Seccomp filter.
    pub seccomp: Option<LinuxSeccomp>,
    /// Whether set-user-id programs gain privileges.
    pub new_privileges: bool,
    /// Annotations besides the image's.
    pub annotations: HashMap<String, String>,
    /// Command lines, program first, that the runtime runs while it creates the container.
    pub create_hooks: Vec<Vec<String>>,
}

/// The configuration of a container that runs `process`.
///
/// # Errors
/// [`Error::Unfit`] if the specification cannot express it.
pub fn spec(process: &Process, settings: &Settings) -> Result<Spec> {
    build(process, settings)
        .map_err(|e| Error::unfit(format!("the container's configuration is invalid: {e}")))
}

/// The text of config.json. The same configuration gives the same text.
///
/// # Errors
/// [`Error::Document`].
pub fn to_json(spec: &Spec) -> Result<String> {
    // The keys of a `Value` are ordered, the maps of oci-spec's types are not.
    let value = serde_json::to_value(spec);
    let text = value
        .map(ordered)
        .and_then(|value| serde_json::to_string_pretty(&value));
    text.map(|text| text + "\n")
        .map_err(Error::document("config.json"))
}

/// Sorts capabilities, which are a set.
fn ordered(mut value: serde_json::Value) -> serde_json::Value {
    let sets = value
        .pointer_mut("/process/capabilities")
        .and_then(serde_json::Value::as_object_mut);
    for set in sets
        .into_iter()
        .flat_map(|sets| sets.values_mut())
        .filter_map(serde_json::Value::as_array_mut)
    {
        set.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
    }
    value
}

fn build(process: &Process, settings: &Settings) -> Result<Spec, OciSpecError> {
    let mut user = UserBuilder::default()
        .uid(process.user.uid)
        .gid(process.user.gid);
    if !process.user.groups.is_empty() {
        user = user.additional_gids(process.user.groups.clone());
    }
    let all: Capabilities = CAPABILITIES.into_iter().collect();
    // The kernel takes them from any other user at execve(2).
    let effective = if process.user.uid == 0 {
        all.clone()
    } else {
        Capabilities::new()
    };
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(all)
        .effective(effective.clone())
        .permitted(effective)
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()?;
    let spec_process = ProcessBuilder::default()
        .terminal(settings.terminal)
        .user(user.build()?)
        .args(process.args.clone())
        .env(
            process
                .env
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>(),
        )
        .cwd(&process.cwd)
        .capabilities(capabilities)
        .rlimits(Vec::new())
        .no_new_privileges(!settings.new_privileges)
        .build()?;
    let mut annotations: HashMap<String, String> =
        process.annotations.clone().into_iter().collect();
    annotations.extend(settings.annotations.clone());
    let mut spec = SpecBuilder::default()
        .version(VERSION)
        .root(
            RootBuilder::default()
                .path(&settings.root)
                .readonly(settings.read_only)
                .build()?,
        )
        .process(spec_process)
        .hostname(&settings.hostname)
        .mounts(mounts(process, settings)?)
        .annotations(annotations)
        .linux(linux(settings)?);
    if !settings.create_hooks.is_empty() {
        let hooks = settings
            .create_hooks
            .iter()
            .filter_map(|line| hook(line))
            .collect::<Result<Vec<_>, _>>()?;
        // Older runtimes know only this hook, and newer ones still support it.
        #[allow(deprecated)]
        let hooks = HooksBuilder::default().prestart(hooks).build()?;
        spec = spec.hooks(hooks);
    }
    spec.build()
}

/// How long a hook may take, seconds.
pub const HOOK_TIMEOUT: i64 = 60;

/// A hook that runs a command line. The specification requires the program's name as first
/// argument.
pub fn hook(line: &[String]) -> Option<Result<Hook, OciSpecError>> {
    let program = Path::new(line.first()?);
    Some(
        HookBuilder::default()
            .path(program)
            .args(line.to_vec())
            .timeout(HOOK_TIMEOUT)
            .build(),
    )
}

fn mounts(process: &Process, settings: &Settings) -> Result<Vec<Mount>, OciSpecError> {
    let mut mounts = get_default_mounts();
    if settings.idmap.as_ref().is_some_and(|map| {
        !map.gids()
            .any(|(inside, _, count)| (inside..inside + count).contains(&TTY))
    }) && let Some(options) = mounts
        .iter_mut()
        .find(|m| m.destination() == Path::new("/dev/pts"))
        .and_then(|m| m.options_mut().as_mut())
    {
        // The container has no such group.
        options.retain(|o| o != "gid=5");
    }
    for volume in &settings.volumes {
        let mut options = vec!["rbind", "rprivate"];
        if volume.is_in_store() {
            options.extend(["nosuid", "nodev"]);
        }
        options.push(if volume.read_only { "ro" } else { "rw" });
        mounts.push(
            MountBuilder::default()
                .destination(&volume.destination)
                .typ("bind")
                .source(&volume.source)
                .options(options.into_iter().map(str::to_owned).collect::<Vec<_>>())
                .build()?,
        );
    }
    // Without a directory for it, a volume of a writable root file system is in that; a read-only
    // one needs a mount.
    for volume in in_memory(process, &settings.volumes, settings.read_only) {
        let options = ["rw", "nosuid", "nodev", "noexec", "relatime"]
            .map(str::to_owned)
            .to_vec();
        mounts.push(
            MountBuilder::default()
                .destination(volume)
                .typ("tmpfs")
                .source("tmpfs")
                .options(options)
                .build()?,
        );
    }
    Ok(mounts)
}

fn linux(settings: &Settings) -> Result<Linux, OciSpecError> {
    let mut namespaces = get_default_namespaces();
    let devices = vec![
        LinuxDeviceCgroupBuilder::default()
            .allow(false)
            .access("rwm")
            .build()?,
    ];
    let mut linux = LinuxBuilder::default()
        .resources(LinuxResourcesBuilder::default().devices(devices).build()?)
        .masked_paths(get_default_maskedpaths())
        .readonly_paths(get_default_readonly_paths());
    if let Some(map) = &settings.idmap {
        namespaces.push(
            LinuxNamespaceBuilder::default()
                .typ(LinuxNamespaceType::User)
                .build()?,
        );
        linux = linux
            .uid_mappings(mappings(map.uids())?)
            .gid_mappings(mappings(map.gids())?);
    }
    if let Some(seccomp) = &settings.seccomp {
        linux = linux.seccomp(seccomp.clone());
    }
    linux.namespaces(namespaces).build()
}

fn mappings(
    ranges: impl Iterator<Item = (u32, u32, u32)>,
) -> Result<Vec<LinuxIdMapping>, OciSpecError> {
    let mapping = |(inside, outside, count)| {
        LinuxIdMappingBuilder::default()
            .container_id(inside)
            .host_id(outside)
            .size(count)
            .build()
    };
    ranges.map(mapping).collect()
}

/// Reads a seccomp profile: the `linux.seccomp` of the runtime specification.
///
/// # Errors
/// [`Error::Io`], [`Error::Document`].
pub fn seccomp(path: &Path) -> Result<LinuxSeccomp> {
    let bytes = crate::sys::files::read(path, MAX_CONFIG)?;
    serde_json::from_slice(&bytes).map_err(Error::document(path.display().to_string()))
}
