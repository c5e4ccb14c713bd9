//! The exit codes of docs/TROUBLESHOOTING.md, each with command lines that give it, and what the
//! hints below their messages say.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use super::common::{Mounted, build_image, golden, lxcri_fs, run, stderr};
use super::read;
use super::store::Store;

/// Command lines, and how each ends. They run in a directory with the files that [`prepare`] makes.
const TABLE: &[(i32, &[&str])] = &[
    (
        0,
        &[
            "--help",
            "--version",
            "help mount",
            "list",
            "list -q",
            "containers",
            "ps",
            "df",
            "gc --dry-run",
            "gc --dry-run --grace 7d",
            "config show",
            "info app.bfc app",
            "cat app.bfc name",
            "verify app.bfc",
            "umount point missing/point",
            "inspect web",
            "snapshots web",
            "volumes",
            "update web",
            "update web --dry-run",
            "update --auto on web",
        ],
    ),
    (
        1,
        &[
            // What is there already.
            "build source -o app.bfc",
            "export app.bfc --oci full",
            "export app.bfc --tar full/name",
            "extract app.bfc full",
            "create web --image app --bundle new",
            "create new --image app --bundle full",
            // What cannot be.
            "append plain.bfc layer",
            "mount app.bfc . --upper full",
            "mount app.bfc point --digest 00 --upper upper",
            "clone web web",
            "umount tmpfs",
            "cat app.bfc /",
            // Nothing listens there.
            "pull 127.0.0.1:1/app",
        ],
    ),
    (
        2,
        &[
            "",
            "no-command",
            "list --no-option",
            "build source",
            "build source -o a.bfc -t a",
            "build source -t UPPER/case",
            "build source -o a.bfc --max-size 10X",
            "build source -o a.bfc --platform x/y/z/w",
            "mount app.bfc",
            "mount app.bfc point --quota 10",
            "mount app.bfc point -o no-option",
            "mount app.bfc point --ephemeral=x",
            "mount app.bfc point --idmap 0:0",
            "gc --grace 7",
            "gc --grace 7x",
            "rm /no/name",
            "rm A",
            "tag app A",
            "list --store nowhere",
            "create a/b --image app --bundle new",
            "create new --image app",
            "snapshot web",
            "pull UPPER/case",
            "verify",
            "commit web",
            "update",
            "update web --all",
            "update --all --filter x=y",
            "update web --image layered --check true",
            "update web --image layered --keep etc",
        ],
    ),
    (
        3,
        &[
            "info damaged.bfc",
            "info cut.bfc",
            "info source/name",
            "ls damaged.bfc",
            "cat spoilt.bfc name",
            "verify damaged.bfc",
            "verify spoilt.bfc",
            "extract spoilt.bfc out",
            "verify cut.bfc",
            "verify app.bfc damaged.bfc",
            "mount damaged.bfc point",
            "extract cut.bfc out",
            "export cut.bfc --tar -",
            "append damaged.bfc layer",
            "create new --image damaged.bfc --bundle new",
            "build bfc:damaged.bfc -o new.bfc",
            "build tar:cut.tar -o new.bfc",
        ],
    ),
    (
        4,
        &[
            "cat password.bfc x",
            "cat password.bfc x --password-file source/name",
            "cat password.bfc x --key-file source/name",
            "verify password.bfc",
            "mount password.bfc point --password-file source/name",
            "build source -o new.bfc --key-file source/name",
        ],
    ),
    (
        5,
        &[
            "rollback web@now",
            "rollback web",
            "rollback missing",
            "update missing",
            "update web --image missing --pull never",
            "rebase missing --from app --to app",
            "clone web@now new",
            "clone missing new",
            "volumes --delete missing",
            // Images.
            "info missing.bfc",
            "info ./missing.bfc",
            "info missing",
            "ls missing.bfc",
            "cat missing.bfc name",
            "verify missing.bfc",
            "mount missing.bfc point",
            "mount missing point",
            "export missing --tar -",
            "extract missing out",
            "append missing.bfc layer",
            "append missing layer -t new",
            "create new --image ./missing.bfc --bundle new",
            "rm missing",
            "rm blake3:0123456789ab",
            "tag missing new",
            "push missing 127.0.0.1:1/app",
            "create new --image missing --bundle new --pull never",
            // Sources and layers.
            "build missing -o new.bfc",
            "build ./missing -o new.bfc",
            "build dir:missing -o new.bfc",
            "build tar:missing -o new.bfc",
            "build oci:missing -o new.bfc",
            "build oci:missing:tag -o new.bfc",
            "build oci-archive:missing -o new.bfc",
            "build docker-archive:missing -o new.bfc",
            "build bfc:missing -o new.bfc",
            "build source -o missing/new.bfc",
            "build bfc:./missing.bfc -o new.bfc",
            "build source -o new.bfc --layer missing",
            "build source -o new.bfc --from missing.bfc",
            "append app.bfc missing",
            // Paths in images.
            "cat app.bfc missing",
            "ls app.bfc missing",
            "extract app.bfc out missing",
            "mount app.bfc point --subdir missing",
            // Directories and files.
            "mount app.bfc missing",
            "mount app.bfc missing --upper upper",
            "cat password.bfc x --password-file missing",
            "cat password.bfc x --key-file missing",
            "create new --image app --bundle new --seccomp missing",
            "create new --image app --lxc --lxc-path lxc --include missing",
            // Containers.
            "inspect missing",
            "delete missing",
            "diff missing",
            "diff ./missing",
            "commit missing -t new",
            "commit ./missing -t new",
            "snapshot missing@now",
            "snapshots missing",
            "rollback missing@now",
            // Mounts.
            "stats source",
        ],
    ),
    (
        6,
        &[
            "umount busy",
            "mount app.bfc busy",
            "mount app.bfc point --upper upper-in-use",
            "rm app",
            "append IMAGE layer",
            "build source -o IMAGE --force",
        ],
    ),
    (7, &["containers --outdated"]),
    // tests/registry/policy.rs has those, which need a policy.
    (8, &[]),
];

