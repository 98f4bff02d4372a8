//! The state folder of the embedded default: made on the first start, found again on later ones.
//!
//! Trust:     the folder belongs to the account of the daemons. As root, everything below it is done with that
//!            account's rights, so that a link planted there leads nowhere.
//! Never:     use a folder of somebody else, overwrite what an earlier start made.

use std::fs::{DirBuilder, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context as _;
use boot::StateLock;
use boot::exit::{self, Coded};
use conf::Settings;
use creds::Secret;

use crate::accounts::{self, Account};
use crate::certificate::{self, Made};
use crate::place::EMBEDDED_COPY;
use crate::roles::{self, Accounts};
use crate::users::UserFile;
use crate::{passwords, stack};

/// The first user, as wanted on the command line.
#[derive(Debug, Default)]
pub(crate) struct FirstUser {
    /// The name.
    pub(crate) name: Option<String>,
    /// The password; none: one is generated.
    pub(crate) password: Option<Secret>,
}

/// What a start found or made.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The lock of the folder.
    pub(crate) lock: StateLock,
    /// A user to log in as.
    pub(crate) user: String,
    /// That user's password, if it was generated just now.
    pub(crate) generated: Option<Secret>,
    /// What became of the certificates.
    pub(crate) certificates: Made,
}

/// Makes or checks the folder itself; afterwards it belongs to `account` (`None`: to this process).
pub(crate) fn claim(folder: &Path, account: Option<&Account>) -> anyhow::Result<()> {
    let current = Account::current();
    let owner = account.unwrap_or(&current);
    match std::fs::symlink_metadata(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            make_and_give(folder, owner).map_err(|error| cannot_make(folder, &error))?;
        }
        Err(error) => return Err(cannot_make(folder, &error)),
        Ok(meta) if meta.file_type().is_symlink() => {
            let text =
                format!("the state folder {} is a symbolic link; name the folder itself", folder.display());
            return Err(Coded::new(exit::CANTCREAT, text).into());
        }
        Ok(meta) if !meta.is_dir() => {
            let text = format!("{} is not a folder; choose another --state-dir", folder.display());
            return Err(Coded::new(exit::CANTCREAT, text).into());
        }
        Ok(meta) if meta.uid() == owner.uid => {}
        Ok(meta) if current.uid == 0 && meta.uid() == 0 && is_empty(folder)? => {
            give(folder, (owner.uid, owner.gid), 0o755).map_err(|error| cannot_make(folder, &error))?;
        }
        Ok(meta) => {
            let theirs = owner_name(meta.uid());
            let nameless = owner.name.parse::<u32>().is_ok();
            let whom =
                if nameless { format!("{}:{}", owner.uid, owner.gid) } else { format!("{}:", owner.name) };
            let advice = if current.uid == 0 && account.is_none() {
                // Its parts are not root's: lay_out() names whose.
                format!(
                    "choose another, or give it away, but not all that is in it: chown root: {0} {0}/sockets",
                    folder.display()
                )
            } else if current.uid == 0 {
                format!("choose another, or give it away: chown -R {whom} {}", folder.display())
            } else {
                format!(
                    "choose another --state-dir, start as {theirs}, or let root give it away: chown -R {whom} {}",
                    folder.display()
                )
            };
            let text = format!(
                "the state folder {} belongs to {theirs}, not to {}; {advice}",
                folder.display(),
                owner.name
            );
            return Err(Coded::new(exit::NOPERM, text).into());
        }
    }
    if let Some(account) = account
        && !accounts::reaches(account, folder)?
    {
        return Err(out_of_reach(account, folder));
    }
    Ok(())
}

fn out_of_reach(account: &Account, folder: &Path) -> anyhow::Error {
    let text = format!(
        "the account {} cannot reach {}: a folder above it is closed; choose another --state-dir or --run-as",
        account.name,
        folder.display()
    );
    Coded::new(exit::NOPERM, text).into()
}

/// Makes the folder, with those above it, for `owner`.
fn make_and_give(folder: &Path, owner: &Account) -> std::io::Result<()> {
    if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    // Closed until it has its owner, and an error if somebody else was faster.
    DirBuilder::new().mode(0o700).create(folder)?;
    give(folder, (owner.uid, owner.gid), 0o755)
}

