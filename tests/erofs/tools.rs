//! erofs-utils as a second opinion.

use std::fs;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use lxcri_fs::erofs::{Inodes, Layout, MAX_METADATA};
use lxcri_fs::fs::ImageOptions;

use crate::common::{build_image, run, tree};
use crate::oddities;
use crate::support::{device, metadata, open};

fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("-V").output().is_ok();
    if !found {
        eprintln!("skipped: {tool} is not installed");
    }
    found
}

#[test]
fn erofs_utils_find_the_metadata_sound_and_extract_the_files() {
    if !has("fsck.erofs") || !has("dump.erofs") {
        return;
    }
    let dir = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
    let (source, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir(&source).unwrap();
    oddities::make(&source);
    build_image(&source, &image);
    let rootfs = open(&[&image], &ImageOptions::default());
    for (form, large) in [(Inodes::Long, 1 << 20), (Inodes::Short, u64::MAX)] {
        let place = dir.path().join(format!("{form:?}"));
        fs::create_dir(&place).unwrap();
        let layout = Layout::of(rootfs.section(), large).unwrap();
        let bytes = metadata(&rootfs, &layout, form);
        // Older versions look for contents in the first file, at their address in the space of all.
        let path = place.join("flat");
        let flat = fs::File::create(&path).unwrap();
        flat.write_all_at(&bytes, 0).unwrap();
        let mut at = MAX_METADATA;
        let devices = [0, 1].map(|number| {
            let mut device = device(&rootfs, &layout, number, &place);
            (&flat).seek(SeekFrom::Start(at)).unwrap();
            at += std::io::copy(&mut device, &mut &flat).unwrap();
            format!(
                "--device={}",
                place.join(format!("device-{number}")).display()
            )
        });
        let out = place.join("out");
        run(Command::new("fsck.erofs")
            .args(&devices)
            .arg(format!("--extract={}", out.display()))
            .arg(&path));
        assert_same(&source, &out);
        let said = run(Command::new("dump.erofs")
            .args(&devices)
            .arg("-s")
            .arg(&path));
        assert!(said.contains("device_table"), "{said}");
    }
}

/// Compares what erofs-utils extract: not attributes, nor times of short inodes before 1.9.
fn assert_same(expected: &Path, found: &Path) {
    let (expected, found) = (tree(expected), tree(found));
    assert!(expected.keys().eq(found.keys()));
    for (path, entry) in &expected {
        let other = &found[path];
        let path = path.escape_ascii().to_string();
        // They set the owner last, which clears set-user-id bits.
        assert_eq!(entry.mode & !0o6000, other.mode & !0o6000, "{path}");
        assert_eq!((entry.uid, entry.gid), (other.uid, other.gid), "{path}");
        // Older versions do not extract a hole at the end.
        if matches!(&path[..], "files/hole" | "files/sparse") {
            continue;
        }
        assert_eq!((entry.size, entry.rdev), (other.size, other.rdev), "{path}");
        assert!(entry.content == other.content, "{path}");
    }
}
