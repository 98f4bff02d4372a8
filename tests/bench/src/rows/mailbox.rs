//! Rows of mailboxes: sessions in IDLE, large folders, the commands of a session, POP3 in bulk.
//!
//! Trust: nobody sends it bytes.
//! Never: let one side find in memory or in its index files what the other must read again.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::{Bench, DOVECOT, OURS, Run};
use crate::load::mail::{self, Client, Protocol};
use crate::load::{Crowd, Timing, Window, note};
use crate::proc::{self, Cpu};
use crate::report::{Idle, Row, time};
use crate::servers::mail::{Best, Mail, MailServer, dovecot_and_postfix, postern_stack};
use crate::servers::patiently;
use crate::users::Users;

/// Messages of the large folder.
const MANY: usize = 100_000;
/// Connections of one user in IDLE.
const EACH: usize = 5;
/// All of them: Dovecot's processes for one account may watch 128 mailboxes (fs.inotify.max_user_instances), and what
/// they cannot watch does not hibernate.
const IDLE: usize = 100;
/// Longest time that may take.
const HIBERNATED: Duration = Duration::from_secs(20);
/// Connections of the rows with commands.
const SESSIONS: usize = 4;
/// Messages in the folders of those.
const FEW: usize = 100;
/// What POP3 fetches: messages and their size.
const BULK: (usize, usize) = (500, 50_000);

type User = (String, String);

impl Bench {
    /// What happens in mailboxes.
    pub(crate) fn mailbox(&mut self) -> anyhow::Result<()> {
        let users = Users::plain(&self.work.join("users-mail"), 50)?;
        let mail = Mail::new(&self.work, &users)?;
        let (ours, peer) = self.mail_servers("mailbox", &mail)?;
        let [first, second, ..] = users.names.as_slice() else { bail!("no users") };

        let title = "IMAP IDLE: from a message in the Maildir to the client, one at a time";
        let (mail, ours, peer) = (&mail, &ours, &peer);
        let side = |server| -> Run<'_> { Box::new(move |timing| notify(server, mail, first, timing)) };
        let row = self.alternate(title, 1.5, &[(OURS, side(ours)), (DOVECOT, side(peer))])?;
        if let Some(p50) = row.ours().map(|ours| ours.p50) {
            self.target(format!("{title}: median ≤ 10 ms"), time(p50), p50 <= 10_000.0, String::new());
        }
        if self.long {
            self.commands(mail, ours, peer)?;
            self.retrieve(mail, ours, peer, second)?;
        }
        self.large_folder(mail, ours, peer)
    }

    /// Memory of connections that wait.
    pub(crate) fn idle(&mut self) -> anyhow::Result<()> {
        let title = "idle TLS IMAP connection";
        if !self.wants(title) {
            return Ok(());
        }
        let users = Users::plain(&self.work.join("users-idle"), IDLE / EACH)?;
        let mail = Mail::new(&self.work, &users)?;
        let mut each = Vec::new();
        for (name, server) in [
            (OURS, postern_stack(&self.program, &self.work.join("stack-waiting"), &mail)?),
            (DOVECOT, dovecot_and_postfix(&self.work.join("peers-waiting"), &mail, Best::Memory)?),
        ] {
            for user in &users.names {
                fill(&server, &user.0, 10, 2000)?;
            }
            let roots = server.roots();
            // What the first session needs once is not what a session needs. No more of them: what they leave to the
            // allocator would be missing from the growth.
            drop(waiting(&server, &mail, users.names.get(..1).unwrap_or_default())?);
            let before = proc::settled_pss_kib(&roots);
            let waiting = waiting(&server, &mail, &users.names)?;
            #[allow(clippy::cast_precision_loss)]
            let kib = (proc::settled_pss_kib(&roots) - before) / IDLE as f64;
            drop(waiting);
            println!("{title:<58} {name:<22} {kib:.1} KiB each");
            self.report.idle.push(Idle { name: name.to_owned(), connections: IDLE, kib });
            each.push(kib);
            if let (DOVECOT, Some(dovecot)) = (name, server.servers.last()) {
                self.settings("Dovecot: little memory", dovecot);
            }
        }
        if let Some(kib) = each.first() {
            let wanted = format!("{title}: ≤ 16 KiB");
            self.target(wanted, format!("{kib:.1} KiB"), *kib <= 16.0, String::new());
        }
        Ok(())
    }

