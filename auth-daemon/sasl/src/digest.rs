//! DIGEST-MD5, RFC 2831: `qop=auth`, one use of a nonce, UTF-8.
//!
//! Subsequent authentication (§2.2) is refused: `nc` must be 1, so a nonce lives for one response.
//!
//! Trust: every directive is a stranger's until the response matches.
//! Never: take a nonce twice, or one that is not this exchange's.

use md5::{Digest as _, Md5};
use subtle::ConstantTimeEq as _;

use crate::{
    Context, Credentials, Failure, KeyKind, Lookup, Step, Success, challenge, hex, other_name, unhex,
};

#[derive(Debug)]
pub(crate) struct Digest {
    nonce: String,
    pending: Option<Response>,
}

#[derive(Debug, Default)]
struct Response {
    username: Vec<u8>,
    realm: Vec<u8>,
    authzid: Option<Vec<u8>>,
    cnonce: Vec<u8>,
    uri: Vec<u8>,
    digest: [u8; 16],
    utf8: bool,
    name: String,
    act_as: Option<String>,
}

impl Digest {
    pub(crate) fn start(ctx: &mut Context<'_>) -> (Digest, Step) {
        use base64::Engine as _;
        let mut random = [0; 18];
        (ctx.random)(&mut random);
        let nonce = base64::engine::general_purpose::STANDARD.encode(random);
        let mut text = String::new();
        for realm in ctx.realms {
            text.push_str(&format!("realm=\"{}\",", realm.replace('\\', "\\\\").replace('"', "\\\"")));
        }
        if ctx.realms.is_empty() {
            // Without a realm the client asks its user for one, RFC 2831 §2.1.1.
            text.push_str("realm=\"\",");
        }
        text.push_str(&format!("nonce=\"{nonce}\",qop=\"auth\",charset=\"utf-8\",algorithm=\"md5-sess\""));
        (Digest { nonce, pending: None }, challenge(text.into_bytes()))
    }

    pub(crate) fn respond(&mut self, data: &[u8]) -> Step {
        if self.pending.is_some() {
            return Step::Failure(Failure::OutOfOrder);
        }
        match self.parse(data) {
            Ok(response) => {
                let lookup = Lookup {
                    user: response.name.clone(),
                    authzid: response.act_as.clone(),
                    kind: KeyKind::DigestMd5,
                };
                self.pending = Some(response);
                Step::NeedCredentials(lookup)
            }
            Err(failure) => Step::Failure(failure),
        }
    }

    pub(crate) fn credentials(&mut self, credentials: &Credentials) -> Step {
        let Some(response) = self.pending.take() else {
            return Step::Failure(Failure::OutOfOrder);
        };
        let keys: Vec<[u8; 16]> = match credentials {
            Credentials::Plain(password) => response.keys(password.expose()),
            Credentials::DigestMd5(stored) => stored.expose().try_into().into_iter().collect(),
            _ => Vec::new(),
        };
        for key in keys {
            let expected = response.proof(&key, &self.nonce, b"AUTHENTICATE:");
            if bool::from(expected.ct_eq(hex(&response.digest).as_bytes())) {
                let rspauth = response.proof(&key, &self.nonce, b":");
                let final_data = [b"rspauth=".as_slice(), &rspauth].concat();
                return Step::Success(Success {
                    user: response.name,
                    authzid: response.act_as,
                    final_data: Some(final_data),
                });
            }
        }
        Step::Failure(Failure::Mismatch)
    }

    fn parse(&self, data: &[u8]) -> Result<Response, Failure> {
        let mut response = Response::default();
        let (mut nonce, mut nc, mut realm, mut username, mut digest) = (None, None, None, None, None);
        for (key, value) in directives(data)? {
            // RFC 2831 §2.1.2: each of these at most once; the first realm wins as in Dovecot.
            let slot = match key.as_str() {
                "username" => &mut username,
                "nonce" => &mut nonce,
                "nc" => &mut nc,
                "response" => &mut digest,
                "realm" => {
                    realm.get_or_insert(value);
                    continue;
                }
                "cnonce" => {
                    response.cnonce = value;
                    continue;
                }
                "digest-uri" => {
                    response.uri = value;
                    continue;
                }
                "authzid" => {
                    response.authzid = Some(value);
                    continue;
                }
                "qop" if value == b"auth" => continue,
                "charset" if value.eq_ignore_ascii_case(b"utf-8") => {
                    response.utf8 = true;
                    continue;
                }
                "qop" | "charset" => return Err(Failure::Unsupported),
                // RFC 2831 §2.1.2: unknown directives are ignored.
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(Failure::Malformed);
            }
        }
        if nonce.as_deref() != Some(self.nonce.as_bytes()) || nc.as_deref() != Some(b"00000001") {
            return Err(Failure::Mismatch);
        }
        if response.cnonce.is_empty() || response.uri.is_empty() {
            return Err(Failure::Malformed);
        }
        response.digest = digest.as_deref().and_then(unhex).ok_or(Failure::Malformed)?;
        response.username = username.ok_or(Failure::Malformed)?;
        response.realm = realm.unwrap_or_default();
        response.name = full_name(&response)?;
        response.act_as = match &response.authzid {
            Some(raw) => {
                let text = std::str::from_utf8(raw).map_err(|_| Failure::Malformed)?;
                other_name(text, &response.name)
                    .filter(|other| Some(other.as_bytes()) != Some(response.username.as_slice()))
            }
            None => None,
        };
        Ok(response)
    }
}

