//! Attacks that hit other mail servers, tried on a running stack; `docs/how-others-broke.md` lists them.
//!
//! Every test is bounded: [`bounded`] ends it after a minute, and whatever it sends has a count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::support::{
    HOSTNAME, PASSWORD, START_LIMIT, Stack, USER, end, postern, show, wait_for, wait_within,
};

/// Longest time a test of this kind may take.
const TEST_LIMIT: Duration = Duration::from_secs(60);
/// Longest time an answer may take where nothing else is said.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// An account of nobody on the test machine.
pub const STRANGER: u32 = 65_533;

/// Runs a test's future to its end, or fails it.
pub fn bounded<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let done = runtime.block_on(async { tokio::time::timeout(TEST_LIMIT, work).await });
    runtime.shutdown_background();
    done.expect("the test took longer than a minute")
}

/// A stack that has done its own proof: nothing of it comes and goes any more.
pub fn start() -> Stack {
    let stack = Stack::start();
    wait_for("the end of the stack's own proof", || stack.log().contains("Running.").then_some(()));
    stack
}

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A client without manners.
pub struct Client {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    /// Before here everything was given out.
    taken: usize,
    /// Between there and here is no line end.
    searched: usize,
}

impl Client {
    fn new(stream: impl Stream + 'static) -> Client {
        Client { stream: Box::new(stream), buffer: Vec::new(), taken: 0, searched: 0 }
    }

    /// Over a connection of the test's own.
    pub fn over(stream: tokio::net::TcpStream) -> Client {
        Client::new(stream)
    }

    pub async fn tcp(stack: &Stack, offset: u16) -> Client {
        let stream = tokio::net::TcpStream::connect(stack.address(offset)).await.expect("connect");
        Client::new(stream)
    }

    pub async fn tls(stack: &Stack, offset: u16) -> Client {
        Client::tcp(stack, offset).await.secure(stack).await
    }

    /// Implicit TLS at an address; the server's name is `localhost`, signed by what is in this file.
    pub async fn tls_at(address: std::net::SocketAddr, ca: impl AsRef<Path>) -> Client {
        let stream = tokio::net::TcpStream::connect(address).await.expect("connect");
        let pem = fs::read_to_string(ca.as_ref()).expect("CA");
        let tls = tls_config::Client::new(&pem).expect("TLS client");
        Client::new(tls.connect("localhost", Box::new(stream) as Box<dyn Stream>).await.expect("handshake"))
    }

    pub async fn unix(path: impl AsRef<Path>) -> Client {
        let stream = tokio::net::UnixStream::connect(path.as_ref()).await.expect("connect");
        Client::new(stream)
    }

    /// An auth socket with greeting and handshake done.
    pub async fn auth(path: impl AsRef<Path>) -> Client {
        let mut client = Client::unix(path).await;
        client.until("DONE").await;
        client.send("VERSION\t1\t2\nCPID\t1\n").await;
        client
    }

    /// The client's handshake. Bytes already read in clear are lost, as they would be for any client.
    pub async fn secure(self, stack: &Stack) -> Client {
        let pem = fs::read_to_string(stack.ca()).expect("CA");
        let tls = tls_config::Client::new(&pem).expect("TLS client");
        let stream = tls.connect("localhost", self.stream).await.expect("handshake");
        Client::new(stream)
    }

