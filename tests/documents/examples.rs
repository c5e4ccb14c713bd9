//! The examples of each command's help, run as a user would type them, in a place that has the
//! images, containers and directories which they name.

use std::fmt::Write as _;

use super::common::{lxcri_fs, run};
use super::containers::{has, image, pass};

/// What is not here: ZFS, registries, podman, Docker, and mount(8)'s helper. Tests that have them
/// run these commands; src/cli/documented.rs parses all examples.
const ELSEWHERE: [&str; 10] = [
    "zfs:",
    "registry.example.org",
    "pull nginx:1.27",
    "@before-upgrade",
    "docker save",
    "podman",
    "mount -t fuse.lxcri-fs",
    "snapshots web1",
    "oci:nginx:1.27",
    "--check",
];

/// Makes what examples name: `debian.bfc`, `nginx.bfc` and others in this directory, `nginx:1.27`
/// and others in the store.
const PREPARE: &str = r#"
for dir in /mnt /srv /var/lib /usr/local/bin; do mount -t tmpfs tmpfs $dir; done
mkdir /var/lib/lxc /var/lib/node_exporter bin example
ln -s "$PROGRAM" bin/lxcri-fs; export PATH=/run/bin:$PATH
# What these runtimes can do without systemd.
for name in crun runc; do
    options=; [ $name = runc ] || options=--cgroup-manager=disabled
    printf '#!/bin/sh\nexec %s %s "$@"\n' "$(command -v $name)" "$options" > bin/$name
    chmod +x bin/$name
done
cd example; mkdir upper site; echo new > upper/new; echo page > site/index.html
mkdir -p docs/usr/share/doc docs/etc; echo ID=debian > docs/etc/os-release
lxcri-fs build bfc:$IMAGE --layer docs -o made.bfc >/dev/null
tree() { rm -rf rootfs; cp -r "$ROOT/." rootfs; rm -rf rootfs/dev; }
tree; tar -cJf rootfs.tar.xz -C rootfs .
images() {
    rm -rf rootfs; mkdir rootfs
    for name in debian nginx app image; do cp made.bfc $name.bfc; done
    for name in nginx:1.25 nginx:1.26 nginx:1.28 nginx:1.27; do
        echo $name > site/version; lxcri-fs build bfc:nginx.bfc --layer site -t $name
    done >/dev/null
}
images
# Undoes what an example made.
undo() {
    for dir in /mnt /mnt/web2; do lxcri-fs umount $dir; done 2>/dev/null
    for name in web1 web2 job job1 job2; do lxcri-fs delete $name; done 2>/dev/null >&2
    rm -rf /srv/* debian-oci out patched.bfc
    images
}
web1() { lxcri-fs create web1 --image nginx:1.27 --bundle /srv/bundle >/dev/null; }
mounted() { lxcri-fs mount nginx.bfc /mnt --upper /srv/web1; }
wrote() { mounted; echo x > /mnt/written; lxcri-fs umount /mnt; }
"#;

/// What must be there before the examples of a command.
fn before(command: &str, line: &str) -> &'static str {
    match (command, line) {
        ("build", line) if line.contains("rootfs/") => "tree; rm debian.bfc",
        ("commit", line) if line.contains("commit web1") => "web1",
        ("commit", _) => "wrote",
        ("diff", line) if line.contains("/mnt") => "mounted; echo x > /mnt/written",
        ("diff", line) if line.contains("/srv/web1") => "wrote",
        ("clone", line) if line.contains("job1") => {
            "lxcri-fs create job1 --image nginx:1.27 --bundle /srv/job1 >/dev/null"
        }
        ("rebase", _) => {
            "lxcri-fs mount nginx:1.27 /mnt --upper /srv/web1
             echo x > /mnt/written; lxcri-fs umount /mnt"
        }
        ("rollback", _) => "web1; lxcri-fs update web1 --image nginx:1.28 >/dev/null",
        ("update", _) => "web1",
        ("clone" | "containers" | "inspect" | "delete" | "diff", _) => "web1",
        ("volumes", line) if line.contains("--delete") => {
            "lxcri-fs create job --image nginx:1.27 --bundle /srv/job --volume old-database:/db
             lxcri-fs delete job"
        }
        ("ps" | "stats" | "umount" | "upgrade", _) => "mounted",
        ("mount", line) if line.contains("--subdir") => {
            "tree; mkdir all; mv rootfs all; lxcri-fs build all -f -o image.bfc >/dev/null"
        }
        ("runtime", line) if line.contains("web1") => {
            "lxcri-fs create web1 --image nginx:1.27 --bundle /srv/web1 -- true >/dev/null"
        }
        _ => ":",
    }
}

/// The examples that a command's help prints.
fn examples(command: &str) -> Vec<String> {
    let help = run(lxcri_fs().args(command.split(' ')).arg("--help")).replace("\\\n", " ");
    let one = help.lines().find_map(|line| line.strip_prefix("Example: "));
    let lines = help.lines().skip_while(|line| *line != "Examples:").skip(1);
    let several = lines.map_while(|line| line.strip_prefix("  "));
    one.into_iter()
        .chain(several)
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

/// The commands that the program's help lists.
fn subcommands() -> Vec<String> {
    let help = run(lxcri_fs().arg("--help"));
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = lines.map_while(|line| line.strip_prefix("  "));
    names
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(|name| {
            if name == "config" {
                "config show"
            } else {
                name
            }
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_example_works() {
    if !["umoci", "jq", "crun", "runc"].into_iter().all(has) {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path(), &["--config.cmd", "true"]);
    let mut script = format!("ROOT={}\n{PREPARE}", temp.path().join("root").display());
    let (mut count, mut without) = (0, Vec::new());
    for command in subcommands() {
        let examples = examples(&command);
        if examples.is_empty() {
            without.push(command.clone());
        }
        for line in examples {
            let needs_lxc = line.contains("lxc-start");
            if ELSEWHERE.iter().any(|part| line.contains(part)) || (needs_lxc && !has("lxc-start"))
            {
                continue;
            }
            count += 1;
            let quoted = line.replace('\'', r"'\''");
            writeln!(
                script,
                "(set -e; {}; eval '{quoted}' >/run/out 2>&1) || \
                 {{ cat /run/out >&2; echo '{quoted}' >&2; failed=1; }}\nundo || :",
                before(&command, &line)
            )
            .unwrap();
        }
    }
    script.push_str("[ -z \"${failed:-}\" ] || fail 'examples do not work'\nnothing_is_left\n");
    pass(&image, &script);
    assert!(count >= 40, "{count} examples were run");
    assert_eq!(without, ["hook"], "commands without an example");
}
