//! Trying things as somebody else: a child of the same executable takes on the account, and the chroot, of a program
//! and does what it would do.
//!
//! Purpose:   what the kernel says counts, not what the permission bits look like.
//! Trust:     what is on the socket may be anything: lines, counts and time are limited.
//! Never:     a password in an argument; more than the one thing that was asked.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use creds::Secret;
use nix::unistd::{AccessFlags, Gid, Uid};
use serde::{Deserialize, Serialize};

use crate::accounts::Account;

/// The hidden command.
pub(crate) const COMMAND: &str = "doctor-probe";

/// Longest a server may take to greet.
const GREETING: Duration = Duration::from_secs(5);
/// Longest a login may take; more than the longest delay of a refusal.
const LOGIN: Duration = Duration::from_secs(20);
/// Longest the child may live.
const LIFE: Duration = Duration::from_secs(30);
/// Longest line and most lines of a server.
const LINE: u64 = 16 * 1024;
const LINES: usize = 200;

/// What the child is to do.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    /// Root of its file system.
    chroot: Option<PathBuf>,
    /// Its working folder, seen from there.
    folder: Option<PathBuf>,
    /// uid, gid and all groups; none: as this process.
    ids: Option<(u32, u32, Vec<u32>)>,
    work: Work,
}

/// The one thing to do.
#[derive(Debug, Serialize, Deserialize)]
enum Work {
    /// Open a file for reading.
    Read(PathBuf),
    /// May files be made in the folder?
    Write(PathBuf),
    /// Connect to a socket and speak.
    Talk { socket: PathBuf, protocol: Protocol, login: Option<Login> },
}

/// What is spoken on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Protocol {
    /// Dovecot's client protocol.
    Client,
    /// saslauthd's.
    Mux,
    /// Nothing: only the connection counts.
    Silent,
}

/// A login to try; the password is handed over beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) service: String,
    /// A made-up user: nobody is to be slowed down for it.
    pub(super) made_up: bool,
}

/// What came back.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The child could not become that account.
    NotDone(String),
    Done(Result<(), Failure>),
    Talked(Talk),
}

/// What the system said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// The number, 0 for none.
    pub(super) errno: i32,
    /// In words.
    pub(super) text: String,
}

impl Failure {
    fn of(error: &std::io::Error) -> Self {
        Self { errno: error.raw_os_error().unwrap_or(0), text: error.to_string() }
    }

    /// Whether rights are missing.
    pub(super) fn is_denied(&self) -> bool {
        let errno = nix::errno::Errno::from_raw(self.errno);
        matches!(errno, nix::errno::Errno::EACCES | nix::errno::Errno::EPERM)
    }

    /// Whether nobody listens behind a socket's file.
    pub(super) fn is_refused(&self) -> bool {
        nix::errno::Errno::from_raw(self.errno) == nix::errno::Errno::ECONNREFUSED
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// A conversation with a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Talk {
    /// Connecting.
    pub(super) connect: Result<(), Failure>,
    /// The mechanisms of the greeting, or why there was none.
    pub(super) greeting: Option<Result<Vec<String>, Failure>>,
    /// What the login came to.
    pub(super) login: Option<Verdict>,
    /// How long the login took.
    pub(super) milliseconds: u64,
}

/// What a login came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Verdict {
    Accepted(String),
    Refused(String),
    /// Nobody could decide.
    Temporary(String),
    /// Closed, or no answer in time.
    NoAnswer(String),
    /// Neither PLAIN nor LOGIN is offered.
    NoMechanism,
}

/// Whom the child is, and where.
#[derive(Clone, Debug, Default)]
pub(super) struct Place<'a> {
    /// The account; none: that of this process.
    pub(super) account: Option<&'a Account>,
    /// Root of its file system; the working folder is that root.
    pub(super) chroot: Option<&'a Path>,
    /// The working folder outside a chroot.
    pub(super) folder: Option<&'a Path>,
}

/// Opens a file for reading.
pub(super) fn read(place: &Place<'_>, file: &Path) -> anyhow::Result<Result<(), Failure>> {
    match ask(place, Work::Read(file.to_owned()), None)? {
        Answer::Done(result) => Ok(result),
        other => Err(not_done(other)),
    }
}

/// Asks whether files may be made in a folder.
pub(super) fn write(place: &Place<'_>, folder: &Path) -> anyhow::Result<Result<(), Failure>> {
    match ask(place, Work::Write(folder.to_owned()), None)? {
        Answer::Done(result) => Ok(result),
        other => Err(not_done(other)),
    }
}

