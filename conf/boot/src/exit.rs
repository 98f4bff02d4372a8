//! Exit codes scripts and service managers can rely on.
//!
//! Numbers from 64 up are those of `sysexits.h`, used where one fits.
//!
//! Trust: nobody; made of constants.
//! Never: give a number another meaning: scripts and unit files rely on them (`docs/exit-codes.md`).

use std::fmt;
use std::process::Termination;

/// What a program of ours ends with. A plain number, comparable, unlike [`std::process::ExitCode`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExitCode(pub u8);

/// All went well; also after TERM, INT and `postern` told to stop.
pub const OK: ExitCode = ExitCode(0);
/// Something failed at run time; the log says what.
pub const FAILURE: ExitCode = ExitCode(1);
/// The command line is wrong.
pub const USAGE: ExitCode = ExitCode(2);
/// `EX_USAGE`: a hidden command was called by hand.
pub const EX_USAGE: ExitCode = ExitCode(64);
/// `EX_UNAVAILABLE`: an address or socket is in use by another program.
pub const UNAVAILABLE: ExitCode = ExitCode(69);
/// `EX_CANTCREAT`: a file, folder or socket cannot be made.
pub const CANTCREAT: ExitCode = ExitCode(73);
/// `EX_TEMPFAIL`: another supervisor holds this state folder.
pub const TEMPFAIL: ExitCode = ExitCode(75);
/// `EX_NOPERM`: this needs rights the process does not have.
pub const NOPERM: ExitCode = ExitCode(77);
/// `EX_CONFIG`: the configuration is wrong.
pub const CONFIG: ExitCode = ExitCode(78);

impl ExitCode {
    /// Whether this is [`OK`].
    pub fn is_ok(self) -> bool {
        self == OK
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.0)
    }
}

impl From<ExitCode> for i32 {
    fn from(code: ExitCode) -> Self {
        Self::from(code.0)
    }
}

impl Termination for ExitCode {
    fn report(self) -> std::process::ExitCode {
        self.into()
    }
}

/// An error that knows its exit code. Planners and daemons put it into their `anyhow` chain; [`code_of`] finds it.
#[derive(Clone, Debug)]
pub struct Coded {
    /// The code the program ends with.
    pub code: ExitCode,
    /// One sentence with what to do.
    pub message: String,
}

impl Coded {
    /// An error of this code and text, ready for `?` in a function that returns `anyhow::Result`.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Coded {}

/// The exit code an error chain asks for: that of a [`Coded`] or [`crate::Error`] in it, else `otherwise`.
pub fn code_of(error: &anyhow::Error, otherwise: ExitCode) -> ExitCode {
    for cause in error.chain() {
        if let Some(coded) = cause.downcast_ref::<Coded>() {
            return coded.code;
        }
        if let Some(ours) = cause.downcast_ref::<crate::Error>() {
            return ours.exit_code();
        }
    }
    otherwise
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_found_below_context() {
        let error = anyhow::Error::new(Coded::new(CONFIG, "bad key")).context("reading postern.toml");
        assert_eq!(code_of(&error, FAILURE), CONFIG);
        assert_eq!(code_of(&anyhow::anyhow!("plain"), FAILURE), FAILURE);
    }
}