impl Response {
    /// `H(user:realm:password)`; ISO 8859-1 as well where the text fits (RFC 2831 §2.1.2.1).
    fn keys(&self, password: &[u8]) -> Vec<[u8; 16]> {
        let key = |user: &[u8], realm: &[u8], password: &[u8]| -> [u8; 16] {
            Md5::new()
                .chain_update(user)
                .chain_update(b":")
                .chain_update(realm)
                .chain_update(b":")
                .chain_update(password)
                .finalize()
                .into()
        };
        let mut keys = vec![key(&self.username, &self.realm, password)];
        if let (Some(user), Some(realm), Some(password)) =
            (latin1(&self.username), latin1(&self.realm), latin1(password))
        {
            let other = key(&user, &realm, &password);
            if !keys.contains(&other) {
                keys.push(other);
            }
        }
        keys
    }

    /// RFC 2831 §2.1.2.1: `HEX(KD(HEX(H(A1)), nonce:nc:cnonce:qop:HEX(H(A2))))`.
    fn proof(&self, key: &[u8; 16], nonce: &str, method: &[u8]) -> Vec<u8> {
        let mut a1 = Md5::new()
            .chain_update(key)
            .chain_update(b":")
            .chain_update(nonce)
            .chain_update(b":")
            .chain_update(&self.cnonce);
        if let Some(authzid) = &self.authzid {
            a1.update(b":");
            a1.update(authzid);
        }
        let a2 = Md5::new().chain_update(method).chain_update(&self.uri).finalize();
        let digest = Md5::new()
            .chain_update(hex(&a1.finalize()))
            .chain_update(b":")
            .chain_update(nonce)
            .chain_update(b":00000001:")
            .chain_update(&self.cnonce)
            .chain_update(b":auth:")
            .chain_update(hex(&a2))
            .finalize();
        hex(&digest).into_bytes()
    }
}

/// What a client knows.
pub(crate) struct Client<'a> {
    pub(crate) user: &'a [u8],
    /// Without one, that of the server.
    pub(crate) realm: Option<&'a [u8]>,
    pub(crate) password: &'a [u8],
    pub(crate) cnonce: &'a str,
    pub(crate) uri: &'a str,
}

impl Client<'_> {
    /// The answer to a challenge, and what the server must prove itself with.
    pub(crate) fn respond(&self, challenge: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let (mut nonce, mut offered, mut qop) = (None, Vec::new(), None);
        for (key, value) in directives(challenge).ok()? {
            match key.as_str() {
                "nonce" => nonce = Some(String::from_utf8(value).ok()?),
                "realm" => offered.push(value),
                "qop" => qop = Some(value),
                _ => {}
            }
        }
        // RFC 2831 §2.1.1: without `qop` it is `auth`.
        let plain =
            qop.is_none_or(|list| list.split(|byte| *byte == b',').any(|one| one.trim_ascii() == b"auth"));
        let nonce = nonce.filter(|nonce| plain && !nonce.is_empty())?;
        let realm = self.realm.map(<[u8]>::to_vec).or(offered.into_iter().next()).unwrap_or_default();
        let response = Response {
            username: self.user.to_vec(),
            realm,
            cnonce: self.cnonce.as_bytes().to_vec(),
            uri: self.uri.as_bytes().to_vec(),
            ..Response::default()
        };
        let key = response.keys(self.password).into_iter().next()?;
        let mut out = b"charset=utf-8,username=".to_vec();
        quoted(&mut out, &response.username);
        out.extend_from_slice(b",realm=");
        quoted(&mut out, &response.realm);
        out.extend_from_slice(
            format!(",nonce=\"{nonce}\",nc=00000001,cnonce=\"{}\"", self.cnonce).as_bytes(),
        );
        out.extend_from_slice(format!(",digest-uri=\"{}\",qop=auth,response=", self.uri).as_bytes());
        out.extend(response.proof(&key, &nonce, b"AUTHENTICATE:"));
        Some((out, [b"rspauth=".as_slice(), &response.proof(&key, &nonce, b":")].concat()))
    }
}

fn quoted(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out.push(b'"');
}

