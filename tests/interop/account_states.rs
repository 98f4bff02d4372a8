//! System users in every state of an account, by shadow and by PAM, on every door.
//!
//! The tables are data: `account_states.tsv` (who is told what) and `account_outcomes.tsv` (how each door says it).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::hostile::{Client, base64, bounded};
use crate::machine::{ANYBODY, Machine, Person, QUICK, RIGHT, SOCKETS, Setup, UNIX, YESCRYPT, today};
use crate::support::{HOSTNAME, mux_request};

/// The settings of the columns behind the shell, in their order.
pub const DRIVERS: [&str; 4] = [
    "driver = \"shadow\"\n",
    "driver = \"shadow\"\nmust_change = \"accept\"\ninactive = \"accept\"\naccount_expired = \"accept\"\nnologin_shell = \"refuse\"\n",
    "driver = \"pam\"\n",
    "driver = \"pam\"\nnologin_shell = \"refuse\"\n",
];

const DOORS: [&str; 5] = ["socket", "mux", "smtp", "imap", "pop3"];

/// The lines of a table without its comments.
fn rows(text: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split('\t').collect())
}

pub struct State {
    pub person: Person,
    /// By driver.
    pub told: Vec<&'static str>,
}

/// The states of the table.
pub fn states() -> Vec<State> {
    let days = |field: &str| match field.strip_prefix('D') {
        None => field.to_owned(),
        Some("") => today().to_string(),
        Some(offset) => {
            let offset: i64 = offset.parse().expect("D, D+n or D-n");
            today().checked_add_signed(offset).expect("a day").to_string()
        }
    };
    rows(include_str!("account_states.tsv"))
        .map(|row| {
            let [name, shadow, shell, told @ ..] = &row[..] else { panic!("{row:?}") };
            assert_eq!(told.len(), DRIVERS.len(), "{row:?}");
            let fields: Vec<String> = shadow.replace('H', YESCRYPT).split(':').map(days).collect();
            let shadow = (*shadow != "-").then(|| fields.join(":"));
            let person = Person { name: (*name).to_owned(), shadow, shell: (*shell).to_owned() };
            State { person, told: told.to_vec() }
        })
        .collect()
}

/// What each door says, by outcome and door.
fn outcomes() -> BTreeMap<&'static str, Vec<&'static str>> {
    rows(include_str!("account_outcomes.tsv"))
        .map(|row| {
            assert_eq!(row.len(), 1 + DOORS.len(), "{row:?}");
            (row[0], row[1..].to_vec())
        })
        .collect()
}

/// With sockets and fronts, and these people by this driver.
pub fn machine(driver: &str, people: Vec<Person>, service: &str) -> Option<Machine> {
    Machine::start(&Setup {
        people,
        services: vec![("postern", service.to_owned())],
        settings: format!("{QUICK}{SOCKETS}[[auth.passdb]]\n{driver}{ANYBODY}"),
        fronts: true,
    })
}

/// The answer of one door to one login.
pub async fn ask(machine: &Machine, door: &str, user: &str, password: &str) -> String {
    let plain = base64(format!("\0{user}\0{password}"));
    let tls = |offset| Client::tls_at(machine.address(offset), machine.ca());
    match door {
        "socket" => {
            let mut client = Client::auth(machine.socket("client")).await;
            client.send(format!("AUTH\t1\tPLAIN\tservice=smtp\tresp={plain}\n")).await;
            client.line().await.expect("an answer").replace('\t', "|")
        }
        "mux" => {
            let mut client = Client::unix(machine.socket("mux")).await;
            client.send(mux_request([user, password, "smtp", ""])).await;
            let answer = client.rest(Duration::from_secs(10)).await.expect("an end");
            String::from_utf8_lossy(answer.get(2..).unwrap_or_default()).into_owned()
        }
        "smtp" => {
            let mut client = tls(465).await;
            client.expect("220").await;
            client.ask("EHLO client.test").await;
            client.ask(&format!("AUTH PLAIN {plain}")).await
        }
        "imap" => {
            let mut client = tls(993).await;
            client.expect("* OK").await;
            client.send(format!("a LOGIN {user} \"{password}\"\r\n")).await;
            client.until("a ").await.pop().expect("a line")
        }
        _ => {
            let mut client = tls(995).await;
            client.expect("+OK").await;
            client.send(format!("USER {user}\r\n")).await;
            client.expect("+OK").await;
            client.send(format!("PASS {password}\r\n")).await;
            client.line().await.expect("an answer")
        }
    }
}

