//! Manual pages and completions, as the programs see them that read them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{lxcri_fs, run};
use crate::store::Store;

/// Writes pages and completions into a directory laid out as `share/`.
pub(crate) fn written(dir: &Path) -> PathBuf {
    // `cargo test --test packages` does not build it.
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--example", "manual"]);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    // With what cargo says about this test, build scripts would run again.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            build.env_remove(&*name);
        }
    }
    run(&mut build);
    let program = Path::new(env!("CARGO_BIN_EXE_lxcri-fs"));
    let manual = program.with_file_name("examples").join("manual");
    let share = dir.join("share");
    run(Command::new(manual).arg(&share).arg("2026-01-31"));
    share
}

/// The pages of a section.
fn pages(share: &Path, section: u8) -> BTreeSet<String> {
    let entries = share.join(format!("man/man{section}")).read_dir().unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// Each command has its page, and mandoc has nothing to say about any of them.
#[test]
fn every_command_has_a_page_without_warnings() {
    let temp = tempfile::tempdir().unwrap();
    let share = written(temp.path());
    let help = run(lxcri_fs().arg("--help"));
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.map_while(|line| line.strip_prefix("  ")?.split(' ').next());
    let found = pages(&share, 1);
    let mut count = 0;
    for command in commands.filter(|name| !["", "help"].contains(name)) {
        count += 1;
        assert!(
            found.contains(&format!("lxcri-fs-{command}.1")),
            "{command} has no page"
        );
    }
    assert!(count > 30 && found.contains("lxcri-fs.1"), "{found:?}");
    let all: Vec<_> = [1, 5, 7]
        .into_iter()
        .flat_map(|section| {
            let dir = share.join(format!("man/man{section}"));
            pages(&share, section)
                .into_iter()
                .map(move |name| dir.join(name))
                .filter(|path| !std::fs::read(path).unwrap().starts_with(b".so "))
        })
        .collect();
    let lint = Command::new("mandoc")
        .args(["-T", "lint", "-W", "warning"])
        .args(&all)
        .output();
    let lint = lint.unwrap();
    let said = String::from_utf8_lossy(&lint.stdout).into_owned();
    assert!(lint.status.success() && said.is_empty(), "{said}");

    // What a help says below its options is on the page too.
    let create = share.join("man/man1/lxcri-fs-create.1");
    let create = Command::new("mandoc")
        .args(["-T", "utf8", "-O", "width=200"])
        .arg(create)
        .output()
        .unwrap();
    let shown = String::from_utf8(create.stdout).unwrap();
    // Bold letters are written twice, with a backspace between.
    let mut create = String::new();
    for c in shown.chars() {
        match c {
            '\u{8}' => drop(create.pop()),
            c => create.push(c),
        }
    }
    for said in [
        "lxcri-fs create web1 --image nginx:1.27 --lxc && lxc-start web1",
        "EXIT STATUS",
        "something named does not exist",
        "--ephemeral[=<SIZE>]",
    ] {
        assert!(create.contains(said), "{said:?} is not in:\n{create}");
    }
    // The page about the configuration names every setting of the sample.
    let settings = std::fs::read_to_string(share.join("man/man5/lxcri-fs.toml.5")).unwrap();
    let config = run(lxcri_fs().args(["config", "show", "--json"]));
    let config: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&config).unwrap();
    for key in config.keys().filter(|key| *key != "registries") {
        assert!(
            settings.contains(&format!(".It Ic {key} ")),
            "lxcri-fs.toml(5) has no {key}"
        );
    }
}

/// A script of a shell that prints what may come after a line, and what it has to print.
#[test]
fn shells_complete_commands_images_and_containers() {
    let store = Store::directory();
    let source = store.source("file", b"content");
    store.run(&["build", source.to_str().unwrap(), "-t", "nginx:1.26"]);
    store.run(&["build", source.to_str().unwrap(), "-t", "nginx:1.27"]);
    let temp = tempfile::tempdir().unwrap();
    let share = written(temp.path());
    let bin = temp.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_lxcri-fs"), bin.join("lxcri-fs")).unwrap();
    let script = |shell: &str, text: &str| {
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(shell);
        command.args(["-c", text]).env("SHARE", &share);
        command
            .env("PATH", path)
            .env("LXCRI_FS_STORE", &store.location);
        command.env("HOME", temp.path()).current_dir(temp.path());
        run(&mut command)
    };
    for (typed, wanted) in [
        ("lxcri-fs snapsh", "snapshots"),
        ("lxcri-fs info ngi", "nginx:1.27"),
    ] {
        let found = script(
            "fish",
            &format!(
                "source $SHARE/fish/vendor_completions.d/lxcri-fs.fish; complete -C '{typed}'"
            ),
        );
        assert!(found.contains(wanted), "fish, {typed}: {found}");
    }
    let bash = |words: &str, point: usize| {
        script(
            "bash",
            &format!(
                r#"source /usr/share/bash-completion/bash_completion
               source "$SHARE/bash-completion/completions/lxcri-fs"
               COMP_WORDS=({words}); COMP_CWORD=$(({point}))
               COMP_LINE="${{COMP_WORDS[*]}}"; COMP_LINE="${{COMP_LINE// : /:}}" COMP_TYPE=9
               COMP_WORDBREAKS=': '
               COMP_POINT=${{#COMP_LINE}}
               compopt() {{ :; }}
               complete -p lxcri-fs | grep -q ' _lxcri_fs ' || exit 1
               _lxcri_fs lxcri-fs "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
               printf '%s\n' "${{COMPREPLY[@]}}""#
            ),
        )
    };
    let found = bash("lxcri-fs moun", 1);
    assert!(found.lines().any(|line| line.trim() == "mount"), "{found}");
    let found = bash("lxcri-fs rm ngi", 2);
    assert!(
        found.contains("nginx:1.26") && found.contains("nginx:1.27"),
        "{found}"
    );
    // bash splits words at colons; what comes after one is completed alone.
    let found = bash("lxcri-fs rm nginx : 1.2", 4);
    let found: Vec<_> = found.split_whitespace().collect();
    assert_eq!(found, ["1.26", "1.27"]);
    let found = script(
        "zsh",
        "
        autoload -Uz compinit && compinit -u -d $HOME/dump
        source $SHARE/zsh/site-functions/_lxcri-fs; whence -w _clap_dynamic_completer_lxcri_fs",
    );
    assert!(found.contains("function"), "zsh: {found}");
    // In the middle of a line, nothing is said about what cannot be completed.
    let nothing = lxcri_fs()
        .args(["--", "lxcri-fs", "rm", ""])
        .env("LXCRI_FS_COMPLETE", "fish")
        .env("LXCRI_FS_STORE", "nowhere")
        .output()
        .unwrap();
    assert!(nothing.status.success() && nothing.stderr.is_empty());
}
