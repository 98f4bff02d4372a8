//! Binding listening sockets.
//!
//! Unix sockets: bound under a temporary name in the same folder, made listening, given owner and mode, and renamed
//! over the path, so the path never disappears and never has the wrong rights. What is left of a dead program is
//! replaced; where a live one listens, we do not.
//! Trust:  the folder may belong to somebody else (Postfix' chroot, the daemons' account): it is held open from the
//!         start, see `folder.rs`, and owner and mode are changed through a descriptor of what was checked to be our socket.
//! Never:  take a path where a live program listens.

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::error::BindError;
use crate::folder::Folder;
use crate::plan::{Bind, SocketSpec};

/// Connections the kernel queues per socket while the daemon is busy or being started again.
const BACKLOG: i32 = 1024;
/// `sun_path` holds 108 bytes with the final NUL; the temporary name is two bytes longer than the path.
const MAX_PATH: usize = 105;

/// A listening socket of the supervisor. Clones share it; the path goes away with the last one.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub(crate) bind: Bind,
    fd: Rc<OwnedFd>,
    /// None for TCP and for sockets that belong to the service manager.
    file: Option<Rc<SocketFile>>,
}

/// The name of a bound unix socket in the file system.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    folder: Folder,
    name: OsString,
    device: u64,
    inode: u64,
}

impl Bound {
    /// Binds and listens.
    pub(crate) fn new(bind: &Bind) -> Result<Self, BindError> {
        match bind {
            Bind::Tcp(address) => {
                let fd = Rc::new(bind_tcp(*address, false)?);
                Ok(Self { bind: bind.clone(), fd, file: None })
            }
            Bind::Unix { path, mode, owner, group } => {
                let (fd, file) = bind_unix(path, *mode, *owner, *group)?;
                Ok(Self { bind: bind.clone(), fd: Rc::new(fd), file: Some(Rc::new(file)) })
            }
        }
    }

    /// Uses a socket of the service manager.
    pub(crate) fn activated(bind: &Bind, fd: OwnedFd) -> Self {
        Self { bind: bind.clone(), fd: Rc::new(fd), file: None }
    }

    /// A descriptor to hand over.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Whether this socket already is at the wanted place, whatever its rights.
    pub(crate) fn is_at(&self, wanted: &Bind) -> bool {
        match (&self.bind, wanted) {
            (Bind::Tcp(have), Bind::Tcp(want)) => have == want,
            (Bind::Unix { path: have, .. }, Bind::Unix { path: want, .. }) => have == want,
            _ => false,
        }
    }

    /// The same socket with the wanted owner and mode.
    pub(crate) fn with_rights(&self, wanted: &Bind) -> Result<Self, BindError> {
        if let (Bind::Unix { path, mode, owner, group }, Some(file)) = (wanted, &self.file)
            && self.bind != *wanted
        {
            let found = set_rights(path, file.folder.fd(), &file.name, *mode, *owner, *group)?;
            if found != (file.device, file.inode) {
                let source = io::Error::other("another program has replaced it");
                return Err(io_error(path, "changing its rights", source));
            }
        }
        Ok(Self { bind: wanted.clone(), fd: Rc::clone(&self.fd), file: self.file.clone() })
    }

    /// The listening unix socket, for the supervisor's own use.
    pub(crate) fn unix_listener(&self) -> io::Result<std::os::unix::net::UnixListener> {
        Ok(self.share()?.into())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let seen = fstatat(self.folder.fd(), self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        let ours = seen.is_ok_and(|seen| (seen.st_dev, seen.st_ino) == (self.device, self.inode));
        if ours
            && let Err(error) = unlinkat(self.folder.fd(), self.name.as_os_str(), UnlinkatFlags::NoRemoveDir)
        {
            tracing::debug!(%error, path = %self.path.display(), "socket could not be removed");
        }
    }
}

/// Whether this machine has the address (for skipping `::1` on machines without IPv6).
pub fn ip_available(ip: IpAddr) -> bool {
    std::net::TcpListener::bind((ip, 0)).is_ok()
}

fn bind_tcp(address: SocketAddr, share: bool) -> Result<OwnedFd, BindError> {
    let listening = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(share)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let what = address.to_string();
    listening().map(OwnedFd::from).map_err(|source| match source.raw_os_error() {
        Some(libc::EADDRINUSE) => BindError::TcpInUse { holder: holder_of(address.port()), address: what },
        Some(libc::EACCES) => BindError::Privileged { address: what },
        Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT) => BindError::NoSuchAddress { address: what },
        _ => BindError::Io { what, doing: "listening", source },
    })
}

