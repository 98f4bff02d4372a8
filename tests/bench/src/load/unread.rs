//! Servers of one thread that say OK and look at nothing.
//!
//! Purpose: how fast anything can be at the other end of a socket, given what system calls and the waking of a sleeping
//!          process cost on this machine.
//! Trust:   the load program of the same process.
//! Never:   stand in for a peer: nothing is checked here.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

/// Runs until it is dropped.
pub(crate) struct Unread {
    socket: PathBuf,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Unread {
    /// saslauthd's socket: one request per connection.
    pub(crate) fn mux(socket: PathBuf) -> anyhow::Result<Unread> {
        Unread::start(socket, |mut stream| {
            let mut request = [0; 1024];
            if stream.read(&mut request)? == 0 {
                return Ok(false);
            }
            stream.write_all(b"\0\x02OK")?;
            Ok(true)
        })
    }

    /// The auth protocol, for a client with one connection and one request in flight.
    pub(crate) fn auth(socket: PathBuf) -> anyhow::Result<Unread> {
        Unread::start(socket, |mut stream| {
            let mut lines = [0; 1024];
            let mut asked = false;
            stream.write_all(b"VERSION\t1\t1\nMECH\tPLAIN\nSPID\t1\nCUID\t1\nCOOKIE\t00\nDONE\n")?;
            loop {
                let count = stream.read(&mut lines)?;
                if count == 0 {
                    return Ok(asked);
                }
                asked = true;
                let line = lines.get(..count).unwrap_or_default();
                if let Some(request) = line.strip_prefix(b"AUTH\t") {
                    let id = request.split(|byte| *byte == b'\t').next().unwrap_or_default();
                    stream.write_all(&[b"OK\t", id, b"\tuser=x\n"].concat())?;
                }
            }
        })
    }

    /// Serves one connection after the other, until one asks nothing.
    fn start(
        socket: PathBuf,
        serve: impl Fn(UnixStream) -> io::Result<bool> + Send + 'static,
    ) -> anyhow::Result<Unread> {
        let listener = UnixListener::bind(&socket)?;
        let thread = std::thread::spawn(move || {
            while serve(listener.accept()?.0)? {}
            Ok(())
        });
        Ok(Unread { socket, thread: Some(thread) })
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        drop(UnixStream::connect(&self.socket));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