    /// Sends; a server that has closed already is no failure here.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.try_send(bytes).await;
    }

    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        let sending = async {
            self.stream.write_all(bytes.as_ref()).await?;
            self.stream.flush().await
        };
        tokio::time::timeout(ANSWER_LIMIT, sending).await.map_err(std::io::Error::other)?
    }

    async fn fill(&mut self) -> usize {
        let mut chunk = [0; 16 * 1024];
        match tokio::time::timeout(ANSWER_LIMIT, self.stream.read(&mut chunk)).await {
            Err(_) => panic!("silence; so far {:?}", String::from_utf8_lossy(&self.buffer[self.taken..])),
            Ok(Err(_)) => 0,
            Ok(Ok(count)) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                count
            }
        }
    }

    /// The next line without its end; `None` when the server has closed.
    pub async fn line(&mut self) -> Option<String> {
        loop {
            let end = self.buffer[self.searched..].split(|b| *b == b'\n').next().map_or(0, <[u8]>::len);
            self.searched += end;
            if self.searched < self.buffer.len() {
                let line = String::from_utf8_lossy(&self.buffer[self.taken..self.searched]);
                let line = line.trim_end_matches('\r').to_owned();
                self.searched += 1;
                self.taken = self.searched;
                return Some(line);
            }
            self.buffer.drain(..self.taken);
            (self.searched, self.taken) = (self.buffer.len(), 0);
            if self.fill().await == 0 {
                return None;
            }
        }
    }

    /// Lines up to and with the first that starts like this.
    pub async fn until(&mut self, start: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.line().await.unwrap_or_else(|| panic!("closed before {start:?}: {lines:#?}"));
            let found = line.starts_with(start);
            lines.push(line);
            if found {
                return lines;
            }
        }
    }

    /// The next line, which must start like this.
    pub async fn expect(&mut self, start: &str) -> String {
        let line = self.line().await.unwrap_or_else(|| panic!("closed instead of {start:?}"));
        assert!(line.starts_with(start), "expected {start:?}, got {line:?}");
        line
    }

    /// Last line of the next SMTP reply.
    pub async fn reply(&mut self) -> String {
        loop {
            let line = self.line().await.expect("a reply");
            if line.as_bytes().get(3) != Some(&b'-') {
                return line;
            }
        }
    }

    /// Sends a line and gives the last line of the reply.
    pub async fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n")).await;
        self.reply().await
    }

    fn take(&mut self) -> Vec<u8> {
        let taken = std::mem::take(&mut self.taken);
        self.searched = 0;
        std::mem::take(&mut self.buffer).split_off(taken)
    }

    /// Everything until the server closes; `None` when it has not within `limit`.
    pub async fn rest(&mut self, limit: Duration) -> Option<Vec<u8>> {
        let reading = async {
            let mut chunk = [0; 16 * 1024];
            while let Ok(count @ 1..) = self.stream.read(&mut chunk).await {
                self.buffer.extend_from_slice(&chunk[..count]);
            }
        };
        tokio::time::timeout(limit, reading).await.ok()?;
        Some(self.take())
    }

    /// Whatever arrives within `time`.
    pub async fn arrives(&mut self, time: Duration) -> String {
        let _ = tokio::time::timeout(time, async { while self.fill().await != 0 {} }).await;
        String::from_utf8_lossy(&self.take()).into_owned()
    }

    /// Logs in by IMAP over implicit TLS.
    pub async fn imap(stack: &Stack, user: &str, password: &str) -> Client {
        let mut client = Client::tls(stack, 993).await;
        client.expect("* OK").await;
        client.send(format!("a LOGIN {user} \"{password}\"\r\n")).await;
        let lines = client.until("a ").await;
        assert!(lines.last().is_some_and(|line| line.starts_with("a OK")), "{lines:#?}");
        client
    }
}

pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// `AUTH` line for PLAIN on an auth socket.
pub fn auth_line(id: u32, user: &str, password: &str, extra: &str) -> String {
    let response = base64(format!("\0{user}\0{password}"));
    format!("AUTH\t{id}\tPLAIN\tservice=smtp\t{extra}resp={response}\n")
}

/// Answer (`OK` or `FAIL`, and all of its line) to one PLAIN login on an auth socket.
pub async fn log_in(path: impl AsRef<Path>, user: &str, password: &str, extra: &str) -> String {
    let mut client = Client::auth(path).await;
    client.send(auth_line(1, user, password, extra)).await;
    client.line().await.expect("an answer")
}

/// Every door lets the first user in: the daemons live and nobody is starved.
pub async fn serves(stack: &Stack) {
    let answer = log_in(stack.socket("auth-client"), USER, PASSWORD, "").await;
    assert!(answer.starts_with("OK\t1\t"), "{answer}");
    Client::imap(stack, USER, PASSWORD).await;
    let mut pop3 = Client::tls(stack, 995).await;
    pop3.expect("+OK").await;
    pop3.send(format!("USER {USER}\r\nPASS {PASSWORD}\r\n")).await;
    pop3.expect("+OK").await;
    pop3.expect("+OK").await;
    let mut smtp = Client::tls(stack, 465).await;
    smtp.expect("220").await;
    smtp.ask("EHLO client.test").await;
    let answer = smtp.ask(&format!("AUTH PLAIN {}", base64(format!("\0{USER}\0{PASSWORD}")))).await;
    assert!(answer.starts_with("235"), "{answer}");
}

/// A program that says one line, and then holds what it has until this is dropped.
pub struct Held {
    child: Child,
    /// The line.
    pub said: String,
}