fn bind_unix(
    path: &Path,
    mode: u32,
    owner: Option<u32>,
    group: Option<u32>,
) -> Result<(OwnedFd, SocketFile), BindError> {
    let (name, temporary) = names(path)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let folder = Folder::open(parent, |above, name| make_folder(above, name, owner))
        .map_err(|source| io_error(parent, "making the folder", source))?;
    refuse_if_in_use(path, &folder.place(&name))?;
    match unlinkat(folder.fd(), temporary.as_os_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(io_error(path, "removing what an earlier start left", error.into())),
    }
    let listening = || -> io::Result<OwnedFd> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(folder.place(&temporary))?)?;
        socket.set_nonblocking(true)?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    let fd = listening().map_err(|source| io_error(path, "listening", source))?;
    let placed = set_rights(path, folder.fd(), &temporary, mode, owner, group).and_then(|(device, inode)| {
        renameat(folder.fd(), temporary.as_os_str(), folder.fd(), name.as_os_str())
            .map_err(|error| io_error(path, "putting it in place", error.into()))?;
        Ok((device, inode))
    });
    if placed.is_err() {
        let _ = unlinkat(folder.fd(), temporary.as_os_str(), UnlinkatFlags::NoRemoveDir);
    }
    let (device, inode) = placed?;
    Ok((fd, SocketFile { path: path.to_owned(), folder, name, device, inode }))
}

/// The name, and `.NAME~`: always the same, so that what a crash leaves is cleaned up by the next start.
fn names(path: &Path) -> Result<(OsString, OsString), BindError> {
    if path.as_os_str().len() > MAX_PATH {
        return Err(BindError::PathTooLong { path: path.to_owned() });
    }
    let Some(name) = path.file_name().filter(|_| path.is_absolute()) else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "not an absolute path of a file");
        return Err(io_error(path, "listening", source));
    };
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push("~");
    Ok((name.to_owned(), temporary))
}

/// Makes a missing folder with mode 0755. One called `private` is for the socket's owner alone: it is Postfix' folder,
/// which Postfix makes at its first start like this and cannot use otherwise.
fn make_folder(above: &Folder, name: &OsStr, owner: Option<u32>) -> io::Result<()> {
    let Some(keeper) = owner.filter(|_| name == "private") else { return above.make(name, 0o755) };
    above.make(name, 0o700)?;
    Ok(fchownat(above.fd(), name, Some(Uid::from_raw(keeper)), None, AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

/// `place`: the same file by a name that leads nowhere else.
fn refuse_if_in_use(path: &Path, place: &Path) -> Result<(), BindError> {
    let seen = match std::fs::symlink_metadata(place) {
        Ok(seen) => seen,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(path, "looking at it", error)),
    };
    if !seen.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    // Nobody behind it: connection refused. Full queue: somebody is there, only slow; not waited for.
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(place)?)?;
        Ok(UnixStream::from(OwnedFd::from(socket)))
    });
    match probe {
        Ok(_) => Err(BindError::UnixInUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(BindError::UnixInUse { path: path.to_owned() })
        }
        Err(_) => Ok(()),
    }
}