    /// SELECT and FETCH of 100,000 messages.
    fn large_folder(&mut self, mail: &Mail<'_>, ours: &MailServer, peer: &MailServer) -> anyhow::Result<()> {
        let flags = ("(UID FLAGS)", "UID FLAGS");
        let envelope = ("(UID FLAGS ENVELOPE)", "ENVELOPE");
        let items = if self.long { vec![flags, envelope] } else { vec![flags] };
        let rows: Vec<_> = items
            .iter()
            .flat_map(|(items, name)| {
                [("cold", true), ("warm", false)].map(|(state, cold)| {
                    (format!("IMAP: SELECT, FETCH 1:* ({name}), 100,000 messages, {state}"), *items, cold)
                })
            })
            .collect();
        if !rows.iter().any(|(title, ..)| self.wants(title)) {
            return Ok(());
        }
        let places = [RefCell::new(Folder::new(ours, mail)?), RefCell::new(Folder::new(peer, mail)?)];
        for (title, items, cold) in rows {
            let [a, b] = &places;
            let sides = [(OURS, fetching(a, items, cold)), (DOVECOT, fetching(b, items, cold))];
            let row = self.alternate(&title, 1.0, &sides)?;
            self.time_target(&row, 0.5, "1/2");
        }
        Ok(())
    }

    fn time_target(&mut self, row: &Row, share: f64, text: &str) {
        let [ours, peer, ..] = row.sides.as_slice() else { return };
        let ratio = ours.p50 / peer.p50;
        let wanted = format!("{}: ≤ {text} of the time (median)", row.title);
        self.target(wanted, format!("{ratio:.2}"), ratio <= share, super::bound(row));
    }

    /// The commands of a session, on four connections.
    fn commands(&mut self, mail: &Mail<'_>, ours: &MailServer, peer: &MailServer) -> anyhow::Result<()> {
        let Some(users) = mail.users.names.get(2..2 + SESSIONS) else { bail!("no users") };
        for server in [ours, peer] {
            for user in users {
                fill(server, &user.0, FEW, 4096)?;
                let mut client = Client::log_in(Protocol::Imap, server.imap, &mail.client, user)?;
                // It may be there.
                client.ask("a CREATE Sent\r\n", "a ")?;
                client.log_out(Protocol::Imap)?;
            }
        }
        type Command = fn(usize) -> String;
        let commands: [(&str, Command); 4] = [
            ("SELECT", |_| "a SELECT INBOX\r\n".to_owned()),
            ("FETCH of a body of 4 KB", |turn| format!("a FETCH {} BODY.PEEK[]\r\n", turn % FEW + 1)),
            ("STORE of a flag", |turn| {
                let sign = if (turn / FEW).is_multiple_of(2) { '+' } else { '-' };
                format!("a STORE {} {sign}FLAGS.SILENT (\\Flagged)\r\n", turn % FEW + 1)
            }),
            ("APPEND of 4 KB", |_| {
                let text = mail::message("somebody@example.test", 4096);
                format!("a APPEND Sent {{{}+}}\r\n{text}\r\n", text.len())
            }),
        ];
        for (name, command) in commands {
            let title = format!("IMAP: {name}, {SESSIONS} connections");
            let side = |server: &MailServer| -> Run<'_> {
                let (roots, port) = (server.roots(), server.imap);
                Box::new(move |timing| {
                    let open = |thread: usize| {
                        let user = users.get(thread).context("no users")?;
                        let mut client = Client::log_in(Protocol::Imap, port, &mail.client, user)?;
                        client.ask("s SELECT INBOX\r\n", "s OK")?;
                        Ok(client)
                    };
                    let one =
                        |client: &mut Client, number: usize| client.ask(&command(number / SESSIONS), "a OK");
                    Crowd { threads: SESSIONS, timing, server: &roots }.run(open, one, None)
                })
            };
            let row = self.alternate(&title, 1.0, &[(OURS, side(ours)), (DOVECOT, side(peer))])?;
            self.rate_target(&row, 2.0);
        }
        Ok(())
    }

    /// POP3: everything, pipelined. An operation is a megabyte.
    fn retrieve(
        &mut self,
        mail: &Mail<'_>,
        ours: &MailServer,
        peer: &MailServer,
        user: &User,
    ) -> anyhow::Result<()> {
        let title = "POP3: RETR of 25 MB in 500 messages, pipelined (MB per second)";
        if !self.wants(title) {
            return Ok(());
        }
        let mut every = String::new();
        for number in 1..=BULK.0 {
            let _ = write!(every, "RETR {number}\r\n");
        }
        let session = |server| Session::new(server, mail, Protocol::Pop3);
        let sides = [
            (OURS, retrieving(session(ours), user, &every)?),
            (DOVECOT, retrieving(session(peer), user, &every)?),
        ];
        let row = self.alternate(title, 1.5, &sides)?;
        self.rate_target(&row, 2.0);
        Ok(())
    }
}

