//! The documents say what the program does: settings, variables, messages and links that they name
//! exist, and their examples work.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../containers/mod.rs"]
mod containers;
mod examples;
mod exit_codes;
mod json;
mod looks;
mod promises;
#[path = "../common/store.rs"]
mod store;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::{lxcri_fs, run};
use containers::{REGISTRY, layout, pass};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// The files below these directories that have one of these extensions.
fn files(directories: &[&str], extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories: Vec<_> = directories.iter().map(|name| root().join(name)).collect();
    while let Some(directory) = directories.pop() {
        for entry in directory.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().map_or(extensions.contains(&""), |e| {
                extensions.iter().any(|wanted| e == *wanted)
            }) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// Variables of lxcri-fs that a text names.
fn variables(text: &str) -> BTreeSet<String> {
    let name = |rest: &str| {
        rest.chars()
            .take_while(|c| c.is_ascii_uppercase() || *c == '_')
            .collect::<String>()
    };
    text.split("LXCRI_FS_")
        .skip(1)
        .map(name)
        .filter(|name| !name.is_empty())
        .map(|name| format!("LXCRI_FS_{name}"))
        .collect()
}

#[test]
fn every_variable_is_documented() {
    let sources = files(&["src", "contrib"], &["rs", ""]);
    let in_sources = sources
        .iter()
        .flat_map(|path| variables(&std::fs::read_to_string(path).unwrap()))
        .collect::<BTreeSet<_>>();
    assert_eq!(in_sources, variables(&read("docs/CONFIGURATION.md")));
}

/// What `config show` says with this configuration: keys, values, and where they come from.
fn settings(config: &Path) -> serde_json::Map<String, Value> {
    let mut command = lxcri_fs();
    command
        .args(["config", "show", "--json"])
        .env("LXCRI_FS_CONFIG", config)
        .env_remove("LXCRI_FS_STORE");
    serde_json::from_str(&run(&mut command)).unwrap()
}

#[test]
fn the_sample_configuration_has_every_setting_with_its_default() {
    let temp = tempfile::tempdir().unwrap();
    let (sample, empty, whole) = (
        root().join("contrib/config.toml"),
        temp.path().join("empty.toml"),
        temp.path().join("whole.toml"),
    );
    std::fs::write(&empty, "").unwrap();
    assert_eq!(
        settings(&sample),
        settings(&empty),
        "the sample as it is changes something"
    );
    let text = read("contrib/config.toml");
    let uncommented = text.lines().map(|line| {
        line.strip_prefix('#')
            .filter(|rest| !rest.starts_with(' '))
            .unwrap_or(line)
    });
    std::fs::write(&whole, uncommented.collect::<Vec<_>>().join("\n")).unwrap();
    let (whole, defaults, document) = (
        settings(&whole),
        settings(&empty),
        read("docs/CONFIGURATION.md"),
    );
    for (key, row) in &whole {
        assert!(
            row["from"].as_str().unwrap().ends_with("whole.toml"),
            "the sample has no {key}"
        );
        assert!(
            document.contains(&format!("| `{key}")),
            "docs/CONFIGURATION.md has no {key}"
        );
        let default = &defaults[key]["value"];
        let is_of_a_user = key == "store" && !rustix::process::geteuid().is_root();
        assert!(
            row["value"] == *default || key == "registries" || is_of_a_user,
            "{key} is {} by default",
            default
        );
    }
    // Of a registry, everything that there is to say.
    let registry = whole["registries"]["value"]
        .as_object()
        .unwrap()
        .values()
        .next()
        .unwrap()
        .as_object()
        .unwrap();
    assert_eq!(registry.keys().collect::<Vec<_>>(), ["insecure", "mirrors"]);
    assert_eq!(registry["insecure"], false);
    for name in registry.keys() {
        assert!(
            document.contains(&format!("`registries.\"HOST[:PORT]\".{name}`")),
            "docs/CONFIGURATION.md has no {name}"
        );
    }
}

/// What stands for something that varies in a message of docs/TROUBLESHOOTING.md.
const PLACEHOLDERS: [&str; 19] = [
    "CONTAINER",
    "DATASET",
    "DIGEST",
    "DIR",
    "FILE",
    "HOST",
    "IMAGE",
    "KIND",
    "N",
    "NAME",
    "PATH",
    "PID",
    "SNAPSHOT",
    "STORE",
    "TEXT",
    "UPPER",
    "URL",
    "VERSION",
    "REASON",
];

/// The parts of a message that do not vary.
fn fixed(message: &str) -> Vec<String> {
    let message = message.replace('…', " … ");
    let mut parts = vec![Vec::new()];
    for word in message.split_whitespace() {
        let name = word.trim_matches(|c: char| !c.is_alphanumeric() && c != '…');
        match name == "…" || word == "…" || PLACEHOLDERS.contains(&name) {
            true => parts.push(Vec::new()),
            false => parts.last_mut().unwrap().push(word),
        }
    }
    let trim = |words: Vec<&str>| {
        words
            .join(" ")
            .trim_matches([':', ',', ' ', '(', ')'])
            .to_owned()
    };
    parts
        .into_iter()
        .map(trim)
        .filter(|part| part.chars().any(char::is_alphabetic))
        .collect()
}

#[test]
fn troubleshooting_lists_only_messages_of_the_program() {
    let sources = files(&["src", "bfc/src"], &["rs"]);
    // A string goes on after a backslash at the end of a line.
    let text: String = sources
        .iter()
        .map(|path| std::fs::read_to_string(path).unwrap().replace("\\\n", "") + "\n")
        .collect();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let document = read("docs/TROUBLESHOOTING.md");
    let mut lines = document.lines();
    let (mut messages, mut unknown) = (0, Vec::new());
    while lines.any(|line| line == "| message | what to do |") {
        for row in lines
            .by_ref()
            .skip(1)
            .take_while(|line| line.starts_with('|'))
        {
            let Some(message) = row
                .strip_prefix("| `")
                .and_then(|rest| rest.split('`').next())
            else {
                continue;
            };
            messages += 1;
            let parts = fixed(message);
            assert!(!parts.is_empty(), "{message:?} has nothing but what varies");
            unknown.extend(
                parts
                    .into_iter()
                    .filter(|part| !text.contains(part))
                    .map(|part| format!("{part:?} of {message:?}")),
            );
        }
    }
    assert!(messages > 50, "{messages} messages");
    assert!(
        unknown.is_empty(),
        "no message of the program:\n{}",
        unknown.join("\n")
    );
}

/// A heading as links name it.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    heading
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn links_lead_to_what_exists() {
    let mut documents = files(&["docs", "bfc", "benches", "contrib"], &["md"]);
    documents
        .extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name)));
    let mut dead = Vec::new();
    for document in &documents {
        let text = std::fs::read_to_string(document).unwrap();
        let targets = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://") && !target.contains(' ')) {
            let (path, heading) = target
                .split_once('#')
                .map_or((target, None), |(path, heading)| (path, Some(heading)));
            let path = if path.is_empty() {
                document.clone()
            } else {
                document.with_file_name("").join(path)
            };
            let has = |heading: &str| {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                text.lines()
                    .any(|line| line.starts_with('#') && anchor(line) == heading)
            };
            if !path.exists() || heading.is_some_and(|heading| !has(heading)) {
                dead.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
}

#[test]
fn the_architecture_names_the_folders_of_the_sources() {
    let entries = root()
        .join("src")
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir());
    let folders: BTreeSet<_> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let document = read("docs/ARCHITECTURE.md");
    let rows = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `src/")?.split_once("/` |"));
    assert_eq!(folders, rows.map(|(name, _)| name.to_owned()).collect());
}

