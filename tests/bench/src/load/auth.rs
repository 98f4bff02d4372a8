//! Load on the Dovecot auth protocol: connections with any number of requests in flight, from one thread.
//!
//! The generator shares the machine with the server, so it does as little as it can: requests are prepared, lines are
//! cut in place, writes are gathered per connection.
//!
//! Trust: what the measured servers answer; every line is compared with what must come.
//! Never: start a request before the one in its place is answered: the number in flight is what the row says.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use sha2::{Digest as _, Sha256};

use super::{Meter, Timing, Window, note};

/// How long open requests may take after the window.
const DRAIN: Duration = Duration::from_secs(60);

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    /// PLAIN with the right password; anything but OK is an error.
    Plain(Arc<Vec<Vec<u8>>>),
    /// PLAIN with a wrong one; anything but FAIL is an error.
    Wrong(Arc<Vec<Vec<u8>>>),
    /// PLAIN with a wrong password that was never asked before.
    Guesses(Arc<Vec<String>>),
    /// CRAM-MD5.
    Cram(Arc<Vec<(String, String)>>),
    /// SCRAM-SHA-256, with the salted password at hand as clients keep it (RFC 5802 §3).
    Scram(Arc<Vec<ScramUser>>),
}

/// What a SCRAM client keeps between logins.
#[derive(Debug, Clone)]
pub(crate) struct ScramUser {
    name: String,
    client_key: [u8; 32],
    stored_key: [u8; 32],
}

impl ScramUser {
    /// From the password and the salt and count of the stored key.
    pub(crate) fn new(name: &str, password: &str, salt: &[u8], iterations: u32) -> ScramUser {
        let mut salted = [0; 32];
        pbkdf2::pbkdf2_hmac::<Sha256>(password.as_bytes(), salt, iterations, &mut salted);
        let client_key = hmac_sha256(&salted, b"Client Key");
        ScramUser { name: name.to_owned(), client_key, stored_key: Sha256::digest(client_key).into() }
    }
}

/// Everything behind `AUTH id TAB` for PLAIN.
pub(crate) fn plain(user: &str, password: &str) -> Vec<u8> {
    let response = STANDARD.encode(format!("\0{user}\0{password}"));
    format!("PLAIN\tservice=smtp\tresp={response}\n").into_bytes()
}

/// A load.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// The socket.
    pub(crate) socket: PathBuf,
    /// Connections.
    pub(crate) connections: usize,
    /// Requests in flight on each.
    pub(crate) per_connection: usize,
    /// What is asked.
    pub(crate) work: Work,
}

/// A CPID per connection: Dovecot takes two with the same one for a mistake.
static NEXT_PID: AtomicU32 = AtomicU32::new(1_000_000);
/// Numbers guesses.
static NEXT_GUESS: AtomicU64 = AtomicU64::new(0);

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// One per request in flight.
    slots: Vec<Slot>,
    open: usize,
}

struct Slot {
    began: Instant,
    round: u32,
    user: usize,
    /// Client-first-bare and the authentication message, for SCRAM.
    state: Vec<u8>,
}

/// Opens a connection and goes through the greeting.
pub(crate) fn connect(socket: &std::path::Path) -> anyhow::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("{}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let pid = NEXT_PID.fetch_add(1, Ordering::Relaxed);
    stream.write_all(format!("VERSION\t1\t1\nCPID\t{pid}\n").as_bytes())?;
    let mut greeting = Vec::new();
    let mut buffer = [0; 4096];
    while !greeting.ends_with(b"DONE\n") {
        let count = stream.read(&mut buffer).context("no greeting")?;
        if count == 0 {
            bail!("closed during the greeting");
        }
        greeting.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
    Ok(stream)
}

/// One login; an error unless it is accepted.
pub(crate) fn login_once(socket: &std::path::Path, request: &[u8]) -> anyhow::Result<()> {
    let mut stream = connect(socket)?;
    stream.write_all(b"AUTH\t1\t")?;
    stream.write_all(request)?;
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer)?;
    let answer = buffer.get(..count).unwrap_or_default();
    if !answer.starts_with(b"OK\t1\t") {
        bail!("{:?}", String::from_utf8_lossy(answer));
    }
    Ok(())
}

/// Runs the load and measures one window.
///
/// # Errors
/// Any answer that is not the expected one: a run with errors is no measurement.
pub(crate) fn run(load: &Load, timing: Timing, server: &[u32]) -> anyhow::Result<Window> {
    let mut generator = Generator::new(load)?;
    generator.until(Instant::now() + timing.warm, None)?;
    let mut window = Window::default();
    let meter = Meter::start(server);
    generator.until(Instant::now() + timing.window, Some(&mut window.times))?;
    meter.end(&mut window);
    window.operations = window.times.len() as u64;
    generator.drain()?;
    Ok(window)
}

