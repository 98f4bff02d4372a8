//! KILL for any daemon during traffic: ports never refuse, no acknowledged message is missing, and
//! nothing survives its supervisor.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{HOSTNAME, Stack, USER, signal, wait_for, wait_for_end};

fn children(pid: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|p| p.parse().ok())
        .collect()
}

/// Sends one message by inbound SMTP; true once the server has taken it.
fn deliver(address: std::net::SocketAddr, marker: &str) -> std::io::Result<bool> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(15)))?;
    let mut reader = BufReader::new(socket.try_clone()?);
    let answer = |reader: &mut BufReader<TcpStream>| -> std::io::Result<String> {
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(line);
            }
        }
    };
    answer(&mut reader)?;
    for line in ["EHLO test", "MAIL FROM:<>", &format!("RCPT TO:<{USER}@{HOSTNAME}>"), "DATA"] {
        socket.write_all(format!("{line}\r\n").as_bytes())?;
        let got = answer(&mut reader)?;
        if !got.starts_with(['2', '3']) {
            return Ok(false);
        }
    }
    socket.write_all(format!("Subject: {marker}\r\n\r\nbody\r\n.\r\n").as_bytes())?;
    Ok(answer(&mut reader)?.starts_with("250"))
}

#[test]
fn killed_daemons_come_back_and_no_acknowledged_message_is_lost() {
    let stack = Arc::new(Stack::start());
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let refused = Arc::new(Mutex::new(Vec::new()));
    let senders: Vec<_> = (0..4)
        .map(|worker| {
            let (stack, stop) = (stack.clone(), stop.clone());
            let (acknowledged, refused) = (acknowledged.clone(), refused.clone());
            std::thread::spawn(move || {
                for number in 0..100_000 {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let marker = format!("w{worker}n{number}");
                    match deliver(stack.address(25), &marker) {
                        Ok(true) => acknowledged.lock().expect("lock").push(marker),
                        Ok(false) => {}
                        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                            refused.lock().expect("lock").push(e.to_string());
                        }
                        Err(_) => {}
                    }
                }
            })
        })
        .collect();
    for _ in 0..2 {
        for index in 0..3 {
            let before: HashSet<u32> = wait_for("three daemons", || {
                let pids = children(stack.pid());
                (pids.len() >= 3).then(|| pids.into_iter().collect())
            });
            let mut sorted: Vec<_> = before.iter().copied().collect();
            sorted.sort_unstable();
            let victim = sorted[index];
            signal(victim, Signal::SIGKILL);
            wait_for("the killed daemon to come back", || {
                let now = children(stack.pid());
                (now.len() >= before.len() && !now.contains(&victim)).then_some(())
            });
            // Traffic flows again before the next blow.
            let so_far = acknowledged.lock().expect("lock").len();
            wait_for("new mail after a crash", || {
                (acknowledged.lock().expect("lock").len() > so_far + 5).then_some(())
            });
        }
    }
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.join().expect("sender");
    }
    assert!(refused.lock().expect("lock").is_empty(), "connections were refused");
    let subjects: HashSet<String> = stack
        .messages(USER)
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .filter_map(|text| text.lines().find_map(|l| l.strip_prefix("Subject: ").map(str::to_owned)))
        .collect();
    let acknowledged = acknowledged.lock().expect("lock");
    let lost: Vec<_> = acknowledged.iter().filter(|m| !subjects.contains(*m)).collect();
    assert!(lost.is_empty(), "lost {} of {}: {lost:?}", lost.len(), acknowledged.len());
}

#[test]
fn children_do_not_outlive_their_supervisor() {
    let stack = Stack::start();
    let pids = children(stack.pid());
    assert!(pids.len() >= 3, "{pids:?}");
    signal(stack.pid(), Signal::SIGKILL);
    wait_for_end(Duration::from_secs(2), "the supervisor", &pids);
    // The state folder is free again at once.
    let mut again = stack;
    let _ = again.stop();
    again.launch();
    assert_eq!(again.stop(), Some(0));
}

#[test]
fn reload_refuses_no_connection_and_keeps_sessions() {
    let stack = Stack::start();
    let mut session = BufReader::new(stack.connect(143));
    let mut line = String::new();
    session.read_line(&mut line).expect("greeting");
    for _ in 0..3 {
        signal(stack.pid(), Signal::SIGHUP);
        let end = Instant::now() + Duration::from_millis(700);
        while Instant::now() < end {
            for offset in [25, 143, 110, 587] {
                let mut socket = BufReader::new(stack.connect(offset));
                let mut greeting = String::new();
                assert!(socket.read_line(&mut greeting).expect("greeting") > 0);
            }
        }
    }
    session.get_mut().write_all(b"a NOOP\r\n").expect("write");
    line.clear();
    session.read_line(&mut line).expect("answer");
    assert!(line.starts_with("a OK"), "{line}");
}
