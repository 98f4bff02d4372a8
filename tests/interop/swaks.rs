//! swaks: submission by STARTTLS and implicit TLS, refusals, relaying.

use crate::support::{HOSTNAME, PASSWORD, Stack, USER, have, peer, run, show, stdout};
use std::process::Output;

fn swaks(stack: &Stack, args: &[&str]) -> Output {
    let mut command = peer("swaks", stack.scratch());
    command.args(["--server", "localhost", "--from", &format!("{USER}@{HOSTNAME}"), "--timeout", "20"]);
    command.args(args);
    run(command, "")
}

fn submission<'a>(stack: &Stack, port: &'a str, tls: &'a str) -> Vec<String> {
    let mut args = vec!["--port".to_owned(), port.to_owned(), tls.to_owned(), "--tls-verify".to_owned()];
    args.extend(["--tls-ca-path".to_owned(), stack.ca().display().to_string()]);
    args
}

fn with(base: &[String], more: &[&str]) -> Vec<String> {
    base.iter().cloned().chain(more.iter().map(ToString::to_string)).collect()
}

fn call(stack: &Stack, args: &[String]) -> Output {
    swaks(stack, &args.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn mail_goes_in_with_every_tls_and_mechanism() {
    if !have(&["swaks"]) {
        return;
    }
    let stack = Stack::start();
    let to = format!("{USER}@{HOSTNAME}");
    let mut count = 0;
    for (offset, tls) in [(587, "--tls"), (465, "--tls-on-connect")] {
        let port = stack.port(offset).to_string();
        let base = submission(&stack, &port, tls);
        for mechanism in ["PLAIN", "LOGIN"] {
            for user in [USER, &to] {
                let args = with(
                    &base,
                    &["--to", &to, "--auth", mechanism, "--auth-user", user, "--auth-password", PASSWORD],
                );
                let out = call(&stack, &args);
                assert!(out.status.success(), "{offset} {mechanism} {user}: {}", show(&out));
                count += 1;
            }
        }
    }
    let files = stack.wait_for_messages(USER, count);
    let text = std::fs::read_to_string(&files[0]).expect("message");
    assert!(text.contains("Received: ") && text.contains("with ESMTPSA"), "{text}");
    assert!(text.starts_with("Return-Path: <"), "{text}");
}

#[test]
fn wrong_passwords_and_unknown_users_look_alike() {
    if !have(&["swaks"]) {
        return;
    }
    let stack = Stack::start();
    let base = submission(&stack, &stack.port(587).to_string(), "--tls");
    let mut answers = Vec::new();
    for user in [USER, "nobody-here"] {
        let args = with(
            &base,
            &[
                "--to",
                "x@y.test",
                "--auth",
                "PLAIN",
                "--auth-user",
                user,
                "--auth-password",
                "wrong",
                "--quit-after",
                "AUTH",
            ],
        );
        let out = call(&stack, &args);
        assert_eq!(out.status.code(), Some(28), "{}", show(&out));
        let text = stdout(&out);
        answers.push(text.lines().find(|l| l.contains("535")).unwrap_or_default().to_owned());
    }
    assert!(answers[0].contains("535 5.7.8"), "{answers:?}");
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn auth_is_not_offered_before_tls_and_nothing_is_relayed() {
    if !have(&["swaks"]) {
        return;
    }
    let stack = Stack::start();
    let submission_port = stack.port(587).to_string();
    let out = swaks(&stack, &["--port", &submission_port, "--to", "x@y.test", "--quit-after", "EHLO"]);
    assert!(out.status.success(), "{}", show(&out));
    let text = stdout(&out);
    assert!(text.contains("STARTTLS") && !text.contains("AUTH"), "{text}");

    let auth = ["--auth", "PLAIN", "--auth-user", USER, "--auth-password", PASSWORD];
    let mut args = vec!["--port", &submission_port, "--to", "x@y.test"];
    args.extend(auth);
    assert_eq!(swaks(&stack, &args).status.code(), Some(28), "AUTH without TLS");

    // Inbound: local recipients only.
    let inbound = stack.port(25).to_string();
    let out = swaks(&stack, &["--port", &inbound, "--to", "x@remote.test"]);
    assert_eq!(out.status.code(), Some(24), "{}", show(&out));
    assert!(stdout(&out).contains("550 5.7.1"), "{}", show(&out));
    let out = swaks(&stack, &["--port", &inbound, "--to", &format!("unknown@{HOSTNAME}")]);
    assert!(stdout(&out).contains("550 5.1.1"), "{}", show(&out));
    let out = swaks(&stack, &["--port", &inbound, "--to", &format!("{USER}@{HOSTNAME}")]);
    assert!(out.status.success(), "{}", show(&out));
    stack.wait_for_messages(USER, 1);

    // Authenticated, but there is no durable home for a remote recipient.
    let base = submission(&stack, &submission_port, "--tls");
    let out = call(&stack, &with(&base, &[&["--to", "x@remote.test"], &auth[..]].concat()));
    assert_eq!(out.status.code(), Some(24), "{}", show(&out));
    assert!(stdout(&out).contains("550 5.7.1"), "{}", show(&out));
}