/// Gives an empty folder of ours to `owner`. The folder above may belong to somebody who exchanges it for a link at
/// this moment, so owner and mode are changed through a descriptor of what was looked at.
fn give(folder: &Path, (uid, gid): (u32, u32), mode: u32) -> std::io::Result<()> {
    let flags = (nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_NOFOLLOW).bits();
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(folder)?;
    let found = opened.metadata()?;
    let inside = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&opened));
    if found.uid() != nix::unistd::geteuid().as_raw() || std::fs::read_dir(inside)?.next().is_some() {
        return Err(std::io::Error::other("another program has replaced it"));
    }
    if found.uid() != uid {
        std::os::unix::fs::fchown(&opened, Some(uid), Some(gid))?;
    }
    opened.set_permissions(Permissions::from_mode(mode))
}

/// Makes the parts of a state folder that must be there before the daemons start. Where these have an account each the folder
/// itself is root's, so its entries can be trusted: nobody else can exchange them.
pub(crate) fn lay_out(settings: &Settings, who: &Accounts) -> anyhow::Result<()> {
    let folder = &settings.state_dir;
    let mail = folder.join("mail");
    let has_mail = settings.mail.mailboxes == conf::Mailboxes::Virtual
        && settings.has_fronts()
        && Path::new(&settings.mail.home).starts_with(&mail);
    if !who.distinct() || !accounts::is_root() {
        // Its daemons reach what is in the folder by then, not the folder itself.
        return if has_mail && !mail.exists() {
            accounts::acting_as(who.owner(), || make_folder(&mail, 0o700))?
        } else {
            Ok(())
        };
    }
    for account in [&who.auth, &who.imap].into_iter().flatten() {
        if !accounts::reaches(account, folder)? {
            return Err(out_of_reach(account, folder));
        }
    }
    part(&folder.join("sockets"), 0o755, None)?;
    part(&roles::auth_folder(settings, who), 0o700, who.auth.as_ref())?;
    if has_mail {
        part(&mail, 0o700, who.imap.as_ref())?;
    }
    for passdb in &settings.auth.passdb {
        if let conf::PassdbDriver::PasswdFile { path, .. } = &passdb.driver
            && Path::new(path).parent() == Some(folder)
        {
            readable_for(Path::new(path), who.auth.as_ref())
                .with_context(|| format!("cannot make {path} readable for the authentication daemon"))?;
        }
    }
    Ok(())
}

/// A folder in root's state folder for one account, made or checked.
fn part(path: &Path, mode: u32, owner: Option<&Account>) -> anyhow::Result<()> {
    let (uid, gid) = owner.map_or((0, 0), |owner| (owner.uid, owner.gid));
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            give(path, (uid, gid), mode).with_context(|| format!("cannot give away {}", path.display()))?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot make the folder {}", path.display()));
        }
    }
    let found = std::fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    if !found.is_dir() || found.uid() != uid {
        let text = format!(
            "{} must be a folder of {}, but belongs to {}; give it away: chown -R {}: {}",
            path.display(),
            accounts::name_of(uid),
            owner_name(found.uid()),
            accounts::name_of(uid),
            path.display()
        );
        return Err(Coded::new(exit::NOPERM, text).into());
    }
    Ok(())
}

