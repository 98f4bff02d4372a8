//! As much of HTTP/1.1 as a scraper and a health check need: GET and HEAD, one request per connection.
//!
//! Limits: size of the request, time for it, time for the answer. Headers are not interpreted but for `Host`.
//! Host:   on a loopback address only names of this machine are answered: a web page whose name was turned to 127.0.0.1
//!         (DNS rebinding) cannot make a browser read the figures for it.
//! Source: RFC 9112.
//! Trust:  whoever reaches the listener: everything in a request but method, path and `Host` is ignored.
//! Never:  keep a connection after its answer, or wait for a client without a limit.

use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{Source, not_ready, text};

/// Longest request, head only; a body is never read.
const MAX_REQUEST: usize = 8 * 1024;
/// Time for the request to arrive.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// Time for the client to take the answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// `version` is the one of the text format.
const FIGURES: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// An answer.
struct Answer {
    status: &'static str,
    kind: &'static str,
    body: String,
}

impl Answer {
    fn new(status: &'static str, body: impl Into<String>) -> Self {
        Self { status, kind: PLAIN, body: body.into() + "\n" }
    }
}

/// Answers one request.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, source: &Source, loopback: bool) {
    let request = match tokio::time::timeout(REQUEST_WITHIN, read(&mut stream)).await {
        Ok(Ok(request)) => request,
        // Nobody is there to be told.
        Ok(Err(None)) | Err(_) => return,
        Ok(Err(Some(answer))) => return write(&mut stream, &answer, false).await,
    };
    let (answer, head) = match parse(&request, loopback) {
        Ok((path, head)) => (answer(path, source).await, head),
        Err(answer) => (answer, false),
    };
    write(&mut stream, &answer, head).await;
}

async fn answer(path: &str, source: &Source) -> Answer {
    let silent = || Answer::new("503 Service Unavailable", "the supervisor does not answer");
    match path {
        "/metrics" => match source.status().await {
            Some(status) => Answer { status: "200 OK", kind: FIGURES, body: text::render(&status) },
            None => silent(),
        },
        "/healthz" => match source.status().await {
            Some(_) => Answer::new("200 OK", "ok"),
            None => silent(),
        },
        "/readyz" => match source.status().await {
            Some(status) => {
                let why = not_ready(&status);
                match (why.is_empty(), &status.last_reload_error) {
                    (false, _) => Answer::new("503 Service Unavailable", why.join("\n")),
                    // Served is what was read before.
                    (true, Some(_)) => Answer::new("200 OK", "ready; the last reload was refused"),
                    (true, None) => Answer::new("200 OK", "ready"),
                }
            }
            None => silent(),
        },
        "/" => Answer::new("200 OK", "Postern: /metrics /healthz /readyz"),
        _ => Answer::new("404 Not Found", "there are /metrics, /healthz and /readyz"),
    }
}

/// The head of a request. An error is what to answer, if anything.
async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, Option<Answer>> {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let count = stream.read(&mut chunk).await.map_err(|_| None)?;
        if count == 0 {
            return Err(None);
        }
        let seen = request.len().saturating_sub(3);
        request.extend_from_slice(chunk.get(..count).unwrap_or_default());
        let rest = request.get(seen..).unwrap_or_default();
        if rest.windows(4).any(|four| four == b"\r\n\r\n") || rest.windows(2).any(|two| two == b"\n\n") {
            return Ok(request);
        }
        if request.len() > MAX_REQUEST {
            let answer = Answer::new("431 Request Header Fields Too Large", "the request is too long");
            return Err(Some(answer));
        }
    }
}

/// The path, and whether only the head is wanted.
fn parse(request: &[u8], loopback: bool) -> Result<(&str, bool), Answer> {
    let bad = || Answer::new("400 Bad Request", "this is not an HTTP request");
    let text = std::str::from_utf8(request).map_err(|_| bad())?;
    let mut lines = text.lines();
    let line = lines.next().unwrap_or_default();
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, version] = words.as_slice() else { return Err(bad()) };
    if !version.starts_with("HTTP/1.") {
        return Err(bad());
    }
    let head = match *method {
        "GET" => false,
        "HEAD" => true,
        _ => return Err(Answer::new("405 Method Not Allowed", "only GET and HEAD")),
    };
    let host = lines.take_while(|line| !line.is_empty()).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("host").then(|| value.trim())
    });
    if loopback && !host.is_none_or(is_this_machine) {
        let text = "on a loopback address use its number or `localhost` as the host name";
        return Err(Answer::new("421 Misdirected Request", text));
    }
    Ok((target.split_once('?').map_or(*target, |(path, _)| path), head))
}

fn is_this_machine(host: &str) -> bool {
    // `[::1]:9154`, `127.0.0.1:9154`, `localhost`.
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.is_empty() || name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

async fn write<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, answer: &Answer, head: bool) {
    let Answer { status, kind, body } = answer;
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nConnection: close\r\n{}\r\n",
        body.len(),
        if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" },
    );
    if !head {
        bytes.push_str(body);
    }
    let all = async {
        stream.write_all(bytes.as_bytes()).await?;
        stream.shutdown().await?;
        // Unread bytes would turn the end into a reset that swallows the answer.
        let mut rest = [0; 1024];
        for _ in 0..16 {
            if stream.read(&mut rest).await? == 0 {
                break;
            }
        }
        std::io::Result::Ok(())
    };
    // A client that is gone, or does not read, is no matter.
    let _ = tokio::time::timeout(ANSWER_WITHIN, all).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(request: &str, loopback: bool) -> String {
        match parse(request.as_bytes(), loopback) {
            Ok((path, head)) => format!("{path} {head}"),
            Err(answer) => answer.status.to_owned(),
        }
    }

    #[test]
    fn requests() {
        for (request, expected) in [
            ("GET /metrics HTTP/1.1\r\nHost: localhost:9154\r\n\r\n", "/metrics false"),
            ("GET /metrics?x=y HTTP/1.0\r\n\r\n", "/metrics false"),
            ("HEAD /readyz HTTP/1.1\r\nhost:[::1]:9154\r\n\r\n", "/readyz true"),
            ("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "/metrics false"),
            ("GET /metrics HTTP/1.1\r\nHost: evil.example:9154\r\n\r\n", "421 Misdirected Request"),
            ("POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "405 Method Not Allowed"),
            ("GET /metrics\r\n\r\n", "400 Bad Request"),
            ("GET  /metrics HTTP/1.1\r\n\r\n", "400 Bad Request"),
            ("GET /metrics HTTP/2\r\n\r\n", "400 Bad Request"),
            ("\r\n\r\n", "400 Bad Request"),
            ("EHLO me\r\n\r\n", "400 Bad Request"),
        ] {
            assert_eq!(parsed(request, true), expected, "{request:?}");
        }
        assert_eq!(parsed("GET / HTTP/1.1\r\nHost: mail.example.org\r\n\r\n", false), "/ false");
        assert!(parse(b"GET /\xff HTTP/1.1\r\n\r\n", true).is_err());
    }
}
