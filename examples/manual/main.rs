//! Writes the manual pages, and the completions for bash, zsh and fish, below a directory laid out
//! as `share/` is: `cargo run --example manual DIR [DATE]`. DATE (of the pages) is YYYY-MM-DD.
//!
//! The pages of commands are made of the command line's own description, so that they and `--help`
//! cannot differ; the others are in `docs/man/`.

mod page;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use lxcri_fs::cli::complete;

/// The pages written by hand: their file names, and their text.
const WRITTEN: [(&str, &str); 3] = [
    ("lxcri-fs.7", include_str!("../../docs/man/lxcri-fs.7")),
    (
        "lxcri-fs.toml.5",
        include_str!("../../docs/man/lxcri-fs.toml.5"),
    ),
    ("bfc.5", include_str!("../../docs/man/bfc.5")),
];
/// Other names of the program, and the pages that describe what it does under them.
const LINKS: [(&str, &str); 3] = [
    ("man1/lxcri-fs-crun.1", "man1/lxcri-fs-runtime.1"),
    ("man1/lxcri-fs-runc.1", "man1/lxcri-fs-runtime.1"),
    ("man8/mount.fuse.lxcri-fs.8", "man1/lxcri-fs-mount.1"),
];
/// Where shells look for completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/lxcri-fs"),
    ("zsh", "zsh/site-functions/_lxcri-fs"),
    ("fish", "fish/vendor_completions.d/lxcri-fs.fish"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let Some(dir) = args.next().map(PathBuf::from) else {
        return Err("usage: manual DIR [DATE]".into());
    };
    let date = match args.next() {
        Some(date) => date.to_string_lossy().into_owned(),
        None => jiff::Zoned::now().date().to_string(),
    };
    let mut cli = complete::command();
    cli.build();
    let exit_codes = cli.get_after_help().map(ToString::to_string);
    let mut all = Vec::new();
    collect(&cli, &mut all);
    for command in &all {
        let name = page::name(command);
        let text = page::of(
            command,
            &date,
            exit_codes.as_deref().unwrap_or_default(),
            &all,
        )?;
        write(&dir.join(format!("man/man1/{name}.1")), &text)?;
    }
    for (name, text) in WRITTEN {
        let section = name.rsplit('.').next().unwrap_or("7");
        let text = text
            .replace("@DATE@", &date)
            .replace("@VERSION@", env!("CARGO_PKG_VERSION"));
        write(
            &dir.join(format!("man/man{section}/{name}")),
            text.as_bytes(),
        )?;
    }
    for (name, page) in LINKS {
        write(
            &dir.join("man").join(name),
            format!(".so {page}\n").as_bytes(),
        )?;
    }
    for (shell, path) in COMPLETIONS {
        let script = complete::script(shell)?.ok_or("no such shell")?;
        write(&dir.join(path), &script)?;
    }
    Ok(())
}

/// A command and all below it, without those that are hidden and without `help`.
fn collect<'a>(command: &'a Command, all: &mut Vec<&'a Command>) {
    all.push(command);
    let below = command.get_subcommands();
    for command in below.filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        collect(command, all);
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, bytes).map_err(|error| format!("writing {}: {error}", path.display()).into())
}
