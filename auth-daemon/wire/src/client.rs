//! The client's end of the client protocol: what a mail front says to its authentication server.
//!
//! Trust: the server is believed about users, not about sizes; lines are bounded. Handshake lines and fields nobody
//!        knows are skipped, so newer servers work.
//! Note:  VERSION and CPID are in the output at once, which suits servers that wait for them (Dovecot 2.4) and those
//!        that do not.
//! Never: read beyond the bounds of a line, put a TAB or LF of a value on the wire as it is.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroize;

use crate::field::{Field, number, split, strict_text, text, write_number};
use crate::line::{LineReader, ReadLine};
use crate::{Cookie, Error, FailCode, Flags, MAX_LINE, MechName, Mechanism, Params};

/// Most mechanisms taken from a greeting.
const MAX_MECHANISMS: usize = 64;

/// What the server told in its greeting.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Server {
    /// Minor version.
    pub minor: u32,
    /// Mechanisms in the server's order.
    pub mechanisms: Vec<Mechanism>,
    /// Process id of the server.
    pub spid: Option<u32>,
    /// Number of this connection.
    pub cuid: Option<u32>,
    /// Right to fetch logins of this connection.
    pub cookie: Option<Cookie>,
}

/// What the server said.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The greeting is complete; [`Client::server`] holds it.
    Ready,
    /// The mechanism wants an answer: [`Client::respond`] or [`Client::cancel`].
    Challenge {
        /// The request.
        id: u32,
        /// What the mechanism says.
        data: Vec<u8>,
        /// The server wants channel binding data of this type.
        channel_binding: Option<String>,
        /// The data was `#`.
        out_of_band: bool,
    },
    /// Authenticated.
    Ok(Success),
    /// Not authenticated.
    Fail(Failure),
    /// CANCEL was confirmed (minor ≥ 4).
    Cancelled(u32),
}

/// An OK.
#[derive(Clone, Debug)]
pub struct Success {
    /// The request.
    pub id: u32,
    /// The canonical user name.
    pub user: String,
    /// Everything but `user` and `resp`.
    pub fields: Vec<Field>,
    /// The mechanism's final data.
    pub final_data: Option<Vec<u8>>,
}

/// A FAIL.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The request.
    pub id: u32,
    /// The name the server understood.
    pub user: Option<String>,
    /// What kind of failure, if told.
    pub code: Option<FailCode>,
    /// Text for the remote user.
    pub reason: Option<String>,
    /// Everything else.
    pub fields: Vec<Field>,
}

/// One connection. Feed bytes, take events, make requests, write the output.
pub struct Client {
    lines: LineReader,
    output: Vec<u8>,
    server: Server,
    versioned: bool,
    ready: bool,
    next_id: u32,
}

impl Client {
    /// A new connection that says `VERSION 1 minor` and `CPID cpid`.
    pub fn new(minor: u32, cpid: u32) -> Self {
        let output = format!("VERSION\t1\t{minor}\nCPID\t{cpid}\n").into_bytes();
        Self {
            lines: LineReader::new(MAX_LINE),
            output,
            server: Server::default(),
            versioned: false,
            ready: false,
            next_id: 1,
        }
    }

