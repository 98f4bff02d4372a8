//! What a person can paste into a terminal or type into a mail program after the embedded default has started.
//!
//! Trust: the user's name and paths are what the one who started the stack chose; in command lines they are quoted.
//! Never: show a password, or a command that would have one among its arguments.

use std::fmt::Write as _;
use std::path::Path;

use conf::Ports;

/// Facts the lines are made of.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    /// The user to log in as.
    pub(crate) user: &'a str,
    /// The CA to trust.
    pub(crate) ca: &'a Path,
    /// The ports.
    pub(crate) ports: Ports,
    /// Name or address to connect to; the certificate covers it.
    pub(crate) host: &'a str,
}

/// The lines. Programs ask for the password: on a command line every process of the machine could read it.
pub(crate) fn lines(facts: &Facts<'_>) -> String {
    let Facts { user, host, ports, .. } = facts;
    let ca = quoted(&facts.ca.to_string_lossy());
    let mut out = String::new();
    let _ = write!(
        out,
        "Try it (each asks for the password of {user}):
  swaks --server {host}:{submission} --tls --tls-verify --tls-ca-path {ca} --auth PLAIN --auth-user {user} --from {user} --to {user}
  printf 'Subject: hello\\r\\n\\r\\nhello\\r\\n' | curl --cacert {ca} --user {user} --mail-from {user} --mail-rcpt {user} --upload-file - smtps://{host}:{submissions}
  curl --cacert {ca} --user {user} 'imaps://{host}:{imaps}/INBOX;MAILINDEX=1'
  curl --cacert {ca} --user {user} pop3s://{host}:{pop3s}/1
  openssl s_client -connect {host}:{submissions} -CAfile {ca} -crlf -quiet -ign_eof
    (-quiet and -ign_eof, because openssl takes a line that begins with a capital R or Q, such as RCPT, for itself)
Thunderbird (first import {ca} in Settings, Privacy & Security, Certificates, Authorities):
  IMAP  server {host}  port {imaps}  SSL/TLS  normal password  user name {user}
  POP3  server {host}  port {pop3s}  SSL/TLS  normal password  user name {user}
  SMTP  server {host}  port {submissions}  SSL/TLS  normal password  user name {user}
",
        submission = ports.submission,
        submissions = ports.submissions,
        imaps = ports.imaps,
        pop3s = ports.pop3s,
    );
    out
}

/// A word for a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Facts, lines, quoted};
    use conf::Ports;
    use std::path::Path;

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quoted("/srv/p/ca.pem"), "/srv/p/ca.pem");
        assert_eq!(quoted("/my mail/it's"), r"'/my mail/it'\''s'");
    }

    #[test]
    fn every_program_gets_its_port() {
        let facts = Facts {
            user: "me@mail.localhost",
            ca: Path::new("/srv/p/tls/ca.pem"),
            ports: Ports::new(1000),
            host: "localhost",
        };
        let text = lines(&facts);
        for part in [
            "localhost:1587",
            "imaps://localhost:1993",
            "pop3s://localhost:1995",
            "localhost:1465",
            "-ign_eof",
            "Thunderbird",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
