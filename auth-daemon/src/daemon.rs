//! The life of the process: start, reload, stop.
//!
//! Trust: the supervisor alone speaks on the control channel, and made the sockets.
//! Never: take half of a new configuration: one that cannot work changes nothing.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use boot::{Admission, Control, Drain, Event, Sockets};
use conf::AuthSlice;

use crate::config::Compiled;
use crate::engine::Engine;
use crate::files::Files;
use crate::ids::Ids;
use crate::listener::Listeners;
use crate::worker::Workers;
use crate::{admin, engine};

/// How often old logins and idle workers are looked for.
const TIDY: Duration = Duration::from_secs(15);

/// The daemon without a supervisor: what tests and embedding programs use.
#[derive(Debug)]
pub struct Daemon {
    engine: Arc<Engine>,
    listeners: Listeners,
    admission: Admission,
    drain: Drain,
}

impl Daemon {
    /// Compiles the settings and prepares everything; no socket is served yet. Call inside a tokio runtime.
    ///
    /// # Errors
    /// Settings that cannot work, in words for the administrator.
    pub fn new(slice: &AuthSlice) -> anyhow::Result<Daemon> {
        Daemon::with_workers(slice, Workers::new(slice.auth.worker.clone(), slice.worker_socket.as_deref()))
    }

    pub(crate) fn with_workers(slice: &AuthSlice, workers: Workers) -> anyhow::Result<Daemon> {
        let ids = Ids::new(slice.ids.clone(), workers.clone());
        let files = Files::with_ids(ids.clone());
        let compiled = Compiled::new(slice, crypt, &files)?;
        let admission = Admission::new(slice.limits.auth_connections, 0);
        let secret = server_secret(&slice.state_dir);
        let engine = Arc::new(Engine::new(compiled, files, ids, workers, secret));
        look_at_shadow(slice);
        let drain = Drain::new();
        let listeners = Listeners::new(Arc::clone(&engine), admission.clone(), drain.token());
        Ok(Daemon { engine, listeners, admission, drain })
    }

    /// Counts connections for `postern status`.
    fn count_in(&mut self, gauges: Arc<boot::Gauges>) {
        let engine = Arc::clone(&self.engine);
        gauges.report(move |samples| crate::figures::report(&engine, samples));
        let admission = self.admission.clone().with_gauges(gauges);
        self.listeners = Listeners::new(Arc::clone(&self.engine), admission, self.drain.token());
    }

    /// Serves these sockets, by listener name, in place of those before.
    ///
    /// # Errors
    /// A socket that cannot be registered with the runtime.
    pub fn listen(&mut self, sockets: HashMap<String, Vec<UnixListener>>) -> std::io::Result<()> {
        self.listeners.replace(sockets)
    }

    /// Swaps the settings; requests in flight finish under the old ones.
    ///
    /// # Errors
    /// Settings that cannot work; the old ones stay.
    pub fn reload(&mut self, slice: &AuthSlice) -> anyhow::Result<()> {
        if self.engine.ids.replace(&slice.ids) {
            self.engine.files.forget();
        }
        let compiled = Compiled::new(slice, crypt, &self.engine.files)?;
        look_at_shadow(slice);
        self.admission.set_limits(slice.limits.auth_connections, 0);
        self.engine.reload(compiled);
        Ok(())
    }

    /// Answers an admin command.
    ///
    /// # Errors
    /// A text for the person who asked.
    pub async fn ask(&self, body: &serde_json::Value) -> Result<serde_json::Value, String> {
        admin::answer(&self.engine, body).await
    }

    /// Logins that wait to be fetched.
    #[cfg(test)]
    pub(crate) fn kept_logins(&self) -> usize {
        self.engine.logins().len()
    }

    /// Accepts nothing more and waits for what is in flight. True: everything was finished in time.
    pub async fn stop(self, grace: Duration) -> bool {
        let Daemon { mut listeners, drain, .. } = self;
        listeners.stop();
        drop(listeners);
        drain.finish(grace).await
    }
}

/// The daemon's main, run in a child process of the supervisor.
///
/// # Errors
/// Settings that cannot work, or a system that refuses something basic.
pub fn main(start: boot::Start) -> anyhow::Result<()> {
    let slice = AuthSlice::from_json(&start.slice).context("the configuration slice cannot be read")?;
    // One thread serves all sockets: a cheap login takes less time than waking a second one. Hashes, files and everything
    // else that takes long have threads or processes of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(run(start, &slice));
    // Hash threads and blocking reads must not hold the end up.
    runtime.shutdown_background();
    result
}