/// The name with its realm, as text.
fn full_name(response: &Response) -> Result<String, Failure> {
    let text = |raw: &[u8]| -> Result<String, Failure> {
        match std::str::from_utf8(raw) {
            Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
            // Without charset=utf-8 the text is ISO 8859-1.
            Err(_) if !response.utf8 => Ok(raw.iter().copied().map(char::from).collect()),
            _ => Err(Failure::Malformed),
        }
    };
    let user = text(&response.username)?;
    let realm = text(&response.realm)?;
    if user.is_empty() {
        return Err(Failure::Malformed);
    }
    if user.contains('@') || realm.is_empty() { Ok(user) } else { Ok(format!("{user}@{realm}")) }
}

fn latin1(utf8: &[u8]) -> Option<Vec<u8>> {
    std::str::from_utf8(utf8).ok()?.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}

/// `key=value` or `key="quoted"`, separated by commas and blanks (RFC 2831 §7.1).
fn directives(data: &[u8]) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let mut rest = data.iter().copied().peekable();
    let mut out = Vec::new();
    loop {
        while rest.next_if(|b| matches!(b, b',' | b' ' | b'\t' | b'\r' | b'\n')).is_some() {}
        if rest.peek().is_none() {
            return Ok(out);
        }
        let mut key = String::new();
        while let Some(b) = rest.next_if(|&b| b != b'=') {
            key.push(char::from(b.to_ascii_lowercase()));
        }
        if rest.next() != Some(b'=') {
            return Err(Failure::Malformed);
        }
        let mut value = Vec::new();
        if rest.next_if_eq(&b'"').is_some() {
            loop {
                match rest.next().ok_or(Failure::Malformed)? {
                    b'"' => break,
                    b'\\' => value.push(rest.next().ok_or(Failure::Malformed)?),
                    b => value.push(b),
                }
            }
        } else {
            while let Some(b) = rest.next_if(|b| !matches!(b, b',' | b' ' | b'\t')) {
                value.push(b);
            }
        }
        out.push((key.trim_end().to_owned(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secret;

    const RESPONSE: &str = "charset=utf-8,username=\"chris\",realm=\"elwood.innosoft.com\",\
        nonce=\"OA6MG9tEQGm2hh\",nc=00000001,cnonce=\"OA6MHXh6VqTrRk\",\
        digest-uri=\"imap/elwood.innosoft.com\",response=d388dad90d4bbd760a152321f2143af7,qop=auth";

    fn server() -> Digest {
        Digest { nonce: "OA6MG9tEQGm2hh".into(), pending: None }
    }

    /// RFC 2831 §4.
    #[test]
    fn rfc_2831_imap_example() {
        let stored: [u8; 16] = Md5::digest(b"chris:elwood.innosoft.com:secret").into();
        for credentials in [
            Credentials::Plain(Secret::new(b"secret".to_vec())),
            Credentials::DigestMd5(Secret::new(stored.to_vec())),
        ] {
            let mut digest = server();
            let Step::NeedCredentials(lookup) = digest.respond(RESPONSE.as_bytes()) else { panic!() };
            assert_eq!(lookup.user, "chris@elwood.innosoft.com");
            let Step::Success(success) = digest.credentials(&credentials) else { panic!() };
            assert_eq!(
                success.final_data.as_deref(),
                Some(b"rspauth=ea40f60335c427b5527b84dbabcdfffd".as_slice())
            );
        }
    }

    #[test]
    fn refusals() {
        let cases = [
            (RESPONSE.replace("nc=00000001", "nc=00000002"), Failure::Mismatch),
            (RESPONSE.replace("OA6MG9tEQGm2hh", "x"), Failure::Mismatch),
            (RESPONSE.replace("qop=auth", "qop=auth-int"), Failure::Unsupported),
            (RESPONSE.replace("charset=utf-8", "charset=koi8-r"), Failure::Unsupported),
            (RESPONSE.replace("username=\"chris\"", "username=\"\""), Failure::Malformed),
            (RESPONSE.replace("username=\"chris\",", ""), Failure::Malformed),
            (RESPONSE.replace("cnonce=\"OA6MHXh6VqTrRk\",", ""), Failure::Malformed),
            (format!("{RESPONSE},username=\"eve\""), Failure::Malformed),
            (RESPONSE.replace("d388dad9", "d388"), Failure::Malformed),
            ("username=\"chris".to_owned(), Failure::Malformed),
            ("username".to_owned(), Failure::Malformed),
            ("=\"\\".to_owned(), Failure::Malformed),
            (String::new(), Failure::Mismatch),
        ];
        for (text, want) in cases {
            match server().respond(text.as_bytes()) {
                Step::Failure(got) => assert_eq!(got, want, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn wrong_key_fails_at_the_end() {
        for credentials in [
            Credentials::Plain(Secret::new(b"Secret".to_vec())),
            Credentials::DigestMd5(Secret::new(vec![0; 15])),
            Credentials::Unknown,
        ] {
            let mut digest = server();
            assert!(matches!(digest.respond(RESPONSE.as_bytes()), Step::NeedCredentials(_)));
            assert!(matches!(digest.credentials(&credentials), Step::Failure(Failure::Mismatch)));
        }
    }
}
