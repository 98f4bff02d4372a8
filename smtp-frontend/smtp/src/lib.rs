//! SMTP and LMTP without sockets.
//!
//! Purpose:   commands, addresses, replies, the message data stream and the server's session, as values.
//! Standard:  RFC 5321, with RFC 1870 (SIZE), 2033 (LMTP), 2034 and 3463 (enhanced codes), 2920 (PIPELINING),
//!            3207 (STARTTLS), 4954 (AUTH), 6152 (8BITMIME) and 6531 (SMTPUTF8).
//! Trust:     every byte fed in comes from a stranger. Nothing here panics on it, and what is kept is bounded.
//! Never:     sockets, clocks, files, threads. Time is an argument; verdicts come from the driver.
//!
//! [`Session`] is what a driver talks to: feed bytes, take [`Step`]s, answer those that ask.

#![forbid(unsafe_code)]

mod address;
mod command;
mod data;
mod line;
mod reply;
mod secret;
mod session;

pub use address::{Address, AddressError, Domain, DomainName, ForwardPath, LocalPart, ReversePath};
pub use command::{
    AuthCommand, AuthIdentity, BodyType, ClientName, CommandLine, MailCommand, MailParameters, Mechanism,
    RcptCommand, SyntaxError, Verb,
};
pub use data::{BareNewline, Chunk, Decoder, Violation};
pub use line::{Input, Line};
pub use reply::{Reply, Status};
pub use secret::Secret;
pub use session::{Config, Kind, Outcome, Session, Step};