/// Owner, group and mode of the socket of this name, which must be one that this process made. Gives what it is.
fn set_rights(
    path: &Path,
    folder: BorrowedFd<'_>,
    name: &OsStr,
    mode: u32,
    owner: Option<u32>,
    group: Option<u32>,
) -> Result<(u64, u64), BindError> {
    let failed = |doing| move |error: nix::errno::Errno| io_error(path, doing, error.into());
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(folder, name, flags, Mode::empty()).map_err(failed("opening the new socket"))?;
    let seen = fstat(&file).map_err(failed("looking at the new socket"))?;
    if seen.st_mode & libc::S_IFMT != libc::S_IFSOCK || seen.st_nlink != 1 {
        let source = io::Error::other("another program has replaced it");
        return Err(io_error(path, "looking at the new socket", source));
    }
    if owner.is_some() || group.is_some() {
        let (owner, group) = (owner.map(Uid::from_raw), group.map(Gid::from_raw));
        fchownat(file.as_fd(), "", owner, group, AtFlags::AT_EMPTY_PATH)
            .map_err(failed("giving it its owner"))?;
    }
    // chmod of an O_PATH descriptor works through its name in /proc only.
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::set_permissions(name, std::fs::Permissions::from_mode(mode & 0o777))
        .map_err(|source| io_error(path, "giving it its mode", source))?;
    Ok((seen.st_dev, seen.st_ino))
}

fn io_error(path: &Path, doing: &'static str, source: io::Error) -> BindError {
    BindError::Io { what: path.display().to_string(), doing, source }
}

/// Who listens on a TCP port: name and number of the process, as far as /proc tells. Root sees all processes, others
/// their own. `None`: nobody.
pub fn holder_of(port: u16) -> Option<String> {
    let links = listening_links(port);
    if links.is_empty() {
        return None;
    }
    let is_process = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.parse::<u32>().is_ok());
    let all = std::fs::read_dir("/proc").ok()?.flatten();
    for process in all.filter(|entry| is_process(&entry.file_name())) {
        if has_one_of(&process.path(), &links) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            // A process chooses its own name, and this goes to a terminal.
            return Some(format!(
                "{} (process {})",
                name.trim().escape_debug(),
                process.file_name().display()
            ));
        }
    }
    Some("another program".to_owned())
}

/// Whether a process listens on a TCP port, alone or with others (the service manager keeps those it hands over).
pub fn listens_on(pid: u32, port: u16) -> bool {
    has_one_of(Path::new(&format!("/proc/{pid}")), &listening_links(port))
}

/// What the listening sockets of a port are called in `/proc/PID/fd`.
fn listening_links(port: u16) -> Vec<String> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().filter_map(|line| listening_inode(line, port)).collect::<Vec<_>>())
        .map(|inode| format!("socket:[{inode}]"))
        .collect()
}

/// `process`: its folder below `/proc`.
fn has_one_of(process: &Path, links: &[String]) -> bool {
    let Ok(fds) = std::fs::read_dir(process.join("fd")) else { return false };
    let open = fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
    open.into_iter().any(|open| links.iter().any(|link| open.as_os_str() == link.as_str()))
}

/// proc(5), /proc/net/tcp: field 1 is the local address, 3 the state (0A: listening), 9 the inode.
fn listening_inode(line: &str, port: u16) -> Option<String> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (_, hex) = fields.get(1)?.rsplit_once(':')?;
    let matches = u16::from_str_radix(hex, 16).ok()? == port && *fields.get(3)? == "0A";
    matches.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
}

/// A TCP socket whose port is still taken by one of ours that the new plan gives up (127.0.0.1:25 for 0.0.0.0:25). Both may have the
/// port for the moment of the change if both say so.
fn replace_tcp(
    bind: &Bind,
    wanted: &[&SocketSpec],
    have: &[Bound],
    error: BindError,
) -> Result<Bound, BindError> {
    let (Bind::Tcp(address), BindError::TcpInUse { .. }) = (bind, &error) else { return Err(error) };
    let leaving: Vec<&Bound> = have
        .iter()
        .filter(|old| matches!(&old.bind, Bind::Tcp(held) if held.port() == address.port()))
        .filter(|old| !wanted.iter().any(|spec| old.is_at(&spec.bind)))
        .collect();
    if leaving.is_empty() {
        return Err(error);
    }
    let share = |on: bool| leaving.iter().try_for_each(|old| SockRef::from(&*old.fd).set_reuse_port(on));
    let bound = share(true).map_err(|_| error).and_then(|()| bind_tcp(*address, true));
    // No other program of this account is to join in.
    let _ = share(false);
    let fd = bound?;
    let _ = SockRef::from(&fd).set_reuse_port(false);
    Ok(Bound { bind: bind.clone(), fd: Rc::new(fd), file: None })
}