/// A side of the rows with the large folder.
fn fetching<'a>(place: &'a RefCell<Folder<'_>>, items: &'a str, cold: bool) -> Run<'a> {
    Box::new(move |timing| {
        let roots = place.borrow().session.server.roots();
        if !cold {
            // What was cold in the row before becomes warm.
            place.borrow_mut().ready(false)?;
            place.borrow_mut().fetch(items)?;
        }
        let ready = || place.borrow_mut().ready(cold);
        one_by_one(timing, &roots, ready, || place.borrow_mut().fetch(items))
    })
}

/// A side of the row with POP3: `every` asks for all messages.
fn retrieving<'a>(mut session: Session<'a>, user: &'a User, every: &'a str) -> anyhow::Result<Run<'a>> {
    let server = session.server;
    fill(server, &user.0, BULK.0, BULK.1)?;
    session.open(user)?;
    session.client()?.say(every)?;
    let bytes = session.client()?.count_until_dots(BULK.0)?;
    let session = RefCell::new(session);
    Ok(Box::new(move |timing| {
        let ready = || session.borrow_mut().open(user);
        let fetch = || {
            let mut session = session.borrow_mut();
            session.client()?.say(every)?;
            session.client()?.skip(bytes)
        };
        let mut window = one_by_one(timing, &server.roots(), ready, fetch)?;
        window.operations = window.operations * bytes / 1_000_000;
        // Times of whole sessions are no times of a megabyte.
        window.times.clear();
        Ok(window)
    }))
}

/// One connection after the other to the same server.
struct Session<'a> {
    server: &'a MailServer,
    mail: &'a Mail<'a>,
    protocol: Protocol,
    client: Option<Client>,
}

impl<'a> Session<'a> {
    fn new(server: &'a MailServer, mail: &'a Mail<'a>, protocol: Protocol) -> Session<'a> {
        Session { server, mail, protocol, client: None }
    }

    fn close(&mut self) -> anyhow::Result<()> {
        self.client.take().map_or(Ok(()), |client| client.log_out(self.protocol))
    }

    fn open(&mut self, user: &User) -> anyhow::Result<()> {
        self.close()?;
        let port = if self.protocol == Protocol::Imap { self.server.imap } else { self.server.pop3 };
        self.client = Some(Client::log_in(self.protocol, port, &self.mail.client, user)?);
        Ok(())
    }

    fn client(&mut self) -> anyhow::Result<&mut Client> {
        self.client.as_mut().context("no connection")
    }
}

/// The large folder: INBOX of one user after the other.
struct Folder<'a> {
    session: Session<'a>,
    turn: usize,
}

impl<'a> Folder<'a> {
    fn new(server: &'a MailServer, mail: &'a Mail<'a>) -> anyhow::Result<Folder<'a>> {
        let mut folder = Folder { session: Session::new(server, mail, Protocol::Imap), turn: 10 };
        let user = folder.user(0)?;
        fill(server, &user.0, MANY, 1000)?;
        // Everybody gets a UID.
        folder.ready(false)?;
        folder.fetch("(UID FLAGS)")?;
        Ok(folder)
    }

    fn user(&self, ahead: usize) -> anyhow::Result<&'a User> {
        let names = &self.session.mail.users.names;
        names.get((self.turn + ahead) % names.len().max(1)).context("no users")
    }

    /// A new connection. For a cold start the folder becomes another user's, without index files: no side knows
    /// anything of it but the UIDs, which lie in a file of the same format on both.
    fn ready(&mut self, cold: bool) -> anyhow::Result<()> {
        self.session.close()?;
        if cold {
            let server = self.session.server;
            let from = server.maildir(&self.user(0)?.0);
            let to = server.maildir(&self.user(1)?.0);
            if let Some(home) = to.parent().filter(|_| !to.exists()) {
                fs::create_dir_all(home)?;
                server.own(home)?;
            } else {
                fs::remove_dir_all(&to)?;
            }
            fs::rename(&from, &to)?;
            for entry in fs::read_dir(&to)? {
                let entry = entry?;
                let name = entry.file_name();
                if ["dovecot.index", "dovecot.list.index"]
                    .iter()
                    .any(|start| name.as_encoded_bytes().starts_with(start.as_bytes()))
                {
                    fs::remove_file(entry.path())?;
                }
            }
            self.turn += 1;
        }
        let user = self.user(0)?;
        self.session.open(user)
    }

