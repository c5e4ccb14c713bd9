//! The kernel shows in EROFS what FUSE shows of the same image.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use lxcri_fs::erofs::{self, Inodes, LARGE, Layout};
use lxcri_fs::fs::ImageOptions;
use lxcri_fs::sys;
use rustix::fs::{CWD, SeekFrom};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::common::mounts::{Process, wait_until};
use crate::common::{Mounted, build_image, golden, run};
use crate::oddities;
use crate::support::{Erofs, assert_equal, metadata, open};

const FORMS: [Inodes; 2] = [Inodes::Short, Inodes::Long];

/// A directory for a tree, images and mounts, not in memory.
fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().tempdir_in("/var/tmp").unwrap()
}

fn mountpoint(dir: &Path) -> PathBuf {
    let path = dir.join("fuse");
    fs::create_dir(&path).unwrap();
    path
}

#[test]
fn this_kernel_reads_short_inodes() {
    let found = erofs::probe().unwrap();
    let expected = if sys::kernel::version() >= (6, 15) {
        Inodes::Short
    } else {
        Inodes::Long
    };
    assert_eq!(found, expected);
}

#[test]
fn a_tree_of_oddities_is_equal() {
    let dir = scratch();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir(&tree).unwrap();
    oddities::make(&tree);
    build_image(&tree, &image);
    let fuse = mountpoint(dir.path());
    let _fuse = Mounted::new(&[image.to_str().unwrap()], &fuse);
    let rootfs = open(&[&image], &ImageOptions::default());
    for form in FORMS {
        let mount = Erofs::of(&rootfs, form, dir.path());
        assert_equal(&fuse, &mount.0);
        crate::common::assert_same_tree(
            &crate::common::tree(&tree),
            &crate::common::tree(&mount.0),
        );
    }
    // Wherever contents are, inodes have the same numbers.
    let usual = Erofs::with_threshold(&rootfs, Inodes::Short, LARGE + 1, dir.path());
    let numbers = inode_numbers(&usual.0);
    for large in [0, 4096, u64::MAX] {
        let mount = Erofs::with_threshold(&rootfs, Inodes::Short, large, dir.path());
        assert_equal(&fuse, &mount.0);
        assert_eq!(inode_numbers(&mount.0), numbers);
    }
}

fn inode_numbers(root: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut stack = vec![root.to_owned()];
    while let Some(path) = stack.pop() {
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            stack.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push((path.strip_prefix(root).unwrap().to_owned(), meta.ino()));
    }
    found.sort();
    found
}

#[test]
fn overlayfs_finds_no_marks_in_an_image() {
    let dir = scratch();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir_all(tree.join("dir")).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    for name in [
        "trusted.overlay.redirect",
        "trusted.kept",
        "user.overlay.kept",
    ] {
        rustix::fs::setxattr(tree.join("dir"), name, b"/etc", flags).unwrap();
    }
    // In a layer tar, they are data.
    let tar = dir.path().join("layer.tar");
    run(Command::new("tar")
        .args(["--format=posix", "--xattrs", "--xattrs-include=*", "-cf"])
        .arg(&tar)
        .arg("-C")
        .arg(&tree)
        .arg("."));
    build_image(&tar, &image);
    let fuse = mountpoint(dir.path());
    let _fuse = Mounted::new(&[image.to_str().unwrap()], &fuse);
    let rootfs = open(&[&image], &ImageOptions::default());
    let (ino, _) = rootfs.resolve(Path::new("dir")).unwrap();
    assert_eq!(rootfs.xattrs(ino).unwrap().len(), 3);
    let mount = Erofs::of(&rootfs, Inodes::Short, dir.path());
    for root in [&fuse, &mount.0] {
        let mut names = vec![0; 1000];
        let len = rustix::fs::listxattr(root.join("dir"), &mut names[..]).unwrap();
        names.truncate(len);
        let mut names: Vec<_> = names.split(|&b| b == 0).collect();
        names.sort();
        assert_eq!(names, [&b""[..], b"trusted.kept", b"user.overlay.kept"]);
    }
}

