//! Names of system users and groups where a number is needed: uid and gid columns, `uid=vmail` in user databases.
//!
//! Purpose: this process asks no name service. Who makes the settings hands in the names of the machine; others are
//!          asked for in a worker, where there are workers.
//! Trust:   the supervisor's list, else a worker, believed for a minute; the names asked for stand in the
//!          administrator's files.
//! Never:   block a thread that serves sockets: [`ResolveIds`] is for threads that read files.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};
use std::time::{Duration, Instant};

use conf::SystemIds;
use creds::passwd::ResolveIds;

use crate::worker::Workers;

/// How long a worker's answer is believed.
const KEPT: Duration = Duration::from_secs(60);
/// Answers kept.
const MOST: usize = 1024;
/// A worker answers or is killed before that.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Id {
    /// A user.
    Uid,
    /// A group.
    Gid,
}

impl Id {
    /// Its field in a user database.
    pub(crate) fn field(self) -> &'static str {
        match self {
            Id::Uid => "uid",
            Id::Gid => "gid",
        }
    }
}

/// The names that are known. Copies share everything.
#[derive(Clone)]
pub(crate) struct Ids(Arc<Inner>);

struct Inner {
    told: RwLock<SystemIds>,
    asked: Mutex<HashMap<(Id, String), (u32, Instant)>>,
    workers: Workers,
}

impl Ids {
    pub(crate) fn new(told: SystemIds, workers: Workers) -> Ids {
        Ids(Arc::new(Inner { told: RwLock::new(told), asked: Mutex::default(), workers }))
    }

    /// The names of a new configuration; whether they are others than before.
    pub(crate) fn replace(&self, told: &SystemIds) -> bool {
        let mut known = self.0.told.write().unwrap_or_else(PoisonError::into_inner);
        let changed = *known != *told;
        if changed {
            known.clone_from(told);
        }
        changed
    }

    /// The number of a name; `None`: there is none.
    pub(crate) async fn find(&self, kind: Id, name: &str) -> Result<Option<u32>, String> {
        if let Some(known) = self.known(kind, name) {
            return Ok(known);
        }
        let found = match kind {
            Id::Uid => self.0.workers.passwd(name, None).await?.map(|account| account.uid),
            Id::Gid => self.0.workers.group(name).await?,
        };
        if let Some(id) = found {
            let mut asked = self.0.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.len() >= MOST {
                asked.clear();
            }
            asked.insert((kind, name.to_owned()), (id, Instant::now()));
        }
        Ok(found)
    }

    /// What can be said without a worker.
    fn known(&self, kind: Id, name: &str) -> Option<Option<u32>> {
        let told = self.0.told.read().unwrap_or_else(PoisonError::into_inner);
        let names = if kind == Id::Uid { &told.users } else { &told.groups };
        if let Some(id) = names.get(name) {
            return Some(Some(*id));
        }
        if !told.workers {
            return Some(None);
        }
        drop(told);
        let asked = self.0.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked
            .get(&(kind, name.to_owned()))
            .filter(|(_, since)| since.elapsed() < KEPT)
            .map(|(id, _)| Some(*id))
    }

    /// The same for a thread that may block.
    fn wait_for(&self, kind: Id, name: &str) -> Result<Option<u32>, String> {
        if let Some(known) = self.known(kind, name) {
            return Ok(known);
        }
        let runtime = tokio::runtime::Handle::try_current().map_err(|error| error.to_string())?;
        let (sender, receiver) = mpsc::channel();
        let (ids, name) = (self.clone(), name.to_owned());
        runtime.spawn(async move {
            // Nobody waits for it after the timeout.
            let _ = sender.send(ids.find(kind, &name).await);
        });
        receiver.recv_timeout(PATIENCE).map_err(|_| "no worker answered".to_owned())?
    }
}

impl ResolveIds for Ids {
    fn uid(&self, name: &str) -> Result<Option<u32>, String> {
        self.wait_for(Id::Uid, name)
    }

    fn gid(&self, name: &str) -> Result<Option<u32>, String> {
        self.wait_for(Id::Gid, name)
    }
}

impl std::fmt::Debug for Ids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ids")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_workers_nobody_is_asked() {
        let starts: crate::worker::Spawner = Arc::new(|| panic!("a worker was started"));
        let workers = Workers::with_spawner(conf::Workers::default(), starts);
        let told = SystemIds { users: [("vmail".to_owned(), 5000)].into(), ..SystemIds::default() };
        let ids = Ids::new(told, workers);
        assert_eq!(ids.find(Id::Uid, "vmail").await, Ok(Some(5000)));
        assert_eq!(ids.find(Id::Uid, "of-a-directory").await, Ok(None));
        assert_eq!(ids.gid("of-a-directory"), Ok(None));
    }
}