    fn fetch(&mut self, items: &str) -> anyhow::Result<()> {
        let client = self.session.client()?;
        let exists = format!("* {MANY} EXISTS\r\n");
        client.ask("a SELECT INBOX\r\n", &exists)?;
        client.expect("a OK")?;
        client.ask(&format!("b FETCH 1:* {items}\r\n"), &format!("* {MANY} FETCH"))?;
        client.expect("b OK")
    }
}

/// Puts so many messages of about this size into a user's INBOX, and nothing else.
fn fill(server: &MailServer, user: &str, count: usize, size: usize) -> anyhow::Result<()> {
    let maildir = server.maildir(user);
    let _ = fs::remove_dir_all(&maildir);
    let home = maildir.parent().unwrap_or(&maildir).to_owned();
    for folder in [home, maildir.clone(), maildir.join("cur"), maildir.join("new"), maildir.join("tmp")] {
        fs::create_dir_all(&folder)?;
        server.own(&folder)?;
    }
    let text = mail::message(user, size);
    for number in 0..count {
        // Sizes as delivery programs write them: Dovecot need not open files for them.
        let name = format!("1760000000.M{number:06}P1.bench,S={length},W={length}:2,S", length = text.len());
        let path = maildir.join("cur").join(name);
        fs::write(&path, &text)?;
        server.own(&path)?;
    }
    Ok(())
}

/// A client in IDLE.
fn idling(server: &MailServer, mail: &Mail<'_>, user: &User) -> anyhow::Result<Client> {
    let mut client = Client::log_in(Protocol::Imap, server.imap, &mail.client, user)?;
    client.ask("s SELECT INBOX\r\n", "s OK")?;
    client.ask("i IDLE\r\n", "+ ")?;
    Ok(client)
}

/// Connections of these users, in IDLE, and on Dovecot's side hibernated.
fn waiting(server: &MailServer, mail: &Mail<'_>, users: &[User]) -> anyhow::Result<Vec<Client>> {
    let all = users.iter().flat_map(|user| [user; EACH]);
    let clients = all.map(|user| idling(server, mail, user)).collect::<anyhow::Result<Vec<_>>>()?;
    let busy = || proc::named(&server.roots(), "imap");
    if !patiently(HIBERNATED, Duration::from_millis(20), || busy() == 0) {
        bail!("{} of Dovecot's sessions do not hibernate", busy());
    }
    Ok(clients)
}

/// Puts messages into a Maildir, each when the client in IDLE has heard of the one before.
fn notify(server: &MailServer, mail: &Mail<'_>, user: &User, timing: Timing) -> anyhow::Result<Window> {
    let text = mail::message(&user.0, 2000);
    let maildir = server.maildir(&user.0);
    fill(server, &user.0, 0, 0)?;
    let open = |_| idling(server, mail, user);
    let one = |client: &mut Client, number: usize| {
        let name = format!("1770000000.M{number:06}P2.bench");
        let (tmp, new) = (maildir.join("tmp").join(&name), maildir.join("new").join(&name));
        fs::write(&tmp, &text)?;
        server.own(&tmp)?;
        fs::rename(&tmp, &new)?;
        client.until("EXISTS", |line| line.ends_with(b" EXISTS\r\n"))
    };
    Crowd { threads: 1, timing, server: &server.roots() }.run(open, one, None)
}

/// One operation after the other, each made ready outside of the time that counts.
fn one_by_one(
    timing: Timing,
    server: &[u32],
    mut ready: impl FnMut() -> anyhow::Result<()>,
    mut operation: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Window> {
    let mut window = Window::default();
    // One would be an accident.
    while window.operations < 2 || window.seconds < timing.window.as_secs_f64() {
        ready()?;
        let (server_cpu, own_cpu) = (Cpu::of(server), proc::own_cpu_seconds());
        let began = Instant::now();
        operation()?;
        let took = began.elapsed();
        let cpu = Cpu::of(server).since(server_cpu);
        window.server_cpu.all += cpu.all;
        window.server_cpu.system += cpu.system;
        window.own_cpu += proc::own_cpu_seconds() - own_cpu;
        window.seconds += took.as_secs_f64();
        window.operations += 1;
        note(&mut window.times, took);
    }
    window.pss_kib = proc::pss_kib(server);
    Ok(window)
}
