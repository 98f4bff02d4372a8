//! Typed settings of all daemons, their sample and their manual.
//!
//! Purpose:   one file, `postern.toml`, read into [`Settings`]; everything else (defaults, the walker's
//!            knowledge of keys, the commented sample, the reference) comes from the same declarations.
//! Trust:     the file belongs to the administrator, but is read as if typed by a stranger: every mistake is
//!            collected and told with its place, none is guessed away.
//! Never:     a secret inline in the file, a key that is silently ignored, a panic on any text.

#![forbid(unsafe_code)]

mod chain;
mod check;
mod codec;
mod embedded;
mod errors;
mod guarded;
pub mod import;
mod load;
mod metrics;
mod nearest;
mod reference;
mod schema;
mod secret;
pub mod settings;
mod slice;

pub use check::{check_files, is_domain};
pub use embedded::{EmbeddedOptions, Ports, embedded_default};
pub use errors::{Errors, Problem};
pub use load::{load, load_file};
pub use metrics::MetricsEndpoint;
pub use nearest::nearest;
pub use reference::{reference, sample};
pub use schema::{Field, Kind, Necessity, TableInfo, Variant, Written};
pub use secret::Secret;
pub use settings::*;
pub use slice::{
    AuthSlice, AuthSockets, BrokerSlice, ImapSlice, MailboxSlice, PemPair, SliceError, SmtpSlice, SystemIds,
    TlsMaterial, is_fronts_socket,
};
