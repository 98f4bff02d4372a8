//! Clients that send too much, too slowly, too often, or never read.

use std::time::{Duration, Instant};

use crate::hostile::{
    Client, Tuned, assert_same_processes, bounded, memory, plant, processes, serves, start,
};
use crate::support::{PASSWORD, Stack, USER, wait_for};

/// Connections of the memory test; the limit is 100 for an address.
const MANY: usize = 90;
/// Bytes each of them sends.
const MUCH: usize = 1 << 20;
/// A front may grow by so many KiB meanwhile: 90 connections with their buffers, not 90 MiB of noise.
const GROWTH: u64 = 24 * 1024;

#[test]
fn noise_before_login_fills_no_memory() {
    let stack = start();
    let before = processes(&stack);
    bounded(async {
        serves(&stack).await;
        let endless = vec![b'A'; MUCH];
        let lines = b"x NOSUCH command\r\n".repeat(MUCH / 18);
        let literal = |text: &str| {
            let mut noise = text.as_bytes().to_vec();
            noise.resize(MUCH, b'B');
            noise
        };
        let pipelined = b"NOOP\r\n".repeat(MUCH / 6);
        for (role, offset, tls, noise) in [
            ("imap", 143, false, endless.clone()),
            ("imap", 143, false, lines.clone()),
            ("imap", 143, false, literal("x LOGIN {999999+}\r\n")),
            ("imap", 143, false, literal("x LOGIN {99999999999999999999}\r\n")),
            ("imap", 993, true, literal("x AUTHENTICATE PLAIN\r\n")),
            ("imap", 110, false, endless.clone()),
            ("imap", 110, false, lines.clone()),
            ("imap", 995, true, literal("AUTH PLAIN\r\n")),
            ("smtp", 25, false, endless.clone()),
            ("smtp", 25, false, lines.clone()),
            ("smtp", 25, false, pipelined),
            ("smtp", 465, true, literal("EHLO x\r\nAUTH PLAIN\r\n")),
        ] {
            let count = if tls { MANY / 6 } else { MANY };
            let resident = memory(before[role]);
            let mut clients = Vec::new();
            for _ in 0..count {
                clients.push(if tls {
                    Client::tls(&stack, offset).await
                } else {
                    Client::tcp(&stack, offset).await
                });
            }
            let noise = std::sync::Arc::new(noise);
            let tasks: Vec<_> = clients
                .into_iter()
                .map(|mut client| {
                    let noise = noise.clone();
                    tokio::spawn(async move {
                        // A server that stops reading is cut off from this side; it must not have to be.
                        let sent =
                            tokio::time::timeout(Duration::from_secs(10), client.try_send(&noise[..])).await;
                        (client, sent.is_ok())
                    })
                })
                .collect();
            let mut peak = 0;
            let mut cut = 0;
            for task in tasks {
                peak = peak.max(memory(before[role]));
                let (mut client, sent) = task.await.expect("task");
                assert!(sent, "+{offset}: stopped reading and did not close");
                // Whoever is still there after a megabyte of nonsense has been told to go, or goes on request.
                if client.try_send("\r\nQUIT\r\nx LOGOUT\r\n").await.is_err()
                    || client.rest(Duration::from_secs(5)).await.is_some()
                {
                    cut += 1;
                }
            }
            let grown = peak.saturating_sub(resident);
            assert!(grown < GROWTH, "+{offset}: {role} grew by {grown} KiB for {count} connections");
            assert_eq!(cut, count, "+{offset}: connections that were not cut off");
        }
        serves(&stack).await;
    });
    assert_same_processes(&stack, &before);
}

#[test]
fn one_address_gets_a_hundred_connections_and_others_are_served() {
    let stack = start();
    let before = processes(&stack);
    bounded(async {
        for (role, offset, greeting, refusal) in
            [("imap", 143, "* OK", "* BYE"), ("smtp", 25, "220", "421"), ("imap", 110, "+OK", "-ERR")]
        {
            // Whatever earlier connections were has gone.
            wait_for("no connections", || (connections(&stack, role) == 0).then_some(()));
            let mut held = Vec::new();
            for _ in 0..100 {
                let mut client = Client::tcp(&stack, offset).await;
                client.expect(greeting).await;
                held.push(client);
            }
            for _ in 0..20 {
                let mut client = Client::tcp(&stack, offset).await;
                let said = client.rest(Duration::from_secs(5)).await.expect("closed");
                let said = String::from_utf8_lossy(&said);
                assert!(said.is_empty() || said.starts_with(refusal), "+{offset}: {said}");
            }
            // Another address is not affected: 127.0.0.2 is as local as 127.0.0.1.
            let socket = tokio::net::TcpSocket::new_v4().expect("socket");
            socket.bind("127.0.0.2:0".parse().expect("address")).expect("bind");
            let stream = socket.connect(stack.address(offset)).await.expect("connect");
            let mut first = [0; 4];
            let mut stream = stream;
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut first).await.expect("a greeting");
            assert!(greeting.as_bytes().starts_with(&first[..3]), "{first:?}");
            // A place that comes free is given again.
            held.pop();
            wait_for("a free place", || {
                use std::io::Read as _;
                let mut socket = stack.connect(offset);
                let mut byte = [0; 4];
                socket.read_exact(&mut byte).ok()?;
                greeting.as_bytes().starts_with(&byte[..3]).then_some(())
            });
        }
    });
    assert_same_processes(&stack, &before);
}

