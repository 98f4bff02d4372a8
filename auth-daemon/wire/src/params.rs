//! Parameters of AUTH, USER and PASS: every one that a known client sends.
//!
//! Trust: values are claims of the client; text that is not UTF-8 is repaired for logs, addresses that do not parse are
//!        dropped. Only the driver knows which peers may be believed.
//! Never: keep more than a bounded number of fields of one request.

use std::fmt;
use std::net::IpAddr;

use crate::escape::unescape;
use crate::field::{Field, split, strict_text, text, write_pair};

/// Unknown parameters kept per request; the rest is dropped.
const MAX_EXTRA: usize = 64;

/// How the client says the remote user's transport is protected.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Secured {
    /// `secured`, or a value nobody knows: safe, by whatever means (TLS or the same host).
    Plain,
    /// `secured=tls`
    Tls,
}

/// What a client tells about a login attempt or lookup.
#[derive(Clone, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Params {
    /// `service=` or `protocol=`: smtp, imap, pop3, …
    pub service: Option<String>,
    /// Session id, for logs.
    pub session: Option<String>,
    /// Address the user connected to.
    pub lip: Option<IpAddr>,
    /// Address of the user.
    pub rip: Option<IpAddr>,
    /// Port the user connected to.
    pub lport: Option<u16>,
    /// Port of the user.
    pub rport: Option<u16>,
    /// The hop's own end when [`Params::lip`] was told by a proxy.
    pub real_lip: Option<IpAddr>,
    /// The hop's address when [`Params::rip`] was told by a proxy.
    pub real_rip: Option<IpAddr>,
    /// See [`Params::real_lip`].
    pub real_lport: Option<u16>,
    /// See [`Params::real_rip`].
    pub real_rport: Option<u16>,
    /// Protection of the user's connection, if any.
    pub secured: Option<Secured>,
    /// TLS server name the user asked for (`local_name=`).
    pub local_name: Option<String>,
    /// What the user's program says it is (IMAP ID).
    pub client_id: Option<String>,
    /// A client certificate was verified.
    pub valid_client_cert: bool,
    /// Name from the client certificate.
    pub cert_username: Option<String>,
    /// Fingerprint of the client certificate.
    pub ssl_client_cert_fp: Option<String>,
    /// Fingerprint of the client certificate's key.
    pub ssl_client_cert_pubkey_fp: Option<String>,
    /// JA3 hash of the TLS hello.
    pub ssl_ja3_hash: Option<String>,
    /// `transport=` and `tls_*=` as they came, for logs.
    pub tls: Vec<Field>,
    /// Neither look up nor count a penalty.
    pub no_penalty: bool,
    /// Sent by old clients, means nothing.
    pub nologin: bool,
    /// The client can take final data inside OK.
    pub final_resp_ok: bool,
    /// Log this request in detail.
    pub debug: bool,
    /// What a proxy before the client passed on.
    pub forward_fields: Vec<Field>,
    /// Everything else, in order.
    pub extra: Vec<Field>,
}

impl Params {
    /// Whether the addresses were told by a proxy rather than taken from the user's connection.
    pub fn is_proxied(&self) -> bool {
        self.real_rip.is_some() && self.real_rip != self.rip
    }

    /// Takes one field of the line. `false`: the value makes the request meaningless (a service that is not text).
    pub(crate) fn take(&mut self, wire: &[u8]) -> bool {
        if wire.is_empty() {
            return true;
        }
        let (name, value) = split(wire);
        let given = value.unwrap_or_default();
        match name {
            // An empty one is one, as with Dovecot.
            b"service" | b"protocol" => match strict_text(given) {
                Some(service) => self.service = Some(service),
                None => return false,
            },
            b"lip" => self.lip = address(given),
            b"rip" => self.rip = address(given),
            b"lport" => self.lport = port(given),
            b"rport" => self.rport = port(given),
            b"secured" => self.secured = Some(if given == b"tls" { Secured::Tls } else { Secured::Plain }),
            b"session" => self.session = some(given),
            b"no-penalty" => self.no_penalty = true,
            b"nologin" => self.nologin = true,
            b"final-resp-ok" => self.final_resp_ok = true,
            b"debug" => self.debug = true,
            b"real_lip" => self.real_lip = address(given),
            b"real_rip" => self.real_rip = address(given),
            b"real_lport" => self.real_lport = port(given),
            b"real_rport" => self.real_rport = port(given),
            b"local_name" => self.local_name = some(given),
            b"client_id" => self.client_id = some(given),
            b"valid-client-cert" => self.valid_client_cert = true,
            b"cert_username" => self.cert_username = some(given),
            b"ssl_client_cert_fp" => self.ssl_client_cert_fp = some(given),
            b"ssl_client_cert_pubkey_fp" => self.ssl_client_cert_pubkey_fp = some(given),
            b"ssl_ja3_hash" => self.ssl_ja3_hash = some(given),
            b"transport" | b"tls_cipher" | b"tls_cipher_bits" | b"tls_pfs" | b"tls_protocol" => {
                if self.tls.len() < 8 {
                    self.tls.push(Field::parse(wire));
                }
            }
            b"forward_fields" => {
                // A list within a field: TAB between items, and each item escaped once more.
                let list = unescape(given);
                self.forward_fields = list
                    .split(|b| *b == b'\t')
                    .filter(|f| !f.is_empty())
                    .take(MAX_EXTRA)
                    .map(Field::parse)
                    .collect();
            }
            _ => {
                if self.extra.len() < MAX_EXTRA {
                    self.extra.push(Field::parse(wire));
                }
            }
        }
        true
    }

