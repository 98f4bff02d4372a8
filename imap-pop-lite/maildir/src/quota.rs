//! `maildirsize`: the Maildir++ quota file, kept only where it already exists.
//!
//! Format: reference note "maildir-imap-pop3", section 6: a line of limits, then deltas.
//! Trust:  a file that makes no sense limits nothing; it is left for the program that made it.
//! Never:  make the file where there is none, or fail a change because it could not be noted there.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;

use crate::dirs::{self, Listing, Rights, Stamp};
use crate::error::{Context, Error};
use crate::name;

/// At this size the deltas are summed up anew.
const LARGEST: u64 = 5120;
/// An account over quota is counted again when the last count is older.
const COUNT_AGE: Duration = Duration::from_secs(15 * 60);

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Amount {
    bytes: i64,
    messages: i64,
}

#[derive(Debug, Eq, PartialEq)]
struct Quota {
    limits: Vec<u8>,
    /// 0: no limit.
    limit: Amount,
    used: Amount,
    deltas: usize,
}

fn parse(text: &[u8]) -> Option<Quota> {
    let mut lines = text.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    let limits = lines.next()?;
    let mut limit = Amount::default();
    for part in limits.split(|b| *b == b',') {
        let (kind, digits) = part.split_last()?;
        let value = name::parse_decimal(digits).and_then(|n| i64::try_from(n).ok())?;
        match kind {
            b'S' => limit.bytes = value,
            b'C' => limit.messages = value,
            _ => {}
        }
    }
    let (mut used, mut deltas) = (Amount::default(), 0);
    for line in lines {
        let text = std::str::from_utf8(line).ok()?;
        let mut numbers = text.split_whitespace().map(str::parse::<i64>);
        let (Some(Ok(bytes)), Some(Ok(messages))) = (numbers.next(), numbers.next()) else { return None };
        used.bytes = used.bytes.saturating_add(bytes);
        used.messages = used.messages.saturating_add(messages);
        deltas += 1;
    }
    Some(Quota { limits: limits.to_vec(), limit, used, deltas })
}

impl Quota {
    fn has_room(&self, bytes: i64, messages: i64) -> bool {
        let fits = |limit: i64, used: i64, more: i64| limit == 0 || used.saturating_add(more) <= limit;
        fits(self.limit.bytes, self.used.bytes, bytes)
            && fits(self.limit.messages, self.used.messages, messages)
    }

    fn is_negative(&self) -> bool {
        self.used.bytes < 0 || self.used.messages < 0
    }
}

fn path(root: &Path) -> PathBuf {
    root.join("maildirsize")
}

fn read(root: &Path) -> Option<Quota> {
    let bytes = dirs::read_limited(&path(root), 4 * LARGEST).ok()??;
    parse(&bytes)
}

/// Whether this tree keeps a quota.
pub(crate) fn is_kept(root: &Path) -> bool {
    path(root).exists()
}

/// Refuses a delivery that does not fit.
pub(crate) fn check(root: &Path, bytes: u64, messages: i64) -> Result<(), Error> {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    let Some(quota) = read(root) else { return Ok(()) };
    if quota.has_room(bytes, messages) && !quota.is_negative() {
        return Ok(());
    }
    let age = fs::metadata(path(root)).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
    if quota.is_negative() || quota.deltas > 1 || age.is_some_and(|age| age >= COUNT_AGE) {
        let used = recount(root, &quota.limits)?;
        if (Quota { used, ..quota }).has_room(bytes, messages) {
            return Ok(());
        }
    }
    Err(Error::OverQuota)
}

