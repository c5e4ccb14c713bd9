//! Tests that every command line which a message, a help text or a document names is one that the
//! program accepts.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

use super::Cli;

/// What stands for something that varies, and an example of it.
const PLACEHOLDERS: [(&str, &str); 5] = [
    ("NAME", "name"),
    ("N", "1"),
    ("SIZE", "10G"),
    ("DURATION", "24h"),
    ("zfs:NEW", "zfs:tank/new"),
];

/// The files below these directories and of these names that have one of these extensions.
fn files(names: &[&str], extensions: &[&str]) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut paths: Vec<_> = names.iter().map(|name| root.join(name)).collect();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
        } else if path
            .extension()
            .is_some_and(|e| extensions.iter().any(|wanted| e == *wanted))
        {
            found.push(path);
        }
    }
    found
}

/// The text of a source or document, without the ends of lines in strings and paragraphs.
fn running(text: &str) -> String {
    let text = text.replace("\\\n", " ");
    let lines = text.lines().map(|line| {
        line.trim_start()
            .trim_start_matches(['/', '!'])
            .trim_start()
    });
    lines
        .flat_map(str::split_whitespace)
        .collect::<Vec<_>>()
        .join(" ")
}

/// What is between backticks and begins with the program's name.
fn quoted(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in text.split("`lxcri-fs ").skip(1) {
        let (command, _) = rest.split_once('`').unwrap();
        found.push(format!("lxcri-fs {command}"));
    }
    found
}

/// The lines of examples and of indented blocks that name the program.
fn lines(text: &str) -> Vec<String> {
    // A backslash at the end continues a line.
    let text = text.replace("\\\n", " ");
    let lines = text.lines().filter_map(|line| {
        let example = line.strip_prefix("Example: ");
        example
            .or_else(|| line.starts_with("  ").then_some(line))
            .map(str::to_owned)
    });
    lines.filter(|line| line.contains("lxcri-fs ")).collect()
}

/// The command lines of the program in a line of shell: words, without quotes.
fn commands(line: &str) -> Vec<Vec<String>> {
    let (mut all, mut words) = (Vec::new(), Vec::new());
    let (mut word, mut quote): (Option<String>, Option<char>) = (None, None);
    let mut ended = false;
    for c in line.chars().chain([';']) {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                word.get_or_insert_default();
                quote = Some(c);
            }
            (None, ' ' | '|' | '&' | ';' | '(' | ')' | '>' | '<' | '#') => {
                words.extend(word.take().filter(|_| !ended));
                match c {
                    ' ' => {}
                    // Redirections and comments are no arguments.
                    '>' | '<' | '#' => ended = true,
                    _ => {
                        all.push(std::mem::take(&mut words));
                        ended = false;
                    }
                }
            }
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    let ours = all.into_iter().filter_map(|words: Vec<String>| {
        let at = words.iter().position(|word| word == "lxcri-fs")?;
        let is_argument = |word: &String| !["$", "…", "..."].contains(&word.as_str());
        Some(
            words[at..]
                .iter()
                .filter(|w| is_argument(w))
                .cloned()
                .collect(),
        )
    });
    ours.collect()
}

/// Why the program refuses a command line; `None` if it is complete or only begun.
fn refused(words: &[String]) -> Option<String> {
    let words = words.iter().map(|word| {
        let quoted = word.contains('"');
        let word = word.trim_matches(|c| !quoted && "[]…".contains(c));
        let known = PLACEHOLDERS.iter().find(|(name, _)| *name == word);
        known.map_or(word, |(_, example)| example).to_owned()
    });
    let words: Vec<String> = words.collect();
    // What mount(8) starts, and a message of several commands.
    if words
        .get(1)
        .is_some_and(|word| word.starts_with(['/', '{']) || word == "IMAGE")
    {
        return None;
    }
    let error = Cli::try_parse_from(&words).err()?;
    match error.kind() {
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => None,
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            Some(format!("{}: {first}", words.join(" ")))
        }
    }
}

