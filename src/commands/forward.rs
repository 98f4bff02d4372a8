//! `postern auth-daemon forward`: the auth socket of another machine, over mutual TLS.
//!
//! Trust:     whoever types the command line names the files; the process that talks to the other end gets what is in
//!            them.
//! Never:     use a key that others may read.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use auth_daemon::{End, FORWARD_LISTENER, ForwardSlice};
use boot::exit::{self, Coded};
use boot::logging::{LogFormat, LogOptions};
use boot::{Bind, DaemonPlan, ExitCode, Hooks, Plan, SocketSpec};
use clap::{ArgGroup, Args};
use conf::Secret;

use crate::accounts::{self, Account};
use crate::stack;

/// `postern auth-daemon forward`
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("end").required(true).args(["socket", "listen"]))]
pub(crate) struct ForwardArgs {
    /// Near the mail server: the unix socket to listen on.
    #[arg(long, value_name = "PATH", requires = "connect", requires = "ca")]
    socket: Option<PathBuf>,
    /// Permissions of that socket.
    #[arg(long, value_name = "MODE", default_value = "0660", value_parser = octal, help_heading = "Near the mail server")]
    mode: u32,
    /// Owner of that socket [default: whom the forwarder runs as].
    #[arg(long, value_name = "USER", help_heading = "Near the mail server")]
    owner: Option<String>,
    /// Group of that socket.
    #[arg(long, value_name = "GROUP", help_heading = "Near the mail server")]
    group: Option<String>,
    /// The other end.
    #[arg(long, value_name = "HOST:PORT", help_heading = "Near the mail server", conflicts_with = "listen")]
    connect: Option<String>,
    /// Certificate of the CA of the other end's certificate.
    #[arg(long, value_name = "FILE", help_heading = "Near the mail server", conflicts_with = "listen")]
    ca: Option<PathBuf>,
    /// Name in the other end's certificate [default: the host].
    #[arg(long, value_name = "NAME", help_heading = "Near the mail server", conflicts_with = "listen")]
    server_name: Option<String>,
    /// Near the daemon: the address to listen on.
    #[arg(
        long,
        value_name = "ADDR:PORT",
        help_heading = "Near the daemon",
        requires = "client_ca",
        requires = "to"
    )]
    listen: Option<SocketAddr>,
    /// Certificate of the CA of the clients' certificates.
    #[arg(long, value_name = "FILE", help_heading = "Near the daemon", conflicts_with = "socket")]
    client_ca: Option<PathBuf>,
    /// The daemon's unix socket.
    #[arg(long, value_name = "PATH", help_heading = "Near the daemon", conflicts_with = "socket")]
    to: Option<PathBuf>,
    /// Own certificate.
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its private key.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Connections at a time.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    /// Seconds of silence after which a connection is closed.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..))]
    idle_timeout: u32,
    /// Account of the forwarder, when started as root [default: the sudo user, else nobody].
    #[arg(long, value_name = "USER")]
    run_as: Option<String>,
}

/// Runs until told to stop; HUP reads certificates and keys again.
pub(crate) fn forward(args: &ForwardArgs) -> anyhow::Result<ExitCode> {
    let account = accounts::run_as(args.run_as.as_deref())?;
    // The sentence for a mistake comes before anything is logged.
    plan(args, account.as_ref())?;
    Ok(boot::supervise(|| plan(args, account.as_ref()), stack::DAEMONS, Hooks::default()))
}

