//! The authentication daemon.
//!
//! Purpose:  answer "is this the password?" and "who is this user?" for every mail program of the machine: over
//!           Dovecot's client and master protocols and saslauthd's mux, from passwd-files, system accounts and PAM.
//! Way of a login: `listener` admits the process, `connection` speaks the protocol, `exchange` drives the SASL
//!           mechanism, `chain` walks the passdbs, `engine` checks the password (cache, hash threads, workers) and
//!           counts failures, `outcome` says what each door may tell.
//! Trust:    clients may be anybody who can reach a socket; names and passwords come from strangers. The settings are
//!           the administrator's.
//! Never:    log or return a password, refuse because of an outage, delay a right password as a penalty.

#![forbid(unsafe_code)]

mod admin;
mod cache;
mod chain;
mod config;
mod connection;
mod daemon;
mod engine;
mod exchange;
mod explain;
mod fields;
mod figures;
mod files;
mod forward;
mod guards;
mod hashpool;
mod ids;
mod listener;
mod master;
mod mux;
mod nets;
mod open;
mod outcome;
mod penalty;
mod refusal;
mod request;
mod template;
mod userdb;
mod username;
mod worker;

pub use daemon::{Daemon, main, needs_shadow};
pub use forward::{End, ForwardSlice, LISTENER as FORWARD_LISTENER, forward_main};
pub use template::{Error as TemplateError, Template};
pub use worker::{WorkersSlice, worker_main, workers_main};

#[cfg(test)]
mod tests;