    /// What the server told; complete after [`Event::Ready`].
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Whether requests may be made.
    pub fn is_ready(&self) -> bool {
        self.ready
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
            let first = fields.next().unwrap_or_default();
            match command {
                b"VERSION" => {
                    match number(first).ok_or(Error::Peer("malformed VERSION"))? {
                        1 => self.versioned = true,
                        other => return Err(Error::Version(other)),
                    }
                    self.server.minor =
                        fields.next().and_then(number).ok_or(Error::Peer("malformed VERSION"))?;
                }
                b"MECH" => {
                    if let Ok(name) = MechName::parse(first)
                        && self.server.mechanisms.len() < MAX_MECHANISMS
                    {
                        let flags = fields.map(Flags::named).fold(Flags::default(), |all, one| all | one);
                        self.server.mechanisms.push(Mechanism { name, flags });
                    }
                }
                b"SPID" => self.server.spid = number(first),
                b"CUID" => self.server.cuid = number(first),
                b"COOKIE" => self.server.cookie = Cookie::parse(first),
                b"DONE" if !self.versioned => return Err(Error::Peer("greeting without VERSION")),
                b"DONE" if self.server.mechanisms.is_empty() => {
                    return Err(Error::Peer("greeting without mechanisms: is this a master socket?"));
                }
                b"DONE" => {
                    self.ready = true;
                    return Ok(Some(Event::Ready));
                }
                _ => {}
            }
        }
    }

    /// Starts a request and returns its id. Answers come as events with that id.
    pub fn start(
        &mut self,
        mechanism: MechName,
        params: &Params,
        initial: Option<&[u8]>,
    ) -> Result<u32, Error> {
        let id = self.next_id;
        let start = self.output.len();
        self.output.extend_from_slice(b"AUTH\t");
        write_number(&mut self.output, id);
        self.output.push(b'\t');
        self.output.extend_from_slice(mechanism.as_str().as_bytes());
        params.write(&mut self.output);
        if let Some(data) = initial {
            self.output.extend_from_slice(b"\tresp=");
            // `=` is "present and empty" whatever minor version the server goes by.
            if data.is_empty() {
                self.output.push(b'=');
            }
            self.push_base64(data);
        }
        self.finish_line(start)?;
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        Ok(id)
    }

    /// Answers a challenge.
    pub fn respond(&mut self, id: u32, data: &[u8], channel_binding: Option<&[u8]>) -> Result<(), Error> {
        let start = self.output.len();
        self.output.extend_from_slice(b"CONT\t");
        write_number(&mut self.output, id);
        self.output.push(b'\t');
        self.push_base64(data);
        if let Some(binding) = channel_binding {
            self.output.extend_from_slice(b"\tchannel_binding=");
            self.push_base64(binding);
        }
        self.finish_line(start)
    }

    /// Gives up a request, or a finished login that nobody will fetch.
    pub fn cancel(&mut self, id: u32) {
        self.output.extend_from_slice(b"CANCEL\t");
        write_number(&mut self.output, id);
        self.output.push(b'\n');
    }

    /// Bytes for the server.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// The driver wrote that many bytes of [`Client::output`]; they are wiped.
    pub fn wrote(&mut self, bytes: usize) {
        discard(&mut self.output, bytes);
    }

    fn push_base64(&mut self, data: &[u8]) {
        let mut encoded = STANDARD.encode(data);
        self.output.extend_from_slice(encoded.as_bytes());
        encoded.zeroize();
    }

    fn finish_line(&mut self, start: usize) -> Result<(), Error> {
        self.output.push(b'\n');
        if self.output.len() - start > MAX_LINE {
            if let Some(line) = self.output.get_mut(start..) {
                line.zeroize();
            }
            self.output.truncate(start);
            return Err(Error::TooLong);
        }
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.output.zeroize();
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

/// Removes written bytes and overwrites what they leave behind.
pub(crate) fn discard(output: &mut Vec<u8>, bytes: usize) {
    let rest = output.len().saturating_sub(bytes);
    let length = output.len();
    output.copy_within(length - rest.., 0);
    if let Some(stale) = output.get_mut(rest..) {
        stale.fill(0);
    }
    output.truncate(rest);
}

/// A line after the greeting; unknown ones are nothing.
fn reply<'a>(command: &[u8], mut fields: impl Iterator<Item = &'a [u8]>) -> Result<Option<Event>, Error> {
    if !matches!(command, b"OK" | b"FAIL" | b"CONT" | b"CANCELLED") {
        return Ok(None);
    }
    let id = fields.next().and_then(number).ok_or(Error::Peer("reply without an id"))?;
    Ok(Some(match command {
        b"CONT" => challenge(id, fields)?,
        b"OK" => success(id, fields),
        b"FAIL" => Event::Fail(failure(id, fields)),
        _ => Event::Cancelled(id),
    }))
}