#[track_caller]
fn assert_all_accepted(found: &[(String, String)], at_least: usize) {
    let refused: Vec<_> = found
        .iter()
        .flat_map(|(place, line)| {
            let commands = commands(line);
            let none = commands
                .is_empty()
                .then(|| format!("{place}: no command: {line}"));
            let refused = commands
                .into_iter()
                .filter_map(|words| Some(format!("{place}: {}", refused(&words)?)));
            none.into_iter().chain(refused).collect::<Vec<_>>()
        })
        .collect();
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    assert!(found.len() >= at_least, "only {} commands", found.len());
}

fn in_files(
    names: &[&str],
    extensions: &[&str],
    find: impl Fn(&str) -> Vec<String>,
) -> Vec<(String, String)> {
    let files = files(names, extensions).into_iter().flat_map(|path| {
        let found = find(&std::fs::read_to_string(&path).unwrap());
        found
            .into_iter()
            .map(move |line| (path.display().to_string(), line))
    });
    files.collect()
}

#[test]
fn commands_in_messages_are_accepted() {
    // This file has the mark itself, which is not a message.
    let mut found = in_files(&["src"], &["rs"], |text| quoted(&running(text)));
    found.retain(|(place, _)| !place.ends_with("src/cli/documented.rs"));
    assert_all_accepted(&found, 60);
}

#[test]
fn commands_in_documents_are_accepted() {
    let names = ["README.md", "CONTRIBUTING.md", "docs", "contrib", "bfc"];
    let mut found = in_files(&names, &["md"], |text| quoted(&running(text)));
    found.extend(in_files(&names, &["md"], lines));
    // Benchmarks are given the program's path.
    found.retain(|(_, line)| !line.contains("LXCRI_FS=") && !line.contains("/lxcri-fs /"));
    let is_command = |(_, line): &(String, String)| !commands(line).is_empty();
    found.retain(is_command);
    assert_all_accepted(&found, 60);
}

/// Without the macros of mdoc, they are lines of literal blocks.
#[test]
fn commands_in_manual_pages_are_accepted() {
    let is_command = |line: &&str| line.starts_with("lxcri-fs ");
    let literal = |text: &str| text.lines().filter(is_command).map(str::to_owned).collect();
    let found = in_files(&["docs/man"], &["5", "7"], literal);
    assert_all_accepted(&found, 15);
}

#[test]
fn commands_in_examples_are_accepted() {
    let mut found = Vec::new();
    let mut commands: Vec<_> = Cli::command().get_subcommands().cloned().collect();
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands().cloned());
        let text = command.get_after_help().map(ToString::to_string);
        let lines = lines(&text.unwrap_or_default());
        let name = command.get_name().to_owned();
        found.extend(lines.into_iter().map(|line| (name.clone(), line)));
    }
    // A symlink to the program, podman with it, and mount(8)'s type.
    let others = ["ln -s", "podman", "mount -t"];
    found.retain(|(_, line)| !others.iter().any(|o| line.trim_start().starts_with(o)));
    assert_all_accepted(&found, 50);
}

#[test]
fn lines_of_shell_are_understood() {
    let line = "docker save app | lxcri-fs build docker-archive:- --change 'CMD [\"a b\"]' > x \
                && lxcri-fs rm $(lxcri-fs list -q) # all";
    assert_eq!(
        commands(line),
        [
            &[
                "lxcri-fs",
                "build",
                "docker-archive:-",
                "--change",
                "CMD [\"a b\"]"
            ][..],
            &["lxcri-fs", "rm"],
            &["lxcri-fs", "list", "-q"],
        ]
    );
    assert!(refused(&["lxcri-fs".into(), "list".into(), "--no".into()]).is_some());
    assert!(refused(&["lxcri-fs".into(), "mount".into()]).is_none());
}
