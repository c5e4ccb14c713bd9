//! What the tests of containers share: images of a small busybox, and fresh namespaces in which
//! real runtimes run.
//!
//! Every script has a /run of its own, in memory, and cgroups of version 2 without controllers,
//! which is what runtimes can do without systemd. It also has a /sys of its own, since a user
//! namespace may mount a writable one only beside one that is writable, and a range of ids for
//! root's containers.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::common::{build_image, run, stderr};

/// Programs of busybox that the tests use.
const APPLETS: [&str; 24] = [
    "sh", "ls", "cat", "echo", "sleep", "id", "env", "pwd", "mount", "touch", "kill", "true",
    "false", "printf", "reboot", "wc", "hostname", "grep", "stat", "mkdir", "rm", "seq", "tr",
    "test",
];

/// A small root file system with users.
pub fn rootfs(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    for name in [
        "bin", "etc", "sbin", "proc", "sys", "dev", "root", "home/app", "data",
    ] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|p| Path::new(p).exists());
    std::fs::copy(
        busybox.expect("the package busybox-static"),
        root.join("bin/busybox"),
    )
    .unwrap();
    for name in APPLETS {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(
        root.join("etc/group"),
        "root:x:0:\napp:x:1001:\nextra:x:2000:app\nweb:x:33:other,app\n",
    )
    .unwrap();
    std::fs::write(root.join("data/hello"), "from the image\n").unwrap();
    // A system: counts its starts, and ends when it is asked to.
    let init =
        "#!/bin/sh\necho start >> /starts\ntrap 'exit 0' PWR TERM\nwhile :; do sleep 0.1; done\n";
    std::fs::write(root.join("sbin/init"), init).unwrap();
    std::fs::set_permissions(
        root.join("sbin/init"),
        std::fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    root
}

/// An OCI layout of it, tagged `t`, with a configuration as umoci's options say it.
pub fn layout(dir: &Path, config: &[&str]) -> PathBuf {
    let (root, layout) = (rootfs(dir), dir.join("oci"));
    let image = format!("{}:t", layout.display());
    let umoci = |args: &[&str]| drop(run(Command::new("umoci").args(args)));
    umoci(&["init", "--layout", layout.to_str().unwrap()]);
    umoci(&["new", "--image", &image]);
    umoci(&["insert", "--image", &image, root.to_str().unwrap(), "/"]);
    if !config.is_empty() {
        umoci(&[&["config", "--image", &image], config].concat());
    }
    layout
}

/// An image of it.
pub fn image(dir: &Path, config: &[&str]) -> PathBuf {
    let (layout, image) = (layout(dir, config), dir.join("t.bfc"));
    build_image(format!("oci:{}:t", layout.display()), &image);
    image
}

/// umoci's options for an image whose command is this shell script.
pub fn shell(script: &str) -> [&str; 6] {
    let cmd = "--config.cmd";
    [cmd, "sh", cmd, "-c", cmd, script]
}

/// What every script begins with.
const PRELUDE: &str = r#"
set -eu
export LXCRI_FS_STORE=dir:/run/store LC_ALL=C
cd /run
ln -s "$PROGRAM" /run/lxcri-fs-crun
ln -s "$PROGRAM" /run/lxcri-fs-runc
ln -s "$PROGRAM" /run/lxcri-fs-runtime
lxcri_fs() { "$PROGRAM" "$@"; }
fail() { echo "$*" >&2; exit 1; }
# What is left of all containers, if anything.
left() {
    grep -e fuse.lxcri-fs -e '\.bfc' /proc/self/mountinfo || :
    grep -l lxcri-fs /proc/[0-9]*/comm 2>/dev/null || :
    ls -A /run/lxcri-fs /run/lxcri-fs-rootfs /run/store/containers 2>/dev/null |
        grep -v -e ':$' -e '^$' -e '^attaching$' || :
}
# A keeper has some moments to end.
nothing_is_left() {
    for i in $(seq 100); do [ -n "$(left)" ] || return 0; sleep 0.1; done
    fail "left: $(left)"
}
"#;

/// Script: a registry that speaks plain HTTP on port 5000, whose process is `$registry`. It needs
/// docker-registry and ip.
pub const REGISTRY: &str = r#"
ip link set lo up; mkdir registry
printf '%s\n' 'version: 0.1' 'storage: {filesystem: {rootdirectory: /run/registry}}' \
    'http: {addr: 127.0.0.1:5000}' > registry.yml
docker-registry serve registry.yml >/dev/null 2>&1 & registry=$!
for i in $(seq 100); do
    (exec 3<>/dev/tcp/127.0.0.1/5000) 2>/dev/null && break
    sleep 0.1
done
"#;

/// Runs a script in namespaces of its own, where IMAGE is an image and PROGRAM the program under
/// test.
pub fn inside(image: &Path, script: &str) -> Output {
    // Mounts that others have at this moment are not to be found here, nor kept by us.
    let setup = r#"
        grep -e ' - fuse.lxcri-fs ' -e ' - erofs .*/lxcri-fs/' -e ' - overlay ' \
            /proc/self/mountinfo | cut -d' ' -f5 | tac |
            while read -r dir; do umount -l "$dir" 2>/dev/null || :; done
        mount -t proc proc /proc
        mount -t sysfs sysfs /sys
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
        mount -t tmpfs tmpfs /run
        for f in subuid subgid; do
            echo root:100000:65536 > /run/$f
            touch /etc/$f
            mount --bind /run/$f /etc/$f
        done
        # LXC's default is a bridge, which is not here.
        echo 'lxc.net.0.type = empty' > /run/default.conf
        [ ! -e /etc/lxc/default.conf ] || mount --bind /run/default.conf /etc/lxc/default.conf
        mount --make-rshared /
        exec "$@""#;
    Command::new("timeout")
        .args([
            "180",
            "unshare",
            "-m",
            "-p",
            "-n",
            "-f",
            "-u",
            "-i",
            "--kill-child",
            "--propagation",
            "private",
            "sh",
            "-ec",
            setup,
            "_",
        ])
        .args(["bash", "-c", &format!("{PRELUDE}{script}")])
        .env("PROGRAM", env!("CARGO_BIN_EXE_lxcri-fs"))
        .env("IMAGE", image)
        .env_remove("LXCRI_FS_PASSWORD")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// As [`inside`], for a script that has to succeed; what it printed.
#[track_caller]
pub fn pass(image: &Path, script: &str) -> String {
    let output = inside(image, script);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}\n{stdout}\n{}",
        output.status,
        stderr(&output)
    );
    stdout
}

/// As [`pass`], with an image of its own, configured as umoci's options say.
#[track_caller]
pub fn pass_on(config: &[&str], script: &str) -> String {
    let temp = tempfile::tempdir().unwrap();
    pass(&image(temp.path(), config), script)
}

/// Whether a program is there; a test that does without says so.
pub fn has(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", "command -v \"$0\"", program])
        .stdout(Stdio::null())
        .status()
        .unwrap()
        .success();
    if !found {
        eprintln!("NOT TESTED: {program} is not installed");
    }
    found
}