fn challenge<'a>(id: u32, mut fields: impl Iterator<Item = &'a [u8]>) -> Result<Event, Error> {
    let wire = fields.next().unwrap_or_default().trim_ascii();
    let out_of_band = wire == b"#";
    let data = if out_of_band {
        Vec::new()
    } else {
        STANDARD.decode(wire).map_err(|_| Error::Peer("challenge is not base64"))?
    };
    let channel_binding = fields
        .map(split)
        .find(|(name, _)| *name == b"channel_binding")
        .and_then(|(_, value)| value)
        .map(text);
    Ok(Event::Challenge { id, data, channel_binding, out_of_band })
}

fn success<'a>(id: u32, fields: impl Iterator<Item = &'a [u8]>) -> Event {
    let (mut user, mut final_data, mut rest) = (None, None, Vec::new());
    for field in fields.filter(|field| !field.is_empty()) {
        match split(field) {
            (b"user", Some(value)) if user.is_none() => user = strict_text(value),
            (b"resp", Some(value)) => final_data = STANDARD.decode(value).ok(),
            _ => rest.push(Field::parse(field)),
        }
    }
    match user.filter(|user| !user.is_empty()) {
        Some(user) => Event::Ok(Success { id, user, fields: rest, final_data }),
        // Nobody can be logged in without a name: the server is at fault, not the user.
        None => Event::Fail(Failure {
            id,
            user: None,
            code: Some(FailCode::TempFail),
            reason: None,
            fields: rest,
        }),
    }
}

