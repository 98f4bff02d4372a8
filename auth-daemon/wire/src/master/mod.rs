//! The master protocol: lookups, lists, fetching of logins, cache control. Both ends.
//!
//! Facts: `VERSION` and `SPID` go out unprompted (chasquid reads exactly these two lines before it writes); no other
//!        handshake line may follow, a CUID would tell Dovecot's client that it is on the wrong socket.

mod client;
mod server;

pub use client::{Client, Event};
pub use server::{
    Access, CacheStatus, CloseReason, Config, ListRequest, LoginRequest, Lookup, Session, Step,
};