/// Lets the account's group read a file of root's. What belongs to somebody else is his business.
pub(crate) fn readable_for(path: &Path, reader: Option<&Account>) -> std::io::Result<()> {
    let flags = (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits();
    let file = match std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let found = file.metadata()?;
    let Some(reader) = reader.filter(|_| found.is_file() && found.uid() == 0 && found.nlink() == 1) else {
        return Ok(());
    };
    std::os::unix::fs::fchown(&file, None, Some(reader.gid))?;
    file.set_permissions(Permissions::from_mode(found.mode() & 0o600 | 0o040))
}

fn owner_name(uid: u32) -> String {
    let name = accounts::name_of(uid);
    if name.parse::<u32>().is_ok() { format!("uid {name}") } else { name }
}

fn cannot_make(folder: &Path, error: &std::io::Error) -> anyhow::Error {
    let code = match error.kind() {
        std::io::ErrorKind::PermissionDenied => exit::NOPERM,
        _ => exit::CANTCREAT,
    };
    let text =
        format!("cannot make the state folder {}: {error}; choose another --state-dir", folder.display());
    Coded::new(code, text).into()
}

fn is_empty(folder: &Path) -> anyhow::Result<bool> {
    Ok(std::fs::read_dir(folder).with_context(|| folder.display().to_string())?.next().is_none())
}

/// Takes the folder's lock and makes what is missing in it. The user found or made becomes the postmaster.
pub(crate) fn prepare(
    settings: &mut Settings,
    first: FirstUser,
    who: &Accounts,
    now: SystemTime,
) -> anyhow::Result<Prepared> {
    let folder = &settings.state_dir.clone();
    claim(folder, who.owner())?;
    let mut prepared = accounts::acting_as(who.owner(), || -> anyhow::Result<Prepared> {
        let lock = StateLock::acquire(&stack::pid_file(folder))?;
        folders(folder, !who.distinct())?;
        let certificates = certificate::ensure(&folder.join("tls"), &settings.hostname, now)?;
        let users = UserFile::of(settings, None)?;
        let (user, generated) = first_user(&users, first)?;
        settings.smtp.postmaster = Some(users.canonical(&user));
        let copy = folder.join(EMBEDDED_COPY);
        let text = format!(
            "# The settings of this embedded default, written at every start: changes here are lost.\n\
             # A copy elsewhere is a good first configuration file: postern run --config FILE\n\n{}",
            settings.to_toml()
        );
        replace(&copy, &text).with_context(|| format!("cannot write {}", copy.display()))?;
        Ok(Prepared { lock, user, generated, certificates })
    })??;
    lay_out(settings, who)?;
    let users = UserFile::of(settings, None)?;
    let owner = if who.distinct() { who.imap.as_ref() } else { who.owner() };
    accounts::acting_as(owner, || maildir(settings, &users, &prepared.user))??;
    prepared.user = users.canonical(&prepared.user);
    Ok(prepared)
}

fn folders(folder: &Path, mail: bool) -> anyhow::Result<()> {
    // Sockets are for programs of other accounts, so the way to them is open; mail is not.
    for (name, mode) in [("sockets", 0o755), ("sockets/saslauthd", 0o755), ("tls", 0o755)] {
        make_folder(&folder.join(name), mode)?;
    }
    // Elsewhere it is another account's.
    if mail {
        make_folder(&folder.join("mail"), 0o700)?;
    }
    Ok(())
}

fn make_folder(path: &Path, mode: u32) -> anyhow::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        // Again: the umask may have taken something away.
        Ok(()) => std::fs::set_permissions(path, Permissions::from_mode(mode))
            .with_context(|| format!("cannot open {} for others", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot make the folder {}", path.display())),
    }
}

/// The first user of the file, made if there is none; with the password if it was generated.
fn first_user(users: &UserFile, first: FirstUser) -> anyhow::Result<(String, Option<Secret>)> {
    let listed = if users.path().exists() { users.list()? } else { Vec::new() };
    let wanted = match &first.name {
        Some(name) => Some(users.key(name)?),
        None => None,
    };
    let known = |key: &str| listed.iter().any(|user| user.user == users.canonical(key));
    match (&wanted, listed.first()) {
        (Some(key), _) if known(key) => return Ok((key.clone(), None)),
        (None, Some(user)) => return Ok((users.key(&user.user).unwrap_or_else(|_| user.user.clone()), None)),
        _ => {}
    }
    let key = match wanted {
        Some(key) => key,
        // An account may have a name that mail does not allow.
        None => accounts::person().and_then(|name| users.key(&name).ok()).unwrap_or_else(|| "me".to_owned()),
    };
    let (password, generated) = match first.password {
        Some(password) => (password, false),
        None => (passwords::generated()?, true),
    };
    let stored = passwords::stored("ARGON2ID", &users.canonical(&key), &password)?;
    users.add(&key, stored, Vec::new())?;
    Ok((key, generated.then_some(password)))
}

/// The first user's Maildir, so that it can be looked at before the first message.
fn maildir(settings: &Settings, users: &UserFile, key: &str) -> anyhow::Result<()> {
    let local = match key.split_once('@') {
        Some(_) => users.canonical(key),
        None => key.to_owned(),
    };
    let home = settings.state_dir.join("mail").join(local);
    make_folder(&home, 0o700)?;
    let root = home.join("Maildir");
    make_folder(&root, 0o700)?;
    for name in ["tmp", "new", "cur"] {
        make_folder(&root.join(name), 0o700)?;
    }
    Ok(())
}

/// Writes a file of mode 0600 in one step.
pub(crate) fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::{FirstUser, claim, prepare};
    use crate::certificate::Made;
    use crate::roles::Accounts;
    use conf::{EmbeddedOptions, Settings, embedded_default};
    use creds::Secret;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::time::SystemTime;

    fn settings(folder: &Path) -> Settings {
        embedded_default(&EmbeddedOptions {
            state_dir: folder.to_owned(),
            hostname: "mx.example.org".to_owned(),
            ..EmbeddedOptions::default()
        })
    }

    #[test]
    fn first_and_second_start() {
        let parent = tempfile::tempdir().expect("temporary folder");
        let folder = parent.path().join("state");
        let mut settings = settings(&folder);
        let first = FirstUser { name: Some("Bob".to_owned()), password: None };
        let made = prepare(&mut settings, first, &Accounts::one(None), SystemTime::now()).expect("made");
        assert_eq!(made.user, "bob@mx.example.org");
        assert_eq!(made.generated.as_ref().map(|p| p.expose().len()), Some(20));
        assert_eq!(made.certificates, Made::All);
        for (name, mode) in [
            ("", 0o755),
            ("sockets", 0o755),
            ("sockets/saslauthd", 0o755),
            ("tls/key.pem", 0o600),
            ("tls/ca-key.pem", 0o600),
            ("mail", 0o700),
            ("mail/bob/Maildir/new", 0o700),
            ("users", 0o600),
            ("postern.toml", 0o600),
        ] {
            let found = std::fs::metadata(folder.join(name)).expect(name).permissions().mode() & 0o777;
            assert_eq!(found, mode, "{name} {found:o}");
        }
        let text = std::fs::read_to_string(folder.join("users")).expect("read");
        let password = String::from_utf8_lossy(made.generated.as_ref().expect("one").expose()).into_owned();
        assert!(text.starts_with("bob:{ARGON2ID}") && !text.contains(&password), "{text}");
        let copy = conf::load_file(&folder.join("postern.toml")).expect("right");
        assert_eq!(copy, settings);
        assert_eq!(copy.smtp.postmaster.as_deref(), Some("bob@mx.example.org"));

        // Somebody else holds it.
        let held = prepare(&mut settings, FirstUser::default(), &Accounts::one(None), SystemTime::now())
            .expect_err("held");
        assert_eq!(boot::exit::code_of(&held, boot::exit::FAILURE), boot::exit::TEMPFAIL);
        drop(made);

        let again = prepare(&mut settings, FirstUser::default(), &Accounts::one(None), SystemTime::now())
            .expect("found");
        assert_eq!((again.user.as_str(), again.certificates), ("bob@mx.example.org", Made::Kept));
        assert!(again.generated.is_none());
        drop(again);
        let first =
            FirstUser { name: Some("eve".to_owned()), password: Some(Secret::new(b"given".to_vec())) };
        let another = prepare(&mut settings, first, &Accounts::one(None), SystemTime::now()).expect("added");
        assert_eq!(another.user, "eve@mx.example.org");
        assert!(another.generated.is_none());
    }

    #[test]
    fn only_an_empty_folder_of_ours_is_given_away() {
        let parent = tempfile::tempdir().expect("temporary folder");
        let owner = crate::accounts::Account::current();
        let full = parent.path().join("full");
        std::fs::create_dir(&full).expect("made");
        std::fs::write(full.join("file"), "").expect("written");
        let link = parent.path().join("link");
        let target = parent.path().join("target");
        std::fs::create_dir(&target).expect("made");
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o700)).expect("closed");
        std::os::unix::fs::symlink(&target, &link).expect("linked");
        for path in [&full, &link, &parent.path().join("none")] {
            assert!(super::give(path, (owner.uid, owner.gid), 0o755).is_err(), "{}", path.display());
        }
        assert!(super::make_and_give(&link, &owner).is_err());
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&target), 0o700, "a link was followed");
        let fresh = parent.path().join("a/b/c");
        super::make_and_give(&fresh, &owner).expect("made");
        assert_eq!(mode(&fresh), 0o755);
    }

    #[test]
    fn folders_that_are_refused() {
        let parent = tempfile::tempdir().expect("temporary folder");
        let file = parent.path().join("file");
        std::fs::write(&file, "").expect("written");
        assert!(claim(&file, None).expect_err("a file").to_string().contains("is not a folder"));
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(parent.path(), &link).expect("linked");
        assert!(claim(&link, None).expect_err("a link").to_string().contains("symbolic link"));
        if crate::accounts::is_root() {
            let theirs = parent.path().join("theirs");
            std::fs::create_dir(&theirs).expect("made");
            std::os::unix::fs::chown(&theirs, Some(12_345), Some(12_345)).expect("given away");
            let error = claim(&theirs, None).expect_err("not ours");
            assert!(error.to_string().contains("belongs to uid 12345, not to root"), "{error}");
            assert_eq!(boot::exit::code_of(&error, boot::exit::FAILURE), boot::exit::NOPERM);
            let account = crate::accounts::named("daemon").expect("daemon");
            let error = claim(&theirs, Some(&account)).expect_err("not the daemon's").to_string();
            assert!(error.contains(&format!("chown -R daemon: {}", theirs.display())), "{error}");
        }
    }
}
