//! docs/JSON.md has every field that commands print with `--json`, and its type.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use super::common::{Mounted, build_image, golden, lxcri_fs, stderr};
use super::containers::{REGISTRY, has, layout, pass};
use super::store::Store;
use super::{FOR_REGISTRY, HUB, read};

/// Fields that no command prints here, of what is documented: those of rare states, and of images
/// that were pulled.
const RARE: [&str; 17] = [
    "containers: error",
    "info: torn_after",
    "info: trust[].checked",
    "info: trust[].key",
    "info: trust[].reference",
    "info: trust[].rule",
    "inspect: idmap",
    "inspect: image.key_file",
    "inspect: image.password_file",
    "list: manifest_digest",
    "list: trust",
    "ls: device[]",
    "rebase: conflicts[].about[]",
    "rebase: conflicts[].advice",
    "update: conflicts[].advice",
    "ps: failed",
    "ps: not_answering_since",
];
/// Commands that need a registry, which another test has, or ZFS: tests/zfs/snapshots.rs.
const ELSEWHERE: [&str; 3] = ["pull", "push", "snapshots"];

/// The fields of each command, and what their types allow.
fn documented() -> BTreeMap<String, BTreeMap<String, String>> {
    let text = read("docs/JSON.md");
    let mut commands = BTreeMap::new();
    for section in text.split("\n## ").skip(1) {
        let (heading, body) = section.split_once('\n').unwrap();
        let rows = body
            .lines()
            .skip_while(|line| *line != "| field | type | |")
            .skip(2)
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let fields: BTreeMap<String, String> = rows
            .map(|(field, rest)| {
                let (kind, _) = rest.split_once(" |").unwrap();
                (field.to_owned(), kind.to_owned())
            })
            .collect();
        if !fields.is_empty() {
            for command in heading.split(", ") {
                commands.insert(command.to_owned(), fields.clone());
            }
        }
    }
    commands
}

/// Every leaf of a value: its path, and its type.
fn leaves(
    value: &Value,
    path: &str,
    fields: &BTreeMap<String, String>,
    out: &mut Vec<(String, String)>,
) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(values) if !fields.contains_key(path) => {
            for value in values {
                leaves(value, &format!("{path}[]"), fields, out);
            }
            return;
        }
        Value::Object(map) if !fields.contains_key(path) => {
            // The keys of `config show` are names of settings.
            let is_config = path.is_empty() && fields.contains_key("*.value");
            for (key, value) in map {
                let key = if is_config { "*" } else { key };
                let path = match path {
                    "" => key.to_owned(),
                    path => format!("{path}.{key}"),
                };
                leaves(value, &path, fields, out);
            }
            return;
        }
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    };
    out.push((path.to_owned(), kind.to_owned()));
}

/// Whether a documented type has this one. An object that is null is said with its first field.
fn allows(documented: &str, kind: &str) -> bool {
    let types = documented.split(',').next().unwrap_or(documented);
    types == "any" || types.split(" or ").any(|one| one == kind)
}

/// What a command prints that the document does not say, and adds what it printed to `seen`.
fn differences(command: &str, printed: &str, seen: &mut BTreeSet<String>) -> Vec<String> {
    let documented = documented();
    let fields = &documented[command];
    let mut wrong = Vec::new();
    for line in printed.lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        let mut found = Vec::new();
        leaves(&value, "", fields, &mut found);
        for (path, kind) in &found {
            let is_missing_object = kind == "null"
                && ["image", "previous"].contains(&path.as_str())
                && command == "containers";
            match fields.get(path) {
                _ if is_missing_object => {}
                None => wrong.push(format!("{command}: {path} is not documented")),
                Some(documented) if !allows(documented, kind) => {
                    wrong.push(format!("{command}: {path} is {kind}, not {documented}"));
                }
                Some(_) if kind == "null" => {}
                Some(_) => drop(seen.insert(format!("{command}: {path}"))),
            }
        }
        // What is neither absent nor in a list or an object is always there.
        for (path, documented) in fields {
            let is_optional = documented.ends_with("absent") || path.contains(['[', '.', '*']);
            if !is_optional && !found.iter().any(|(found, _)| found == path) {
                wrong.push(format!("{command}: {path} is missing"));
            }
        }
    }
    wrong
}

