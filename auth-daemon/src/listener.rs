//! Accepting connections: who may, how many, and which protocol they get.

use std::collections::HashMap;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;

use boot::{Admission, DrainToken, Permit, Refused};
use conf::AuthListenerKind;
use tokio::net::{UnixListener, UnixStream};
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
    pub(crate) fn replace(&mut self, sockets: HashMap<String, Vec<StdListener>>) -> std::io::Result<()> {
        let mut next = Vec::new();
        for (name, listeners) in sockets {
            for listener in listeners {
                listener.set_nonblocking(true)?;
                next.push((name.clone(), UnixListener::from_std(listener)?));
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
    listener: UnixListener,
) {
    let refusals = Refusals::default();
    loop {
        let stream = boot::accept_unix(&listener).await;
        let compiled = engine.config();
        let Some(rules) = compiled.listeners.get(&name).cloned() else { continue };
        drop(compiled);
        let Ok(credentials) = stream.peer_cred() else { continue };
        let peer = PeerCredentials { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
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
        let (engine, token) = (Arc::clone(&engine), token.clone());
        tokio::spawn(async move {
            let result = serve(engine, rules, stream, peer, token).await;
            if let Err(error) = result {
                // Clients that vanish are normal.
                tracing::debug!(%error, uid = peer.uid, "connection ended");
            }
            drop(permit);
        });
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

async fn serve(
    engine: Arc<Engine>,
    rules: Arc<Listener>,
    stream: UnixStream,
    peer: PeerCredentials,
    token: DrainToken,
) -> std::io::Result<()> {
    // Boxed: a connection takes the memory of its own kind, not of the largest, and is moved once.
    match rules.kind {
        AuthListenerKind::Client | AuthListenerKind::Login => {
            Box::pin(connection::serve(engine, rules, stream, peer, token)).await
        }
        AuthListenerKind::Userdb | AuthListenerKind::Master | AuthListenerKind::Session => {
            Box::pin(master::serve(engine, rules, stream, peer, token)).await
        }
        AuthListenerKind::Saslauthd => Box::pin(token.track(mux::serve(engine, rules, stream, peer))).await,
    }
}
