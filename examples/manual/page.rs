//! The manual page of a command: clap_mangen's sections, and what the help says below the options
//! as sections of their own.

use std::io::{Error, Write};

use clap::Command;
use clap_mangen::Man;

/// The name of a command's page, such as `lxcri-fs-config-show`.
pub(crate) fn name(command: &Command) -> &str {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
}

/// The page of a command; `exit_codes` is what the program's help says about them, and `all` are
/// the commands to refer to.
pub(crate) fn of(
    command: &Command,
    date: &str,
    exit_codes: &str,
    all: &[&Command],
) -> Result<Vec<u8>, Error> {
    let man = Man::new(command.clone())
        .title(name(command))
        .section("1")
        .date(date)
        .source(concat!("lxcri-fs ", env!("CARGO_PKG_VERSION")))
        .manual("lxcri-fs");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    subcommands(command, &mut page)?;
    let text = command
        .get_after_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    below_the_options(&text, &mut page)?;
    exit_status(exit_codes, &mut page)?;
    see_also(command, all, &mut page)?;
    Ok(tidy(&String::from_utf8_lossy(&page)).into_bytes())
}

fn subcommands(command: &Command, page: &mut Vec<u8>) -> Result<(), Error> {
    let below = command.get_subcommands();
    let shown = below.filter(|c| !c.is_hide_set() && c.get_name() != "help");
    for (at, command) in shown.enumerate() {
        if at == 0 {
            writeln!(page, ".SH COMMANDS")?;
        }
        let about = command
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        writeln!(page, ".TP\n.BR {} (1)\n{}", name(command), escaped(&about))?;
    }
    Ok(())
}

/// Examples become a section of their own, and other paragraphs notes. The exit codes are told
/// elsewhere.
fn below_the_options(text: &str, page: &mut Vec<u8>) -> Result<(), Error> {
    let (mut notes, mut examples) = (Vec::new(), Vec::new());
    let mut is_example = false;
    for line in text.lines() {
        is_example = line == "Examples:" || is_example && line.starts_with("  ");
        match line.strip_prefix("Example: ") {
            Some(example) => examples.push(example),
            None if line == "Examples:" || line.starts_with("Exit codes: ") => {}
            None if is_example => examples.push(line.trim_start()),
            None => notes.push(line),
        }
    }
    let written = notes.iter().any(|line| !line.trim().is_empty());
    if written {
        writeln!(page, ".SH NOTES")?;
        let paragraphs = notes.split(|line| line.trim().is_empty());
        for (at, lines) in paragraphs.filter(|lines| !lines.is_empty()).enumerate() {
            if at > 0 {
                writeln!(page, ".PP")?;
            }
            for line in lines {
                writeln!(page, "{}", escaped(line))?;
            }
        }
    }
    if !examples.is_empty() {
        writeln!(page, ".SH EXAMPLES\n.nf")?;
        for line in examples {
            writeln!(page, "{}", escaped(line))?;
        }
        writeln!(page, ".fi")?;
    }
    Ok(())
}

/// `Exit codes: 0 success, 1 failure, …` as a list.
fn exit_status(text: &str, page: &mut Vec<u8>) -> Result<(), Error> {
    let Some((_, codes)) = text.split_once("Exit codes: ") else {
        return Ok(());
    };
    writeln!(page, ".SH \"EXIT STATUS\"")?;
    let mut meaning = String::new();
    let is_code = |word: &str| word.len() == 1 && word.bytes().all(|b| b.is_ascii_digit());
    for word in codes.split_whitespace() {
        if is_code(word) {
            end(&meaning, page)?;
            meaning.clear();
            writeln!(page, ".TP\n.B {word}")?;
        } else {
            meaning = format!("{meaning} {word}");
        }
    }
    end(&meaning, page)
}

fn end(meaning: &str, page: &mut Vec<u8>) -> Result<(), Error> {
    let meaning = meaning.trim().trim_end_matches([',', '.']);
    if meaning.is_empty() {
        Ok(())
    } else {
        writeln!(page, "{}", escaped(meaning))
    }
}

fn see_also(command: &Command, all: &[&Command], page: &mut Vec<u8>) -> Result<(), Error> {
    writeln!(page, ".SH \"SEE ALSO\"")?;
    let own = name(command);
    let mut pages: Vec<_> = match own {
        "lxcri-fs" => all
            .iter()
            .map(|c| (name(c), "1"))
            .filter(|(c, _)| *c != own)
            .collect(),
        _ => vec![("lxcri-fs", "1")],
    };
    pages.extend([("bfc", "5"), ("lxcri-fs.toml", "5"), ("lxcri-fs", "7")]);
    let last = pages.len() - 1;
    for (at, (name, section)) in pages.into_iter().enumerate() {
        writeln!(
            page,
            ".BR {name} ({section}){}",
            if at == last { "" } else { "," }
        )?;
    }
    Ok(())
}

/// Text as roff shows it.
fn escaped(line: &str) -> String {
    let line = line
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq");
    if line.starts_with('.') {
        format!("\\&{line}")
    } else {
        line
    }
}

/// Removes empty lines, which roff takes for space, and second breaks of a line.
fn tidy(page: &str) -> String {
    let mut lines: Vec<_> = page
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    lines.dedup_by(|line, before| *line == ".br" && before == line);
    lines.join("\n") + "\n"
}
