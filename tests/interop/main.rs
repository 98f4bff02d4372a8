//! Real clients against the real stack, on loopback and unix sockets.
//!
//! Every test starts its own `postern run` in a scratch folder on free ports and stops it again.
//! A peer program that is not installed makes its test say `SKIP …`; with `POSTERN_TEST_SKIPS=fail`
//! (as CI has it) that is a failure.

// A test may panic, that is how it fails; and this is one program, never a library.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, unreachable_pub)]

mod auth_commands;
mod auth_sockets;
mod bad_input;
mod clients;
mod crash;
mod cyrus;
mod documented;
mod dovecot_login;
mod exim;
mod forward;
mod hostile;
mod hostile_auth;
mod hostile_hash;
mod hostile_load;
mod hostile_mail;
mod hostile_names;
mod hostile_smtp;
mod hostile_tls;
mod mechanisms;
mod nologin;
mod postfix;
mod postfix_depth;
mod postfix_server;
mod private;
mod python;
mod reference;
mod saslauthd;
mod scenario;
mod stack;
mod support;
mod swaks;
mod system_users;
mod tls_tools;
