//! Real clients against the real stack, on loopback and unix sockets.
//!
//! Every test starts its own `postern run` in a scratch folder on free ports and stops it again.
//! A peer program that is not installed makes its test say `SKIP …`; with `POSTERN_TEST_SKIPS=fail`
//! (as CI has it) that is a failure.

// A test may panic, that is how it fails; and this is one program, never a library.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, unreachable_pub)]

mod auth_sockets;
mod bad_input;
mod clients;
mod crash;
mod postfix;
mod python;
mod reference;
mod scenario;
mod stack;
mod support;
mod swaks;
mod tls_tools;
