//! Completion in shells: of commands and options, and of the names of images and containers.
//!
//! A shell's script calls the program with [`VARIABLE`] set, which then prints what may come next.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command, CommandFactory as _};
use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use clap_complete::env::{Bash, CompleteEnv, EnvCompleter, Fish, Zsh};

use super::Cli;
use super::error::Error;
use super::store::StoreArgs;

/// Environment variable with the shell that wants completions.
pub const VARIABLE: &str = "LXCRI_FS_COMPLETE";
/// The program, as shells find it.
const PROGRAM: &str = "lxcri-fs";
/// Of each list, this many names at most are offered.
const MAX_NAMES: usize = 1000;

/// What an argument names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// An image in the store, or a file.
    Images,
    /// An image in the store.
    StoredImages,
    /// A container, or an upper's directory.
    Uppers,
    /// A container.
    Containers,
    /// A container, and possibly a snapshot of it.
    Snapshots,
}

/// Arguments that name something: the command, the argument, and what it names.
const ARGUMENTS: [(&str, &str, Names); 23] = [
    ("append", "image", Names::Images),
    ("cat", "image", Names::Images),
    ("clone", "from", Names::Snapshots),
    ("commit", "upper", Names::Uppers),
    ("commit", "images", Names::Images),
    ("create", "image", Names::Images),
    ("delete", "names", Names::Containers),
    ("diff", "upper", Names::Uppers),
    ("diff", "images", Names::Images),
    ("export", "image", Names::Images),
    ("extract", "image", Names::Images),
    ("info", "images", Names::Images),
    ("inspect", "name", Names::Containers),
    ("ls", "image", Names::Images),
    ("mount", "paths", Names::Images),
    ("pull", "reference", Names::StoredImages),
    ("push", "image", Names::Images),
    ("rm", "images", Names::StoredImages),
    ("rollback", "name", Names::Snapshots),
    ("snapshot", "name", Names::Snapshots),
    ("snapshots", "upper", Names::Uppers),
    ("tag", "image", Names::StoredImages),
    ("verify", "images", Names::Images),
];

/// The command line, whose arguments know what they name.
pub fn command() -> Command {
    // All of them: `mut_subcommand` and `mut_arg` would move what they change behind the others.
    Cli::command().mut_subcommands(|command| {
        let name = command.get_name().to_owned();
        let names_of = move |arg: &Arg| {
            let of = ARGUMENTS
                .iter()
                .find(|(c, a, _)| *c == name && arg.get_id() == a);
            of.map(|(.., names)| *names)
        };
        command.mut_args(|arg| match names_of(&arg) {
            Some(names) => arg.add(ArgValueCompleter::new(names)),
            None => arg,
        })
    })
}

/// The script that makes a shell ask the program, for the file in which the shell looks for it.
/// The shells are `bash`, `zsh` and `fish`; `None` for others.
///
/// # Errors
/// Those of writing to memory.
pub fn script(shell: &str) -> std::io::Result<Option<Vec<u8>>> {
    let mut script = Vec::new();
    let completer: &dyn EnvCompleter = match shell {
        "bash" => &Bash,
        "zsh" => &Zsh,
        "fish" => &Fish,
        _ => return Ok(None),
    };
    completer.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script)?;
    if shell == "bash" {
        script.extend_from_slice(BASH_COLONS.as_bytes());
    }
    Ok(Some(script))
}

/// bash takes the colon of `nginx:1.27` for the end of a word.
const BASH_COLONS: &str = r#"
_lxcri_fs() {
    local cur words cword
    _get_comp_words_by_ref -n : cur words cword
    local COMP_WORDS=("${words[@]}") COMP_CWORD=$cword
    _clap_complete_lxcri_fs "$1" "$cur" "$3"
    __ltrim_colon_completions "$cur"
}
if declare -F _get_comp_words_by_ref __ltrim_colon_completions >/dev/null; then
    complete -o nospace -o bashdefault -o nosort -F _lxcri_fs lxcri-fs
fi
"#;

/// Answers a shell that wants completions; whether one did.
pub(super) fn answer(args: &[OsString]) -> bool {
    let here = std::env::current_dir().ok();
    let completion = CompleteEnv::with_factory(command)
        .var(VARIABLE)
        .bin(PROGRAM)
        .completer(PROGRAM);
    // Where nothing can be completed, there is nothing to say either: a shell would show it in the
    // middle of what is being typed.
    completion
        .try_complete(args.to_vec(), here.as_deref())
        .unwrap_or(true)
}

impl ValueCompleter for Names {
    fn complete(&self, current: &OsStr) -> Vec<CompletionCandidate> {
        let mut found = Vec::new();
        let typed = current.to_string_lossy();
        for name in self.all().unwrap_or_default() {
            if name.starts_with(&*typed) && found.len() < MAX_NAMES {
                found.push(CompletionCandidate::new(name));
            }
        }
        if matches!(self, Self::Images | Self::Uppers) {
            found.extend(PathCompleter::any().complete(current));
        }
        found
    }
}

impl Names {
    /// The names that there are in the store.
    fn all(self) -> Result<Vec<String>, Error> {
        let store = StoreArgs::default().open()?;
        Ok(match self {
            Self::Images | Self::StoredImages => {
                let images = store.images()?;
                let names = images.iter().flat_map(|image| &image.facts.refs);
                names.map(|name| name.familiar().to_owned()).collect()
            }
            Self::Uppers | Self::Containers | Self::Snapshots => {
                let containers = store.containers()?;
                containers
                    .iter()
                    .map(|container| container.name.to_string())
                    .collect()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_stay_valid_with_completion() {
        let mut cli = command();
        cli.build();
        for (command, argument, _) in ARGUMENTS {
            let command = cli.find_subcommand(command);
            let arguments = command.into_iter().flat_map(Command::get_arguments);
            let mut completed = arguments.filter(|arg| arg.get::<ArgValueCompleter>().is_some());
            assert!(completed.any(|arg| arg.get_id() == argument), "{argument}");
        }
        for shell in ["bash", "zsh", "fish"] {
            assert!(matches!(script(shell), Ok(Some(script)) if !script.is_empty()));
        }
        assert!(matches!(script("sh"), Ok(None)));
    }
}
