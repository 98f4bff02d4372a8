//! `postern completions SHELL`.
//!
//! Trust: nobody; made of the declared arguments.

use boot::{ExitCode, exit};
use clap::CommandFactory as _;

use crate::cli::Cli;
use crate::output;

/// Prints completions for a shell.
pub(crate) fn completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "postern", &mut out);
    output::raw(out);
    Ok(exit::OK)
}
