//! Rows of the machine: saslauthd's socket, start-up time, idle memory.
//!
//! Trust: nobody sends it bytes.
//! Never: read the memory of one side while the other runs: they would share pages of the C library.

use super::{Bench, OURS, Run, bound};
use crate::load::mux;
use crate::load::unread::Unread;
use crate::proc;
use crate::report::{Footprint, time};
use crate::rows::auth::options;
use crate::servers::auth::{AuthServer, dovecot_auth, postern_auth, private_etc, saslauthd};
use crate::servers::mail::{Best, Mail, dovecot_and_postfix, postern_stack};
use crate::stats::median;
use crate::users::Users;

/// How a server is started for its footprint: its name there, its processes and the seconds to its first answer.
type Started = (Box<dyn std::any::Any>, Vec<u32>, f64);

impl Bench {
    /// saslauthd's socket.
    pub(crate) fn mux(&mut self) -> anyhow::Result<()> {
        let etc = self.work.join("private");
        private_etc(&etc)?;
        let etc = etc.join("etc");
        let work = self.work.join("mux");
        for (title, name, flags, seconds, factor) in [
            ("saslauthd: pam_unix, not cached", "pam", "-a pam -n 8", 1.5, 1.1),
            ("saslauthd: shadow, not cached", "shadow", "-a shadow -n 8", 1.5, 1.3),
            ("saslauthd: pam_unix, cached", "cached", "-a pam -n 8 -c -t 3600 -s 4096", 1.0, 2.0),
        ] {
            let title_of_row = format!("{title}, 4 in flight");
            if !self.wants(&title_of_row) {
                continue;
            }
            let ours = saslauthd(Some(&self.program), &work, &etc, &format!("ours-{name}"), flags)?;
            let peer = saslauthd(None, &work, &etc, &format!("peer-{name}"), flags)?;
            self.settings(&format!("{title}: both sides"), &peer.server);
            let requests = vec![mux::request("tester", "pw1", "smtp")];
            let run = |server: &AuthServer| -> Run<'_> {
                let (socket, roots) = (server.socket.clone(), server.server.roots().to_vec());
                let requests = requests.clone();
                Box::new(move |timing| mux::run(&socket, &requests, 4, timing, &roots))
            };
            let sides = [(OURS, run(&ours)), ("saslauthd", run(&peer))];
            let row = self.alternate(&title_of_row, seconds, &sides)?;
            let mut why = bound(&row);
            if name == "cached" {
                let socket = work.join("unread");
                let unread = Unread::mux(socket.clone())?;
                let run: Run<'_> = Box::new(|timing| mux::run(&socket, &requests, 4, timing, &[]));
                why.push_str(&self.at_most("saslauthd: no check, 4 in flight", seconds, run, &row)?);
                drop(unread);
            }
            self.rate_target_because(&row, factor, why);
        }
        Ok(())
    }

    /// Start-up time and memory without connections.
    pub(crate) fn footprint(&mut self) -> anyhow::Result<()> {
        let users = Users::plain(&self.work.join("users-1k"), 1000)?;
        let (options, mail) = (options(&users), Mail::new(&self.work, &users)?);
        let etc = self.work.join("private-idle");
        private_etc(&etc)?;
        let (program, work, etc) = (self.program.clone(), self.work.join("idle"), etc.join("etc"));
        let place = |name: &str, round: usize| work.join(format!("{name}-{round}"));
        std::fs::create_dir_all(&work)?;
        let auth = |server: AuthServer| -> Started {
            let (roots, start) = (server.server.roots().to_vec(), server.server.start_seconds);
            (Box::new(server), roots, start)
        };
        let stack = |server: crate::servers::mail::MailServer| -> Started {
            let (roots, start) = (server.roots(), server.start_seconds());
            (Box::new(server), roots, start)
        };
        let names = [
            "Postern, authentication alone",
            "Dovecot, authentication alone",
            "Postern as saslauthd (PAM, 5 threads)",
            "saslauthd (PAM, 5 processes)",
            "Postern, whole stack",
            "Dovecot and Postfix",
        ];
        let mux = |ours: Option<&std::path::Path>, name: &str, round: usize| {
            saslauthd(ours, &work, &etc, &format!("{name}-{round}"), "-a pam -n 5").map(auth)
        };
        let start = |which: usize, round: usize| -> anyhow::Result<Started> {
            match which {
                0 => postern_auth(&program, &place("ours", round), options).map(auth),
                1 => dovecot_auth(&place("peer", round), options).map(auth),
                2 => mux(Some(&program), "ours-mux", round),
                3 => mux(None, "peer-mux", round),
                4 => postern_stack(&program, &place("stack", round), &mail).map(stack),
                _ => dovecot_and_postfix(&place("peers", round), &mail, Best::Memory).map(stack),
            }
        };
        let mut seen: Vec<Vec<Footprint>> = vec![Vec::new(); names.len()];
        for round in 0..self.rounds {
            for (which, (name, seen)) in names.iter().zip(&mut seen).enumerate() {
                if !self.wants(name) {
                    continue;
                }
                let (server, roots, start) = start(which, round)?;
                // Memory takes seconds to come to rest, and is the same every time.
                let read = self.long || round == 0;
                let (pss, anonymous) = if read {
                    (proc::settled_pss_kib(&roots), proc::anonymous_kib(&roots))
                } else {
                    (f64::NAN, f64::NAN)
                };
                drop(server);
                seen.push(Footprint { name: (*name).to_owned(), start, pss, anonymous });
            }
        }
        for rounds in seen {
            self.footprint_row(&rounds);
        }
        Ok(())
    }

    fn footprint_row(&mut self, rounds: &[Footprint]) {
        let Some(first) = rounds.first() else { return };
        let of = |f: fn(&Footprint) -> f64| {
            median(&rounds.iter().map(f).filter(|value| value.is_finite()).collect::<Vec<_>>())
        };
        let all = Footprint {
            name: first.name.clone(),
            start: of(|r| r.start),
            pss: of(|r| r.pss),
            anonymous: of(|r| r.anonymous),
        };
        println!(
            "{:<58} start {:>8}  {:.1} MiB, not of files {:.1} MiB",
            all.name,
            time(all.start * 1e6),
            all.pss / 1024.0,
            all.anonymous / 1024.0
        );
        let limit = match all.name.as_str() {
            "Postern, authentication alone" => Some(("authentication alone", 6.0)),
            "Postern, whole stack" => Some(("whole stack", 25.0)),
            _ => None,
        };
        if let Some((title, limit)) = limit {
            let mib = all.pss / 1024.0;
            let why = format!(
                "{:.1} MiB of it are memory of the processes; the rest are pages of the one program file that all roles share, \
                 which the kernel maps in windows of 64 KiB and drops when memory is short",
                all.anonymous / 1024.0
            );
            self.target(
                format!("idle memory, {title}: ≤ {limit} MiB (PSS)"),
                format!("{mib:.1} MiB"),
                mib <= limit,
                why,
            );
        }
        self.report.footprint.push(all);
    }
}