#[test]
fn a_directory_of_100_000_entries_is_equal() {
    const COUNT: usize = 100_000;
    let dir = scratch();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir_all(tree.join("many")).unwrap();
    // Many names of few inodes take less time to make and to read.
    let mut first = PathBuf::new();
    for number in 0..COUNT {
        let name = tree.join(format!("many/{number:x}-{}", "n".repeat(number % 60)));
        if number % 10_000 == 0 {
            first = name;
            run(Command::new("mkfifo").arg(&first));
        } else {
            fs::hard_link(&first, name).unwrap();
        }
    }
    build_image(&tree, &image);
    let fuse = mountpoint(dir.path());
    let _fuse = Mounted::new(&[image.to_str().unwrap()], &fuse);
    let rootfs = open(&[&image], &ImageOptions::default());
    let mount = Erofs::of(&rootfs, Inodes::Short, dir.path());
    assert_eq!(mount.0.join("many").read_dir().unwrap().count(), COUNT);
    assert_equal(&fuse, &mount.0);
}

#[test]
fn images_of_version_1_are_equal() {
    let dir = scratch();
    let password = dir.path().join("secret");
    fs::write(&password, "correct horse\n").unwrap();
    for name in [
        "plain",
        "zstd",
        "zstd19-threshold1000",
        "block8192",
        "zstd-password",
    ] {
        let dir = dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        let image = golden(&format!("{name}.bfc"));
        let fuse = mountpoint(&dir);
        let mut args = vec![image.to_str().unwrap()];
        if name.contains("password") {
            args.extend(["--password-file", password.to_str().unwrap()]);
        }
        let _fuse = Mounted::new(&args, &fuse);
        let rootfs = open(&[&image], &ImageOptions::default());
        for form in FORMS {
            let mount = Erofs::of(&rootfs, form, &dir);
            assert_equal(&fuse, &mount.0);
        }
    }
}

#[test]
fn merged_images_and_a_directory_as_the_root_are_equal() {
    let dir = scratch();
    let layers = ["lower", "upper"].map(|name| dir.path().join(name));
    fs::create_dir_all(layers[0].join("sub/dir")).unwrap();
    fs::create_dir_all(layers[1].join("sub")).unwrap();
    let write = |layer: &PathBuf, path: &str, bytes: &[u8]| {
        fs::write(layer.join(path), bytes).unwrap();
    };
    write(&layers[0], "sub/kept", &oddities::noise(200_000, 1));
    write(&layers[0], "sub/changed", b"old");
    write(&layers[0], "sub/dir/removed", b"gone");
    write(&layers[0], "outside", b"outside");
    fs::hard_link(layers[0].join("outside"), layers[0].join("sub/link")).unwrap();
    write(&layers[1], "sub/changed", &oddities::noise(100_000, 2));
    run(Command::new("mknod")
        .arg(layers[1].join("sub/dir"))
        .args(["c", "0", "0"]));
    let images = layers.each_ref().map(|layer| layer.with_extension("bfc"));
    for (layer, image) in layers.iter().zip(&images) {
        build_image(format!("dir:{}", layer.display()), image);
    }
    let paths = images.each_ref().map(|image| image.to_str().unwrap());

    let subdir = |subdir: Option<&str>| ImageOptions {
        subdir: subdir.map(Into::into),
        ..ImageOptions::default()
    };
    for (name, images, options) in [
        ("merged", &images[..], subdir(None)),
        ("subdir", &images[..1], subdir(Some("sub"))),
        ("both", &images[..], subdir(Some("sub"))),
    ] {
        let dir = dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        let fuse = mountpoint(&dir);
        let mut args = paths[..images.len()].to_vec();
        if options.subdir.is_some() {
            args.extend(["--subdir", "sub"]);
        }
        let _fuse = Mounted::new(&args, &fuse);
        let images: Vec<&Path> = images.iter().map(PathBuf::as_path).collect();
        let rootfs = open(&images, &options);
        for form in FORMS {
            let mount = Erofs::of(&rootfs, form, &dir);
            assert_equal(&fuse, &mount.0);
        }
    }
}