/// Connects and speaks.
pub(super) fn talk(
    place: &Place<'_>,
    socket: &Path,
    protocol: Protocol,
    login: Option<(Login, &Secret)>,
) -> anyhow::Result<Talk> {
    let (login, password) = login.unzip();
    match ask(place, Work::Talk { socket: socket.to_owned(), protocol, login }, password)? {
        Answer::Talked(talk) => Ok(talk),
        other => Err(not_done(other)),
    }
}

fn not_done(answer: Answer) -> anyhow::Error {
    match answer {
        Answer::NotDone(why) => anyhow::anyhow!(why),
        _ => anyhow::anyhow!("the probe answered something else"),
    }
}

fn ask(place: &Place<'_>, work: Work, password: Option<&Secret>) -> anyhow::Result<Answer> {
    let current = Account::current();
    let ids = place
        .account
        .filter(|account| account.uid != current.uid)
        .map(|account| (account.uid, account.gid, account.groups.clone()));
    let folder =
        if place.chroot.is_some() { Some(PathBuf::from("/")) } else { place.folder.map(Path::to_owned) };
    let task = Task { chroot: place.chroot.map(Path::to_owned), folder, ids, work };
    // The link leads to the running program, also where nobody else may enter its folder.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("postern").arg(COMMAND).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::null()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that is gone says so by its silence.
        let _ = stdin.write_all(serde_json::to_string(&task)?.as_bytes());
        let _ = stdin.write_all(b"\n");
        let _ = stdin.write_all(password.map_or(&b""[..], Secret::expose));
    }
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stdout.take(1 << 20).read_to_string(&mut text);
            let _ = sender.send(text);
        });
    }
    let text = receiver.recv_timeout(LIFE);
    let _ = child.kill();
    let _ = child.wait();
    match text {
        Ok(text) if !text.is_empty() => Ok(serde_json::from_str(&text)?),
        Ok(_) => anyhow::bail!("the probe ended without an answer"),
        Err(_) => anyhow::bail!("no answer within {} seconds", LIFE.as_secs()),
    }
}

/// The child: reads its task, does it, prints the answer.
pub(crate) fn main() -> boot::ExitCode {
    let mut input = BufReader::new(std::io::stdin().lock());
    let (mut line, mut password) = (String::new(), Vec::new());
    let read = input
        .by_ref()
        .take(1 << 20)
        .read_line(&mut line)
        .and_then(|_| input.take(1 << 20).read_to_end(&mut password));
    let password = Secret::new(password);
    let Ok(task) = serde_json::from_str::<Task>(&line) else {
        crate::output::note("this command belongs to `postern doctor`; use that");
        return boot::exit::EX_USAGE;
    };
    let answer = match read.map_err(Into::into).and_then(|_| become_account(&task)) {
        Ok(()) => work(task.work, &password),
        Err(error) => Answer::NotDone(format!("{error:#}")),
    };
    match serde_json::to_string(&answer) {
        Ok(text) => crate::output::line(text),
        Err(_) => return boot::exit::FAILURE,
    }
    boot::exit::OK
}

fn become_account(task: &Task) -> anyhow::Result<()> {
    use anyhow::Context as _;
    if let Some(root) = &task.chroot {
        nix::unistd::chroot(root).with_context(|| format!("chroot {}", root.display()))?;
        nix::unistd::chdir("/").context("chdir")?;
    }
    // For good: nothing of the old account is kept.
    if let Some((uid, gid, groups)) = &task.ids {
        let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        nix::unistd::setgroups(&groups).context("setgroups")?;
        nix::unistd::setgid(Gid::from_raw(*gid)).context("setgid")?;
        nix::unistd::setuid(Uid::from_raw(*uid)).context("setuid")?;
    }
    match &task.folder {
        Some(folder) if task.chroot.is_none() => {
            // Postfix changes the folder as root; here the account may be locked out, which the work itself then finds.
            let _ = nix::unistd::chdir(folder.as_path());
        }
        _ => {}
    }
    Ok(())
}

fn work(work: Work, password: &Secret) -> Answer {
    match work {
        Work::Read(path) => {
            Answer::Done(std::fs::File::open(path).map(drop).map_err(|error| Failure::of(&error)))
        }
        Work::Write(path) => {
            let asked = nix::unistd::access(&path, AccessFlags::W_OK | AccessFlags::X_OK);
            Answer::Done(asked.map_err(|errno| Failure::of(&errno.into())))
        }
        Work::Talk { socket, protocol, login } => {
            Answer::Talked(converse(&socket, protocol, login.as_ref(), password))
        }
    }
}

