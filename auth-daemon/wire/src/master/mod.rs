//! The master protocol: lookups, lists, fetching of logins, cache control. Both ends.
//!
//! Facts: `VERSION` and `SPID` go out unprompted (chasquid reads exactly these two lines before it writes); no other
//!        handshake line may follow, a CUID would tell Dovecot's client that it is on the wrong socket.
//! Trust: the socket's mode and owner decide who asks; lines and lists are bounded all the same.
//! Never: send a handshake line beyond those two.

mod client;
mod server;

pub use client::{Client, Event};
pub use server::{
    Access, CacheStatus, CloseReason, Config, ListRequest, LoginRequest, Lookup, Session, Step,
};
