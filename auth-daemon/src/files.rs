//! passwd-files of passdbs and userdbs, shared over reloads.
//!
//! Purpose: one copy in memory of each file however many entries use it, read again when it changed.
//! Never:   read a large file on a thread that serves sockets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use creds::passwd::{
    Entry, FileError, FileOptions, Freshness, Index, PasswdFile, PasswdFolder, Polled, ResolveIds,
    is_template,
};

use crate::request::Request;
use crate::template::{Template, variable};

/// How often a look-up may ask the file system: a change is noticed as good as at once, and `stat` costs nothing
/// beside the load.
const FRESH: Freshness = Freshness::AtMostEvery(Duration::from_millis(5));

/// All passwd-files by their path as configured.
#[derive(Debug, Default)]
pub(crate) struct Files(Mutex<HashMap<String, Arc<Source>>>);

impl Files {
    /// The file or family of files of this path.
    pub(crate) fn source(&self, path: &str) -> anyhow::Result<Arc<Source>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = known.get(path) {
            return Ok(Arc::clone(source));
        }
        let options = FileOptions { ids: Some(Arc::new(SystemIds)), ..FileOptions::default() };
        let source = if is_template(path) {
            // Unknown variables are found now, not at the first login.
            Template::parse(path).context("path")?;
            Source::Folder(PasswdFolder::new(path, options)?)
        } else {
            let plain = Template::parse(path)
                .context("path")?
                .expand(&crate::template::NameOnly { user: "", default_domain: None });
            Source::File(Arc::new(PasswdFile::new(plain, options)))
        };
        let source = Arc::new(source);
        known.insert(path.to_owned(), Arc::clone(&source));
        Ok(source)
    }

    /// Forgets files that no configuration names any more.
    pub(crate) fn forget_unused(&self) {
        self.0
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
    Folder(PasswdFolder),
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

    /// The index that would hold the user. `None`: there is no file for his domain.
    async fn index(&self, request: &Request) -> Result<Option<Arc<Index>>, String> {
        match self {
            Source::File(file) => match file.poll(request.arrived, FRESH) {
                Ok(Polled::Ready(index)) => Ok(Some(index)),
                Ok(Polled::Stale(_)) => {
                    let (file, now) = (Arc::clone(file), request.arrived);
                    let read = tokio::task::spawn_blocking(move || file.current(now, FRESH));
                    match read.await {
                        Ok(Ok(index)) => Ok(Some(index)),
                        Ok(Err(error)) => Err(error.to_string()),
                        Err(error) => Err(format!("reading a passwd-file failed: {error}")),
                    }
                }
                Err(error) => Err(error.to_string()),
            },
            Source::Folder(folder) => {
                let mut expand = |name: &str| variable(name, request).map(String::into_bytes);
                match folder.current(&mut expand, request.arrived, FRESH) {
                    Ok(index) => Ok(Some(index)),
                    Err(FileError::Missing(_) | FileError::UnsafeName) => Ok(None),
                    Err(error) => Err(error.to_string()),
                }
            }
        }
    }

    /// All entries, for LIST. `None`: a family of files cannot be listed.
    pub(crate) fn list(&self, now: std::time::Instant) -> Result<Option<Vec<String>>, FileError> {
        let Source::File(file) = self else { return Ok(None) };
        let index = file.current(now, FRESH)?;
        Ok(Some(index.entries().map(|entry| String::from_utf8_lossy(entry.name()).into_owned()).collect()))
    }
}

/// Names in uid and gid columns are looked up when a file is read, never for a request.
struct SystemIds;

impl ResolveIds for SystemIds {
    fn uid(&self, name: &str) -> Option<u32> {
        nix::unistd::User::from_name(name).ok().flatten().map(|user| user.uid.as_raw())
    }

    fn gid(&self, name: &str) -> Option<u32> {
        nix::unistd::Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
    }
}
