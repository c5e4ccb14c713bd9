//! The `lxcri-fs` command: parse, dispatch, print.

use std::process::ExitCode;

fn main() -> ExitCode {
    lxcri_fs::cli::main(std::env::args_os())
}
