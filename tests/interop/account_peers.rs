//! System users in every state of an account, asked for by other people's programs: what each makes of our answers.
//!
//! The states are those of `account_states.tsv`, and so is who is told what.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::account_states::{DRIVERS, State, machine, states};
use crate::cyrus_clients;
use crate::exim::{self, Exim};
use crate::machine::{Machine, RIGHT, UNIX};
use crate::private::{Foreground, Lines, Namespace, documented, scratch, unpacked};
use crate::prosody;
use crate::support::{have, peer, run, show, stdout};

const OUTCOMES: [&str; 4] = ["ok", "refused", "expired", "disabled"];

/// What a program says to a user with a password.
type Ask<'a> = dyn Fn(&str, &str) -> String + Sync + 'a;

/// A program to log in with.
struct Peer<'a> {
    name: &'static str,
    ask: Box<Ask<'a>>,
    /// What is part of that, by outcome.
    told: [&'static str; 4],
}

impl Peer<'_> {
    fn misses(&self, states: &[State], driver: usize) -> Vec<String> {
        let mut tries = vec![("nobody-here", RIGHT, "refused")];
        for State { person, told } in states {
            tries.extend([(person.name.as_str(), RIGHT, told[driver]), (&person.name, "wrong", "refused")]);
        }
        let mut misses = Vec::new();
        for (user, password, outcome) in tries {
            let at = OUTCOMES.iter().position(|known| *known == outcome).expect("a known outcome");
            let said = (self.ask)(user, password);
            if !said.contains(self.told[at]) {
                misses.push(format!("{} {user} {password}: no {:?} in {said:?}", self.name, self.told[at]));
            }
        }
        misses
    }
}

/// One try at an Exim that offers AUTH without TLS.
fn at_exim(exim: &Exim, user: &str, password: &str) -> String {
    let asked = Lines::smtp(exim.port).and_then(|(mut smtp, _)| smtp.auth(user, password));
    asked.unwrap_or_else(|error| error.to_string())
}

/// An Exim whose authenticators are this block of the manual; `socket` is where they look for ours.
fn start_exim(block: &str, place: &Path, namespace: &Namespace, socket: &str) -> Exim {
    let without_tls = ("server_advertise_condition = ${if def:tls_in_cipher}", "");
    let mut replace = vec![without_tls];
    if !socket.is_empty() {
        replace.push(("/run/postern/exim", socket));
    }
    exim::start(place, namespace, &documented(block, &replace))
}

/// Prosody on the machine's client socket, with its port.
fn start_prosody(machine: &Machine, place: &Path) -> Option<(Foreground, u16)> {
    let root = unpacked(prosody::PACKAGES)?;
    let namespace = Namespace::new(&place.join("ns"), &root, &[]);
    if !namespace.possible() {
        return None;
    }
    fs::create_dir(place.join("run")).expect("folder");
    symlink(machine.socket("client"), place.join("run/prosody")).expect("link");
    Some(prosody::start(place, &namespace))
}

fn check(driver: usize) {
    if !have(&["testsaslauthd", "saslpasswd2", "openssl", "unshare"]) {
        return;
    }
    let states = states();
    let people = states.iter().map(|state| state.person.clone()).collect();
    let Some(machine) = machine(DRIVERS[driver], people, UNIX) else { return };
    let Some((by_socket, namespace)) = exim::private() else { return };
    let client = machine.socket("client").display().to_string();
    let by_socket_exim = start_exim("exim-dovecot.conf", by_socket.path(), &namespace, &client);
    let Some((by_mux, namespace)) = exim::private() else { return };
    // Exim has the path of the mux built in.
    fs::create_dir(namespace.run().join("saslauthd")).expect("folder");
    symlink(machine.socket("mux"), namespace.run().join("saslauthd/mux")).expect("link");
    let by_mux_exim = start_exim("exim-saslauthd.conf", by_mux.path(), &namespace, "");
    let place = scratch();
    let Some((_prosody, xmpp)) = start_prosody(&machine, place.path()) else { return };
    let Some(cyrus) = unpacked(cyrus_clients::PACKAGES) else { return };

    let testsaslauthd = |user: &str, password: &str| {
        let mut command = peer("testsaslauthd", place.path());
        command.arg("-f").arg(machine.socket("mux")).args(["-u", user, "-p", password, "-s", "smtp"]);
        stdout(&run(command, ""))
    };
    let cyrus_client = |program: &'static str, offset: u16| {
        let (cyrus, place, port) = (&cyrus, place.path(), machine.port(offset));
        Box::new(move |user: &str, password: &str| {
            let out = cyrus_clients::attempt(cyrus, place, program, port, &["-s"], "PLAIN", user, password);
            show(&out)
        })
    };
    let peers = [
        Peer {
            name: "Exim, dovecot",
            ask: Box::new(|user, password| at_exim(&by_socket_exim, user, password)),
            told: ["235 ", "535 ", "535 ", "535 "],
        },
        Peer {
            name: "Exim, saslauthd",
            ask: Box::new(|user, password| at_exim(&by_mux_exim, user, password)),
            told: ["235 ", "535 ", "535 ", "535 "],
        },
        Peer {
            name: "Prosody",
            ask: Box::new(|user, password| prosody::login(xmpp, user, password)),
            told: [
                "<jid>",
                "<not-authorized/><text>Invalid user name or password</text>",
                "<not-authorized/><text>Password expired</text>",
                "<not-authorized/><text>Account is disabled</text>",
            ],
        },
        Peer {
            name: "testsaslauthd",
            ask: Box::new(testsaslauthd),
            told: ["0: OK ", "0: NO ", "0: NO ", "0: NO "],
        },
        Peer {
            name: "imtest",
            ask: cyrus_client("imtest", 993),
            told: ["\nAuthenticated.", "NO [AUTHENTICATIONFAILED]", "NO [EXPIRED]", "NO [CONTACTADMIN]"],
        },
        Peer {
            name: "pop3test",
            ask: cyrus_client("pop3test", 995),
            told: ["\nAuthenticated.", "-ERR [AUTH]", "-ERR [AUTH]", "-ERR [AUTH]"],
        },
        Peer {
            name: "smtptest",
            ask: cyrus_client("smtptest", 465),
            told: ["\nAuthenticated.", "535 5.7.8 ", "535 5.7.8 ", "535 5.7.13 "],
        },
    ];
    let misses: Vec<String> = std::thread::scope(|scope| {
        let all: Vec<_> = peers.iter().map(|peer| scope.spawn(|| peer.misses(&states, driver))).collect();
        all.into_iter().flat_map(|one| one.join().expect("tries")).collect()
    });
    assert!(misses.is_empty(), "{}: {misses:#?}\n{}", DRIVERS[driver], machine.log());
}

#[test]
fn every_state_by_shadow_through_other_programs() {
    check(0);
}

#[test]
fn every_state_by_pam_through_other_programs() {
    check(2);
}
