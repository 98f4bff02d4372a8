//! Authentication servers: our daemon, Dovecot's auth service, saslauthd and what stands in for it.
//!
//! Trust: nobody sends it bytes but the servers it starts.
//! Never: touch the machine's own `/etc`, accounts or sockets.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{ACCOUNT, DOMAIN, Server, Start, cpus, folder, output, uid_of, write_settings};
use crate::load::{auth, mux};

/// What an authentication server is asked to hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AuthOptions<'a> {
    /// `user:{SCHEME}…` lines.
    pub(crate) users: &'a Path,
    /// Verdicts may be remembered.
    pub(crate) cache: bool,
    /// Dovecot: the same users in SQLite, asked by as many workers as there are CPUs.
    pub(crate) sql: bool,
    /// Ours: one log line per login.
    pub(crate) audit: bool,
    /// A login that must succeed once the server is up.
    pub(crate) proof: &'a [u8],
}

/// An authentication server and the socket it answers on.
pub(crate) struct AuthServer {
    /// The server.
    pub(crate) server: Server,
    /// Its socket for Dovecot's client protocol.
    pub(crate) socket: PathBuf,
}

/// Our daemon, with a listener and a passwd-file and nothing else.
pub(crate) fn postern_auth(
    program: &Path,
    work: &Path,
    options: AuthOptions<'_>,
) -> anyhow::Result<AuthServer> {
    folder(work, None)?;
    folder(&work.join("state"), Some(uid_of(ACCOUNT)?))?;
    let settings = format!(
        "# postern run --config FILE\nversion = 1\nhostname = \"mail.{DOMAIN}\"\nstate_dir = \"$W/state\"\nrun_as = \"{ACCOUNT}\"\n\n\
         [log]\nlevel = \"{level}\"\n\n\
         [auth]\nmechanisms = [\"PLAIN\", \"LOGIN\", \"CRAM-MD5\", \"SCRAM-SHA-256\"]\nfailure_delay = \"0s\"\n\n\
         [auth.penalty]\nenabled = false\n\n\
         [auth.cache]\n{cache}\n\n\
         [[auth.listener]]\nname = \"bench\"\ntype = \"client\"\npath = \"$W/auth\"\nmode = \"0666\"\nreply_deadline = \"60s\"\n\n\
         [[auth.passdb]]\ndriver = \"passwd-file\"\npath = \"$USERS\"\n\n\
         [limits]\nauth_connections = 20000\nopen_files = 65536\n",
        level = if options.audit { "info" } else { "warn" },
        cache = if options.cache { "ttl = \"1h\"" } else { "size = \"0\"" },
    );
    let config = work.join("postern.toml");
    write_settings(&config, &settings, work, Some(options.users))?;
    let mut command = Command::new(program);
    command.args(["run", "--config"]).arg(&config);
    let socket = work.join("auth");
    let start = Start { what: "Postern", command, log: &work.join("postern.log"), settings };
    let server = Server::in_front(start, || auth::login_once(&socket, options.proof))?;
    Ok(AuthServer { server, socket })
}

