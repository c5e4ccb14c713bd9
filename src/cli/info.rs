//! `lxcri-fs info`

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use bfc::format::{Compression, Encryption};
use clap::Args;
use serde::Serialize;

use super::error::Error;
use super::open::confine;
use super::output::{all_or, count, json, lines, printable, say, size};
use super::store::StoreArgs;
use crate::fs::{self, ImageOptions, tree_of_index};
use crate::image::open_file;
use crate::serve::confine::Kept;
use crate::store::graph;
use crate::text::hex;
use crate::trust::Verdict;

/// Show images' format, size, compression and layers
///
/// This needs no password: names and attributes are not encrypted.
#[derive(Debug, Args)]
#[command(after_help = "Example: lxcri-fs info debian.bfc")]
pub(super) struct InfoArgs {
    /// The images: files, or names or digests of images in the store
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    /// Print one JSON object for each image
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Info {
    image: String,
    format: &'static str,
    bytes: u64,
    uuid: String,
    checksums: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    root_digest: Option<String>,
    inodes: u32,
    contents: u64,
    content_bytes: u64,
    stored_bytes: u64,
    compressed: u64,
    encrypted: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    frame_bytes: Option<u64>,
    /// How many paths are invisible to tools that know only v1.
    unsaid: u64,
    /// Offset at which the valid image ends, if the remains of an interrupted write follow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    torn_after: Option<u64>,
    layers: Vec<LayerRow>,
    /// For an image in the store: its name, the name of the image that it was cloned from, and so
    /// on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    chain: Vec<String>,
    /// Why it was accepted, for each name that it was pulled under.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trust: Vec<TrustRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<serde_json::Value>,
}

#[derive(Debug, Serialize)]
struct TrustRow {
    reference: String,
    /// The key that has signed it, if the rule requires a signature.
    key: Option<String>,
    rule: String,
    checked: String,
}

impl TrustRow {
    fn of(verdict: &Verdict) -> Self {
        Self {
            reference: verdict.reference.clone(),
            key: verdict.key.clone(),
            rule: verdict.rule.clone(),
            checked: verdict.at.to_string(),
        }
    }
}

#[derive(Debug, Serialize)]
struct LayerRow {
    diff_id: String,
    entries: u64,
    tar_bytes: u64,
    stored_bytes: u64,
    created_by: String,
}

pub(super) fn run(args: &InfoArgs) -> Result<(), Error> {
    let mut failures = Vec::new();
    let mut opened = Vec::new();
    for image in &args.images {
        match open(image, &args.store) {
            Ok(image) => opened.push(image),
            Err(error) => failures.push(error),
        }
    }
    confine(Kept::default(), &ImageOptions::default());
    let mut is_first = true;
    for (path, file, chain, trust) in opened {
        let mut info = match inspect(&path, file) {
            Ok(info) => info,
            Err(source) => {
                failures.push(
                    fs::Error::Image {
                        image: path,
                        source,
                    }
                    .into(),
                );
                continue;
            }
        };
        info.chain = chain;
        info.trust = trust;
        if args.json {
            json(&info)?;
            continue;
        }
        if !std::mem::take(&mut is_first) {
            say(format_args!(""))?;
        }
        print(&info).map_err(Error::Output)?;
    }
    all_or(failures, args.images.len(), "images cannot be shown")
}

/// An image, its path, the images that it was cloned from, nearest first, and why it was accepted.
type Opened = (PathBuf, File, Vec<String>, Vec<TrustRow>);

fn open(image: &Path, store: &StoreArgs) -> Result<Opened, Error> {
    let Some((store, image)) = store.in_store(image)? else {
        return Ok((image.to_owned(), open_file(image)?, Vec::new(), Vec::new()));
    };
    let file = store.open_image(&image)?;
    let images = store.images()?;
    let chain = graph::chain(&images, &image.name);
    let chain = chain.iter().map(|image| image.name.to_string());
    let trust = image.facts.trust.iter().map(TrustRow::of).collect();
    Ok((image.path.clone(), file, chain.collect(), trust))
}

fn inspect(path: &Path, file: File) -> bfc::Result<Info> {
    let container = bfc::Container::open(std::sync::Arc::new(file))?;
    let locator = container.locator()?;
    let section = match &locator {
        Some(locator) => bfc::rootfs::Section::open(container.source().clone(), locator)?,
        None => {
            let (tree, paths) = tree_of_index(&container, &container.index()?)?;
            let extras = bfc::rootfs::Extras {
                frame_log2: 17,
                paths,
                ..Default::default()
            };
            bfc::rootfs::Section::in_memory(bfc::rootfs::build(&tree, &extras)?)?
        }
    };
    let mut info = Info {
        image: printable(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())),
        format: if locator.is_some() {
            "BFC v1 with a rootfs section"
        } else {
            "BFC v1"
        },
        bytes: container.len(),
        uuid: hex(&container.header().uuid),
        checksums: match container.flavour() {
            bfc::crc::Flavour::Raw => "CRC-32C, raw",
            bfc::crc::Flavour::Standard => "CRC-32C, standard",
        },
        root_digest: locator
            .as_ref()
            .map(|l| format!("blake3:{}", hex(&l.root_digest))),
        inodes: section.inode_count(),
        contents: 0,
        content_bytes: 0,
        stored_bytes: 0,
        compressed: 0,
        encrypted: 0,
        frame_bytes: locator.is_some().then(|| 1 << section.header().frame_log2),
        unsaid: section.header().unsaid,
        torn_after: container.torn(),
        layers: Vec::new(),
        chain: Vec::new(),
        trust: Vec::new(),
        config: serde_json::from_slice(&section.blob(section.header().config)?).ok(),
    };
    // Layers share contents.
    let mut seen = HashSet::new();
    for number in 0..section.content_count() {
        let content = section.content(number)?;
        if !seen.insert(content.offset) {
            continue;
        }
        info.contents += 1;
        info.content_bytes = info.content_bytes.saturating_add(content.size);
        info.stored_bytes = info.stored_bytes.saturating_add(content.stored);
        info.compressed += u64::from(content.comp != Compression::None);
        info.encrypted += u64::from(content.enc != Encryption::None);
    }
    let mut start = bfc::format::HEADER_LEN as u64;
    for layer in section.layers()? {
        info.layers.push(LayerRow {
            diff_id: format!("sha256:{}", hex(&layer.diff_id)),
            entries: layer.entries,
            tar_bytes: layer.tar_size,
            stored_bytes: layer.data_end.saturating_sub(start),
            created_by: printable(&section.blob(layer.created_by)?),
        });
        start = layer.data_end;
    }
    Ok(info)
}

