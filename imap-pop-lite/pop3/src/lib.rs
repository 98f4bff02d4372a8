//! POP3 commands, replies and session without I/O.
//!
//! Purpose:   the server's end of a POP3 connection: bytes in, steps out.
//! Standards: RFC 1939; RFC 2449 (CAPA, response codes), 2595 (STLS), 3206 (`[AUTH]`, `[SYS/TEMP]`), 5034 (AUTH).
//! Trust:     the client is a stranger until login and clumsy after it; lines, commands, failures and silence are bounded.
//! Never:     look at a password, take one without TLS, delete anything but at QUIT.
//!
//! A driver loops over [`Session::next`], does what each [`Step`] says, answers those that need it with
//! [`Session::resume`], and feeds bytes when there is no step and [`Session::wants_input`]. A message is sent in pieces:
//!
//! ```
//! use std::{sync::Arc, time::Instant};
//! use pop3::{Config, Maildrop, Message, Outcome, Session, Step, TlsState, Uidl};
//!
//! let now = Instant::now();
//! let mut session = Session::new(Arc::new(Config::new("mail.example.org")), TlsState::Active, None, now);
//! let mut sent = Vec::new();
//! session.feed(b"USER joe\r\nPASS a b\r\nRETR 1\r\nQUIT\r\n", now);
//! while let Some(step) = session.next() {
//!     match step {
//!         Step::Send(bytes) => sent.extend_from_slice(&bytes),
//!         Step::Authenticate { mechanism, initial } => {
//!             assert_eq!((mechanism.as_str(), initial.unwrap().expose()), ("PLAIN", b"\0joe\0a b".as_slice()));
//!             session.resume(Outcome::LoggedIn(None), now);
//!         }
//!         Step::Open => {
//!             let message = Message { size: 5, uidl: Uidl::from_uid(1, 0x6b00_7103) };
//!             session.resume(Outcome::Opened(Maildrop::new(vec![message])), now);
//!         }
//!         Step::Retrieve { index: 0, .. } => {
//!             session.resume(Outcome::Retrieving, now);
//!             session.message(b".hi\n");
//!             session.message_end(now);
//!         }
//!         Step::Update { deleted } => {
//!             assert!(deleted.is_empty());
//!             session.resume(Outcome::Updated { complete: true }, now);
//!         }
//!         Step::Close => break,
//!         other => panic!("{other:?}"),
//!     }
//! }
//! assert!(String::from_utf8(sent).unwrap().contains("+OK 5 octets\r\n..hi\r\n.\r\n"));
//! ```
#![forbid(unsafe_code)]

mod command;
mod dots;
mod input;
mod maildrop;
mod secret;
mod session;

pub use command::{BadCommand, Command};
pub use dots::{DotWriter, Octets};
pub use maildrop::{BadUidl, Maildrop, Message, Uidl};
pub use secret::Secret;
pub use session::{Code, Config, Limits, LoginFailure, LoginFailureCode, Outcome, Session, Step, TlsState};
