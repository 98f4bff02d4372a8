//! Passwords checked by a login at an IMAP server, as saslauthd's `rimap` does.
//!
//! Standard:  RFC 9051 §6.2.3 (LOGIN), RFC 5530 (response codes).
//! Trust:     the server's lines are length-limited; only a tagged OK to LOGIN is a yes, only a tagged NO a no.
//! Never:     send a password with a character that a quoted string cannot hold.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use zeroize::Zeroizing;

use super::Answer;

/// How long the server may take to accept a connection, and for each answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest line of the server.
const MAX_LINE: u64 = 16 * 1024;
/// Untagged lines before an answer; capabilities and alerts need a few.
const MAX_LINES: usize = 100;

/// Logs in and out again.
pub(super) fn check(host: &str, port: u16, user: &str, password: &[u8]) -> Answer {
    match connect(host, port).and_then(|stream| converse(stream, user, password)) {
        Ok(answer) => answer,
        Err(error) => Answer::Unavailable(format!("IMAP server {host} port {port}: {error}")),
    }
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

pub(super) fn converse(stream: impl io::Read + io::Write, user: &str, password: &[u8]) -> io::Result<Answer> {
    let Some(command) = login(user, password) else { return Ok(Answer::Mismatch) };
    let mut stream = BufReader::new(stream);
    let greeting = line(&mut stream)?;
    if !starts(&greeting, "* OK") {
        return Err(other("it does not greet with OK"));
    }
    stream.get_mut().write_all(&command)?;
    stream.get_mut().flush()?;
    let answer = tagged(&mut stream)?;
    // The answer is there; how the connection ends changes nothing.
    let _ = stream.get_mut().write_all(b"b LOGOUT\r\n").and_then(|()| stream.get_mut().flush());
    Ok(answer)
}

/// `a LOGIN "user" "password"`; none for what cannot be quoted.
fn login(user: &str, password: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut out = Zeroizing::new(Vec::with_capacity(2 * (user.len() + password.len()) + 20));
    out.extend_from_slice(b"a LOGIN ");
    for (part, end) in [(user.as_bytes(), b" ".as_slice()), (password, b"\r\n")] {
        if part.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
            return None;
        }
        out.push(b'"');
        for byte in part {
            if matches!(byte, b'"' | b'\\') {
                out.push(b'\\');
            }
            out.push(*byte);
        }
        out.push(b'"');
        out.extend_from_slice(end);
    }
    Some(out)
}

fn tagged(stream: &mut BufReader<impl io::Read>) -> io::Result<Answer> {
    for _ in 0..MAX_LINES {
        let line = line(stream)?;
        if starts(&line, "a OK") {
            return Ok(Answer::Ok(None));
        }
        if starts(&line, "a NO") {
            let code = line.get(4..).unwrap_or_default().trim_start().to_ascii_uppercase();
            // RFC 5530 §3: these say nothing about the password.
            let passing = ["[UNAVAILABLE]", "[SERVERBUG]", "[INUSE]", "[LIMIT]", "[PRIVACYREQUIRED]"];
            return match passing.iter().find(|word| code.starts_with(*word)) {
                Some(word) => Err(other(&format!("it answers {word}"))),
                None if code.starts_with("[EXPIRED]") => Ok(Answer::Expired("the server says so".to_owned())),
                None => Ok(Answer::Mismatch),
            };
        }
        if !starts(&line, "* ") || starts(&line, "* BYE") {
            return Err(other("it does not answer LOGIN with OK or NO"));
        }
    }
    Err(other("it talks without answering"))
}

fn line(stream: &mut BufReader<impl io::Read>) -> io::Result<String> {
    let mut line = Vec::new();
    stream.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(other("the connection ended, or a line is too long"));
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn starts(line: &str, words: &str) -> bool {
    line.get(..words.len()).is_some_and(|start| start.eq_ignore_ascii_case(words))
}

fn other(text: &str) -> io::Error {
    io::Error::other(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    struct Pipe {
        from: io::Cursor<Vec<u8>>,
        to: Vec<u8>,
    }

    impl io::Read for &mut Pipe {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.from.read(buffer)
        }
    }

    impl io::Write for &mut Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.to.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn talk(server: &str, user: &str, password: &[u8]) -> (Option<Answer>, String) {
        let mut pipe = Pipe { from: io::Cursor::new(server.as_bytes().to_vec()), to: Vec::new() };
        let answer = converse(&mut pipe, user, password).ok();
        (answer, String::from_utf8_lossy(&pipe.to).into_owned())
    }

    #[test]
    fn answers_of_servers() {
        let hello = "* OK [CAPABILITY IMAP4rev1] hello\r\n";
        for (rest, want) in [
            ("a OK logged in\r\n", Some(Answer::Ok(None))),
            ("* CAPABILITY IMAP4rev1\r\na ok [CAPABILITY X] in\r\n", Some(Answer::Ok(None))),
            ("a NO [AUTHENTICATIONFAILED] no\r\n", Some(Answer::Mismatch)),
            ("a NO no\r\n", Some(Answer::Mismatch)),
            ("a NO [EXPIRED] old\r\n", Some(Answer::Expired("the server says so".to_owned()))),
            ("a NO [unavailable] later\r\n", None),
            ("a NO [PRIVACYREQUIRED] TLS first\r\n", None),
            ("a BAD what\r\n", None),
            ("* BYE too many\r\n", None),
            ("b OK logged in\r\n", None),
            ("a OK no end of line", None),
            ("", None),
        ] {
            assert_eq!(talk(&format!("{hello}{rest}"), "bob", b"pw").0, want, "{rest}");
        }
        for greeting in ["* PREAUTH in\r\n", "* BYE full\r\n", "220 smtp\r\n", ""] {
            let (answer, said) = talk(&format!("{greeting}a OK in\r\n"), "bob", b"pw");
            assert_eq!((answer, said.as_str()), (None, ""), "{greeting}");
        }
        let endless = format!("{hello}{}", "* OK x\r\n".repeat(1000));
        assert_eq!(talk(&endless, "bob", b"pw").0, None);
    }

    #[test]
    fn names_and_passwords_are_quoted() {
        let server = "* OK\r\na OK\r\n";
        let (_, said) = talk(server, "b\"o\\b", b"p \"w\\");
        assert_eq!(said, "a LOGIN \"b\\\"o\\\\b\" \"p \\\"w\\\\\"\r\nb LOGOUT\r\n");
        for (user, password) in [("b\r\nx", &b"pw"[..]), ("bob", b"p\nw"), ("bob", b"p\0w")] {
            assert_eq!(talk(server, user, password), (Some(Answer::Mismatch), String::new()));
        }
    }

    #[test]
    fn nobody_there_is_an_outage() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = listener.local_addr().expect("address").port();
        drop(listener);
        assert!(matches!(check("127.0.0.1", port, "bob", b"pw"), Answer::Unavailable(_)));
    }
}