#[test]
fn commands_print_the_fields_that_are_documented() {
    let store = Store::directory();
    let at = |name: &str| store.dir.path().join(name);
    for name in ["layer", "mnt", "next", "plain"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    std::fs::write(at("layer/more"), "more\n").unwrap();
    std::os::unix::fs::symlink("more", at("layer/link")).unwrap();
    let source = store.source("file", b"file\n");
    build_image(&source, &at("app.bfc"));
    let image = std::fs::read(at("app.bfc")).unwrap();
    let content = image.windows(5).position(|w| w == b"file\n").unwrap();
    let mut damaged = image;
    damaged[content] ^= 0x55;
    std::fs::write(at("damaged.bfc"), damaged).unwrap();
    let plain = golden("plain.bfc").display().to_string();

    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    let mut check = |line: &str, codes: &[i32]| {
        let args: Vec<&str> = line.split(' ').chain(["--json"]).collect();
        let output = store.output(&args);
        let code = output.status.code().unwrap();
        assert!(codes.contains(&code), "{line}: {code}: {}", stderr(&output));
        let command = match args[0] {
            "config" => "config show",
            command => command,
        };
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(!printed.is_empty(), "{line} prints nothing");
        wrong.extend(differences(command, &printed, &mut seen));
    };
    check(&format!("build {} -t app", source.display()), &[0]);
    check(&format!("build {} -t app", source.display()), &[0]);
    check(
        &format!("build {} --layer layer -t other", source.display()),
        &[0],
    );
    check("append app.bfc layer", &[0]);
    store.run(&["build", "layer", "-t", "other"]);
    for (name, more) in [
        (
            "web",
            &[
                "--bundle",
                "bundle",
                "--volume",
                "logs:/logs",
                "--volume",
                "/own",
            ][..],
        ),
        ("memory", &["--bundle", "memory", "--ephemeral=1M"]),
        ("elsewhere", &["--bundle", "elsewhere", "--upper", "upper"]),
    ] {
        let image = if name == "elsewhere" { &plain } else { "app" };
        store.run(&[&["create", name, "--image", image], more].concat());
    }
    std::fs::write(at("bundle/rootfs/new"), "x").unwrap();
    // What both sides change: contents, and a mode.
    std::fs::write(at("bundle/rootfs/file"), "mine").unwrap();
    std::fs::write(at("next/file"), "theirs").unwrap();
    for (path, mode) in [("bundle/rootfs/more", 0o600), ("next/more", 0o640)] {
        std::fs::write(at(path), "more\n").unwrap();
        std::fs::set_permissions(at(path), PermissionsExt::from_mode(mode)).unwrap();
    }
    store.run(&["build", "bfc:app.bfc", "--layer", "next", "-t", "next"]);
    store.run(&["umount", "bundle/rootfs"]);
    check("diff web", &[0]);
    check("commit web -t committed", &[0]);
    for name in ["web", "memory", "elsewhere"] {
        check(&format!("inspect {name}"), &[0]);
    }
    check("containers", &[0]);
    check("update web --image next --dry-run", &[0]);
    check("update web --image next", &[0]);
    check("update memory --image next", &[1]);
    store.run(&["update", "--auto", "on", "web"]);
    check("inspect web", &[0]);
    check("containers", &[0]);
    check("volumes", &[0]);
    check("list", &[0]);
    check("info app", &[0]);
    check(&format!("info {plain}"), &[0]);
    check("ls app.bfc", &[0]);
    check("verify app.bfc", &[0]);
    check("verify damaged.bfc", &[3]);
    check("df", &[0]);
    check("config show", &[0]);
    check("doctor", &[0, 1]);
    let app = at("app.bfc");
    let mounted = Mounted::new(
        &[
            app.to_str().unwrap(),
            "--upper",
            at("written").to_str().unwrap(),
        ],
        &at("mnt"),
    );
    std::fs::read(at("mnt/more")).unwrap();
    std::fs::write(at("mnt/file"), "mine").unwrap();
    check("ps", &[0]);
    check("stats mnt", &[0]);
    drop(mounted);
    check("rebase written --from app.bfc --to next", &[0]);
    check("gc", &[0]);
    check("gc --grace 0s --dry-run", &[0]);
    check("gc --grace 0s", &[0]);
    for name in ["web", "memory", "elsewhere"] {
        store.run(&["delete", name]);
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let rare: BTreeSet<String> = RARE.iter().map(|&field| field.to_owned()).collect();
    let unseen: BTreeSet<String> = documented()
        .iter()
        .filter(|(command, _)| !ELSEWHERE.contains(&command.as_str()))
        .flat_map(|(command, fields)| fields.keys().map(move |path| format!("{command}: {path}")))
        // On a busy machine, a mount of another test may be slow to answer at this moment.
        .filter(|field| !seen.contains(field) || field == "ps: not_answering_since")
        .collect();
    assert_eq!(unseen, rare, "documented, and not printed here");
}

#[test]
fn transfers_print_the_fields_that_are_documented() {
    if !FOR_REGISTRY.into_iter().all(has) {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let script = "lxcri-fs pull debian:13 --json > pulled
        lxcri-fs pull debian:13 --json >> pulled
        lxcri-fs push debian:13 127.0.0.1:5000/team/new:1 --json > pushed
        lxcri-fs list --json > listed; lxcri-fs info debian:13 --json > shown
        kill $registry; cat pulled; echo; cat pushed; echo; cat listed; echo; cat shown";
    let printed = pass(
        &layout(temp.path(), &[]),
        &format!("{REGISTRY}{HUB}\n{script}"),
    );
    let printed: Vec<_> = printed.split("\n\n").collect();
    let [pulled, pushed, listed, shown] = printed[..] else {
        panic!("{printed:?}");
    };
    let mut seen = BTreeSet::new();
    let mut wrong = differences("pull", pulled, &mut seen);
    wrong.extend(differences("push", pushed, &mut seen));
    let mut pulled = BTreeSet::new();
    wrong.extend(differences("list", listed, &mut pulled));
    wrong.extend(differences("info", shown, &mut pulled));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // tests/registry/policy.rs has one with a key.
    for field in RARE
        .iter()
        .filter(|field| field.contains("trust") && !field.ends_with("key"))
    {
        assert!(pulled.contains(*field), "{field}");
    }
    let documented = documented();
    assert_eq!(
        seen.len(),
        documented["pull"].len() + documented["push"].len()
    );
}

/// What `--format` says that it knows, and the document's fields: the same.
#[test]
fn formats_know_the_fields_that_are_documented() {
    let documented = documented();
    for command in ["list", "containers"] {
        let output = lxcri_fs()
            .args([command, "--format", "{{.Nothing}}"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = stderr(&output);
        let (_, said) = said.split_once("the fields are ").unwrap();
        let said = said.lines().next().unwrap();
        let plain = |name: &str| name.replace(['_', '[', ']'], "").to_ascii_lowercase();
        let mut known: BTreeSet<String> = said.split(", ").map(|n| plain(&n[1..])).collect();
        // The objects themselves.
        known.retain(|name| !["image", "previous"].contains(&name.as_str()));
        let fields: BTreeSet<String> = documented[command].keys().map(|n| plain(n)).collect();
        assert_eq!(known, fields, "{command}");
    }
}

#[test]
fn formats_print_lines_and_tables() {
    let store = Store::directory();
    store.build("a", "app:1");
    let id = store.images()[0]["id"].as_str().unwrap().to_owned();
    let format = |format: &str| store.run(&["list", "--format", format]);
    assert_eq!(format("{{.ID}} {{.Reference}}"), format!("{id} app:1\n"));
    assert_eq!(
        format(r"table {{.Reference}}\t{{.ID}}\t{{.Parent}}"),
        format!("REFERENCE   ID             PARENT\napp:1       {id}   <none>\n")
    );
    assert_eq!(format("json"), store.run(&["list", "--json"]));
    assert_eq!(
        format("{{json .References}}"),
        "[\"docker.io/library/app:1\"]\n"
    );
    let none = Store::directory();
    assert_eq!(none.run(&["list", "--format", "table {{.ID}}"]), "ID\n");
    assert_eq!(none.run(&["containers", "--format", "{{.Name}}"]), "");
}
