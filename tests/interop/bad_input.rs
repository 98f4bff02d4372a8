//! Wrong input: one clear sentence with what to do, a documented exit code, all errors in one go.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use crate::support::{HOSTNAME, Stack, free_port_base, is_root, postern, run, show, stderr};

/// Exit code of a wrong configuration (sysexits EX_CONFIG).
const EX_CONFIG: i32 = 78;

fn scratch() -> tempfile::TempDir {
    let scratch = tempfile::Builder::new().prefix("pst").tempdir_in("/tmp").expect("scratch");
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    scratch
}

#[test]
fn all_configuration_errors_come_at_once_with_line_and_nearest_name() {
    let scratch = scratch();
    let file = scratch.path().join("postern.toml");
    fs::write(
        &file,
        "version = 1\nhostnam = \"mail.example.test\"\ngrace_time = \"soon\"\n\n[limits]\nconnections = \"many\"\n\n\
         [[smtp.listener]]\nname = \"in\"\naddress = [\"127.0.0.1:99999\"]\ntype = \"inbund\"\n\n\
         [[auth.passdb]]\ndriver = \"passwdfile\"\n",
    )
    .expect("file");
    let mut command = postern();
    command.args(["config", "check", "--config"]).arg(&file);
    let out = run(command, "");
    assert_eq!(out.status.code(), Some(EX_CONFIG), "{}", show(&out));
    let text = format!("{}{}", stderr(&out), crate::support::stdout(&out));
    for (line, words) in [
        (2, &["hostnam", "hostname"][..]),
        (3, &["grace_time"]),
        (6, &["connections"]),
        (10, &["99999"]),
        (11, &["inbund", "inbound"]),
        (14, &["passwdfile", "passwd-file"]),
    ] {
        assert!(text.contains(&format!(":{line}:")), "no error at line {line}: {text}");
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
    // `run` refuses the same file in the same way.
    let mut command = postern();
    command.args(["run", "--config"]).arg(&file);
    assert_eq!(run(command, "").status.code(), Some(EX_CONFIG));
}

#[test]
fn a_missing_certificate_and_a_missing_file_are_named() {
    let scratch = scratch();
    let file = scratch.path().join("postern.toml");
    fs::write(
        &file,
        format!(
            "version = 1\nhostname = \"{HOSTNAME}\"\nstate_dir = \"{0}/state\"\n\n[[tls.certificate]]\nchain = \"{0}/none.pem\"\nkey = \"{0}/none.key\"\n",
            scratch.path().display()
        ),
    )
    .expect("file");
    let mut command = postern();
    command.args(["config", "check", "--config"]).arg(&file);
    let out = run(command, "");
    assert!(!out.status.success());
    assert!(show(&out).contains("none.pem"), "{}", show(&out));

    let mut command = postern();
    command.args(["run", "--config", "/nowhere/postern.toml"]);
    let out = run(command, "");
    assert!(!out.status.success() && show(&out).contains("/nowhere/postern.toml"), "{}", show(&out));
}

#[test]
fn a_used_port_is_named() {
    let stack = Stack::start();
    let scratch = scratch();
    let mut command = postern();
    command
        .args(["run", "--hostname", HOSTNAME, "--listen", "127.0.0.1", "--state-dir"])
        .arg(scratch.path().join("s"));
    command.args(["--port-base", &stack.port_base.to_string()]);
    let out = run(command, "");
    assert!(!out.status.success());
    let text = show(&out);
    assert!(text.contains("already in use") && text.contains(&stack.port(25).to_string()), "{text}");
}

#[test]
fn a_state_folder_of_somebody_else_is_refused() {
    if !is_root() {
        return crate::support::skip("needs root to give a folder away");
    }
    let scratch = scratch();
    let state = scratch.path().join("state");
    fs::create_dir(&state).expect("folder");
    chown(&state, Some(12_345), Some(12_345)).expect("chown");
    let mut command = postern();
    command.args(["run", "--hostname", HOSTNAME, "--listen", "127.0.0.1", "--state-dir"]).arg(&state);
    command.args(["--port-base", &free_port_base().to_string(), "--self-test"]);
    let out = run(command, "");
    assert!(!out.status.success());
    assert!(
        show(&out).contains(&state.display().to_string()) && show(&out).contains("12345"),
        "{}",
        show(&out)
    );
}

#[test]
fn wrong_arguments_are_usage_errors() {
    for args in [
        &["run", "--port-base", "70000"][..],
        &["run", "--listen", "nonsense"],
        &["nonsense"],
        &["run", "--no-such"],
    ] {
        let mut command = postern();
        command.args(args);
        let out = run(command, "");
        assert_eq!(out.status.code(), Some(2), "{args:?}: {}", show(&out));
        assert!(!stderr(&out).is_empty());
    }
}
