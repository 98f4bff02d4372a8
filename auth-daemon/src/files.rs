//! passwd-files of passdbs and userdbs, shared over reloads.
//!
//! Purpose: one copy in memory of each file however many entries use it, read again when it changed.
//! Trust:   paths are the administrator's, but for the variables in them: a value must be one plain component.
//! Never:   read a file on a thread that serves sockets, or ask a name service in this process.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use creds::passwd::{
    Entry, FileError, FileOptions, Format, Freshness, Index, NumericIds, PasswdFile, PasswdFolder, Polled,
    ResolveIds, is_template,
};

use crate::ids::Ids;
use crate::request::Request;
use crate::template::{Template, before_at, variable};

/// How often a look-up may ask the file system: a change is noticed as good as at once, and `stat` costs nothing
/// beside the load.
const FRESH: Freshness = Freshness::AtMostEvery(Duration::from_millis(5));

/// A sasldb is read whole; a million users need less.
const LARGEST_SASLDB: u64 = 256 << 20;

/// All passwd-files by their path as configured.
pub(crate) struct Files {
    known: Mutex<HashMap<String, Arc<Source>>>,
    ids: Arc<dyn ResolveIds + Send + Sync>,
}

impl Default for Files {
    fn default() -> Files {
        Files { known: Mutex::default(), ids: Arc::new(NumericIds) }
    }
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Files").field(&self.known).finish()
    }
}

impl Files {
    /// Files whose uid and gid columns may hold these names.
    pub(crate) fn with_ids(ids: Ids) -> Files {
        Files { known: Mutex::default(), ids: Arc::new(ids) }
    }

    /// Forgets everything read: names may mean other numbers now.
    pub(crate) fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The file or family of files of this path.
    pub(crate) fn source(&self, path: &str) -> anyhow::Result<Arc<Source>> {
        let options = FileOptions { ids: Some(Arc::clone(&self.ids)), ..FileOptions::default() };
        self.known(path, || {
            if is_template(path) {
                // Unknown variables are found now, not at the first login.
                Template::parse(path).context("path")?;
                Ok(Source::Folder(Arc::new(PasswdFolder::new(path, options)?)))
            } else {
                let plain = Template::parse(path)
                    .context("path")?
                    .expand(&crate::template::NameOnly { user: "", default_domain: None });
                Ok(Source::File(Arc::new(PasswdFile::new(plain, options))))
            }
        })
    }

    /// A sasldb.
    pub(crate) fn sasldb(&self, path: &Path) -> anyhow::Result<Arc<Source>> {
        let options = FileOptions { ids: None, max_bytes: LARGEST_SASLDB, format: Format::Sasldb };
        // The same path may not be both: a sasldb is no file of lines.
        let key = format!("sasldb:{}", path.display());
        self.known(&key, || Ok(Source::File(Arc::new(PasswdFile::new(path, options)))))
    }

    fn known(&self, key: &str, make: impl FnOnce() -> anyhow::Result<Source>) -> anyhow::Result<Arc<Source>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = known.get(key) {
            return Ok(Arc::clone(source));
        }
        let source = Arc::new(make()?);
        known.insert(key.to_owned(), Arc::clone(&source));
        Ok(source)
    }

    /// Forgets files that no configuration names any more.
    pub(crate) fn forget_unused(&self) {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, source| Arc::strong_count(source) > 1);
    }
}

/// Where entries come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// One file.
    File(Arc<PasswdFile>),
    /// A file per domain or user.
    Folder(Arc<PasswdFolder>),
}

impl Source {
    /// Finds the request's user and hands the entry to `take`.
    pub(crate) async fn find<T>(
        &self,
        format: Option<&Template>,
        request: &Request,
        take: impl FnOnce(&Index, Entry<'_>) -> T,
    ) -> Result<Option<T>, String> {
        let Some(index) = self.index(request).await? else { return Ok(None) };
        let entry = match format {
            Some(format) => index.lookup(format.expand(request).as_bytes()),
            None => {
                let domain = request.default_domain.as_deref().unwrap_or_default();
                index.lookup_user(request.user.as_bytes(), domain.as_bytes())
            }
        };
        Ok(entry.map(|entry| take(&index, entry)))
    }

    /// The same in a sasldb, whose names always have a realm: a user's own, or `realm` for names of the default
    /// domain and for bare ones.
    pub(crate) async fn find_realm<T>(
        &self,
        realm: &str,
        request: &Request,
        take: impl FnOnce(Entry<'_>) -> T,
    ) -> Result<Option<T>, String> {
        let Some(index) = self.index(request).await? else { return Ok(None) };
        let user = request.user.as_str();
        let default = request.default_domain.as_deref();
        let is_bare = user.split_once('@').is_none_or(|(_, domain)| Some(domain) == default);
        let entry = index.lookup(user.as_bytes()).or_else(|| {
            is_bare.then(|| index.lookup(format!("{}@{realm}", before_at(user)).as_bytes())).flatten()
        });
        Ok(entry.map(take))
    }

    /// The index that would hold the user. `None`: there is no file for his domain.
    async fn index(&self, request: &Request) -> Result<Option<Arc<Index>>, String> {
        match self {
            Source::File(file) => match file.poll(request.arrived, FRESH) {
                Ok(Polled::Ready(index)) => Ok(Some(index)),
                Ok(Polled::Stale(_)) => {
                    let (file, now) = (Arc::clone(file), request.arrived);
                    elsewhere(move || file.current(now, FRESH).map(Some)).await
                }
                Err(error) => Err(error.to_string()),
            },
            Source::Folder(folder) => {
                let missing = |error: FileError| match error {
                    FileError::Missing(_) | FileError::UnsafeName => Ok(None),
                    other => Err(other),
                };
                let mut expand = |name: &str| variable(name, request).map(String::into_bytes);
                let polled = folder.select(&mut expand).and_then(|file| {
                    let polled = folder.poll(&file, request.arrived, FRESH)?;
                    Ok((file, polled))
                });
                match polled {
                    Ok((_, Polled::Ready(index))) => Ok(Some(index)),
                    Ok((file, Polled::Stale(_))) => {
                        let (folder, now) = (Arc::clone(folder), request.arrived);
                        elsewhere(move || folder.current_of(&file, now, FRESH).map(Some).or_else(missing))
                            .await
                    }
                    Err(error) => missing(error).map_err(|error| error.to_string()),
                }
            }
        }
    }

    /// All entries, for LIST. `None`: a family of files cannot be listed.
    pub(crate) async fn list(&self, now: Instant) -> Result<Option<Vec<String>>, String> {
        let Source::File(file) = self else { return Ok(None) };
        let file = Arc::clone(file);
        let index = elsewhere(move || file.current(now, FRESH)).await?;
        Ok(Some(index.entries().map(|entry| String::from_utf8_lossy(entry.name()).into_owned()).collect()))
    }
}

/// Reads on a thread that may block.
async fn elsewhere<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(format!("reading a passwd-file failed: {error}")),
    }
}
