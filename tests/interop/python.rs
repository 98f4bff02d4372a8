//! Python's smtplib, imaplib and poplib, from one script with asserts of its own.

use crate::support::{HOSTNAME, PASSWORD, Stack, USER, have, peer, run, show, stdout};

#[test]
fn python_standard_library_clients() {
    if !have(&["python3"]) {
        return;
    }
    let stack = Stack::start();
    stack.add_user("bob", "bobs secret");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/clients.py");
    let mut command = peer("python3", stack.scratch());
    command.arg(script).arg(stack.ca()).args([&stack.port_base.to_string(), HOSTNAME, USER, PASSWORD]);
    let out = run(command, "");
    assert!(out.status.success() && stdout(&out).contains("all good"), "{}\n{}", show(&out), stack.log());
}