async fn run(start: boot::Start, slice: &AuthSlice) -> anyhow::Result<()> {
    let mut control = Control::new(start.control).context("cannot reach the supervisor")?;
    let mut daemon = Daemon::new(slice)?;
    daemon.count_in(control.gauges());
    daemon.listen(take(start.sockets, slice)).context("cannot serve the sockets")?;
    control.ready().await;
    tracing::info!(listeners = slice.auth.listener.len(), "serving");
    let mut tidy = tokio::time::interval(TIDY);
    loop {
        tokio::select! {
            event = control.event() => match event {
                Event::Reload { slice, sockets } => {
                    let result = reload(&mut daemon, &slice, sockets).map_err(|error| format!("{error:#}"));
                    control.reloaded(result).await;
                }
                Event::Stop { grace } => {
                    daemon.stop(grace).await;
                    return Ok(());
                }
                Event::Lost => return Ok(()),
                Event::Ask(question) => {
                    let engine = Arc::clone(&daemon.engine);
                    tokio::spawn(async move {
                        match admin::answer(&engine, question.body()).await {
                            Ok(answer) => question.answer(answer),
                            Err(text) => question.refuse(text),
                        }
                    });
                }
                _ => {}
            },
            _ = tidy.tick() => daemon.engine.tidy(Instant::now()),
        }
    }
}

fn reload(daemon: &mut Daemon, slice: &[u8], sockets: Sockets) -> anyhow::Result<()> {
    let slice = AuthSlice::from_json(slice).context("the configuration slice cannot be read")?;
    daemon.reload(&slice)?;
    daemon.listen(take(sockets, &slice)).context("cannot serve the sockets")?;
    tracing::info!("configuration reloaded");
    Ok(())
}

fn take(mut sockets: Sockets, slice: &AuthSlice) -> HashMap<String, Vec<UnixListener>> {
    slice
        .auth
        .listener
        .iter()
        .map(|listener| (listener.name.clone(), sockets.take_unix(&listener.name)))
        .collect()
}

/// Says at the start, not at the first login, that passwords of system users cannot be checked.
fn look_at_shadow(slice: &AuthSlice) {
    if slice.worker_socket.is_some() {
        // Not this process's affair: the workers have an account of their own.
        return;
    }
    if let Some(passdb) = needs_shadow(&slice.auth)
        && let Some(why) = crate::worker::shadow_is_closed()
    {
        tracing::warn!(target: "auth", passdb = passdb.name, why, "passwords of system users cannot be checked; run `postern doctor`");
    }
}

/// The first passdb that cannot work without `/etc/shadow`.
pub fn needs_shadow(auth: &conf::Auth) -> Option<&conf::Passdb> {
    let needs = |passdb: &conf::Passdb| match &passdb.driver {
        conf::PassdbDriver::Shadow { .. } => true,
        conf::PassdbDriver::Pam { service, .. } => system_auth::service_uses(service, "pam_unix.so"),
        _ => false,
    };
    auth.passdb.iter().find(|passdb| needs(passdb))
}

/// crypt(3), which is safe in any thread.
fn crypt(key: &[u8], setting: &[u8]) -> Option<Vec<u8>> {
    system_auth::crypt(key, setting)
}

/// The server's secret, made at the first start. Without a place to keep it, it lives as long as the process: then
/// salts of unknown users change at a restart.
fn server_secret(state: &Path) -> [u8; 32] {
    if state.as_os_str().is_empty() {
        // Settings without a state folder: nothing is to be kept.
        return engine::random();
    }
    let path = state.join("auth-secret");
    match read_secret(&path).or_else(|_| make_secret(&path)) {
        Ok(secret) => secret,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the server's secret cannot be kept; using one for this run");
            engine::random()
        }
    }
}

fn read_secret(path: &Path) -> std::io::Result<[u8; 32]> {
    let mut secret = [0; 32];
    std::fs::File::open(path)?.read_exact(&mut secret)?;
    Ok(secret)
}

fn make_secret(path: &Path) -> std::io::Result<[u8; 32]> {
    let secret: [u8; 32] = engine::random();
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&secret)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    Ok(secret)
}
