//! Clients that keep a copy of everything, or take answers apart to the last parenthesis: offlineimap, Perl's Mail::IMAPClient.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{PASSWORD, Stack, USER, have, message, peer, run, show, skip};

/// Files of a Maildir, without `tmp`.
fn messages(maildir: &Path) -> Vec<PathBuf> {
    let entries = ["new", "cur"].iter().filter_map(|sub| fs::read_dir(maildir.join(sub)).ok()).flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    found.sort();
    found
}

fn flags(file: &Path) -> String {
    let name = file.to_string_lossy().into_owned();
    name.rsplit_once(":2,").map(|(_, flags)| flags.to_owned()).unwrap_or_default()
}

#[test]
fn offlineimap_mirrors_both_ways() {
    if !have(&["offlineimap"]) {
        return;
    }
    let stack = Stack::start();
    for (number, subject) in ["one", "two", "three"].iter().enumerate() {
        let file = stack.maildir(USER).join("new").join(format!("170000000{number}.M1P1.elsewhere"));
        fs::write(file, message(subject).replace("\r\n", "\n")).expect("message");
    }
    let local = stack.scratch().join("local");
    let settings = format!(
        "[general]\naccounts = A\nmetadata = {meta}\nui = basic\nsocktimeout = 20\n\
         [Account A]\nlocalrepository = L\nremoterepository = R\n\
         [Repository L]\ntype = Maildir\nlocalfolders = {local}\n\
         [Repository R]\ntype = IMAP\nremotehost = localhost\nremoteport = {port}\nremoteuser = {USER}\n\
         remotepass = {PASSWORD}\nssl = yes\nsslcacertfile = {ca}\n",
        meta = stack.scratch().join("meta").display(),
        local = local.display(),
        port = stack.port(993),
        ca = stack.ca().display(),
    );
    let rc = stack.scratch().join("offlineimaprc");
    fs::write(&rc, settings).expect("settings");
    let sync = || {
        let mut command = peer("offlineimap", stack.scratch());
        // One thread: with more, it waits for itself when it makes a folder.
        command.args(["-o", "-1", "-u", "basic", "-c"]).arg(&rc);
        let out = run(command, "");
        assert!(out.status.success(), "{}\n{}", show(&out), stack.log());
    };
    sync();
    let inbox = local.join("INBOX");
    let fetched = messages(&inbox);
    assert_eq!(fetched.len(), 3);
    // A flag, a deletion, a new message, and a folder with a name that is not ASCII (modified UTF-7 here as there).
    let first = fetched[0].file_name().expect("name").to_string_lossy().replace(":2,", ":2,FRS");
    fs::rename(&fetched[0], inbox.join("cur").join(first)).expect("rename");
    fs::remove_file(&fetched[1]).expect("remove");
    let folder = local.join("Entw&APw-rfe");
    for sub in ["cur", "new", "tmp"] {
        fs::create_dir_all(folder.join(sub)).expect("folder");
    }
    fs::write(folder.join("new/1.2.here"), message("written here").replace("\r\n", "\n")).expect("message");
    sync();
    let there = stack.maildir(USER);
    let kept = messages(&there);
    let alive: Vec<String> =
        kept.iter().map(|file| flags(file)).filter(|flags| !flags.contains('T')).collect();
    assert!(alive.len() == 2 && alive.contains(&"FRS".to_owned()), "{kept:?}");
    let written = messages(&there.join(".Entw&APw-rfe"));
    assert_eq!(written.len(), 1, "{}", stack.log());
    assert!(fs::read_to_string(&written[0]).expect("message").contains("Subject: written here\n"));
    // What others change comes back, and nothing is copied twice.
    let other = kept.iter().find(|file| flags(file).is_empty()).expect("one without flags");
    let name = other.file_name().expect("name").to_string_lossy().into_owned();
    let base = name.split(":2,").next().expect("base");
    fs::rename(other, there.join("cur").join(format!("{base}:2,S"))).expect("rename");
    sync();
    sync();
    let here = messages(&inbox);
    assert!(here.len() == 2 && here.iter().any(|file| flags(file) == "S"), "{here:?}");
    assert_eq!((messages(&folder).len(), messages(&there.join(".Entw&APw-rfe")).len()), (1, 1));
}

const SCRIPT: &str = r#"
use strict;
use warnings;
use Mail::IMAPClient;