/// Dovecot with its auth service and nothing else.
pub(crate) fn dovecot_auth(work: &Path, options: AuthOptions<'_>) -> anyhow::Result<AuthServer> {
    folder(work, None)?;
    let passdb = if options.sql {
        fs::write(
            work.join("sql.conf"),
            format!(
                "driver = sqlite\nconnect = {}/users.db\npassword_query = SELECT password FROM users WHERE name = '%u'\n",
                work.display()
            ),
        )?;
        sqlite(&work.join("users.db"), options.users)?;
        "driver = sql\n  args = $W/sql.conf".to_owned()
    } else {
        "driver = passwd-file\n  args = username_format=%u $USERS".to_owned()
    };
    let cache = if options.cache {
        "auth_cache_size = 64 M\nauth_cache_verify_password_with_worker = yes\n"
    } else {
        ""
    };
    let settings = format!(
        "# dovecot -F -c FILE\nbase_dir = $W/run\nstate_dir = $W/state\ninstance_name = bench\nlog_path = $W/dovecot.log\n\
         protocols =\nlisten = 127.0.0.1\nssl = no\n\
         auth_mechanisms = plain login cram-md5 scram-sha-256\n\
         # No delays: neither the fixed one nor the penalty by address.\n\
         auth_failure_delay = 0\nservice anvil {{\n  unix_listener anvil-auth-penalty {{\n    mode = 0\n  }}\n}}\n\
         # Limits above the load.\n\
         default_client_limit = 20000\ndefault_process_limit = 1000\ndefault_vsz_limit = 4 G\n\
         # As many workers as CPUs (used by SQL only).\n\
         auth_worker_max_count = {}\n{cache}\
         passdb {{\n  {passdb}\n}}\nuserdb {{\n  driver = static\n  args = uid=mail gid=mail home=/nonexistent\n}}\n\
         service auth {{\n  client_limit = 20000\n  unix_listener $W/auth {{\n    mode = 0666\n  }}\n}}\n",
        cpus()
    );
    let config = work.join("dovecot.conf");
    write_settings(&config, &settings, work, Some(options.users))?;
    let mut command = Command::new("dovecot");
    command.args(["-F", "-c"]).arg(&config);
    let socket = work.join("auth");
    let start = Start { what: "Dovecot", command, log: &work.join("dovecot.log"), settings };
    let server = Server::in_front(start, || auth::login_once(&socket, options.proof))?;
    Ok(AuthServer { server, socket })
}

/// A table `users(name primary key, password)` from a passwd-file.
fn sqlite(database: &Path, users: &Path) -> anyhow::Result<()> {
    let script = "import sqlite3,sys\n\
                  c=sqlite3.connect(sys.argv[1])\n\
                  c.execute('create table users(name text primary key, password text)')\n\
                  c.executemany('insert into users values(?,?)',(l.rstrip('\\n').split(':',1) for l in open(sys.argv[2])))\n\
                  c.commit()\n";
    output(Command::new("python3").args(["-c", script]).arg(database).arg(users))?;
    fs::set_permissions(database, fs::Permissions::from_mode(0o644))?;
    Ok(())
}

/// A private `/etc` with one account `tester`, password `pw1`, for PAM and shadow.
pub(crate) fn private_etc(work: &Path) -> anyhow::Result<()> {
    folder(work, None)?;
    folder(&work.join("etc/pam.d"), None)?;
    let hash = output(Command::new("openssl").args(["passwd", "-6", "pw1"]))?;
    let passwd = fs::read_to_string("/etc/passwd")?;
    let shadow = fs::read_to_string("/etc/shadow")?;
    fs::write(work.join("etc/passwd"), passwd + "tester:x:61000:61000::/nonexistent:/usr/sbin/nologin\n")?;
    fs::write(work.join("etc/shadow"), shadow + &format!("tester:{hash}:19000:0:99999:7:::\n"))?;
    fs::set_permissions(work.join("etc/shadow"), fs::Permissions::from_mode(0o640))?;
    fs::write(
        work.join("etc/pam.d/smtp"),
        "auth required pam_unix.so nodelay\naccount required pam_unix.so\n",
    )?;
    Ok(())
}

/// saslauthd, or Postern under its name, with the same flags in the private `/etc`.
pub(crate) fn saslauthd(
    ours: Option<&Path>,
    work: &Path,
    etc: &Path,
    name: &str,
    flags: &str,
) -> anyhow::Result<AuthServer> {
    folder(work, None)?;
    let program = match ours {
        Some(program) => {
            let link = work.join("saslauthd");
            if !link.exists() {
                symlink(program, &link)?;
            }
            link
        }
        None => PathBuf::from("/usr/sbin/saslauthd"),
    };
    let place = work.join(name);
    folder(&place, None)?;
    let script = format!(
        "mount -t overlay o -o lowerdir={}:/etc /etc && exec {} {flags} -m {}",
        etc.display(),
        program.display(),
        place.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    let socket = place.join("mux");
    let request = mux::request("tester", "pw1", "smtp");
    let settings = format!("saslauthd {flags} -m $W/{name}\n");
    let start = Start { what: "saslauthd", command, log: &work.join(format!("{name}.log")), settings };
    let server = Server::behind(start, &place.join("saslauthd.pid"), || mux::ask(&socket, &request))?;
    Ok(AuthServer { server, socket })
}