fn plan(args: &ForwardArgs, account: Option<&Account>) -> anyhow::Result<Plan> {
    let (end, ca, bind) =
        match (&args.socket, &args.connect, &args.ca, args.listen, &args.client_ca, &args.to) {
            (Some(socket), Some(connect), Some(ca), ..) => {
                let (host, port) = host_and_port(connect)?;
                let server_name = args.server_name.clone().unwrap_or_else(|| host.clone());
                (End::Near { host, port, server_name }, ca, unix(args, socket, account)?)
            }
            (.., Some(address), Some(ca), Some(to)) => {
                (End::Far { to: std::path::absolute(to)? }, ca, Bind::Tcp(address))
            }
            _ => {
                return Err(Coded::new(
                    exit::USAGE,
                    "give either --socket, --connect and --ca, or --listen, --client-ca and --to",
                )
                .into());
            }
        };
    let slice = ForwardSlice {
        end,
        chain: read("certificate", &args.cert)?,
        key: read_key(&args.key)?,
        ca: read("CA's certificate", ca)?,
        connections: args.connections,
        connections_per_address: 0,
        idle: Duration::from_secs(args.idle_timeout.into()),
    };
    slice.check().map_err(|error| Coded::new(exit::CONFIG, format!("{error:#}")))?;
    let sockets = vec![SocketSpec { name: FORWARD_LISTENER.to_owned(), bind }];
    let daemon = DaemonPlan {
        sockets,
        ids: account.map(Account::ids),
        ..DaemonPlan::new(stack::FORWARD, slice.to_json()?)
    };
    Ok(Plan {
        daemons: vec![daemon],
        grace: Duration::from_secs(10),
        log: Some(LogOptions::new("supervisor", "info", LogFormat::Auto)),
        ..Plan::default()
    })
}

fn unix(args: &ForwardArgs, socket: &Path, account: Option<&Account>) -> anyhow::Result<Bind> {
    let owner = match &args.owner {
        Some(name) => Some(accounts::uid(name)?),
        None => account.map(|account| account.uid),
    };
    let group = match &args.group {
        Some(name) => Some(accounts::gid(name)?),
        None => account.map(|account| account.gid),
    };
    Ok(Bind::Unix { path: std::path::absolute(socket)?, mode: args.mode, owner, group })
}

/// `host:port`, `192.0.2.1:port` or `[2001:db8::1]:port`.
fn host_and_port(text: &str) -> anyhow::Result<(String, u16)> {
    let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port): (&str, u16) = match parts {
        Some((host, port)) if !host.is_empty() && port != 0 => (host, port),
        _ => return Err(Coded::new(exit::USAGE, format!("--connect {text}: write HOST:PORT")).into()),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Ok((host.to_owned(), port))
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("write three octal digits, such as 0660".to_owned()),
    }
}

fn read(what: &str, path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        Coded::new(exit::CONFIG, format!("cannot read the {what} {}: {error}", path.display())).into()
    })
}

fn read_key(path: &Path) -> anyhow::Result<Secret> {
    let key = Secret::new(read("key", path)?);
    let mode = std::fs::metadata(path)
        .with_context(|| format!("cannot look at {}", path.display()))?
        .permissions()
        .mode();
    if mode & 0o007 != 0 {
        let text = format!("everybody may read the key {0}; change that with: chmod 600 {0}", path.display());
        return Err(Coded::new(exit::CONFIG, text).into());
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::{host_and_port, octal};
    use crate::cli::Cli;
    use clap::Parser as _;

    #[test]
    fn hosts_and_ports() {
        for (text, host, port) in [
            ("auth.example:4190", "auth.example", 4190),
            ("192.0.2.1:1", "192.0.2.1", 1),
            ("[2001:db8::1]:443", "2001:db8::1", 443),
        ] {
            assert_eq!(host_and_port(text).expect(text), (host.to_owned(), port));
        }
        for text in ["auth.example", ":443", "a:0", "a:70000", "a:b"] {
            assert!(host_and_port(text).is_err(), "{text}");
        }
        assert_eq!((octal("0660"), octal("600")), (Ok(0o660), Ok(0o600)));
        assert!(octal("0888").is_err() && octal("7777").is_err());
    }

    #[test]
    fn either_end_and_not_both() {
        let parse =
            |line: &str| Cli::try_parse_from(format!("postern auth-daemon forward {line}").split(' '));
        let near = "--socket s --connect h:1 --ca c --cert c --key k";
        let far = "--listen 127.0.0.1:1 --client-ca c --to s --cert c --key k";
        for right in [near.to_owned(), far.to_owned(), format!("{near} --mode 0600 --server-name n")] {
            assert!(parse(&right).is_ok(), "{right}");
        }
        for wrong in [
            "--cert c --key k".to_owned(),
            "--socket s --cert c --key k".to_owned(),
            format!("{near} {far}"),
            format!("{far} --ca c"),
            format!("{near} --mode 9"),
        ] {
            assert!(parse(&wrong).is_err(), "{wrong}");
        }
    }
}