    /// Appends all parameters, each with its TAB.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        if let Some(service) = &self.service {
            write_pair(out, "service", service);
        }
        match self.secured {
            Some(Secured::Plain) => out.extend_from_slice(b"\tsecured"),
            Some(Secured::Tls) => out.extend_from_slice(b"\tsecured=tls"),
            None => {}
        }
        for (set, word) in [
            (self.valid_client_cert, "\tvalid-client-cert"),
            (self.no_penalty, "\tno-penalty"),
            (self.nologin, "\tnologin"),
            (self.final_resp_ok, "\tfinal-resp-ok"),
            (self.debug, "\tdebug"),
        ] {
            if set {
                out.extend_from_slice(word.as_bytes());
            }
        }
        for (name, value) in [
            ("session", &self.session),
            ("local_name", &self.local_name),
            ("client_id", &self.client_id),
            ("cert_username", &self.cert_username),
            ("ssl_client_cert_fp", &self.ssl_client_cert_fp),
            ("ssl_client_cert_pubkey_fp", &self.ssl_client_cert_pubkey_fp),
            ("ssl_ja3_hash", &self.ssl_ja3_hash),
        ] {
            if let Some(value) = value {
                write_pair(out, name, value);
            }
        }
        for (name, value) in
            [("lip", self.lip), ("rip", self.rip), ("real_lip", self.real_lip), ("real_rip", self.real_rip)]
        {
            if let Some(value) = value {
                write_pair(out, name, &value.to_string());
            }
        }
        for (name, value) in [
            ("lport", self.lport),
            ("rport", self.rport),
            ("real_lport", self.real_lport),
            ("real_rport", self.real_rport),
        ] {
            if let Some(value) = value {
                write_pair(out, name, &value.to_string());
            }
        }
        for field in &self.tls {
            field.write(out);
        }
        if !self.forward_fields.is_empty() {
            let mut list = Vec::new();
            for field in &self.forward_fields {
                field.write(&mut list);
            }
            out.extend_from_slice(b"\tforward_fields=");
            crate::escape_into(out, list.get(1..).unwrap_or_default());
        }
        for field in &self.extra {
            field.write(out);
        }
    }
}

impl fmt::Debug for Params {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Params")
            .field("service", &self.service)
            .field("session", &self.session)
            .field("rip", &self.rip)
            .field("lip", &self.lip)
            .field("secured", &self.secured)
            .field("extra", &self.extra)
            .finish_non_exhaustive()
    }
}

fn some(wire: &[u8]) -> Option<String> {
    (!wire.is_empty()).then(|| text(wire))
}

/// An address in text; a zone (`%eth0`) is cut off, anything else that does not parse is no address.
fn address(wire: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(wire).ok()?;
    text.split('%').next()?.parse().ok()
}

fn port(wire: &[u8]) -> Option<u16> {
    std::str::from_utf8(wire).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Params {
        let mut params = Params::default();
        for field in line.split('\t') {
            assert!(params.take(field.as_bytes()));
        }
        params
    }

    #[test]
    fn real_lines() {
        let postfix = parse("service=smtp\tnologin\tlip=192.0.2.1\trip=2001:db8::7\tsecured");
        assert_eq!(postfix.service.as_deref(), Some("smtp"));
        assert_eq!(postfix.secured, Some(Secured::Plain));
        assert_eq!(postfix.rip, Some("2001:db8::7".parse().unwrap()));
        assert!(postfix.nologin && !postfix.is_proxied());

        let empty = parse("service=smtp\tlip=\trip=");
        assert_eq!((empty.lip, empty.rip), (None, None));

        let login = parse(
            "protocol=imap\tfinal-resp-ok\tsecured=tls\tsession=ab+c\tlip=127.0.0.1\trip=10.0.0.1\tlport=993\trport=4000\t\
             real_rip=10.9.9.9\treal_lip=x\treal_lport=1\treal_rport=99999\tlocal_name=mx\tclient_id=(\"a\")\t\
             ssl_ja3_hash=ff\ttls_cipher=AES\tdebug\tno-penalty\tcert_username=joe\tvalid-client-cert\tfoo=bar\tword",
        );
        assert_eq!(login.secured, Some(Secured::Tls));
        assert!(
            login.is_proxied()
                && login.final_resp_ok
                && login.debug
                && login.no_penalty
                && login.valid_client_cert
        );
        assert_eq!((login.real_lip, login.real_lport, login.real_rport), (None, Some(1), None));
        assert_eq!(login.extra, [Field::new("foo", "bar"), Field::flag("word")]);
        assert_eq!(parse("rip=fe80::1%eth0").rip, Some("fe80::1".parse().unwrap()));
    }

    #[test]
    fn forwarded_fields_are_escaped_twice() {
        let mut params = Params {
            forward_fields: vec![Field::new("a", "x\ty"), Field::flag("b")],
            extra: vec![Field::new("k", "v=\t\n\u{1}")],
            service: Some("imap".into()),
            tls: vec![Field::new("tls_protocol", "TLSv1.3")],
            ..Params::default()
        };
        params.rip = Some("192.0.2.9".parse().unwrap());
        let mut out = Vec::new();
        params.write(&mut out);
        assert_eq!(parse(std::str::from_utf8(&out).unwrap()), params);
    }

    #[test]
    fn hostile_values() {
        assert!(!Params::default().take(b"service=\xff"));
        assert!(Params::default().take(b"session=\xff\xfe"));
        let mut params = Params::default();
        for n in 0..1000 {
            assert!(params.take(format!("x{n}=y").as_bytes()));
        }
        assert_eq!(params.extra.len(), MAX_EXTRA);
    }
}