/// Notes messages that came or went. Failing to do so is no reason to fail the delivery.
pub(crate) fn adjust(root: &Path, bytes: i64, messages: i64) {
    let path = path(root);
    let line = format!("{bytes} {messages}\n");
    let appended = OpenOptions::new()
        .append(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(&path)
        .and_then(|mut file| file.write_all(line.as_bytes()).and_then(|()| file.metadata()));
    match appended {
        Ok(meta) if meta.len() >= LARGEST => {
            if let Some(quota) = read(root)
                && let Err(error) = recount(root, &quota.limits)
            {
                tracing::warn!(path = %path.display(), %error, "cannot count the quota anew");
            }
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "cannot note a change of the quota"),
    }
}

/// Counts all messages of the tree and replaces the file; not when the tree changed meanwhile.
fn recount(root: &Path, limits: &[u8]) -> Result<Amount, Error> {
    let mut dirs: Vec<(PathBuf, Option<Stamp>)> = Vec::new();
    let mut used = Amount::default();
    let mut folders = vec![root.to_owned()];
    for entry in fs::read_dir(root).ctx("read", root)? {
        let entry = entry.ctx("read", root)?;
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if name.starts_with(b".") && !name.starts_with(b"..") {
            folders.push(entry.path());
        }
    }
    for dir in folders.iter().flat_map(|f| [f.join("new"), f.join("cur")]) {
        let stamp = Stamp::of(&dir).ctx("read", &dir)?;
        if stamp.is_none() {
            continue;
        }
        dirs.push((dir.clone(), stamp));
        for file in Listing::read(&dir).ctx("read", &dir)?.iter() {
            let noted = name::noted_size(name::base_of(file), b'S');
            let size = noted.or_else(|| fs::metadata(dirs::join(&dir, file)).ok().map(|m| m.len()));
            if let Some(size) = size.and_then(|s| i64::try_from(s).ok()) {
                used.bytes = used.bytes.saturating_add(size);
                used.messages += 1;
            }
        }
    }
    let tmp = root.join("tmp").join(format!("{}.maildirsize", name::unique_base(SystemTime::now())));
    let rights = Rights::of(root).ctx("read", root)?;
    let mut file = dirs::create_new(&tmp, rights).ctx("create", &tmp)?;
    let mut text = limits.to_vec();
    text.extend_from_slice(format!("\n{} {}\n", used.bytes, used.messages).as_bytes());
    let path = path(root);
    let done = file.write_all(&text).and_then(|()| fs::rename(&tmp, &path));
    if let Err(e) = done {
        let _ = fs::remove_file(&tmp);
        return Err(Error::io("write", &tmp, e));
    }
    if dirs.iter().any(|(dir, stamp)| Stamp::of(dir).ok().flatten() != *stamp) {
        // Somebody delivered while we counted: the next one who needs it counts again.
        tracing::debug!(root = %root.display(), "mail tree changed while its quota was counted");
        let _ = fs::OpenOptions::new().append(true).open(&path).and_then(|mut f| f.write_all(b"0 0\n"));
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Maildir;

    #[test]
    fn parsing() {
        let quota = parse(b"104857600S,1000C\n195 1\n         -27           -1\n").unwrap();
        assert_eq!(quota.limit, Amount { bytes: 104_857_600, messages: 1000 });
        assert_eq!(quota.used, Amount { bytes: 168, messages: 0 });
        assert_eq!(quota.deltas, 2);
        assert_eq!(parse(b"0S\n").unwrap().limit, Amount::default());
        for bad in [&b""[..], b"x\n", b"10S\nx 1\n", b"10S\n1\n", b"S\n", b"10S,\n", b"\xff\n"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path(), u64::MAX, 1).unwrap();
        adjust(dir.path(), 1, 1);
        assert!(!is_kept(dir.path()));
    }

    #[test]
    fn deliveries_count_and_stop_at_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let maildir = Maildir::open_or_create(&dir.path().join("M")).unwrap();
        let deliver = |text: &[u8]| {
            let mut delivery = maildir.delivery()?;
            delivery.write(text)?;
            delivery.finish()?.commit().map(drop)
        };
        deliver(b"before").unwrap();
        fs::write(path(maildir.root()), "20S,3C\n6 1\n").unwrap();
        deliver(b"1234567890").unwrap();
        assert_eq!(fs::read(path(maildir.root())).unwrap(), b"20S,3C\n6 1\n10 1\n");
        assert!(matches!(deliver(b"12345"), Err(Error::OverQuota)));
        // That counted anew.
        assert_eq!(fs::read(path(maildir.root())).unwrap(), b"20S,3C\n16 2\n");
        deliver(b"1234").unwrap();
        // Removed by a program that keeps no quota: found out at the next count.
        for entry in fs::read_dir(maildir.root().join("new")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        deliver(b"1234").unwrap();
    }
}
