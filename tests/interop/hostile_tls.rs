//! TLS session tickets: good at the service that gave them, worthless at every other.

use std::path::Path;

use crate::hostile::start;
use crate::support::{Stack, have, peer, run, show, stdout};

/// Doors with the service whose tickets they share.
const DOORS: [(u16, Option<&str>, &str); 7] = [
    (25, Some("smtp"), "inbound"),
    (587, Some("smtp"), "submission"),
    (465, None, "submission"),
    (143, Some("imap"), "imap"),
    (993, None, "imap"),
    (110, Some("pop3"), "pop3"),
    (995, None, "pop3"),
];

/// One handshake with a session taken from or written to a file; true if it was resumed.
fn connect(
    stack: &Stack,
    (offset, starttls, _): (u16, Option<&str>, &str),
    version: &str,
    option: &str,
    session: &Path,
) -> bool {
    let mut command = peer("openssl", stack.scratch());
    command.args(["s_client", version, "-CAfile"]).arg(stack.ca());
    // -ign_eof: the end is the server's to say, and a capital Q at the start of a line is no command for s_client.
    command.args(["-verify_return_error", "-ign_eof", "-servername", "localhost"]);
    command.args(["-connect", &stack.address(offset).to_string()]);
    if let Some(protocol) = starttls {
        command.args(["-starttls", protocol]);
    }
    command.arg(option).arg(session);
    // The tickets of TLS 1.3 come with the first answer, so one is asked for.
    let quit = match offset {
        143 | 993 => "a LOGOUT\r\n",
        _ => "QUIT\r\n",
    };
    let out = run(command, quit);
    let text = stdout(&out);
    let (reused, new) = (text.contains("\nReused, "), text.contains("\nNew, "));
    assert!(out.status.success() && reused != new, "+{offset} {version}: {}", show(&out));
    reused
}

#[test]
fn tickets_of_one_service_are_worthless_at_another() {
    if !have(&["openssl"]) {
        return;
    }
    let stack = start();
    for version in ["-tls1_3", "-tls1_2"] {
        for (door, other) in [
            // Within a service resumption works, from either door to either.
            (DOORS[0], DOORS[0]),
            (DOORS[2], DOORS[2]),
            (DOORS[4], DOORS[4]),
            (DOORS[3], DOORS[4]),
            (DOORS[6], DOORS[6]),
            // Across services it does not.
            (DOORS[4], DOORS[6]),
            (DOORS[6], DOORS[4]),
            (DOORS[4], DOORS[2]),
            (DOORS[2], DOORS[4]),
            (DOORS[2], DOORS[6]),
            (DOORS[0], DOORS[2]),
            (DOORS[0], DOORS[1]),
            (DOORS[0], DOORS[3]),
        ] {
            let session = stack.scratch().join(format!("session{version}{}-{}", door.0, other.0));
            assert!(!connect(&stack, door, version, "-sess_out", &session));
            assert!(session.is_file(), "+{} gave no session with {version}", door.0);
            let resumed = connect(&stack, other, version, "-sess_in", &session);
            assert_eq!(resumed, door.2 == other.2, "{version}: session of +{} at +{}", door.0, other.0);
        }
    }
}