fn print(info: &Info) -> std::io::Result<()> {
    let mut out = lines();
    let percent = |part: u64, whole: u64| u128::from(part) * 100 / u128::from(whole.max(1));
    writeln!(out, "Image         {}", info.image)?;
    writeln!(out, "Format        {}, {}", info.format, info.checksums)?;
    writeln!(out, "UUID          {}", info.uuid)?;
    if let Some(digest) = &info.root_digest {
        writeln!(out, "Root digest   {digest}")?;
    }
    writeln!(
        out,
        "Size          {} ({} bytes)",
        size(info.bytes),
        info.bytes
    )?;
    writeln!(out, "Inodes        {}", info.inodes)?;
    let (stored, original) = (size(info.stored_bytes), size(info.content_bytes));
    let ratio = percent(info.stored_bytes, info.content_bytes);
    writeln!(
        out,
        "Content       {} different, {original} stored in {stored} ({ratio} %)",
        info.contents
    )?;
    writeln!(
        out,
        "Compressed    {} of them, encrypted {}",
        info.compressed, info.encrypted
    )?;
    if let Some(frame) = info.frame_bytes {
        writeln!(out, "Frames        {}", size(frame))?;
    }
    if info.unsaid > 0 {
        writeln!(
            out,
            "Not in v1     {}, which other BFC tools do not see",
            count(info.unsaid, "path or type", "paths or types")
        )?;
    }
    if let Some(end) = info.torn_after {
        writeln!(
            out,
            "Torn          what follows offset {end} was never finished and is not used"
        )?;
    }
    for (number, layer) in info.layers.iter().enumerate() {
        let stored = size(layer.stored_bytes);
        writeln!(
            out,
            "Layer {:<7} {} {}, tar {}, stored {stored}",
            number + 1,
            layer.diff_id,
            count(layer.entries, "entry", "entries"),
            size(layer.tar_bytes)
        )?;
        if !layer.created_by.is_empty() {
            writeln!(out, "              {}", layer.created_by)?;
        }
    }
    for name in info.chain.iter().skip(1) {
        writeln!(out, "Cloned from   {name}")?;
    }
    for row in &info.trust {
        let how = match &row.key {
            Some(key) => format!("signed with {key}"),
            None => "accepted without a signature".to_owned(),
        };
        let TrustRow {
            reference,
            rule,
            checked,
            ..
        } = row;
        writeln!(
            out,
            "Trust         {reference}: {how}, by the rule {rule}, {checked}"
        )?;
    }
    if let Some(config) = &info.config {
        writeln!(out, "OCI config    {config}")?;
    }
    Ok(())
}