/// Makes what the command lines name.
fn prepare(store: &Store) {
    let dir = store.dir.path();
    let path = |name: &str| dir.join(name);
    for name in [
        "source", "layer", "full", "point", "busy", "written", "tmpfs", "lxc",
    ] {
        std::fs::create_dir(path(name)).unwrap();
    }
    for (name, content) in [
        ("source/name", &b"content\n"[..]),
        ("layer/more", b"more\n"),
        ("full/name", b"other\n"),
        ("cut.tar", &[b'x'; 700]),
    ] {
        std::fs::write(path(name), content).unwrap();
    }
    // Copies: other tests have mounted the originals.
    std::fs::copy(golden("plain.bfc"), path("plain.bfc")).unwrap();
    std::fs::copy(golden("zstd-password.bfc"), path("password.bfc")).unwrap();
    build_image(path("source"), &path("app.bfc"));
    let image = std::fs::read(path("app.bfc")).unwrap();
    std::fs::write(path("cut.bfc"), &image[..image.len() - 7]).unwrap();
    let content = image.windows(8).position(|w| w == b"content\n").unwrap();
    // The header, and the content of a file.
    for (name, at) in [("damaged.bfc", 40), ("spoilt.bfc", content)] {
        let mut image = image.clone();
        image[at] ^= 0x55;
        std::fs::write(path(name), image).unwrap();
    }
    store.run(&["build", "source", "-t", "app"]);
    store.run(&["build", "source", "--layer", "layer", "-t", "layered"]);
    store.run(&["build", "source", "--layer", "full", "-t", "moving"]);
    let behind = ["--image", "moving", "--bundle", "behind"];
    store.run(&[&["create", "behind"][..], &behind].concat());
    store.run(&["tag", "layered", "moving"]);
    store.run(&["create", "web", "--image", "app", "--bundle", "bundle"]);
}