#[test]
fn an_upper_fits_when_the_image_is_mounted_again() {
    let dir = scratch();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir_all(tree.join("dir")).unwrap();
    fs::write(tree.join("dir/first"), "content").unwrap();
    fs::hard_link(tree.join("dir/first"), tree.join("second")).unwrap();
    build_image(&tree, &image);
    let rootfs = open(&[&image], &ImageOptions::default());
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| dir.path().join(name));
    for place in [&upper, &work, &merged] {
        fs::create_dir(place).unwrap();
    }
    let mut numbers = Vec::new();
    for round in ["once", "again"] {
        let place = dir.path().join(round);
        let lower = Erofs::of(&rootfs, Inodes::Short, &place);
        let options = format!(
            "index=on,xino=on,metacopy=on,redirect_dir=on,lowerdir={},upperdir={},workdir={}",
            lower.0.display(),
            upper.display(),
            work.display()
        );
        run(Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(&merged));
        let overlay = Erofs(merged.clone());
        if round == "once" {
            let first = File::options().append(true).open(merged.join("dir/first"));
            std::io::Write::write_all(&mut first.unwrap(), b", and more").unwrap();
            fs::rename(merged.join("dir"), merged.join("renamed")).unwrap();
        }
        for name in ["renamed/first", "second"] {
            let path = merged.join(name);
            assert_eq!(fs::read(&path).unwrap(), b"content, and more", "{name}");
            let meta = path.metadata().unwrap();
            assert_eq!(meta.nlink(), 2, "{name}");
            numbers.push(meta.ino());
        }
        drop(overlay);
    }
    assert!(
        numbers.iter().all(|number| *number == numbers[0]),
        "{numbers:?}"
    );
}

/// The parts of a file that are data, as the kernel says.
fn data(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let (mut parts, mut at) = (Vec::new(), 0);
    loop {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return parts,
            other => other.unwrap(),
        };
        at = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap();
        parts.push((start, at));
    }
}

#[test]
fn holes_are_holes() {
    let dir = scratch();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir(&tree).unwrap();
    let sparse = |name: &str, len, parts: &[u64]| {
        let file = File::create(tree.join(name)).unwrap();
        file.set_len(len).unwrap();
        for at in parts {
            file.write_all_at(&oddities::noise(70_000, *at), *at)
                .unwrap();
        }
    };
    sparse("first", 1_000_000, &[0]);
    sparse("last", 1_000_000, &[900_000]);
    sparse("several", 100 << 20, &[0, 1 << 20, 50 << 20]);
    sparse("none", 200_000, &[0, 70_000, 130_000]);
    sparse("all", 5_000_001, &[]);
    sparse("lastlog", (5 << 30) + 7, &[4 << 30]);
    build_image(&tree, &image);
    let fuse = mountpoint(dir.path());
    let _fuse = Mounted::new(&[image.to_str().unwrap()], &fuse);
    let rootfs = open(&[&image], &ImageOptions::default());

    let layout = Layout::of(rootfs.section(), LARGE).unwrap();
    let bytes = metadata(&rootfs, &layout, Inodes::Short);
    // Of the devices, only what is data is asked for.
    let devices = [0, 1].map(|number| {
        let path = dir.path().join(format!("device-{number}"));
        let file = File::create_new(&path).unwrap();
        file.set_len(layout.bytes(number)).unwrap();
        File::open(path).unwrap()
    });
    for entry in tree.read_dir().unwrap() {
        let name = entry.unwrap().file_name();
        let (ino, inode) = rootfs.resolve(Path::new(&name)).unwrap();
        let place = layout.place(u32::try_from(inode.data).unwrap()).unwrap();
        let path = dir.path().join(format!("device-{}", place.device));
        let device = File::options().write(true).open(path).unwrap();
        for (start, end) in data(&fuse.join(&name)) {
            let mut bytes = Vec::new();
            let len = usize::try_from(end - start).unwrap();
            rootfs.read(ino, start, len, &mut bytes).unwrap();
            device.write_all_at(&bytes, place.offset + start).unwrap();
        }
    }
    let at = dir.path().join("erofs");
    fs::create_dir(&at).unwrap();
    let mount = Erofs::new(&bytes, &devices, &at);
    for entry in tree.read_dir().unwrap() {
        let name = entry.unwrap().file_name();
        let (fuse, erofs) = (fuse.join(&name), mount.0.join(&name));
        if name == "lastlog" {
            // Its chunks are longer than frames: 512 KiB.
            assert_eq!(data(&erofs), [(4 << 30, (4 << 30) + (512 << 10))]);
            assert_eq!(erofs.metadata().unwrap().len(), (5 << 30) + 7);
            let mut bytes = vec![0; 70_000];
            File::open(erofs)
                .unwrap()
                .read_exact_at(&mut bytes, 4 << 30)
                .unwrap();
            assert_eq!(bytes, oddities::noise(70_000, 4 << 30));
            continue;
        }
        assert_eq!(data(&fuse), data(&erofs), "{}", name.display());
        assert!(fs::read(fuse).unwrap() == fs::read(erofs).unwrap());
    }
}