impl Held {
    pub fn start(mut command: Command) -> Held {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut said = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("output"));
        output.read_line(&mut said).expect("a line");
        Held { child, said: said.trim().to_owned() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Role and pid of every process of the stack.
pub fn processes(stack: &Stack) -> BTreeMap<String, u32> {
    let out = stack.admin(&["status", "--json"], "");
    let status: serde_json::Value =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{}", show(&out)));
    let all = status["processes"].as_array().expect("processes");
    all.iter()
        .filter_map(|one| {
            let pid = u32::try_from(one["pid"].as_u64()?).ok()?;
            Some((one["role"].as_str()?.to_owned(), pid))
        })
        .collect()
}

/// Fails if a daemon was replaced.
pub fn assert_same_processes(stack: &Stack, before: &BTreeMap<String, u32>) {
    assert_eq!(&processes(stack), before, "a daemon was started again:\n{}", stack.log());
}

/// Resident memory in KiB.
pub fn memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Open descriptors; only root sees those of others.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").count()
}

/// Every path below a folder with its kind, but not what comes and goes in Maildirs.
pub fn tree(root: &Path) -> BTreeSet<(PathBuf, char)> {
    let mut found = BTreeSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.path().symlink_metadata() else { continue };
            let kind = if meta.is_dir() {
                'd'
            } else if meta.is_file() {
                'f'
            } else {
                'o'
            };
            if meta.is_dir() {
                open.push(entry.path());
            }
            found.insert((entry.path(), kind));
        }
    }
    found
}

/// Writes a file and gives it to the owner of its folder.
pub fn plant(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    give(path);
}

/// Gives a path to the owner of its folder.
pub fn give(path: &Path) {
    let owner = fs::metadata(path.parent().expect("a folder")).expect("owner");
    std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid())).expect("chown");
}

/// Replaces the user file's text, as an editor would.
pub fn write_users(stack: &Stack, text: impl AsRef<[u8]>) {
    let fresh = stack.state().join("users.test");
    plant(&fresh, text);
    fs::rename(&fresh, stack.state().join("users")).expect("rename");
}

/// A stack whose settings were changed: its own copy of the settings with replaced lines, as `--config`.
pub struct Tuned {
    pub stack: Stack,
    child: Option<Child>,
}

impl Tuned {
    pub fn start(changes: &[(&str, &str)]) -> Tuned {
        let mut stack = Stack::start();
        assert_eq!(stack.stop(), Some(0));
        let mut text = fs::read_to_string(stack.state().join("postern.toml")).expect("the copy");
        for (old, new) in changes {
            assert!(text.contains(old), "no {old:?} in {text}");
            text = text.replace(old, new);
        }
        let file = stack.scratch().join("tuned.toml");
        fs::write(&file, text).expect("settings");
        let log = fs::File::options().append(true).open(stack.log_path()).expect("log");
        let child = postern()
            .args(["run", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("postern starts");
        let mut tuned = Tuned { stack, child: Some(child) };
        tuned.wait();
        tuned
    }

    fn wait(&mut self) {
        for offset in [25, 110, 143] {
            wait_within(
                START_LIMIT,
                || self.stack.log(),
                || {
                    use std::io::Read as _;
                    let exited = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
                    assert!(exited.is_none(), "{exited:?}\n{}", self.stack.log());
                    let mut socket = std::net::TcpStream::connect(self.stack.address(offset)).ok()?;
                    socket.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
                    socket.read_exact(&mut [0]).ok()
                },
            );
        }
    }
}

impl Drop for Tuned {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            end(child);
        }
    }
}

/// A small generator with a fixed seed: the same noise in every run.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Noise {
        Noise(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| u8::try_from(self.next() >> 56).unwrap_or(0)).collect()
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[usize::try_from(self.below(from.len() as u64)).expect("small")]
    }
}

/// A message of the first user to himself.
pub fn address(user: &str) -> String {
    format!("{user}@{HOSTNAME}")
}

#[test]
fn every_row_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/how-others-broke.md")).expect("the page");
    let rows: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---") && !line.starts_with("| Attack"))
        .collect();
    assert!(rows.len() > 20, "{}", rows.len());
    for row in rows {
        let shown = row.trim_end_matches(" |").rsplit(" | ").next().expect("a column");
        let mut tests = 0;
        for name in shown.split('`').skip(1).step_by(2) {
            let found = match name.split_once("::") {
                Some((file, test)) if !test.contains("::") => {
                    fs::read_to_string(root.join(format!("tests/interop/{file}.rs")))
                        .is_ok_and(|text| text.contains(&format!("fn {test}()")))
                }
                Some(_) => ["src", "conf/src", "conf/boot/src", "auth-daemon/src"].iter().any(|folder| {
                    let (module, test) = name.split_once("::tests::").unwrap_or_default();
                    fs::read_to_string(root.join(folder).join(format!("{module}.rs")))
                        .is_ok_and(|text| text.contains(&format!("fn {test}()")))
                }),
                None => root.join("tests/scenarios").join(name).is_dir(),
            };
            assert!(found, "no such test: {name}");
            tests += 1;
        }
        assert!(tests > 0, "a row without a test: {row}");
    }
}
