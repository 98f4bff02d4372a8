//! `postern man`.
//!
//! Trust: nobody; made of the declared arguments.

use std::path::Path;

use anyhow::Context as _;
use boot::{ExitCode, exit};
use clap::CommandFactory as _;

use crate::cli::Cli;
use crate::output;

/// Prints the manual page, or writes one page per command into a folder.
pub(crate) fn man(folder: Option<&Path>) -> anyhow::Result<ExitCode> {
    let command = Cli::command();
    match folder {
        Some(folder) => {
            clap_mangen::generate_to(command, folder)
                .with_context(|| format!("cannot write into {}", folder.display()))?;
        }
        None => {
            let mut out = Vec::new();
            clap_mangen::Man::new(command).render(&mut out)?;
            output::raw(out);
        }
    }
    Ok(exit::OK)
}