/// A user namespace with this map of users and groups, and the process that keeps it.
fn namespace(map: &str) -> (Process, File) {
    let process = Command::new("unshare")
        .args(["--user", "sleep", "1000"])
        .spawn()
        .unwrap();
    let proc = PathBuf::from(format!("/proc/{}", process.id()));
    let process = Process(process);
    let ours = fs::read_link("/proc/self/ns/user").unwrap();
    wait_until("making a user namespace", || {
        fs::read_link(proc.join("ns/user")).is_ok_and(|theirs| theirs != ours)
    });
    for name in ["uid_map", "gid_map"] {
        fs::write(proc.join(name), map).unwrap();
    }
    let namespace = File::open(proc.join("ns/user")).unwrap();
    (process, namespace)
}

#[test]
fn a_clone_of_the_mount_can_be_idmapped() {
    let dir = scratch();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "content").unwrap();
    build_image(&tree, &image);
    let rootfs = open(&[&image], &ImageOptions::default());
    let mount = Erofs::of(&rootfs, Inodes::Long, dir.path());
    let shifted = dir.path().join("shifted");
    fs::create_dir(&shifted).unwrap();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = open_tree(CWD, &mount.0, flags).unwrap();
    let (_process, namespace) = namespace("0 100000 65536\n");
    sys::mount_attr::map_ids(clone.as_fd(), namespace.as_fd()).unwrap();
    let clone = Erofs::attach(clone.as_fd(), &shifted);
    let meta = clone.0.join("file").metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid()), (100_000, 100_000));
    assert_eq!(fs::read(clone.0.join("file")).unwrap(), b"content");
}

#[test]
fn the_same_image_gets_the_same_bytes() {
    let dir = scratch();
    let image = dir.path().join("image");
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    oddities::make(&tree);
    build_image(&tree, &image);
    let made = |form, subdir: Option<&str>| {
        let options = ImageOptions {
            subdir: subdir.map(Into::into),
            ..ImageOptions::default()
        };
        let rootfs = open(&[&image], &options);
        let layout = Layout::of(rootfs.section(), LARGE).unwrap();
        metadata(&rootfs, &layout, form)
    };
    let uuid = |bytes: &[u8]| bytes[1024 + 48..1024 + 64].to_vec();
    let first = made(Inodes::Short, None);
    assert!(first == made(Inodes::Short, None));
    let others = [made(Inodes::Long, None), made(Inodes::Short, Some("names"))];
    assert!(others.iter().all(|other| uuid(other) != uuid(&first)));
}

#[test]
fn a_kernel_says_what_is_missing() {
    // A file system without the file: tmpfs cannot be the source of EROFS.
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.write_all_at(&[0; 8192], 0).unwrap();
    let error = sys::erofs::mount(file.as_fd(), &[]).unwrap_err();
    assert_eq!(error.doing, sys::erofs::MOUNTING);
}