fn converse(socket: &Path, protocol: Protocol, login: Option<&Login>, password: &Secret) -> Talk {
    let mut talk = Talk { connect: Ok(()), greeting: None, login: None, milliseconds: 0 };
    let stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) => {
            talk.connect = Err(Failure::of(&error));
            return talk;
        }
    };
    let _ = stream.set_write_timeout(Some(GREETING));
    let _ = stream.set_read_timeout(Some(GREETING));
    match protocol {
        Protocol::Silent => {}
        Protocol::Mux => {
            if let Some(login) = login {
                let began = Instant::now();
                talk.login = Some(by_mux(stream, login, password));
                talk.milliseconds = milliseconds(began);
            }
        }
        Protocol::Client => {
            let mut lines = BufReader::new(stream);
            let greeting = greeting(&mut lines);
            if let (Ok(offered), Some(login)) = (&greeting, login) {
                let began = Instant::now();
                talk.login = Some(by_client(&mut lines, offered, login, password));
                talk.milliseconds = milliseconds(began);
            }
            let failed =
                |error: std::io::Error| Failure { text: silence(&error, GREETING), ..Failure::of(&error) };
            talk.greeting = Some(greeting.map_err(failed));
        }
    }
    talk
}

fn milliseconds(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn line(lines: &mut BufReader<UnixStream>) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    lines.by_ref().take(LINE).read_until(b'\n', &mut bytes)?;
    if bytes.pop() != Some(b'\n') {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The mechanisms up to DONE.
fn greeting(lines: &mut BufReader<UnixStream>) -> std::io::Result<Vec<String>> {
    let mut mechanisms = Vec::new();
    for _ in 0..LINES {
        let line = line(lines)?;
        let mut fields = line.split('\t');
        match fields.next() {
            Some("MECH") => mechanisms.extend(fields.next().map(str::to_owned)),
            Some("DONE") => return Ok(mechanisms),
            _ => {}
        }
    }
    Err(std::io::Error::other("this is not the greeting of an authentication daemon"))
}

fn by_client(
    lines: &mut BufReader<UnixStream>,
    offered: &[String],
    login: &Login,
    password: &Secret,
) -> Verdict {
    let has = |name: &str| offered.iter().any(|mechanism| mechanism.eq_ignore_ascii_case(name));
    let plain = has("PLAIN");
    if !plain && !has("LOGIN") {
        return Verdict::NoMechanism;
    }
    let _ = lines.get_ref().set_read_timeout(Some(LOGIN));
    let (mut answers, first) = if plain {
        let mut bytes = format!("\0{}\0", login.user).into_bytes();
        bytes.extend_from_slice(password.expose());
        (Vec::new(), Some(Secret::new(bytes)))
    } else {
        // Taken from the end.
        (vec![Secret::new(password.expose().to_vec()), Secret::new(login.user.clone().into_bytes())], None)
    };
    let mut text = format!(
        "VERSION\t1\t1\nCPID\t{}\nAUTH\t1\t{}\tservice={}\tsecured{}",
        std::process::id(),
        if plain { "PLAIN" } else { "LOGIN" },
        login.service.replace(['\t', '\n'], " "),
        if login.made_up { "\tno-penalty" } else { "" },
    );
    if let Some(first) = first {
        text += &format!("\tresp={}", STANDARD.encode(first.expose()));
    }
    text.push('\n');
    let mut send = text;
    loop {
        if let Err(error) = lines.get_mut().write_all(send.as_bytes()) {
            return Verdict::NoAnswer(error.to_string());
        }
        let answer = loop {
            match line(lines) {
                Ok(line) if line.split('\t').nth(1) == Some("1") => break line,
                Ok(_) => {}
                Err(error) => return Verdict::NoAnswer(silence(&error, LOGIN)),
            }
        };
        let field = |name: &str| {
            answer
                .split('\t')
                .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
                .unwrap_or_default()
                .to_owned()
        };
        match answer.split('\t').next() {
            Some("OK") => return Verdict::Accepted(field("user")),
            Some("FAIL") => {
                let temporary =
                    field("code") == "temp_fail" || answer.split('\t').any(|field| field == "temp");
                let reason = field("reason");
                return if temporary { Verdict::Temporary(reason) } else { Verdict::Refused(reason) };
            }
            Some("CONT") => match answers.pop() {
                Some(answer) => send = format!("CONT\t1\t{}\n", STANDARD.encode(answer.expose())),
                None => {
                    return Verdict::NoAnswer("the daemon asks for more than name and password".to_owned());
                }
            },
            _ => return Verdict::NoAnswer(format!("{:?} is no answer", answer.split('\t').next())),
        }
    }
}

fn by_mux(mut stream: UnixStream, login: &Login, password: &Secret) -> Verdict {
    let (user, realm) = login.user.split_once('@').unwrap_or((&login.user, ""));
    let mut bytes = Vec::new();
    for field in [user.as_bytes(), password.expose(), login.service.as_bytes(), realm.as_bytes()] {
        let Ok(length) = u16::try_from(field.len()) else {
            return Verdict::NoAnswer("name or password are too long for saslauthd".to_owned());
        };
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(field);
    }
    let bytes = Secret::new(bytes);
    let _ = stream.set_read_timeout(Some(LOGIN));
    let mut length = [0; 2];
    let asked = stream.write_all(bytes.expose()).and_then(|()| stream.read_exact(&mut length));
    if let Err(error) = asked {
        return if error.kind() == std::io::ErrorKind::UnexpectedEof {
            Verdict::Temporary("the daemon closed the connection without an answer".to_owned())
        } else {
            Verdict::NoAnswer(silence(&error, LOGIN))
        };
    }
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    if let Err(error) = stream.read_exact(&mut answer) {
        return Verdict::NoAnswer(silence(&error, LOGIN));
    }
    let answer = String::from_utf8_lossy(&answer).trim_end_matches('\0').to_owned();
    match answer.strip_prefix("OK") {
        Some(_) => Verdict::Accepted(login.user.clone()),
        None => Verdict::Refused(answer.strip_prefix("NO").unwrap_or(&answer).trim().to_owned()),
    }
}

fn silence(error: &std::io::Error, limit: Duration) -> String {
    match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
            format!("no answer within {} seconds", limit.as_secs())
        }
        std::io::ErrorKind::UnexpectedEof => "the daemon closed the connection".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Login, Protocol, Verdict, converse};
    use creds::Secret;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;

    fn talk(
        protocol: Protocol,
        said: &'static [u8],
        until: &'static [u8],
        answer: &'static [u8],
    ) -> super::Talk {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).expect("bound");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepted");
            stream.write_all(said).expect("written");
            let (mut seen, mut byte) = (Vec::new(), [0]);
            while !seen.ends_with(until) && stream.read(&mut byte).is_ok_and(|count| count == 1) {
                seen.push(byte[0]);
            }
            let _ = stream.write_all(answer);
        });
        let login = Login { user: "bob".to_owned(), service: "smtp".to_owned(), made_up: true };
        let talk = converse(&path, protocol, Some(&login), &Secret::new(b"pw".to_vec()));
        server.join().expect("served");
        talk
    }

    #[test]
    fn conversations_are_judged() {
        let greeting = b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tLOGIN\nSPID\t1\nDONE\n";
        for (answer, expected) in [
            (&b"OK\t1\tuser=bob@x\n"[..], Verdict::Accepted("bob@x".to_owned())),
            (b"FAIL\t7\nFAIL\t1\tuser=bob\treason=no\n", Verdict::Refused("no".to_owned())),
            (b"FAIL\t1\tcode=temp_fail\ttemp\treason=later\n", Verdict::Temporary("later".to_owned())),
            (b"", Verdict::NoAnswer("the daemon closed the connection".to_owned())),
        ] {
            let made = talk(Protocol::Client, greeting, b"resp=AGJvYgBwdw==\n", answer);
            assert_eq!(made.greeting, Some(Ok(vec!["PLAIN".to_owned(), "LOGIN".to_owned()])));
            assert_eq!(made.login, Some(expected));
        }
        let none = talk(Protocol::Client, b"VERSION\t1\t2\nMECH\tCRAM-MD5\nDONE\n", b"", b"");
        assert_eq!(none.login, Some(Verdict::NoMechanism));
        assert!(
            talk(Protocol::Client, b"220 hello\n", b"", b"")
                .greeting
                .is_some_and(|greeting| greeting.is_err())
        );
        for (answer, expected) in [
            (&b"\0\x02OK"[..], Verdict::Accepted("bob".to_owned())),
            (b"\0\x02NO", Verdict::Refused(String::new())),
            (b"", Verdict::Temporary("the daemon closed the connection without an answer".to_owned())),
        ] {
            assert_eq!(talk(Protocol::Mux, b"", b"\0\x04smtp\0\0", answer).login, Some(expected));
        }
    }

    #[test]
    fn nobody_there() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).expect("bound"));
        let stale = converse(&path, Protocol::Silent, None, &Secret::new(Vec::new()));
        assert!(stale.connect.is_err_and(|failure| failure.is_refused() && !failure.is_denied()));
    }
}