/// The programs that [`REGISTRY`] and [`HUB`] need.
const FOR_REGISTRY: [&str; 4] = ["docker-registry", "ip", "skopeo", "umoci"];

/// Script, after [`REGISTRY`]: a machine whose Docker Hub is that registry, with a small image.
const HUB: &str = r#"
        mkdir bin; mount -t tmpfs tmpfs /mnt; mount -t tmpfs tmpfs /srv
        ln -s "$PROGRAM" bin/lxcri-fs; export PATH=/run/bin:$PATH LXCRI_FS_CONFIG=/run/config.toml
        skopeo --insecure-policy copy -q --dest-tls-verify=false "oci:$IMAGE:t" \
            docker://127.0.0.1:5000/library/debian:13
        printf '%s\n' '[registries."127.0.0.1:5000"]' 'insecure = true' '[registries."docker.io"]' \
            'mirrors = ["127.0.0.1:5000"]' > config.toml
"#;

/// The README's first steps, on a machine whose Docker Hub is a registry of its own with a small
/// image.
#[test]
fn the_first_steps_of_the_readme_work_in_order() {
    let readme = read("README.md");
    let (_, rest) = readme.split_once("## First steps\n").unwrap();
    let commands: Vec<_> = rest
        .lines()
        .skip_while(|line| !line.starts_with("    "))
        .map_while(|line| line.strip_prefix("    "))
        .collect();
    assert_eq!(commands.len(), 5);
    if !FOR_REGISTRY.into_iter().all(containers::has) {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let printed = pass(
        &layout(temp.path(), &[]),
        &format!(
            "{REGISTRY}{HUB}\ncd /; {}\ncd /run; kill $registry; nothing_is_left",
            commands.join("\n")
        ),
    );
    assert!(
        printed.lines().any(|line| line == "A /root/note"),
        "{printed}"
    );
}

/// The tutorial, lxcri-fs(7), on a machine as that of the first steps. The doctor may find
/// something wrong with it.
#[test]
fn the_tutorial_works_in_order() {
    let page = read("docs/man/lxcri-fs.7");
    let mut commands = Vec::new();
    for block in page.split(".Bd -literal -offset indent\n").skip(1) {
        commands.extend(block.lines().take_while(|line| *line != ".Ed"));
    }
    assert!(commands.len() >= 16, "{commands:?}");
    if !FOR_REGISTRY
        .into_iter()
        .chain(["crun"])
        .all(containers::has)
    {
        return;
    }
    let commands = commands
        .join("\n")
        .replace("crun run", "crun --cgroup-manager=disabled run")
        .replace("lxcri-fs doctor", "lxcri-fs doctor || [ $? = 1 ]");
    let temp = tempfile::tempdir().unwrap();
    let printed = pass(
        &layout(temp.path(), &[]),
        &format!("{REGISTRY}{HUB}\ncd /; {commands}\ncd /run; kill $registry; nothing_is_left"),
    );
    let notes = printed.lines().filter(|line| *line == "hello");
    assert_eq!(notes.count(), 2, "{printed}");
}
