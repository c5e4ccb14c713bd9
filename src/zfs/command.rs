//! Runs the commands with argument lists, in the C locale, without a shell.

use std::ffi::{OsStr, OsString};
use std::io;
use std::process::{Command as Process, Output, Stdio};

use super::error::{Error, Result};

/// Directories of the commands, for hooks, which get an empty environment.
const SBIN: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// A call of `zfs` or `zpool`.
pub(super) struct Command {
    process: Process,
    program: &'static str,
    doing: &'static str,
    name: String,
}

impl Command {
    /// `zfs SUBCOMMAND`, about the dataset or snapshot `name`, which is passed last, unless it is
    /// empty.
    pub(super) fn zfs(subcommand: &'static str, name: &str) -> Self {
        Self::new("zfs", subcommand, name)
    }

    /// `zpool SUBCOMMAND`, about the pool `name`, which is passed last, unless it is empty.
    pub(super) fn zpool(subcommand: &'static str, name: &str) -> Self {
        Self::new("zpool", subcommand, name)
    }

    fn new(program: &'static str, doing: &'static str, name: &str) -> Self {
        let mut path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
        path.push(":");
        path.push(SBIN);
        let mut process = Process::new(program);
        process
            .arg(doing)
            .env("LC_ALL", "C")
            .env("PATH", path)
            .stdin(Stdio::null());
        Self {
            process,
            program,
            doing,
            name: name.to_owned(),
        }
    }

    /// Adds arguments.
    pub(super) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.process.args(args);
        self
    }

    /// Runs it; its standard output.
    pub(super) fn run(mut self) -> Result<String> {
        let output = self.output()?;
        if !output.status.success() {
            return Err(Error::command(
                self.doing,
                &self.name,
                &String::from_utf8_lossy(&output.stderr),
            ));
        }
        text(self.program, output.stdout)
    }

    /// Runs it; its standard output, whether it failed or not.
    pub(super) fn run_anyway(mut self) -> Result<String> {
        let output = self.output()?;
        text(self.program, output.stdout)
    }

    fn output(&mut self) -> Result<Output> {
        if !self.name.is_empty() {
            self.process.arg(&self.name);
        }
        let args: Vec<_> = self.process.get_args().collect();
        tracing::debug!("running {} {args:?}", self.program);
        self.process.output().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::NotInstalled {
                command: self.program,
            },
            _ => Error::Run {
                command: self.program,
                source,
            },
        })
    }
}

fn text(command: &'static str, output: Vec<u8>) -> Result<String> {
    String::from_utf8(output).map_err(|e| Error::Output {
        command,
        output: String::from_utf8_lossy(e.as_bytes()).into_owned(),
    })
}