/// Runs the load without measuring until told to stop.
pub(crate) fn background(load: &Load, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut generator = Generator::new(load)?;
    while !stop.load(Ordering::Relaxed) {
        generator.until(Instant::now() + Duration::from_millis(50), None)?;
    }
    generator.drain()
}

struct Generator<'a> {
    load: &'a Load,
    epoll: Epoll,
    /// A connection that is being served is out of its place.
    connections: Vec<Option<Connection>>,
    next_user: usize,
    stopping: bool,
    buffer: Vec<u8>,
}

impl<'a> Generator<'a> {
    fn new(load: &'a Load) -> anyhow::Result<Generator<'a>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut connections = Vec::new();
        for number in 0..load.connections {
            let stream = connect(&load.socket)?;
            stream.set_nonblocking(true)?;
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
            let slot = || Slot { began: Instant::now(), round: 0, user: 0, state: Vec::new() };
            let slots = (0..load.per_connection).map(|_| slot()).collect();
            connections.push(Some(Connection {
                stream,
                input: Vec::new(),
                output: Vec::new(),
                slots,
                open: 0,
            }));
        }
        let mut generator =
            Generator { load, epoll, connections, next_user: 0, stopping: false, buffer: vec![0; 64 * 1024] };
        for number in 0..generator.connections.len() {
            let Some(mut connection) = generator.connections.get_mut(number).and_then(Option::take) else {
                continue;
            };
            for slot in 0..connection.slots.len() {
                generator.start(&mut connection, slot, Instant::now());
            }
            generator.flush(&mut connection)?;
            if let Some(place) = generator.connections.get_mut(number) {
                *place = Some(connection);
            }
        }
        Ok(generator)
    }

