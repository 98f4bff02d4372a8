//! `postern`, the program people type; the same executable is every daemon of the stack.
//!
//! Purpose:   sort out which of both this process is, and nothing more.
//! Trust:     whoever starts the program; arguments only choose what this process becomes.
//! Never:     open a file or start a thread before a daemon's own start ritual.

#![forbid(unsafe_code)]

mod accounts;
mod certificate;
mod cli;
mod commands;
mod hints;
mod metrics;
mod output;
mod passwords;
mod place;
mod postfix;
mod proof;
mod roles;
mod saslauthd;
mod stack;
mod state;
mod users;

use std::ffi::OsStr;

fn main() -> boot::ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().as_deref() == Some(OsStr::new(stack::DAEMON_COMMAND)) {
        let role = args.next().unwrap_or_default();
        return match role.to_str() {
            Some(stack::WORKER) => worker(),
            _ => boot::child_main(&role.to_string_lossy(), stack::DAEMONS),
        };
    }
    if std::env::args_os().nth(1).as_deref() == Some(OsStr::new(commands::PROBE)) {
        return commands::probe();
    }
    if let Some(arguments) = saslauthd::arguments(std::env::args_os()) {
        return saslauthd::main(arguments);
    }
    commands::main()
}

fn worker() -> boot::ExitCode {
    match auth_daemon::worker_main() {
        Ok(()) => boot::exit::OK,
        Err(error) => output::failure(&error, false),
    }
}