my ($ca, $port, $user, $password) = @ARGV;
my $mail = Mail::IMAPClient->new(
    Server => 'localhost', Port => $port, User => $user, Password => $password, Uid => 1, Peek => 1, Timeout => 20,
    Ssl => [SSL_ca_file => $ca, SSL_verifycn_name => 'localhost'],
) or die "login: $@";
sub is { my ($what, $got) = @_; die "$what: " . ($mail->LastError // 'wrong') . "\n" unless $got; $got }

is('separator', $mail->separator eq '/');
is('create', $mail->create('Perl/Sub')) && is('subscribe', $mail->subscribe('Perl/Sub'));
is('LSUB', grep { $_ eq 'Perl/Sub' } $mail->subscribed);
is('UTF-7', $mail->create('Gr&APwA3w-e')) && is('LIST', grep { $_ eq 'Gr&APwA3w-e' } $mail->folders);

my $text = join "\r\n", 'From: "A, B" <a@b.test>', 'To: Group: c@d.test, e@f.test;', 'Subject: perl test',
    'Date: Mon, 7 Feb 1994 21:52:25 -0800', 'Message-ID: <p1@x>', 'MIME-Version: 1.0', 'Content-Type: multipart/mixed; boundary=b', '',
    '--b', 'Content-Type: text/plain; charset=utf-8', '', "gr\xc3\xbc\xc3\x9fe", '--b', 'Content-Type: message/rfc822', '',
    'Subject: inner', 'Content-Type: multipart/alternative; boundary=c', '', '--c', '', 'x', '--c', 'Content-Type: text/html', '', '<b>x</b>', '--c--',
    '--b', 'Content-Type: application/pdf; name="a \"b\".pdf"', 'Content-Disposition: attachment; filename="a \"b\".pdf"',
    'Content-Transfer-Encoding: base64', '', 'AAEC', '--b--', '';
my $uid = is('APPENDUID', $mail->append('Perl/Sub', $text));
is('APPEND', $mail->append_string('Perl/Sub', $text, '\Flagged $Label', '"07-Feb-1994 21:52:25 -0800"'));
is('SELECT', $mail->select('Perl/Sub'));
is('counts', $mail->message_count == 2 && $mail->unseen_count == 2 && $mail->uidnext('Perl/Sub') == 3);

my $envelope = is('ENVELOPE', $mail->get_envelope($uid));
is('subject', $envelope->subject eq 'perl test' && $envelope->messageid eq '<p1@x>');
my $structure = is('BODYSTRUCTURE', $mail->get_bodystructure($uid));
is('type', $structure->bodytype eq 'MULTIPART' && grep { $_ eq '3' } $structure->parts);
is('size', $mail->size($uid) == length $text) && is('BODY[]', $mail->message_string($uid) eq $text);
is('BODY[3]', $mail->bodypart_string($uid, 3) =~ /^AAEC/);
is('header', $mail->parse_headers($uid, 'Subject', 'Date')->{Subject}[0] eq 'perl test');
my ($first, $second) = $mail->messages;
is('flags', join(' ', sort grep { !/Recent/ } $mail->flags($second)) eq '$Label \Flagged');
is('INTERNALDATE', $mail->internaldate($second) =~ /^08-Feb-1994 05:52:25/);

is('SEARCH', join(',', $mail->search('SUBJECT', 'perl', 'UNSEEN')) eq '1,2');
is('OR', join(',', $mail->search('OR', 'FLAGGED', 'SEEN')) eq '2' && join(',', $mail->sentbefore('01-Jan-2000')) eq '1,2');
is('8 bits', join(',', $mail->search('CHARSET', 'UTF-8', 'BODY', \qq("gr\xc3\xbc\xc3\x9fe"))) eq '1,2');
is('STORE', $mail->set_flag('Answered', $first)) && is('-FLAGS', $mail->unset_flag('Answered', $first)) && is('seen', $mail->see($first));
is('fetch_hash', keys %{ $mail->fetch_hash('FLAGS', 'INTERNALDATE', 'RFC822.SIZE', 'ENVELOPE') } == 2);
is('COPY', $mail->copy('Gr&APwA3w-e', $first, $second)) && is('MOVE', $mail->move('Gr&APwA3w-e', $first) && $mail->expunge);
is('moved', $mail->message_count('Gr&APwA3w-e') == 3 && $mail->message_count('Perl/Sub') == 1);
my $idle = is('IDLE', $mail->idle);
is('DONE', $mail->done($idle));
is('RENAME', $mail->rename('Perl/Sub', 'Perl/Other')) && is('exists', $mail->exists('Perl/Other') && !$mail->exists('Perl/Sub'));
is('CLOSE', $mail->select('INBOX') && $mail->close);
is('DELETE', $mail->delete('Perl/Other') && $mail->delete('Gr&APwA3w-e'));
is('LOGOUT', $mail->logout);
print "all good\n";
"#;

#[test]
fn perls_imap_client_understands_every_answer() {
    if !have(&["perl"]) {
        return;
    }
    let mut probe = peer("perl", Path::new("/tmp"));
    probe.args(["-MMail::IMAPClient", "-MIO::Socket::SSL", "-e", "1"]);
    if !run(probe, "").status.success() {
        return skip("Mail::IMAPClient is not installed");
    }
    let stack = Stack::start();
    let script = stack.scratch().join("client.pl");
    fs::write(&script, SCRIPT).expect("script");
    let mut command = peer("perl", stack.scratch());
    command.arg(&script).arg(stack.ca()).args([&stack.port(993).to_string(), USER, PASSWORD]);
    let out = run(command, "");
    assert!(out.status.success(), "{}\n{}", show(&out), stack.log());
}
