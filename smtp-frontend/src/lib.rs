//! SMTP front: submission, inbound mail and LMTP, delivering into local Maildirs.
//!
//! Purpose:   the driver around [`smtp::Session`]: sockets, TLS, logins and recipients asked of the authentication
//!            daemon, trace fields, durable delivery.
//! Trust:     clients are strangers until AUTH, and clients after it. User names that become paths come from the
//!            daemon, never from the client.
//! Never:     say 250 before every recipient's file is on disk, take mail for a place that does not exist, hold
//!            a whole message in memory, read a user file.

#![forbid(unsafe_code)]

mod channel;
mod connection;
mod daemon;
mod deliver;
mod figures;
mod id;
mod location;
mod login;
mod policy;
mod recipient;
mod server;
#[cfg(test)]
mod testing;
mod trace;

pub use daemon::main;
pub use policy::Error;
pub use server::Server;
