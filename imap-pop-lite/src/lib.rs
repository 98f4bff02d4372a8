//! IMAP and POP3 service: login, session hosting.
//!
//! Purpose:   one process that takes connections on the IMAP and POP3 listeners, speaks TLS, lets the
//!            authentication daemon decide who comes in, and hosts the sessions on the Maildir store.
//! Protocols: the `imap` and `pop3` crates speak them; nothing here parses or prints a line.
//! Store:     the `maildir` crate is the only code that touches mail; its calls run on threads of their own.
//! Trust:     clients are strangers until the authentication daemon says who they are, and then users of their own
//!            mail only.
//! Never:     look at a user file or keep a password; hold a thread, a lock or a whole message while a
//!            client is waited for.

#![forbid(unsafe_code)]

mod account;
pub mod broker;
mod budget;
mod client;
mod delivery;
mod files;
mod imap_host;
mod login;
pub mod mailbox;
mod pop3_host;
mod relay;
mod server;
mod stream;
mod wire;

#[cfg(test)]
mod tests;

pub use delivery::SOCKET as DELIVERY_SOCKET;

use anyhow::Context as _;

/// The daemon: called in its own process by the supervisor.
///
/// # Errors
/// What keeps it from starting: an unreadable configuration slice, a certificate, a socket.
pub fn main(start: boot::Start) -> anyhow::Result<()> {
    let slice = conf::ImapSlice::from_json(&start.slice).context("reading the configuration slice")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("imap")
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(async {
        let control = boot::Control::new(start.control).context("joining the supervisor's channel")?;
        server::run(slice, start.sockets, control).await
    });
    // Threads that still wait for a lock must not keep the process.
    runtime.shutdown_background();
    result
}
