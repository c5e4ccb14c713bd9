//! Colours, and how much commands print.

use std::process::Command;

use super::common::{lxcri_fs, stderr};
use super::store::Store;

const ESCAPE: char = '\u{1b}';

/// What `info missing`, which fails with a hint, prints on standard error with these variables.
fn failed(store: &Store, variables: &[(&str, &str)]) -> String {
    let mut command = store.command(&["info", "missing"]);
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied());
    stderr(&command.output().unwrap())
}

#[test]
fn colours_are_for_terminals() {
    let store = Store::directory();
    let plain = failed(&store, &[]);
    assert!(!plain.contains(ESCAPE), "a pipe has colours: {plain:?}");
    assert!(plain.starts_with("lxcri-fs: ") && plain.contains("\n  hint: "));
    let forced = failed(&store, &[("CLICOLOR_FORCE", "1")]);
    assert!(
        forced.contains("\u{1b}[31mlxcri-fs:\u{1b}[0m ")
            && forced.contains("\n  \u{1b}[36mhint:\u{1b}[0m "),
        "{forced:?}"
    );
    assert_eq!(failed(&store, &[("NO_COLOR", "1")]), plain);
    // A terminal, with and without them.
    let program = env!("CARGO_BIN_EXE_lxcri-fs");
    let on_terminal = |variable: &str| {
        let line = format!("{variable} {program} --store dir:/nonexistent info missing");
        let mut script = Command::new("script");
        script
            .args(["-qec", &line, "/dev/null"])
            .env("TERM", "xterm");
        // CI's logs show colours whatever its TERM is, as anstream has it.
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
            script.env_remove(name);
        }
        let output = script.output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(on_terminal("").contains(ESCAPE), "{}", on_terminal(""));
    for variable in ["NO_COLOR=1", "TERM=dumb", "CLICOLOR=0"] {
        let said = on_terminal(variable);
        assert!(
            !said.contains(ESCAPE) && said.contains("hint:"),
            "{variable}: {said:?}"
        );
    }
}

#[test]
fn states_have_colours_and_columns() {
    let store = Store::directory();
    store.build("a", "app");
    store.run(&["create", "web", "--image", "app", "--bundle", "bundle"]);
    let listed = |forced: bool| {
        let mut command = store.command(&["containers"]);
        if forced {
            command.env("CLICOLOR_FORCE", "1");
        }
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let (plain, forced) = (listed(false), listed(true));
    store.run(&["delete", "web"]);
    assert!(!plain.contains(ESCAPE));
    assert!(plain.contains("web                  mounted   "), "{plain}");
    // Nothing is to be said of a container that is only mounted.
    assert_eq!(plain, forced);
    let doctor = store
        .command(&["doctor"])
        .env("CLICOLOR_FORCE", "1")
        .output();
    let said = String::from_utf8(doctor.unwrap().stdout).unwrap();
    assert!(said.contains("\u{1b}[32mgood \u{1b}[0m kernel"), "{said:?}");
}

#[test]
fn quiet_and_verbose_commands() {
    let store = Store::directory();
    store.build("a", "app");
    std::fs::create_dir(store.dir.path().join("point")).unwrap();
    let said = |args: &[&str]| stderr(&store.output(args));
    assert!(said(&["umount", "point"]).contains("nothing is mounted"));
    for args in [["-q", "umount", "point"], ["umount", "point", "--quiet"]] {
        assert_eq!(said(&args), "");
    }
    // Errors stay.
    assert!(said(&["-q", "info", "missing"]).contains("there is no image missing"));
    // `list -q` prints ids.
    assert_eq!(store.run(&["-q", "list"]), store.run(&["list", "-q"]));
    assert_eq!(said(&["list"]), "");
    let verbose = said(&["list", "-v"]);
    assert!(
        verbose.contains("lxcri-fs: debug: the store is dir:"),
        "{verbose}"
    );
    assert!(said(&["-vv", "cat", "app", "a"]).contains("debug: "));
    let usage = lxcri_fs().args(["list", "-qx"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}
