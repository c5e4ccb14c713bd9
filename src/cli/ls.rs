//! `lxcri-fs ls`

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use bfc::format::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK};
use bfc::rootfs::format::Inode;
use clap::Args;
use serde::Serialize;

use super::error::Error;
use super::open::ImageArgs;
use super::output::{json, lines, moment, printable, time};
use crate::fs::{self, ImageOptions, Order, Rootfs, Step};
use crate::serve::confine::Kept;

/// List the files in an image
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs ls debian.bfc
  lxcri-fs ls -lR debian.bfc etc")]
pub(super) struct LsArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// The directory or file in the image to list
    #[arg(default_value = "/")]
    path: PathBuf,
    /// Show mode, links, owner, group, size in bytes, and time as well
    #[arg(short)]
    long: bool,
    /// List subdirectories recursively
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Print one JSON object for each entry
    #[arg(long)]
    json: bool,
}

/// An entry as `--json` prints it.
#[derive(Debug, Serialize)]
struct LsRow {
    /// Path below the listed directory, with `\xNN` for bytes that are not UTF-8.
    path: String,
    #[serde(rename = "type")]
    kind: &'static str,
    /// Octal permission bits.
    mode: String,
    uid: u32,
    gid: u32,
    nlink: u32,
    size: u64,
    /// `None` outside of the years -9999 to 9999.
    mtime: Option<String>,
    inode: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<(u32, u32)>,
}

pub(super) fn run(args: &LsArgs) -> Result<(), Error> {
    let rootfs = args
        .image
        .open_confined(&ImageOptions::default(), Kept::default())?;
    let in_image = |source| Error::InImage {
        path: args.path.clone(),
        source,
    };
    let (ino, inode) = rootfs.resolve(&args.path).map_err(in_image)?;
    if !inode.is_dir() {
        let name = args.path.file_name().unwrap_or_default().as_bytes();
        return print(args, &rootfs, ino, &inode, name);
    }
    if !args.recursive {
        let mut result = Ok(());
        let listed = rootfs.readdir_plus(ino, 0, &mut |_, ino, inode, name| {
            result = print(args, &rootfs, ino, inode, name);
            result.is_ok()
        });
        return listed.map_err(in_image).and(result);
    }
    let mut walk = rootfs.walk(ino, Order::Listing).map_err(in_image)?;
    while let Some(step) = walk.step().map_err(in_image)? {
        if let Step::Enter(visit) = step {
            print(args, &rootfs, visit.ino, &visit.inode, walk.path())?;
        }
    }
    Ok(())
}

fn print(
    args: &LsArgs,
    rootfs: &Rootfs,
    ino: u32,
    inode: &Inode,
    path: &[u8],
) -> Result<(), Error> {
    let name = printable(path);
    let in_image = |source: fs::Error| Error::InImage {
        path: PathBuf::from(&name),
        source,
    };
    let (kind, letter) = kind(inode.mode);
    let target = match kind {
        "symlink" => Some(printable(&rootfs.readlink(ino).map_err(in_image)?)),
        _ => None,
    };
    let device = matches!(letter, 'c' | 'b').then(|| inode.rdev());
    if args.json {
        return json(&LsRow {
            path: name,
            kind,
            mode: format!("{:04o}", inode.mode & 0o7777),
            uid: inode.uid,
            gid: inode.gid,
            nlink: inode.nlink,
            size: if inode.is_dir() { 0 } else { inode.size },
            mtime: i32::try_from(inode.mtime_ns)
                .ok()
                .and_then(|ns| moment(inode.mtime_s, ns)),
            inode: ino,
            target,
            device,
        });
    }
    let mut out = lines();
    let line = if args.long {
        let size = device.map_or_else(
            || inode.size.to_string(),
            |(major, minor)| format!("{major}, {minor}"),
        );
        let arrow = target.map(|t| format!(" -> {t}")).unwrap_or_default();
        format!(
            "{letter}{} {:>3} {:>5} {:>5} {size:>10} {} {name}{arrow}",
            permissions(inode.mode),
            inode.nlink,
            inode.uid,
            inode.gid,
            time(inode.mtime_s),
        )
    } else {
        name
    };
    writeln!(out, "{line}").map_err(Error::Output)
}

fn kind(mode: u32) -> (&'static str, char) {
    match mode & S_IFMT {
        S_IFREG => ("file", '-'),
        S_IFDIR => ("dir", 'd'),
        S_IFLNK => ("symlink", 'l'),
        S_IFCHR => ("char", 'c'),
        S_IFBLK => ("block", 'b'),
        S_IFIFO => ("fifo", 'p'),
        S_IFSOCK => ("socket", 's'),
        _ => ("unknown", '?'),
    }
}

/// The nine permission letters of ls(1).
fn permissions(mode: u32) -> String {
    let special = [(0o4000, 's', 'S'), (0o2000, 's', 'S'), (0o1000, 't', 'T')];
    let mut out = String::with_capacity(9);
    for (class, (bit, with_x, without_x)) in special.into_iter().enumerate() {
        let bits = mode >> (6 - 3 * class);
        out.push(if bits & 4 != 0 { 'r' } else { '-' });
        out.push(if bits & 2 != 0 { 'w' } else { '-' });
        out.push(match (mode & bit != 0, bits & 1 != 0) {
            (true, true) => with_x,
            (true, false) => without_x,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    out
}
