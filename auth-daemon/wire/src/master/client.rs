//! The client's end of the master protocol.
//!
//! Trust: the server is believed about users, not about sizes; lines are bounded.
//! Never: take an answer for another question than the one of its id.

use std::fmt;

use crate::client::discard;
use crate::field::{Field, number, split, text, write_number, write_pair};
use crate::line::{LineReader, ReadLine};
use crate::{Cookie, Error, MAX_LINE, MAX_MASTER_LINE, Params, escape_into};

/// What the server said.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The greeting is complete. Requests need not wait for it.
    Ready {
        /// Process id of the server.
        spid: Option<u32>,
    },
    /// A found user, for [`Client::user`] and [`Client::login`].
    User {
        /// The request.
        id: u32,
        /// The canonical name.
        user: String,
        /// What is known of the user.
        fields: Vec<Field>,
    },
    /// A found password entry.
    Pass {
        /// The request.
        id: u32,
        /// What is known of it, `user` among them.
        fields: Vec<Field>,
    },
    /// There is no such user.
    NotFound(u32),
    /// The request failed.
    Fail {
        /// The request.
        id: u32,
        /// Why, if told.
        reason: Option<String>,
    },
    /// One name of a list.
    ListItem {
        /// The request.
        id: u32,
        /// The name.
        user: String,
    },
    /// The end of a list.
    ListDone {
        /// The request.
        id: u32,
        /// Whether all names were sent.
        complete: bool,
    },
    /// A cache command was done.
    Ok {
        /// The request.
        id: u32,
        /// Count or numbers.
        fields: Vec<Field>,
    },
}

/// One connection. Feed bytes, take events, make requests, write the output.
pub struct Client {
    lines: LineReader,
    output: Vec<u8>,
    versioned: bool,
    ready: bool,
    next_id: u32,
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// A new connection; `VERSION 1 1` is in the output at once.
    pub fn new() -> Self {
        Self {
            lines: LineReader::new(MAX_LINE),
            output: b"VERSION\t1\t1\n".to_vec(),
            versioned: false,
            ready: false,
            next_id: 1,
        }
    }

    /// Takes bytes from the server.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.lines.feed(bytes);
    }

    /// The next event. An error means that the connection is of no use any more.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            let line = match self.lines.next() {
                None => return Ok(None),
                Some(ReadLine::Line(line)) => line,
                Some(ReadLine::Overlong(_) | ReadLine::Flood) => return Err(Error::Peer("line too long")),
            };
            let mut fields = line.split(|byte| *byte == b'\t');
            let command = fields.next().unwrap_or_default();
            if self.ready {
                if let Some(event) = reply(command, fields)? {
                    return Ok(Some(event));
                }
                continue;
            }
            match (command, fields.next().and_then(number)) {
                (b"VERSION", Some(1)) => self.versioned = true,
                (b"VERSION", Some(other)) => return Err(Error::Version(other)),
                (b"VERSION", None) => return Err(Error::Peer("malformed VERSION")),
                (b"MECH" | b"CUID", _) => {
                    return Err(Error::Peer("this is a client socket, not a master socket"));
                }
                (b"SPID", spid) if self.versioned => {
                    self.ready = true;
                    return Ok(Some(Event::Ready { spid }));
                }
                (b"SPID", _) => return Err(Error::Peer("greeting without VERSION")),
                _ => {}
            }
        }
    }

    /// Looks a user up.
    pub fn user(&mut self, name: &str, params: &Params) -> Result<u32, Error> {
        self.request("USER", |out| {
            escape_field(out, name);
            params.write(out);
        })
    }

    /// Looks a password entry up.
    pub fn pass(&mut self, name: &str, params: &Params) -> Result<u32, Error> {
        self.request("PASS", |out| {
            escape_field(out, name);
            params.write(out);
        })
    }

    /// Lists users, those that match `mask` if the server can filter.
    pub fn list(&mut self, mask: Option<&str>, service: &str) -> Result<u32, Error> {
        self.request("LIST", |out| {
            if let Some(mask) = mask {
                write_pair(out, "user", mask);
            }
            write_pair(out, "service", service);
        })
    }

    /// Fetches a login: request `client_id` of the login connection that said CPID `client_pid` and was given `cookie`.
    /// `session_pid` must be the process at this end of this connection.
    pub fn login(
        &mut self,
        client_pid: u32,
        client_id: u32,
        cookie: &Cookie,
        session_pid: Option<u32>,
    ) -> Result<u32, Error> {
        self.request("REQUEST", |out| {
            out.push(b'\t');
            write_number(out, client_pid);
            out.push(b'\t');
            write_number(out, client_id);
            out.push(b'\t');
            out.extend_from_slice(cookie.as_str().as_bytes());
            if let Some(pid) = session_pid {
                write_pair(out, "session_pid", &pid.to_string());
            }
        })
    }

    /// Flushes the cache of some users, or all of it.
    pub fn flush(&mut self, users: &[&str]) -> Result<u32, Error> {
        self.request("CACHE-FLUSH", |out| users.iter().for_each(|user| escape_field(out, user)))
    }

    /// Asks for the cache's numbers.
    pub fn cache_status(&mut self, reset: bool) -> Result<u32, Error> {
        self.request("CACHE-STATUS", |out| {
            if reset {
                out.extend_from_slice(b"\treset");
            }
        })
    }

    /// Bytes for the server.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// The driver wrote that many bytes of [`Client::output`].
    pub fn wrote(&mut self, bytes: usize) {
        discard(&mut self.output, bytes);
    }

    fn request(&mut self, command: &str, write: impl FnOnce(&mut Vec<u8>)) -> Result<u32, Error> {
        let id = self.next_id;
        let start = self.output.len();
        self.output.extend_from_slice(command.as_bytes());
        self.output.push(b'\t');
        write_number(&mut self.output, id);
        write(&mut self.output);
        self.output.push(b'\n');
        if self.output.len() - start > MAX_MASTER_LINE {
            self.output.truncate(start);
            return Err(Error::TooLong);
        }
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        Ok(id)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Client")
            .field("ready", &self.ready)
            .field("next_id", &self.next_id)
            .finish_non_exhaustive()
    }
}