/// The codes that a document lists, in the order of its table.
fn documented() -> Vec<i32> {
    let text = read("docs/TROUBLESHOOTING.md");
    let (_, rest) = text.split_once("## Exit codes\n").unwrap();
    let rows = rest.lines().skip_while(|line| !line.starts_with("| 0"));
    rows.map_while(|row| row.strip_prefix("| ")?.split(' ').next()?.parse().ok())
        .collect()
}

/// Options that a message offers, and that the command which printed it does not have.
fn unknown_options(args: &[&str], said: &str) -> Vec<String> {
    // clap names only what there is, and what was typed.
    if said.is_empty() || said.starts_with("error: ") || args.is_empty() {
        return Vec::new();
    }
    let help = run(lxcri_fs().args([args[0], "--help"]));
    let known: Vec<&str> = help
        .split(|c: char| !c.is_ascii_lowercase() && c != '-')
        .collect();
    let is_option = |word: &&str| word.starts_with("--") && word.len() > 2;
    // Whole command lines are checked in src/cli/documented.rs.
    let own = said.split('`').enumerate().filter(|(at, part)| {
        let is_command = part
            .split(' ')
            .next()
            .is_some_and(|first| !first.starts_with('-'));
        at % 2 == 0 || !is_command
    });
    own.flat_map(|(_, part)| part.split(|c: char| !c.is_ascii_lowercase() && c != '-'))
        .filter(is_option)
        .filter(|option| !known.contains(option))
        .map(str::to_owned)
        .collect()
}

#[test]
fn each_exit_code_is_given_as_documented() {
    let store = Store::directory();
    let dir = store.dir.path();
    prepare(&store);
    let at = |name: &str| dir.join(name);
    let image = store.image("app")["path"].as_str().unwrap().to_owned();
    let _busy = Mounted::new(&[at("app.bfc").to_str().unwrap()], &at("busy"));
    let user = std::fs::File::open(at("busy/name")).unwrap();
    let upper = [
        "--upper",
        &*at("upper-in-use").display().to_string(),
        &image,
    ]
    .map(String::from);
    let upper: Vec<&str> = upper.iter().map(String::as_str).collect();
    let _written = Mounted::new(&upper, &at("written"));
    run(Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(at("tmpfs")));
    let (mut wrong, mut hints) = (Vec::new(), BTreeSet::new());
    for (code, lines) in TABLE {
        for line in *lines {
            let line = line.replace("IMAGE", &image);
            let args: Vec<&str> = line.split_whitespace().collect();
            let output = store.output(&args);
            if output.status.code() != Some(*code) {
                wrong.push(format!(
                    "`{line}`: {:?} instead of {code}: {}",
                    output.status.code(),
                    stderr(&output)
                ));
            }
            let said = stderr(&output);
            for word in [
                "entity not found",
                "invalid digit",
                "corrupt message",
                "friendly",
            ] {
                assert!(
                    !said.contains(word),
                    "`{line}` has a library's words: {said}"
                );
            }
            let unknown = unknown_options(&args, &said);
            if !unknown.is_empty() {
                wrong.push(format!("`{line}` has no {unknown:?}: {said}"));
            }
            let hint = said.lines().find_map(|line| line.strip_prefix("  hint: "));
            hints.extend(hint.map(str::to_owned));
            // What the line made by mistake does not change what the next one does.
            for made in ["new.bfc", "a.bfc"] {
                let _ = std::fs::remove_file(at(made));
            }
        }
    }
    run(Command::new("umount").arg(at("tmpfs")));
    drop(user);
    let is_left = |point: &str| Path::new(&at(point)).read_dir().unwrap().next().is_some();
    if is_left("point") {
        let _ = store.output(&["umount", "point"]);
    }
    store.run(&["delete", "web"]);
    store.run(&["delete", "behind"]);
    let codes: Vec<i32> = TABLE.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, documented());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(hints.len() >= 20, "{hints:#?}");
}