    fn until(&mut self, end: Instant, mut times: Option<&mut Vec<u32>>) -> anyhow::Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            let wait = (end - now).as_millis().min(50) + 1;
            let timeout = EpollTimeout::try_from(u32::try_from(wait).unwrap_or(50))?;
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in events.iter().take(count) {
                let number = usize::try_from(event.data())?;
                self.serve(number, times.as_deref_mut())?;
            }
        }
    }

    /// Waits for all answers that are still to come.
    fn drain(mut self) -> anyhow::Result<()> {
        self.stopping = true;
        let limit = Instant::now() + DRAIN;
        while self.connections.iter().flatten().any(|connection| connection.open > 0) {
            if Instant::now() > limit {
                bail!("requests were left unanswered");
            }
            self.until(Instant::now() + Duration::from_millis(20), None)?;
        }
        Ok(())
    }

    fn serve(&mut self, number: usize, mut times: Option<&mut Vec<u32>>) -> anyhow::Result<()> {
        let Some(mut connection) = self.connections.get_mut(number).and_then(Option::take) else {
            return Ok(());
        };
        loop {
            match connection.stream.read(&mut self.buffer) {
                Ok(0) => bail!("the server closed a connection"),
                Ok(count) => {
                    connection.input.extend_from_slice(self.buffer.get(..count).unwrap_or_default());
                    if count < self.buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        let now = Instant::now();
        // A full socket makes `flush` read on: then there are more lines.
        while connection.input.contains(&b'\n') {
            let input = std::mem::take(&mut connection.input);
            let mut rest = input.as_slice();
            while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                let (line, after) = rest.split_at(end);
                rest = after.get(1..).unwrap_or_default();
                self.line(&mut connection, line, now, times.as_deref_mut())?;
            }
            connection.input.extend_from_slice(rest);
            self.flush(&mut connection)?;
        }
        if let Some(place) = self.connections.get_mut(number) {
            *place = Some(connection);
        }
        Ok(())
    }

    fn line(
        &mut self,
        connection: &mut Connection,
        line: &[u8],
        now: Instant,
        times: Option<&mut Vec<u32>>,
    ) -> anyhow::Result<()> {
        let odd = || anyhow::anyhow!("unexpected answer {:?}", String::from_utf8_lossy(line));
        let mut fields = line.splitn(3, |&byte| byte == b'\t');
        let (verb, id) = (fields.next().unwrap_or_default(), fields.next().ok_or_else(odd)?);
        let rest = fields.next().unwrap_or_default();
        let id: usize = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok()).ok_or_else(odd)?;
        let slot = id % self.load.per_connection;
        let done = match (verb, &self.load.work) {
            (b"OK", Work::Plain(_) | Work::Cram(_) | Work::Scram(_))
            | (b"FAIL", Work::Wrong(_) | Work::Guesses(_)) => true,
            (b"CONT", Work::Cram(users)) => {
                let challenge = STANDARD.decode(rest)?;
                let place = connection.slots.get_mut(slot).ok_or_else(odd)?;
                let (user, password) = users.get(place.user).ok_or_else(odd)?;
                let mut mac = Hmac::<Md5>::new_from_slice(password.as_bytes())?;
                mac.update(&challenge);
                let digest = mac.finalize().into_bytes();
                let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(connection.output, "CONT\t{id}\t{}", STANDARD.encode(format!("{user} {hex}")))?;
                false
            }
            (b"CONT", Work::Scram(users)) => {
                let place = connection.slots.get_mut(slot).ok_or_else(odd)?;
                let user = users.get(place.user).ok_or_else(odd)?;
                let reply = scram_final(user, place, &STANDARD.decode(rest)?);
                writeln!(connection.output, "CONT\t{id}\t{}", STANDARD.encode(reply))?;
                false
            }
            _ => return Err(odd()),
        };
        if done {
            if let (Some(times), Some(place)) = (times, connection.slots.get(slot)) {
                note(times, now - place.began);
            }
            connection.open -= 1;
            if !self.stopping {
                self.start(connection, slot, now);
            }
        }
        Ok(())
    }

    /// The next request in a slot.
    fn start(&mut self, connection: &mut Connection, slot: usize, now: Instant) {
        self.next_user = self.next_user.wrapping_add(7_919);
        let next = self.next_user;
        let Some(place) = connection.slots.get_mut(slot) else { return };
        place.began = now;
        // Numbers are used again after a long time only.
        place.round = place.round.wrapping_add(1)
            % (u32::MAX / u32::try_from(self.load.per_connection + 1).unwrap_or(1) / 2);
        let id = u64::from(place.round) * self.load.per_connection as u64 + slot as u64;
        let out = &mut connection.output;
        connection.open += 1;
        out.extend_from_slice(b"AUTH\t");
        number(out, id);
        out.push(b'\t');
        match &self.load.work {
            Work::Plain(requests) | Work::Wrong(requests) => {
                if let Some(request) = requests.get(next % requests.len().max(1)) {
                    out.extend_from_slice(request);
                }
            }
            Work::Guesses(users) => {
                if let Some(user) = users.get(next % users.len().max(1)) {
                    let guess = NEXT_GUESS.fetch_add(1, Ordering::Relaxed);
                    out.extend_from_slice(&plain(user, &format!("guess {guess}")));
                }
            }
            Work::Cram(users) => {
                place.user = next % users.len().max(1);
                out.extend_from_slice(b"CRAM-MD5\tservice=smtp\n");
            }
            Work::Scram(users) => {
                place.user = next % users.len().max(1);
                let name = users.get(place.user).map_or("", |user| user.name.as_str());
                place.state = format!("n={name},r=fyko+d2lbbFgONRv9qkxdawL{id}").into_bytes();
                let first = [b"n,,".as_slice(), &place.state].concat();
                out.extend_from_slice(b"SCRAM-SHA-256\tservice=smtp\tfinal-resp-ok\tresp=");
                out.extend_from_slice(STANDARD.encode(first).as_bytes());
                out.push(b'\n');
            }
        }
    }

    fn flush(&mut self, connection: &mut Connection) -> anyhow::Result<()> {
        let began = Instant::now();
        while !connection.output.is_empty() {
            match connection.stream.write(&connection.output) {
                Ok(count) if count == connection.output.len() => connection.output.clear(),
                Ok(count) => drop(connection.output.drain(..count)),
                // The server reads no further before its answers are taken.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    match connection.stream.read(&mut self.buffer) {
                        Ok(count) => {
                            let bytes = self.buffer.get(..count).unwrap_or_default();
                            connection.input.extend_from_slice(bytes);
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                        Err(error) => return Err(error.into()),
                    }
                    if began.elapsed() > DRAIN {
                        bail!("the server takes no more requests");
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        if let Some(digit) = digits.get_mut(at) {
            *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        }
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}

fn hmac_sha256(key: &[u8], data: &[u8]) -> [u8; 32] {
    match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mut mac) => {
            mac.update(data);
            mac.finalize().into_bytes().into()
        }
        // RFC 2104 §2: keys of any length.
        Err(_) => [0; 32],
    }
}

/// RFC 5802 §3. `place.state` holds client-first-bare.
fn scram_final(user: &ScramUser, place: &Slot, server_first: &[u8]) -> Vec<u8> {
    let nonce = server_first.split(|&byte| byte == b',').next().unwrap_or_default();
    let without_proof = [b"c=biws,".as_slice(), nonce].concat();
    let message = [place.state.as_slice(), b",", server_first, b",", &without_proof].concat();
    let signature = hmac_sha256(&user.stored_key, &message);
    let proof: Vec<u8> = user.client_key.iter().zip(signature).map(|(a, b)| a ^ b).collect();
    [without_proof.as_slice(), b",p=", STANDARD.encode(proof).as_bytes()].concat()
}
