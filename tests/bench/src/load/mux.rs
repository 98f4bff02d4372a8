//! Load on saslauthd's socket: one connection and one request per check, as libsasl2 does.
//!
//! Trust: the measured server's answer, of which 64 bytes are looked at.
//! Never: take anything but OK for an answer.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::{Crowd, Timing, Window};

/// A request with its four counted strings.
pub(crate) fn request(user: &str, password: &str, service: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for text in [user, password, service, ""] {
        out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out
}

/// Asks once; an answer other than OK is an error.
pub(crate) fn ask(socket: &Path, request: &[u8]) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(socket).context("connecting to the mux")?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(request)?;
    let mut answer = [0; 64];
    let mut have = 0;
    // Length, then text; saslauthd writes them together, but nothing says so.
    while have < 4 {
        let room = answer.get_mut(have..).unwrap_or_default();
        match stream.read(room)? {
            0 => bail!("the mux closed without an answer"),
            count => have += count,
        }
    }
    if answer.get(2..4) != Some(b"OK") {
        bail!("the mux said {:?}", String::from_utf8_lossy(answer.get(2..have).unwrap_or_default()));
    }
    Ok(())
}

/// Keeps `threads` requests in flight, over these users in turn.
pub(crate) fn run(
    socket: &Path,
    requests: &[Vec<u8>],
    threads: usize,
    timing: Timing,
    server: &[u32],
) -> anyhow::Result<Window> {
    let ask_one = |(): &mut (), number: usize| {
        ask(socket, requests.get(number % requests.len().max(1)).context("no requests")?)
    };
    Crowd { threads, timing, server }.run(|_| Ok(()), ask_one, None)
}