fn failure<'a>(id: u32, fields: impl Iterator<Item = &'a [u8]>) -> Failure {
    let mut failure = Failure { id, user: None, code: None, reason: None, fields: Vec::new() };
    for field in fields.filter(|field| !field.is_empty()) {
        match split(field) {
            (b"user", Some(value)) => failure.user = Some(text(value)),
            (b"reason", Some(value)) => failure.reason = Some(text(value)),
            (b"code", Some(value)) => failure.code = Some(FailCode::parse(&text(value))),
            (word, None) => match std::str::from_utf8(word).ok().and_then(FailCode::parse_legacy) {
                // The bare forms say less than a code that is there.
                Some(code) => failure.code = failure.code.or(Some(code)),
                None => failure.fields.push(Field::parse(field)),
            },
            _ => failure.fields.push(Field::parse(field)),
        }
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &[u8] =
        b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tSCRAM-SHA-256\tmutual-auth\tnew-flag\n\
        SPID\t99\nCUID\t7\nCOOKIE\t000102030405060708090a0b0c0d0e0f\nFUTURE\tline\nDONE\n";

    fn ready() -> Client {
        let mut client = Client::new(2, 77);
        assert_eq!(client.output(), b"VERSION\t1\t2\nCPID\t77\n");
        client.wrote(client.output().len());
        client.feed(GREETING);
        assert!(matches!(client.next(), Ok(Some(Event::Ready))));
        client
    }

    #[test]
    fn greeting() {
        let client = ready();
        let server = client.server();
        assert_eq!((server.minor, server.spid, server.cuid), (2, Some(99), Some(7)));
        assert!(server.cookie.is_some());
        assert_eq!(server.mechanisms[1], Mechanism::known("SCRAM-SHA-256").unwrap());
    }

    #[test]
    fn bad_greetings() {
        for (input, error) in [
            (b"VERSION\t2\t0\n".as_slice(), Error::Version(2)),
            (b"VERSION\tx\n", Error::Peer("malformed VERSION")),
            (b"VERSION\t1\t2\nDONE\n", Error::Peer("greeting without mechanisms: is this a master socket?")),
            (b"MECH\tPLAIN\nDONE\n", Error::Peer("greeting without VERSION")),
            (&[b'x'; 70_000], Error::Peer("line too long")),
        ] {
            let mut client = Client::new(2, 1);
            client.feed(input);
            let mut result = client.next();
            if matches!(result, Ok(None)) {
                client.feed(b"\n");
                result = client.next();
            }
            assert_eq!(result.err(), Some(error));
        }
    }

    #[test]
    fn requests() {
        let mut client = ready();
        let plain = MechName::parse(b"PLAIN").unwrap();
        let params = Params { service: Some("imap".into()), ..Params::default() };
        assert_eq!(client.start(plain, &params, Some(b"\0a\0b")), Ok(1));
        assert_eq!(client.start(plain, &params, Some(b"")), Ok(2));
        assert_eq!(client.start(plain, &params, None), Ok(3));
        assert_eq!(client.start(plain, &params, Some(&[0; 14_000])), Err(Error::TooLong));
        client.respond(3, b"", None).unwrap();
        client.respond(3, b"x", Some(b"y")).unwrap();
        client.cancel(2);
        let expected: &[u8] =
            b"AUTH\t1\tPLAIN\tservice=imap\tresp=AGEAYg==\nAUTH\t2\tPLAIN\tservice=imap\tresp==\n\
            AUTH\t3\tPLAIN\tservice=imap\nCONT\t3\t\nCONT\t3\teA==\tchannel_binding=eQ==\nCANCEL\t2\n";
        assert_eq!(client.output(), expected);
        client.wrote(5);
        assert_eq!(client.output(), &expected[5..]);
    }

    #[test]
    fn replies_of_real_servers() {
        let mut client = ready();
        client.feed(
            b"OK\t1\tuser=x\t\toriginal_user=y\t\nOK\t2\tuser=a\tresp=dj14\tanonymous\nWHAT\t1\nCONT\t3\t\nCONT\t4\n\
              CONT\t5\tIw==\tchannel_binding=tls-exporter\nFAIL\t6\nFAIL\t7\tuser=z\ttemp\treason=Down\tcode=temp_fail\n\
              FAIL\t8\tauthz\tnodelay\nOK\t9\tuserid=go\nCANCELLED\t10\nFAIL\t11\tcode=brand_new\nCONT\t12\t#\n",
        );
        let mut events = Vec::new();
        while let Some(event) = client.next().unwrap() {
            events.push(event);
        }
        assert_eq!(events.len(), 12);
        assert!(matches!(&events[0], Event::Ok(ok) if ok.user == "x" && ok.fields.len() == 1));
        assert!(matches!(&events[1], Event::Ok(ok) if ok.final_data.as_deref() == Some(b"v=x")));
        assert!(matches!(&events[2], Event::Challenge { id: 3, data, .. } if data.is_empty()));
        assert!(matches!(&events[3], Event::Challenge { id: 4, data, .. } if data.is_empty()));
        assert!(
            matches!(&events[4], Event::Challenge { channel_binding: Some(kind), .. } if kind == "tls-exporter")
        );
        assert!(matches!(&events[5], Event::Fail(Failure { code: None, .. })));
        assert!(
            matches!(&events[6], Event::Fail(f) if f.code == Some(FailCode::TempFail) && f.reason.is_some())
        );
        assert!(
            matches!(&events[7], Event::Fail(f) if f.code == Some(FailCode::AuthzFail) && f.fields.len() == 1)
        );
        assert!(matches!(&events[8], Event::Fail(f) if f.code == Some(FailCode::TempFail)));
        assert!(matches!(&events[9], Event::Cancelled(10)));
        assert!(matches!(&events[10], Event::Fail(f) if f.code == Some(FailCode::Other)));
        assert!(matches!(&events[11], Event::Challenge { out_of_band: true, .. }));
        client.feed(b"OK\tx\n");
        assert!(client.next().is_err());
    }
}
