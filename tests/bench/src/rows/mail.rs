//! Rows of the mail servers: logins, and messages handed in.
//!
//! Trust: nobody sends it bytes.
//! Never: count a message that does not lie in its Maildir.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::{Bench, DOVECOT, OURS, Run};
use crate::load::mail::{self, Client, Protocol};
use crate::load::{Crowd, Timing, Window};
use crate::servers::mail::{Best, Mail, MailServer, dovecot_and_postfix, postern_stack};
use crate::servers::patiently;
use crate::users::Users;

/// Rows whose users need mailboxes.
const IMAP: &str = "IMAP: connect, TLS, LOGIN, LOGOUT";
const POP3: &str = "POP3: connect, TLS, PASS, QUIT";
/// Clients of the login rows.
const CLIENTS: usize = 16;
/// Connections that hand messages in.
const SENDERS: usize = 32;
/// Bytes of a message.
const SIZE: usize = 4096;
/// Longest time a queue may take to become empty.
const DELIVERED: Duration = Duration::from_secs(60);
/// Postfix takes the passwords from Dovecot.
const POSTFIX: &str = "Postfix and Dovecot";

impl Bench {
    /// Both sides.
    pub(super) fn mail_servers(
        &mut self,
        name: &str,
        mail: &Mail<'_>,
    ) -> anyhow::Result<(MailServer, MailServer)> {
        let ours = postern_stack(&self.program, &self.work.join(format!("stack-{name}")), mail)?;
        let peer = dovecot_and_postfix(&self.work.join(format!("peers-{name}")), mail, Best::Speed)?;
        for server in &ours.servers {
            self.settings("Postern: whole stack", server);
        }
        for (title, server) in ["Postfix: submission", "Dovecot: IMAP and POP3"].iter().zip(&peer.servers) {
            self.settings(title, server);
        }
        Ok((ours, peer))
    }

    /// Logins over SMTP, IMAP and POP3 with TLS.
    pub(crate) fn mail(&mut self) -> anyhow::Result<()> {
        let users = Users::plain(&self.work.join("users-mail"), 50)?;
        let mail = Mail::new(&self.work, &users)?;
        let (ours, peer) = self.mail_servers("mail", &mail)?;
        // Every mailbox exists before anything is measured; submission has none.
        let boxes =
            [(IMAP, Protocol::Imap, [ours.imap, peer.imap]), (POP3, Protocol::Pop3, [ours.pop3, peer.pop3])];
        for (_, protocol, ports) in boxes.into_iter().filter(|(title, ..)| self.wants(title)) {
            for (user, port) in users.names.iter().flat_map(|user| ports.map(|port| (user, port))) {
                mail::login(protocol, port, &mail.client, user)?;
            }
        }
        let (our_roots, peer_roots) = (ours.roots(), peer.roots());
        for (title, protocol, ports, peer_name, factor) in [
            ("SMTP: connect, TLS, AUTH PLAIN, QUIT", Protocol::Smtp, [ours.smtp, peer.smtp], POSTFIX, 1.0),
            (IMAP, Protocol::Imap, [ours.imap, peer.imap], DOVECOT, 2.0),
            (POP3, Protocol::Pop3, [ours.pop3, peer.pop3], DOVECOT, 1.0),
        ] {
            let (client, names) = (&mail.client, &users.names);
            let run = |port: u16, roots: &[u32]| -> Run<'_> {
                let roots = roots.to_vec();
                Box::new(move |timing| mail::run(protocol, port, client, names, CLIENTS, timing, &roots))
            };
            let sides = [(OURS, run(ports[0], &our_roots)), (peer_name, run(ports[1], &peer_roots))];
            let row = self.alternate(title, 1.5, &sides)?;
            self.rate_target(&row, factor);
        }
        Ok(())
    }

    /// Messages into Maildirs: on disk on both sides before they are acknowledged, counted when they lie there.
    pub(crate) fn submission(&mut self) -> anyhow::Result<()> {
        let users = Users::plain(&self.work.join("users-mail"), 50)?;
        let mail = Mail::new(&self.work, &users)?;
        let (ours, peer) = self.mail_servers("submission", &mail)?;
        for (title, again, factor) in [
            ("submission: 4 KB into a Maildir, 32 connections", false, 3.0),
            ("submission: 4 KB into a Maildir, a new connection for each, 32 at once", true, 4.0),
        ] {
            // Minutes are few in the short form.
            if again && !self.long {
                continue;
            }
            let mail = &mail;
            let side = |server| -> Run<'_> {
                Box::new(move |timing| {
                    // A first load, so that the peer's processes are there.
                    deliver(mail, server, again, Timing { window: Duration::from_millis(300), ..timing })?;
                    deliver(mail, server, again, timing)
                })
            };
            let row = self.alternate(title, 1.5, &[(OURS, side(&ours)), (POSTFIX, side(&peer))])?;
            self.rate_target(&row, factor);
            if !again {
                self.cpu_target(&row, 0.25, "1/4", super::bound(&row));
            }
        }
        Ok(())
    }
}

/// Messages from all senders to themselves, until the last one lies in its Maildir.
fn deliver(mail: &Mail<'_>, server: &MailServer, again: bool, timing: Timing) -> anyhow::Result<Window> {
    let names = &mail.users.names;
    let sender = |number: usize| names.get(number % names.len().max(1)).context("no users");
    let connect = |number| Client::log_in(Protocol::Smtp, server.smtp, &mail.client, sender(number)?);
    let send = |client: &mut Client, number: usize| -> anyhow::Result<()> {
        let (user, _) = sender(number)?;
        mail::submit(client, user, &mail::message(user, SIZE))
    };
    let operation = |client: &mut Option<Client>, number: usize| match client {
        Some(client) => send(client, number % SENDERS),
        None => {
            let mut client = connect(number)?;
            send(&mut client, number)?;
            client.log_out(Protocol::Smtp)
        }
    };
    let open = |number| if again { Ok(None) } else { connect(number).map(Some) };
    let settled = |count: usize| {
        let mut seen = 0;
        if !patiently(DELIVERED, Duration::from_millis(10), || {
            seen = arrived(mail, server);
            seen >= count
        }) {
            bail!("{seen} of {count} messages arrived");
        }
        Ok(())
    };
    let roots = server.roots();
    let crowd = Crowd { threads: SENDERS, timing, server: &roots };
    let window = crowd.run(open, operation, Some(&settled))?;
    // The next window begins with empty folders, and with nothing of this one still to be written.
    for (user, _) in names {
        let new = server.maildir(user).join("new");
        for entry in fs::read_dir(&new).into_iter().flatten().flatten() {
            fs::remove_file(entry.path())?;
        }
        if new.exists() {
            fs::File::open(&new)?.sync_all()?;
        }
    }
    Ok(window)
}

/// Messages that lie in all Maildirs.
fn arrived(mail: &Mail<'_>, server: &MailServer) -> usize {
    let entries = |(user, _): &(String, String)| fs::read_dir(server.maildir(user).join("new"));
    mail.users.names.iter().flat_map(entries).map(Iterator::count).sum()
}