/// The listening sockets a plan wants: kept where they are, else from the service manager, else newly bound.
pub(crate) fn obtain(
    wanted: &[&SocketSpec],
    have: &[Bound],
    activated: &mut crate::activation::Activated,
) -> Result<Vec<Bound>, Vec<BindError>> {
    let mut all: Vec<Bound> = Vec::with_capacity(wanted.len());
    let mut errors = Vec::new();
    for spec in wanted {
        if all.iter().any(|one| one.is_at(&spec.bind)) {
            let source = io::Error::new(io::ErrorKind::AlreadyExists, "two listeners want it; remove one");
            errors.push(BindError::Io { what: spec.bind.to_string(), doing: "listening", source });
            continue;
        }
        let socket = if let Some(kept) = have.iter().find(|one| one.is_at(&spec.bind)) {
            // Rights are changed when the plan is taken on, not while it may still be refused.
            Ok(kept.clone())
        } else if let Some(fd) = activated.claim(spec) {
            Ok(Bound::activated(&spec.bind, fd))
        } else {
            Bound::new(&spec.bind).or_else(|error| replace_tcp(&spec.bind, wanted, have, error))
        };
        match socket {
            Ok(socket) => all.push(socket),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(all) } else { Err(errors) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixListener;

    fn unix(path: &Path, mode: u32) -> Bind {
        Bind::Unix { path: path.to_owned(), mode, owner: None, group: None }
    }

    fn mode_of(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_process_listens_on_its_own_port_only() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listens_on(std::process::id(), port) && !listens_on(1, port));
        drop(listener);
        assert!(!listens_on(std::process::id(), port));
    }

    #[test]
    fn folder_mode_and_removal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/auth-client");
        let bound = Bound::new(&unix(&path, 0o666)).unwrap();
        assert_eq!((mode_of(&path), mode_of(path.parent().unwrap())), (0o666, 0o755));
        UnixStream::connect(&path).unwrap();
        let again = bound.with_rights(&unix(&path, 0o600)).unwrap();
        assert_eq!(mode_of(&path), 0o600);
        drop(bound);
        assert!(path.exists());
        drop(again);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_new_private_folder_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue/private/auth");
        let me = Uid::effective().as_raw();
        let bind = Bind::Unix { path: path.clone(), mode: 0o660, owner: Some(me), group: None };
        let _bound = Bound::new(&bind).unwrap();
        let private = path.parent().unwrap();
        assert_eq!((mode_of(private), mode_of(private.parent().unwrap())), (0o700, 0o755));
        assert_eq!(std::fs::metadata(private).unwrap().uid(), me);
        // Without an owner, or under another name, it is a folder like any other.
        let _bound = Bound::new(&unix(&folder.path().join("b/private/auth"), 0o666)).unwrap();
        assert_eq!(mode_of(&folder.path().join("b/private")), 0o755);
    }

    #[test]
    fn stale_sockets_are_replaced_live_ones_and_files_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        std::fs::write(folder.path().join(".s~"), "left over").unwrap();
        let bound = Bound::new(&unix(&path, 0o600)).unwrap();
        assert!(matches!(Bound::new(&unix(&path, 0o600)), Err(BindError::UnixInUse { .. })));
        UnixStream::connect(&path).unwrap();
        drop(bound);
        std::fs::write(&path, "text").unwrap();
        let error = Bound::new(&unix(&path, 0o600)).unwrap_err();
        assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn a_path_taken_over_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let bound = Bound::new(&unix(&path, 0o600)).unwrap();
        std::fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        assert!(bound.with_rights(&unix(&path, 0o666)).is_err());
        drop(bound);
        assert!(path.exists());
        drop(other);
    }

    #[test]
    fn long_and_relative_paths_are_refused() {
        let long = format!("/tmp/{}", "x".repeat(120));
        assert!(matches!(Bound::new(&unix(Path::new(&long), 0o600)), Err(BindError::PathTooLong { .. })));
        assert!(Bound::new(&unix(Path::new("here"), 0o600)).is_err());
    }

    #[test]
    fn used_port_names_its_holder() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = Bound::new(&Bind::Tcp(address)).unwrap_err();
        let text = error.to_string();
        let own = format!("process {}", std::process::id());
        assert!(
            text.starts_with(&format!("{address} is already in use by")) && text.contains(&own),
            "{text}"
        );
        assert!(text.contains("--port-base"));
        assert_eq!(crate::Error::Bind(vec![error]).exit_code(), crate::exit::UNAVAILABLE);
    }

    #[test]
    fn an_address_can_be_widened_and_narrowed() {
        let spec = |bind: &Bind| SocketSpec { name: "x".into(), bind: bind.clone() };
        let narrow = Bound::new(&Bind::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
        let port = SockRef::from(&*narrow.fd).local_addr().unwrap().as_socket().unwrap().port();
        let at = |ip: [u8; 4]| Bind::Tcp((ip, port).into());
        let narrow = Bound { bind: at([127, 0, 0, 1]), ..narrow };
        // Somebody else's start on the same port is refused as ever.
        assert!(matches!(Bound::new(&at([0, 0, 0, 0])), Err(BindError::TcpInUse { .. })));
        let wide = spec(&at([0, 0, 0, 0]));
        let wide =
            obtain(&[&wide], std::slice::from_ref(&narrow), &mut Default::default()).unwrap().remove(0);
        drop(narrow);
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let again = spec(&at([127, 0, 0, 1]));
        let again = obtain(&[&again], &[wide], &mut Default::default()).unwrap().remove(0);
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(Bound::new(&at([127, 0, 0, 1])).is_err());
        // What the new plan keeps stays in the way.
        let both = [spec(&at([127, 0, 0, 1])), spec(&at([0, 0, 0, 0]))];
        assert!(obtain(&[&both[0], &both[1]], &[again], &mut Default::default()).is_err());
    }

    #[test]
    fn a_folder_that_is_exchanged_for_a_link_is_told() {
        if !Uid::effective().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (theirs, precious) = (folder.path().join("theirs"), folder.path().join("precious"));
        std::fs::create_dir(&theirs).unwrap();
        std::fs::create_dir(&precious).unwrap();
        std::os::unix::fs::symlink(&precious, theirs.join("sockets")).unwrap();
        std::os::unix::fs::lchown(&theirs, Some(12_345), Some(12_345)).unwrap();
        std::os::unix::fs::lchown(theirs.join("sockets"), Some(12_345), Some(12_345)).unwrap();
        let error = Bound::new(&unix(&theirs.join("sockets/s"), 0o600)).unwrap_err();
        assert!(error.to_string().contains("is a link in a folder that uid 12345 can change"), "{error}");
        assert_eq!(std::fs::read_dir(&precious).unwrap().count(), 0);
        // A folder of theirs that is none of these is used as ever.
        let bound = Bound::new(&unix(&theirs.join("s"), 0o600)).unwrap();
        UnixStream::connect(theirs.join("s")).unwrap();
        drop(bound);
        assert!(!theirs.join("s").exists());
    }

    #[test]
    fn absent_address_is_told() {
        let bind = Bind::Tcp("192.0.2.77:1".parse().unwrap());
        assert!(matches!(Bound::new(&bind), Err(BindError::NoSuchAddress { .. })));
        assert!(!ip_available("192.0.2.77".parse().unwrap()));
    }

    #[test]
    fn all_errors_come_at_once_and_nothing_stays() {
        let folder = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let spec = |bind| SocketSpec { name: "x".into(), bind };
        let good = spec(unix(&folder.path().join("s"), 0o600));
        let used = spec(Bind::Tcp(taken.local_addr().unwrap()));
        let absent = spec(Bind::Tcp("192.0.2.77:1".parse().unwrap()));
        let wanted = [&good, &used, &absent, &good];
        let errors = obtain(&wanted, &[], &mut Default::default()).unwrap_err();
        assert_eq!(errors.len(), 3);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