fn escape_field(out: &mut Vec<u8>, value: &str) {
    out.push(b'\t');
    escape_into(out, value.as_bytes());
}

fn reply<'a>(command: &[u8], mut fields: impl Iterator<Item = &'a [u8]>) -> Result<Option<Event>, Error> {
    if !matches!(command, b"USER" | b"PASS" | b"NOTFOUND" | b"FAIL" | b"LIST" | b"DONE" | b"OK") {
        return Ok(None);
    }
    let id = fields.next().and_then(number).ok_or(Error::Peer("reply without an id"))?;
    Ok(Some(match command {
        b"USER" => {
            let user = fields.next().and_then(crate::field::strict_text).filter(|user| !user.is_empty());
            let user = user.ok_or(Error::Peer("USER reply without a name"))?;
            Event::User { id, user, fields: all(fields) }
        }
        b"PASS" => Event::Pass { id, fields: all(fields) },
        b"NOTFOUND" => Event::NotFound(id),
        b"FAIL" => {
            let reason =
                fields.map(split).find(|(name, _)| *name == b"reason").and_then(|(_, value)| value).map(text);
            Event::Fail { id, reason }
        }
        b"LIST" => Event::ListItem { id, user: text(fields.next().unwrap_or_default()) },
        b"DONE" => Event::ListDone { id, complete: fields.next() != Some(b"fail") },
        _ => Event::Ok { id, fields: all(fields) },
    }))
}

fn all<'a>(fields: impl Iterator<Item = &'a [u8]>) -> Vec<Field> {
    fields.filter(|field| !field.is_empty()).map(Field::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_understand_each_other() {
        use std::sync::Arc;

        use crate::master::{Access, Config, Session, Step};

        let mut client = Client::new();
        let mut server = Session::new(Arc::new(Config::new(Access::Master, 4)));
        let params = Params { service: Some("smtp".into()), ..Params::default() };
        let cookie = Cookie::from_bytes([9; 16]);
        client.user("b\tob", &params).unwrap();
        client.login(5, 6, &cookie, Some(7)).unwrap();
        client.list(Some("*"), "smtp").unwrap();
        client.flush(&["a", "b"]).unwrap();
        client.cache_status(true).unwrap();
        assert_eq!(client.pass(&"x".repeat(9000), &params), Err(Error::TooLong));
        server.feed(client.output());
        let mut seen = Vec::new();
        while let Some(step) = server.next() {
            match step {
                Step::User(lookup) => {
                    assert_eq!(lookup.user, "b\tob");
                    server.user(lookup.ticket, "bob@x", &[Field::new("uid", "1")]);
                }
                Step::Request(login) => {
                    assert_eq!((login.client_pid, login.client_id, login.session_pid), (5, 6, Some(7)));
                    assert_eq!(Cookie::parse(&login.cookie), Some(cookie));
                    server.fail(login.ticket, Some("gone"));
                }
                Step::List(list) => {
                    server.list_item(list.ticket, "bob@x");
                    server.list_done(list.ticket, true);
                }
                Step::CacheFlush { ticket, users } => {
                    assert_eq!(users, ["a", "b"]);
                    server.flushed(ticket, 2);
                }
                Step::CacheStatus { ticket, reset } => {
                    assert!(reset);
                    server.not_found(ticket);
                }
                other => panic!("{other:?}"),
            }
        }
        client.feed(server.output());
        while let Some(event) = client.next().unwrap() {
            seen.push(format!("{event:?}"));
        }
        assert_eq!(
            seen,
            [
                "Ready { spid: Some(4) }",
                "User { id: 1, user: \"bob@x\", fields: [uid=…] }",
                "Fail { id: 2, reason: Some(\"gone\") }",
                "ListItem { id: 3, user: \"bob@x\" }",
                "ListDone { id: 3, complete: true }",
                "Ok { id: 4, fields: [2] }",
                "Fail { id: 5, reason: Some(\"Internal error\") }",
            ]
        );
    }

    #[test]
    fn wrong_sockets_are_recognised() {
        for greeting in [
            b"VERSION\t1\t2\nMECH\tPLAIN\n".as_slice(),
            b"VERSION\t1\t1\nCUID\t4\n",
            b"SPID\t1\n",
            b"VERSION\t2\t0\n",
            b"VERSION\n",
        ] {
            let mut client = Client::new();
            client.feed(greeting);
            assert!(client.next().is_err(), "{}", String::from_utf8_lossy(greeting));
        }
    }
}
