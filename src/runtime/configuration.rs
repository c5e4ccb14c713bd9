//! The configuration of a container, for its runtime.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::create::{CONTAINER, text};
use super::error::{Error, Result};
use super::image::ContainerImage;
use super::process::{Overrides, Process};
use super::record::{ContainerRecord, Runtime};
use super::settings::{ForRuntime, Settings, seccomp};
use super::{bundle, lxc, process};
use crate::store::Store;

/// Makes crun show the messages of hooks, which other runtimes do anyway.
const CRUN_STDERR: (&str, &str) = ("run.oci.hooks.stderr", "/dev/stderr");
/// Programs that start a whole system.
const INIT: [&str; 3] = ["init", "systemd", "openrc-init"];

/// Whether an image is a system: it has an init, and no other command.
pub(super) fn is_system(
    image: &ContainerImage<'_>,
    process: &Process,
    overrides: &Overrides,
) -> Result<bool> {
    let config = image.config.config().as_ref();
    let says = config.is_some_and(|c| {
        let has_cmd = c.cmd().as_ref().is_some_and(|words| !words.is_empty());
        has_cmd || !process::entrypoint(c).is_empty()
    });
    if !says && overrides.command.is_empty() && overrides.entrypoint.is_none() {
        return image.has_program("/sbin/init");
    }
    let program = process.args[0].rsplit('/').next().unwrap_or_default();
    Ok(process.args.len() == 1 && INIT.contains(&program) && image.has_program("/sbin/init")?)
}

/// The configuration of the container with this record, whose directory in the store is `dir`.
///
/// # Errors
/// [`Error::Unfit`], [`Error::Document`], [`Error::Fs`].
pub(super) fn configuration(
    store: &Store,
    settings: &Settings,
    image: &ContainerImage<'_>,
    process: &Process,
    record: &ContainerRecord,
    dir: &Path,
) -> Result<String> {
    let hostname = settings.hostname.as_ref().unwrap_or(&record.name).clone();
    let (root, read_only, idmap) = (
        record.runtime.root(),
        settings.read_only,
        record.idmap.clone(),
    );
    match &settings.runtime {
        ForRuntime::Bundle {
            terminal,
            seccomp,
            new_privileges,
        } => {
            let (terminal, new_privileges) = (*terminal, *new_privileges);
            let seccomp = seccomp.as_ref().map(self::seccomp).transpose()?;
            let annotations = HashMap::from([
                (CONTAINER.to_owned(), record.name.clone()),
                (CRUN_STDERR.0.to_owned(), CRUN_STDERR.1.to_owned()),
            ]);
            let create_hooks = vec![super::command_line(&[
                "hook",
                "oci",
                "prestart",
                "--store",
                &store.location().to_string(),
            ])?];
            let settings = bundle::Settings {
                root,
                volumes: record.volumes.clone(),
                read_only,
                terminal,
                hostname,
                idmap,
                seccomp,
                new_privileges,
                annotations,
                create_hooks,
            };
            bundle::to_json(&bundle::spec(process, &settings)?)
        }
        ForRuntime::Lxc { copied, includes } => {
            let mut defaults = vec![PathBuf::from(lxc::COMMON)];
            defaults.extend(idmap.is_some().then(|| PathBuf::from(lxc::USER_NAMESPACE)));
            defaults.retain(|path| {
                let is_there = path.exists();
                if !is_there {
                    tracing::warn!("{} is missing: is LXC installed?", path.display());
                }
                is_there
            });
            let hook = super::command_line(&["hook", "lxc", &text(dir)?])?;
            let settings = lxc::Settings {
                root,
                volumes: record.volumes.clone(),
                read_only,
                hostname,
                idmap,
                defaults,
                copied: copied.clone(),
                includes: includes.clone(),
                hook,
            };
            if matches!(record.runtime, Runtime::Lxc { system: true, .. }) {
                return lxc::config(process, lxc::Start::System, &settings);
            }
            let program = process.program(image)?.ok_or_else(|| {
                Error::unfit(format!("the image has no program {:?}", process.args[0]))
            })?;
            let shell = image.has_program("/bin/sh")?;
            lxc::config(
                process,
                lxc::Start::Application {
                    process,
                    program: &program,
                    shell,
                },
                &settings,
            )
        }
    }
}
