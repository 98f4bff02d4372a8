//! A small stack under the supervisor: the whole of what a program needs to use this crate. The tests drive it.
//!
//! `supervised run PLAN.json` supervises what the file says, `supervised status SOCKET` asks a running one,
//! and `supervised daemon ROLE` is what the supervisor calls.
//!
//! Trust: the tests that start it; the plan and the daemons' configuration are theirs.
//! Never: be installed, or run anywhere but in a test's scratch folder.

// It talks to the test on stdout, and one of its commands is a panic.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::panic)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use boot::admin::{self, Request};
use boot::logging::{LogFormat, LogOptions};
use boot::{
    Admission, Bind, Control, Daemon, DaemonPlan, Drain, Event, ExitCode, Hooks, Ids, Plan, SocketSpec,
    Sockets, Start, exit,
};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

const DAEMONS: [Daemon; 4] = [
    Daemon { role: "base", main: serve },
    Daemon { role: "front", main: serve },
    Daemon { role: "other", main: serve },
    Daemon { role: "broken", main: broken },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["daemon", role] => boot::child_main(role, &DAEMONS),
        ["run", plan] => run(PathBuf::from(plan)),
        ["status", socket] => match admin::request(socket.as_ref(), &Request::Status) {
            Ok(_) => exit::OK,
            Err(error) => {
                eprintln!("{error}");
                error.exit_code()
            }
        },
        _ => exit::USAGE,
    }
}

fn run(file: PathBuf) -> ExitCode {
    let on_ready = |_handle| println!("READY");
    let hooks = Hooks { on_ready: Some(Box::new(on_ready)), ..Hooks::default() };
    boot::supervise(move || plan(&file), &DAEMONS, hooks)
}

/// The plan as the test writes it.
#[derive(Deserialize)]
struct Written {
    state: PathBuf,
    grace_ms: u64,
    daemons: Vec<WrittenDaemon>,
}

#[derive(Deserialize)]
struct WrittenDaemon {
    role: String,
    tier: u8,
    slice: String,
    #[serde(default)]
    tcp: BTreeMap<String, SocketAddr>,
    #[serde(default)]
    unix: BTreeMap<PathBuf, u32>,
    #[serde(default)]
    uid: Option<u32>,
    #[serde(default)]
    files: Vec<PathBuf>,
}

fn plan(file: &std::path::Path) -> anyhow::Result<Plan> {
    let written: Written =
        serde_json::from_str(&std::fs::read_to_string(file)?).context("reading the plan")?;
    let mut daemons = Vec::new();
    for one in written.daemons {
        let known = DAEMONS.iter().find(|daemon| daemon.role == one.role);
        let role = known.map(|daemon| daemon.role).context("an unknown role")?;
        let tcp = one.tcp.into_iter().map(|(name, address)| SocketSpec { name, bind: Bind::Tcp(address) });
        let unix = one.unix.into_iter().map(|(path, mode)| SocketSpec {
            name: "unix".to_owned(),
            bind: Bind::Unix { path, mode, owner: one.uid, group: None },
        });
        daemons.push(DaemonPlan {
            tier: one.tier,
            sockets: tcp.chain(unix).collect(),
            ids: one.uid.map(|uid| Ids { uid, gid: uid, groups: vec![uid] }),
            files: one.files.into_iter().map(boot::sandbox::Access::ReadOnly).collect(),
            ..DaemonPlan::new(role, one.slice.into_bytes())
        });
    }
    Ok(Plan {
        daemons,
        grace: Duration::from_millis(written.grace_ms),
        control_socket: written.state.join("sockets/control"),
        pid_file: written.state.join("test.pid"),
        log: Some(LogOptions::new("supervisor", "debug", LogFormat::Human)),
    })
}

/// A daemon that cannot run as it is configured.
fn broken(_start: Start) -> anyhow::Result<()> {
    Err(exit::Coded::new(exit::CONFIG, "the slice makes no sense").into())
}

fn serve(start: Start) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(daemon(start))
}

async fn daemon(start: Start) -> anyhow::Result<()> {
    let mut control = Control::new(start.control)?;
    let admission = Admission::new(100, 0).with_gauges(control.gauges());
    let mut slice = String::from_utf8(start.slice.to_vec())?;
    let drain = Drain::new();
    let mut listeners = listen(start.sockets, &slice, &admission, &drain)?;
    control.ready().await;
    loop {
        match control.event().await {
            Event::Reload { slice: next, sockets } => {
                let next = String::from_utf8(next.to_vec())?;
                if next == "refused" {
                    control.reloaded(Err("this slice is refused".into())).await;
                    continue;
                }
                slice = next;
                listeners.abort_all();
                listeners = listen(sockets, &slice, &admission, &drain)?;
                control.reloaded(Ok(())).await;
            }
            Event::Ask(question) if question.body() == "slice" => question.answer(json!(slice)),
            Event::Stop { .. } if slice == "stubborn" => {}
            Event::Stop { grace } => {
                listeners.abort_all();
                drain.finish(grace).await;
                return Ok(());
            }
            Event::Lost => return Ok(()),
            _ => {}
        }
    }
}

fn listen(
    mut sockets: Sockets,
    slice: &str,
    admission: &Admission,
    drain: &Drain,
) -> anyhow::Result<tokio::task::JoinSet<()>> {
    let mut tasks = tokio::task::JoinSet::new();
    let names: Vec<String> = sockets.names().into_iter().map(str::to_owned).collect();
    for name in names {
        for listener in sockets.take_tcp(&name) {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let (slice, admission, token) = (slice.to_owned(), admission.clone(), drain.token());
            tasks.spawn(async move {
                loop {
                    let (stream, peer) = boot::accept_tcp(&listener).await;
                    let Ok(permit) = admission.admit(Some(peer.ip())) else { continue };
                    let (slice, token) = (slice.clone(), token.clone());
                    tokio::spawn(token.track(async move {
                        let _permit = permit;
                        let _ = talk(stream, &slice).await;
                    }));
                }
            });
        }
        for listener in sockets.take_unix(&name) {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            let slice = slice.to_owned();
            tasks.spawn(async move {
                loop {
                    let stream = boot::accept_unix(&listener).await;
                    let slice = slice.clone();
                    tokio::spawn(async move { talk(stream, &slice).await });
                }
            });
        }
    }
    Ok(tasks)
}

/// One word per line: what a test wants to know, or what is to go wrong.
async fn talk(stream: impl AsyncReadExt + AsyncWrite + Unpin, slice: &str) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut word = String::new();
    while stream.read_line(&mut word).await? > 0 {
        let answer = match word.trim() {
            "slice" => slice.to_owned(),
            "pid" => std::process::id().to_string(),
            "read" => format!("{:?}", std::fs::read_to_string("/etc/hostname").map_err(|error| error.kind())),
            "environment" => format!("{:?}", std::env::vars_os().collect::<Vec<_>>()),
            "panic" => panic!("asked to"),
            // A runtime that does nothing any more.
            "wedge" => loop {
                std::thread::sleep(Duration::from_secs(1));
            },
            _ => "?".to_owned(),
        };
        stream.write_all(format!("{answer}\n").as_bytes()).await?;
        word.clear();
    }
    Ok(())
}
