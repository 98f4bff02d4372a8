//! Accepting connections: who may, how many, and which protocol they get.
//!
//! Trust: strangers, up to the kernel's word about uid, gid and pid of the peer.
//! Never: act on what a peer says that may not connect.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use boot::{Admission, BareUnixListener, DrainToken, Permit, Refused};
use conf::AuthListenerKind;
use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::config::Listener;
use crate::engine::Engine;
use crate::refusal::{self, Refusals};
use crate::request::PeerCredentials;
use crate::{connection, master, mux};

/// The accept loops that run now.
#[derive(Debug)]
pub(crate) struct Listeners {
    engine: Arc<Engine>,
    admission: Admission,
    token: DrainToken,
    loops: Vec<JoinHandle<()>>,
}

impl Listeners {
    /// No listeners yet. Connections hold clones of `token`.
    pub(crate) fn new(engine: Arc<Engine>, admission: Admission, token: DrainToken) -> Listeners {
        Listeners { engine, admission, token, loops: Vec::new() }
    }

    /// Replaces all listeners. Sockets that stay are the same kernel objects, so nobody is refused meanwhile.
    pub(crate) fn replace(&mut self, sockets: HashMap<String, Vec<UnixListener>>) -> io::Result<()> {
        let mut next = Vec::new();
        for (name, listeners) in sockets {
            for listener in listeners {
                next.push((name.clone(), BareUnixListener::new(listener)?));
            }
        }
        self.stop();
        for (name, listener) in next {
            let engine = Arc::clone(&self.engine);
            let (admission, token) = (self.admission.clone(), self.token.clone());
            self.loops.push(tokio::spawn(accept(engine, admission, token, name, listener)));
        }
        Ok(())
    }

    /// Stops accepting.
    pub(crate) fn stop(&mut self) {
        for task in self.loops.drain(..) {
            task.abort();
        }
    }
}

async fn accept(
    engine: Arc<Engine>,
    admission: Admission,
    token: DrainToken,
    name: String,
    listener: BareUnixListener,
) {
    let refusals = Refusals::default();
    loop {
        let stream = listener.accept().await;
        let compiled = engine.config();
        let Some(rules) = compiled.listeners.get(&name).cloned() else { continue };
        drop(compiled);
        let Ok(credentials) = getsockopt(&stream, sockopt::PeerCredentials) else { continue };
        let pid = Some(credentials.pid()).filter(|pid| *pid != 0);
        let peer = PeerCredentials { uid: credentials.uid(), gid: credentials.gid(), pid };
        if !rules.admits(peer.uid, peer.gid) {
            refusals.tell(&name, &peer);
            refusal::hang_up(&stream);
            continue;
        }
        let permit = match admit(&admission, &rules, &peer) {
            Ok(permit) => permit,
            Err(refused) => {
                tracing::warn!(listener = name, uid = peer.uid, "connection refused: {refused}");
                continue;
            }
        };
        let mut work = serve(Arc::clone(&engine), rules, stream, peer, &token);
        // What is asked already and needs to wait for nothing is answered without a task.
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => ended(result, &peer),
            Poll::Pending => {
                let token = token.clone();
                tokio::spawn(async move {
                    ended(token.track(work).await, &peer);
                    drop(permit);
                });
            }
        }
    }
}

fn ended(result: io::Result<()>, peer: &PeerCredentials) {
    if let Err(error) = result {
        // Clients that vanish are normal.
        tracing::debug!(%error, uid = peer.uid, "connection ended");
    }
}

/// Root and the daemon's own account may take any place, other accounts not all of them. The fronts' own sockets are
/// beside the limits: connections of strangers elsewhere must not stop mail.
fn admit(admission: &Admission, rules: &Listener, peer: &PeerCredentials) -> Result<Permit, Refused> {
    // Who is let in on the fronts' sockets is a front, also under an account of its own.
    let fronts = conf::is_fronts_socket(&rules.name) && (rules.mode & 0o007 == 0 || !rules.is_for_all());
    let ours = fronts || peer.uid == 0 || peer.uid == nix::unistd::geteuid().as_raw();
    match (ours, fronts || rules.mode & 0o077 == 0) {
        (true, true) => Ok(admission.admit_own()),
        (true, false) => admission.admit(None),
        (false, _) => admission.admit_account(peer.uid),
    }
}

/// Boxed: a connection takes the memory of its own kind, not of the largest, and is moved once.
type Served = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

fn serve(
    engine: Arc<Engine>,
    rules: Arc<Listener>,
    stream: StdStream,
    peer: PeerCredentials,
    token: &DrainToken,
) -> Served {
    let token = token.clone();
    match rules.kind {
        AuthListenerKind::Client | AuthListenerKind::Login => {
            Box::pin(async move { connection::serve(engine, rules, watched(stream)?, peer, token).await })
        }
        AuthListenerKind::Userdb | AuthListenerKind::Master | AuthListenerKind::Session => {
            Box::pin(async move { master::serve(engine, rules, watched(stream)?, peer, token).await })
        }
        AuthListenerKind::Saslauthd => Box::pin(mux::serve(engine, rules, stream, peer)),
    }
}

/// The socket, watched by the runtime.
pub(crate) fn watched(stream: StdStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
