//! Archives of `docker save` and skopeo.

use serde::Deserialize;

use super::archive::Archive;
use super::blob::Blob;
use super::document::{Config, parse};
use super::{SourceImage, SourceOptions};
use crate::build::digest::Digest;
use crate::build::error::{Error, Mismatch, Result};
use crate::reference;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Manifest {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// The image in an archive; `reference` is one of its `RepoTags`, or `@` and the number of an
/// image.
pub(super) fn open(
    archive: &Archive,
    reference: Option<&str>,
    options: &SourceOptions,
) -> Result<SourceImage> {
    let name = archive.path().display().to_string();
    let get = |member: &str| {
        archive
            .get(member)
            .ok_or_else(|| Error::document(&*name, format!("{member} is missing")))
    };
    let document = format!("manifest.json of {name}");
    let manifests: Vec<Manifest> =
        parse(&document, &get("manifest.json")?.read_document(&document)?)?;
    let manifest = choose(&name, &manifests, reference)?;

    let config_name = format!("{} of {name}", manifest.config);
    let config_bytes = get(&manifest.config)?.read_document(&config_name)?;
    // Its file name is its digest, in whichever of the forms.
    let stem = manifest.config.rsplit('/').next().unwrap_or_default();
    if let Some(wanted) = Digest::parse_hex(stem.strip_suffix(".json").unwrap_or(stem)) {
        let found = Digest::of(&config_bytes);
        if found != wanted {
            let reason = Mismatch::Digest {
                found: found.to_string(),
                wanted: wanted.to_string(),
            };
            return Err(Error::Mismatch {
                name: config_name,
                reason,
            });
        }
    }
    let config: Config = parse(&config_name, &config_bytes)?;
    let members = manifest.layers.as_deref().unwrap_or_default();
    let known = config.layers(&config_name, members.len())?;
    let platform = &options.platform;
    config.check_platform(&name, platform, platform.is_asked)?;
    let mut layers = Vec::new();
    for (member, (diff_id, created_by)) in members.iter().zip(known) {
        layers.push(
            Blob {
                name: member.clone(),
                range: get(member)?,
                digest: None,
            }
            .layer(created_by, Some(diff_id))?,
        );
    }
    Ok(SourceImage {
        layers,
        config: config_bytes,
        manifest: Vec::new(),
    })
}

/// A name as Docker understands it: with its own registry, which Docker leaves out and skopeo
/// writes, and with a tag.
fn full(name: &str) -> Option<String> {
    reference::parse(name).ok().map(|parsed| parsed.whole())
}

fn choose<'a>(
    name: &str,
    manifests: &'a [Manifest],
    reference: Option<&str>,
) -> Result<&'a Manifest> {
    let tags = |m: &'a Manifest| m.repo_tags.iter().flatten().map(String::as_str);
    let chosen = match reference {
        None if manifests.len() == 1 => manifests.first(),
        None => None,
        Some(wanted) => match wanted.strip_prefix('@') {
            Some(number) => number.parse().ok().and_then(|n: usize| manifests.get(n)),
            None => {
                let find = |is: &dyn Fn(&str) -> bool| manifests.iter().find(|&m| tags(m).any(is));
                let wanted_in_full = full(wanted);
                find(&|tag| tag == wanted).or_else(|| {
                    find(&|tag| wanted_in_full.is_some() && full(tag) == wanted_in_full)
                })
            }
        },
    };
    chosen.ok_or_else(|| {
        let known: Vec<_> = manifests.iter().flat_map(tags).collect();
        let (name, hint) = (
            name.to_owned(),
            Some(format!("choose one with :REFERENCE: {}", known.join(", "))),
        );
        match reference {
            Some(reference) => Error::NoImage {
                name,
                reason: format!("it has no image named {reference}"),
                hint,
            },
            None => Error::Source {
                name,
                reason: format!("it has several or no images ({})", manifests.len()),
                hint,
            },
        }
    })
}
