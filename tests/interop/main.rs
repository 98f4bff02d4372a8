//! Real clients against the real stack, on loopback and unix sockets.
//!
//! Every test starts its own `postern run` in a scratch folder on free ports and stops it again.
//! A peer program that is not installed makes its test say `SKIP …`; with `POSTERN_TEST_SKIPS=fail`
//! (as CI has it) that is a failure.

// A test may panic, that is how it fails; and this is one program, never a library.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, unreachable_pub)]

mod account_peers;
mod account_states;
mod auth_commands;
mod auth_sockets;
mod bad_input;
mod bench;
mod booted;
mod chasquid;
mod clients;
mod clients_more;
mod crash;
mod cyrus;
mod cyrus_clients;
mod doctor;
mod documented;
mod dovecot_lmtp;
mod dovecot_login;
mod exim;
mod forward;
mod hand_over;
mod hostile;
mod hostile_auth;
mod hostile_hash;
mod hostile_load;
mod hostile_local;
mod hostile_mail;
mod hostile_names;
mod hostile_smtp;
mod hostile_tls;
mod imports;
mod machine;
mod mailbox_deliveries;
mod mailboxes;
mod mechanisms;
mod nologin;
mod postfix;
mod postfix_depth;
mod postfix_server;
mod private;
mod prosody;
mod python;
mod reference;
mod sample;
mod saslauthd;
mod scenario;
mod security;
mod seeing;
mod seeing_metrics;
mod service_files;
mod setup;
mod stack;
mod stock;
mod support;
mod swaks;
mod system_users;
mod tls_tools;
mod workers;