/// Tries everybody on every door, with the right password and with wrong ones.
fn check(driver: usize) {
    let states = states();
    let people = states.iter().map(|state| state.person.clone()).collect();
    let Some(machine) = machine(DRIVERS[driver], people, UNIX) else { return };
    let outcomes = outcomes();
    let wrongs = ["wrong", "!", "*", "x"];
    let wrong = |at: usize| wrongs[at % wrongs.len()];
    let machine = &machine;
    let (states, outcomes) = (&states, &outcomes);
    bounded(async {
        let door = |at: usize| async move {
            let mut misses = Vec::new();
            let mut tries: Vec<(&str, &str, &str)> =
                vec![("nobody-here", RIGHT, "refused"), ("root", "x", "refused")];
            for (number, State { person, told }) in states.iter().enumerate() {
                tries.push((&person.name, RIGHT, told[driver]));
                tries.push((&person.name, wrong(number), "refused"));
                // No network login without a password.
                if at == 0 {
                    tries.push((&person.name, "", "refused"));
                }
            }
            for (user, password, outcome) in tries {
                let said = ask(machine, DOORS[at], user, password).await;
                let want = outcomes[outcome][at].replace("USER", &format!("{user}@{HOSTNAME}"));
                // Further fields may follow a success.
                let exact = at == 0 && outcome != "ok";
                if !said.starts_with(&want) || (exact && said != want) {
                    misses.push(format!("{} {user} {password:?}: {said:?}, not {want:?}", DOORS[at]));
                }
            }
            misses
        };
        let (a, b, c, d, e) = tokio::join!(door(0), door(1), door(2), door(3), door(4));
        let misses = [a, b, c, d, e].concat();
        assert!(misses.is_empty(), "{}: {misses:#?}\n{}", DRIVERS[driver], machine.log());
    });
    let log = machine.log();
    assert!(!log.contains(RIGHT));
    // The client hears one word; the log keeps apart what the administrator has to do.
    let words = [
        "password expired (it must be changed)",
        "password expired (it was not changed within its days of grace)",
    ];
    for words in words {
        assert_eq!(log.contains(words), driver != 1, "{words}\n{log}");
    }
}

#[test]
fn every_state_by_shadow() {
    check(0);
}

#[test]
fn every_state_by_shadow_with_the_other_rules() {
    check(1);
}

#[test]
fn every_state_by_pam() {
    check(2);
}

#[test]
fn every_state_by_pam_without_nologin_shells() {
    check(3);
}

#[test]
fn an_outage_is_no_refusal_on_any_door() {
    // The module is not there, so PAM cannot say.
    let service = "auth required SCRATCH/no-such-module.so\naccount required pam_permit.so\n";
    let people = vec![Person::plain("bob")];
    let Some(machine) = machine(DRIVERS[2], people, service) else { return };
    let outcomes = outcomes();
    bounded(async {
        for (at, door) in DOORS.iter().enumerate() {
            for password in [RIGHT, "wrong"] {
                let said = ask(&machine, door, "bob", password).await;
                let want = outcomes["outage"][at].replace("USER", &format!("bob@{HOSTNAME}"));
                let right = said.starts_with(&want) && (said.is_empty() || !want.is_empty());
                assert!(right, "{door}: {said:?}, not {want:?}\n{}", machine.log());
            }
        }
    });
}

/// One line per method of libxcrypt that a shadow file may hold; the password of all is [`RIGHT`].
const METHODS: [(&str, &str); 10] = [
    ("yescrypt", YESCRYPT),
    ("gost-yescrypt", "$gy$j9T$EWUVt.nyqZHn39Ha3GF2M.$LiKbJdCGoRWH31jP9l2UNBzGONunQqEHqM9CEIpt6.1"),
    ("scrypt", "$7$CU..../....btp.HUGB6LAlrEm.zghzq0$NbaTI0WPrQD4J1krfnFd3DFZCE1DJutC5lZcwqhATQD"),
    ("bcrypt", "$2b$04$abcdefghijklmnopqrstuutiH7qAgHFjTuyXrYdhTJzI6mBSzxHVW"),
    ("bcrypt-y", "$2y$04$abcdefghijklmnopqrstuutiH7qAgHFjTuyXrYdhTJzI6mBSzxHVW"),
    (
        "sha512",
        "$6$uNrb5xmFXorQhWTt$vjW96cNajX/qCSvDZTFb3KkhqBpQaSeGmwRwJdym2MaDK/nzVDHM5W7NyfathwU.QW7zpxD6BVNQavZ6IIIwN1",
    ),
    ("sha256", "$5$ILvmgAfxH4edv/EU$C0znXWrhKVGDRzsHoISYNoT9Q8YOwxeTqoEmJTNUIG0"),
    ("md5", "$1$VPF6vfSh$djuk8mLVMQ7kqb5V9Xk0F0"),
    ("bsdi", "_J9..qa2fvyKUaw2VQk."),
    ("des", "fcd8T/LTN2P9w"),
];

#[test]
fn every_method_of_the_distribution() {
    for driver in [DRIVERS[0], DRIVERS[2]] {
        let person = |(name, hash): &(&str, &str)| {
            let shadow = Some(format!("{hash}:{}:0:99999:7:::", today()));
            Person { shadow, ..Person::plain(name) }
        };
        let people = METHODS.iter().map(person).collect();
        let setup = Setup {
            people,
            services: vec![("postern", UNIX.to_owned())],
            settings: format!("{QUICK}{SOCKETS}[[auth.passdb]]\n{driver}{ANYBODY}"),
            fronts: false,
        };
        let Some(machine) = Machine::start(&setup) else { return };
        // pam_unix compares only what crypt(3) makes of `$` methods and of DES.
        for (name, _) in METHODS.iter().filter(|(name, _)| driver == DRIVERS[0] || *name != "bsdi") {
            let answer = machine.plain(name, RIGHT, "smtp");
            assert!(answer.starts_with("OK\t1\t"), "{driver} {name}: {answer}\n{}", machine.log());
            let answer = machine.plain(name, "xummersun", "smtp");
            assert!(
                answer.starts_with("FAIL\t1\t") && answer.contains("\treason=Invalid"),
                "{driver} {name}: {answer}"
            );
        }
    }
}