fn connections(stack: &Stack, role: &str) -> u64 {
    let out = stack.admin(&["status", "--json"], "");
    let status: serde_json::Value = serde_json::from_slice(&out.stdout).expect("json");
    let all = status["processes"].as_array().expect("processes");
    all.iter()
        .find(|one| one["role"] == role)
        .and_then(|one| one["connections"].as_u64())
        .expect("connections")
}

#[test]
fn dribbling_does_not_keep_a_session_before_login() {
    let tuned = Tuned::start(&[
        ("login_timeout = \"1m\"", "login_timeout = \"2s\""),
        ("timeout = \"5m\"", "timeout = \"2s\""),
    ]);
    let stack = &tuned.stack;
    bounded(async {
        let mut tasks = Vec::new();
        for (offset, tls, text) in [
            (143, false, "a NOOP\r\n"),
            (
                143,
                false,
                "a LOGIN alice \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            ),
            (993, true, "a AUTHENTICATE PLAIN\r\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
            (110, false, "CAPA\r\n"),
            (
                995,
                true,
                "USER alice\r\nPASS aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            ),
            (
                25,
                false,
                "EHLO aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            ),
            (
                465,
                true,
                "EHLO x\r\nAUTH LOGIN\r\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            ),
        ] {
            let client =
                if tls { Client::tls(stack, offset).await } else { Client::tcp(stack, offset).await };
            tasks.push(tokio::spawn(dribble(offset, client, text)));
        }
        for task in tasks {
            let (offset, lasted) = task.await.expect("task");
            assert!(lasted < Duration::from_secs(6), "+{offset} was kept for {lasted:?}");
            assert!(lasted > Duration::from_millis(1_500), "+{offset} was cut after {lasted:?}");
        }
        serves(stack).await;
    });
}

/// Sends a byte every 100 ms until the server closes.
async fn dribble(offset: u16, mut client: Client, text: &'static str) -> (u16, Duration) {
    let started = Instant::now();
    for byte in text.bytes().cycle() {
        let sent = client.try_send([byte]).await;
        let closed = client.rest(Duration::from_millis(100)).await.is_some();
        if sent.is_err() || closed || started.elapsed() > Duration::from_secs(10) {
            break;
        }
    }
    (offset, started.elapsed())
}

#[test]
fn a_client_that_never_reads_stalls_nobody() {
    let stack = start();
    let before = processes(&stack);
    // Eight megabytes that nobody takes.
    let body = format!(
        "Subject: big\r\n\r\n{}",
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789\r\n".repeat(140_000)
    );
    plant(&stack.maildir(USER).join("new/1700000000.M1P1.big"), body);
    bounded(async {
        let mut stuck = Vec::new();
        for _ in 0..20 {
            let mut client = Client::imap(&stack, USER, PASSWORD).await;
            client.send("a SELECT INBOX\r\n").await;
            client.until("a OK").await;
            client.send("b FETCH 1 BODY.PEEK[]\r\nc FETCH 1 BODY.PEEK[]\r\nd FETCH 1 BODY.PEEK[]\r\n").await;
            stuck.push(client);
        }
        for _ in 0..10 {
            let mut client = Client::tls(&stack, 995).await;
            client.send(format!("USER {USER}\r\nPASS {PASSWORD}\r\nRETR 1\r\nRETR 1\r\n")).await;
            stuck.push(client);
        }
        // Before login: pipelined commands whose answers are not read.
        for offset in [25, 143, 110] {
            for _ in 0..5 {
                let mut client = Client::tcp(&stack, offset).await;
                let noise = b"NOOP\r\nHELP\r\nCAPA\r\na NOOP\r\n".repeat(20_000);
                let _ = tokio::time::timeout(Duration::from_millis(100), client.try_send(noise)).await;
                stuck.push(client);
            }
        }
        // On an auth socket: 100,000 requests, no answer read. The daemon stops taking them.
        let mut client = Client::unix(stack.socket("auth-client")).await;
        client.send("VERSION\t1\t2\nCPID\t1\n").await;
        let noise = b"AUTH\t1\tNOSUCH\tservice=smtp\n".repeat(100_000);
        let sent = tokio::time::timeout(Duration::from_secs(2), client.try_send(noise)).await;
        assert!(sent.is_err(), "all was read although no answer was");
        stuck.push(client);

        let started = Instant::now();
        serves(&stack).await;
        let mut other = Client::imap(&stack, USER, PASSWORD).await;
        other.send("a SELECT INBOX\r\nb STORE 1 +FLAGS (\\Flagged)\r\nc NOOP\r\n").await;
        other.until("c OK").await;
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        for (role, pid) in &before {
            assert!(memory(*pid) < 200 * 1024, "{role} holds {} KiB", memory(*pid));
        }
        drop(stuck);
    });
    assert_same_processes(&stack, &before);
}
