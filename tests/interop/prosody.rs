//! Stock Prosody, unpacked into a private `/usr`, with mod_auth_dovecot of Debian's prosody-modules.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use crate::private::{
    Foreground, Gate, Namespace, RUN_AS, documented, documented_gate, quick, scratch, unpacked,
};
use crate::reference::free_port;
use crate::scenario::base64;
use crate::support::{HOSTNAME, have, is_root, skip, wait_for};

pub const PACKAGES: &[&str] = &[
    "prosody",
    "prosody-modules",
    "lua5.4",
    "liblua5.4-0",
    "lua-expat",
    "lua-filesystem",
    "lua-sec",
    "lua-socket",
    "lua-bitop",
    "libexpat1",
    "libicu72",
];

const USERS: &str = "alice:{PLAIN}pw1\nbob:{PLAIN}pw2\nmallory:{PLAIN}pw3::::::nologin reason=Closed\n";

fn log(w: &Path) -> String {
    fs::read_to_string(w.join("pr/log")).unwrap_or_default()
}

/// Prosody with the manual's lines, plus what keeps it private.
pub fn start(w: &Path, namespace: &Namespace) -> (Foreground, u16) {
    fs::create_dir_all(w.join("pr/data")).expect("data");
    let port = free_port();
    let run = w.join("run").display().to_string();
    let lines = documented("prosody.cfg.lua", &[("/run/postern", &run), ("mail.example.org", HOSTNAME)]);
    let config = format!(
        "run_as_root = true\ndaemonize = false\npidfile = \"{w}/pr/pid\"\ndata_path = \"{w}/pr/data\"\nlog = {{ debug = \"{w}/pr/log\" }}\n\
         interfaces = {{ \"127.0.0.1\" }}\nc2s_ports = {{ {port} }}\nmodules_enabled = {{ \"saslauth\", \"roster\" }}\n\
         modules_disabled = {{ \"s2s\" }}\nc2s_require_encryption = false\nallow_unencrypted_plain_auth = true\n{lines}",
        w = w.display(),
    );
    fs::write(w.join("pr/prosody.cfg.lua"), config).expect("prosody.cfg.lua");
    let mut command = namespace.command("prosody");
    command.arg("--config").arg(w.join("pr/prosody.cfg.lua"));
    let mut daemon = Foreground::start(command, &w.join("pr/out"));
    daemon.wait_for_port(port, || log(w));
    (daemon, port)
}

/// A conversation, without a parser: what is waited for ends a piece.
struct Xmpp(TcpStream);

impl Xmpp {
    fn until(&mut self, ends: &[&str]) -> String {
        let mut all = Vec::new();
        loop {
            let mut piece = [0; 4096];
            let count = self.0.read(&mut piece).unwrap_or(0);
            all.extend_from_slice(&piece[..count]);
            let text = String::from_utf8_lossy(&all).into_owned();
            if count == 0 || ends.iter().any(|end| text.contains(end)) {
                return text;
            }
        }
    }

    fn stream(&mut self) -> String {
        let open = format!(
            "<?xml version='1.0'?><stream:stream to='{HOSTNAME}' xmlns='jabber:client' \
             xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>"
        );
        self.0.write_all(open.as_bytes()).expect("written");
        self.until(&["</stream:features>"])
    }
}

/// The answer to one SASL PLAIN, and after a success the address Prosody gives the client.
pub fn login(port: u16, user: &str, password: &str) -> String {
    let socket = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let mut xmpp = Xmpp(socket);
    let features = xmpp.stream();
    assert!(features.contains("<mechanism>PLAIN</mechanism>"), "{features}");
    let response = base64(format!("\0{user}\0{password}").as_bytes());
    let auth = format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{response}</auth>");
    xmpp.0.write_all(auth.as_bytes()).expect("written");
    let answer = xmpp.until(&["</failure>", "<success"]);
    if !answer.contains("<success") {
        return answer;
    }
    xmpp.stream();
    let bind = "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
    xmpp.0.write_all(bind.as_bytes()).expect("written");
    answer + &xmpp.until(&["</iq>"])
}

#[test]
fn prosody_by_its_dovecot_module() {
    if !is_root() {
        return skip("needs root for a private /usr");
    }
    if !have(&["unshare"]) {
        return;
    }
    let Some(root) = unpacked(PACKAGES) else { return };
    let scratch = scratch();
    let w = scratch.path();
    let namespace = Namespace::new(&w.join("ns"), &root, &[]);
    if !namespace.possible() {
        return;
    }
    let run = w.join("run").display().to_string();
    let owner = format!("owner = \"{RUN_AS}\"");
    let config =
        documented_gate("prosody.toml", w, &[("/run/postern", &run), ("owner = \"prosody\"", &owner)]);
    let config = config.replace("[auth]\nfailure_delay = \"0s\"\n", "");
    let mut gate = Gate::start(w, &quick(&config), USERS);
    let (daemon, port) = start(w, &namespace);
    let told = |got: &str| format!("{got}\n{}{}\n{}", log(w), daemon.output(), gate_log(w));
    for (user, password, want) in [
        ("alice", "pw1", format!("<jid>alice@{HOSTNAME}/")),
        ("bob", "pw2", format!("<jid>bob@{HOSTNAME}/")),
        ("alice", "wrong", "<not-authorized/><text>Invalid user name or password</text>".to_owned()),
        ("nobody-here", "pw1", "<not-authorized/><text>Invalid user name or password</text>".to_owned()),
        ("mallory", "pw3", "<not-authorized/><text>Closed</text>".to_owned()),
    ] {
        let got = login(port, user, password);
        assert!(got.contains(&want), "{user} {password}: {}", told(&got));
    }
    gate.break_backend();
    let got = login(port, "alice", "pw1");
    assert!(got.contains("<temporary-auth-failure/>"), "outage: {}", told(&got));
    gate.mend_backend();
    assert!(gate.admin(&["reload"], "").status.success());
    let got = login(port, "alice", "pw1");
    assert!(got.contains("<success"), "after outage and reload: {}", told(&got));

    // Prosody keeps one connection, and finds out that it is gone by using it.
    gate.stop();
    gate.launch();
    wait_for("a login after the restart", || login(port, "bob", "pw2").contains("<success").then_some(()));
    crate::support::signal(gate.auth_pid(), nix::sys::signal::Signal::SIGKILL);
    wait_for("a login after the crash", || login(port, "alice", "pw1").contains("<success").then_some(()));
    // Away: nobody is told that a right password is wrong.
    gate.stop();
    let got = login(port, "alice", "pw1");
    assert!(got.contains("<internal-server-error/>"), "away: {}", told(&got));
}

fn gate_log(w: &Path) -> String {
    fs::read_to_string(w.join("gate.log")).unwrap_or_default()
}
