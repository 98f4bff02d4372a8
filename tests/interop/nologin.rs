//! Users whose password is right and who may not log in here: every front refuses them, and shows the reason.

use std::fs;

use crate::scenario::play;
use crate::support::Stack;

/// `moved` may not log in and is told why; `closed` is told no reason; `away` is to be proxied elsewhere.
const USERS: &str = "\
moved:{PLAIN}pw:::::: nologin reason=Moved-to-another-server
closed:{PLAIN}pw:::::: nologin
away:{PLAIN}pw:::::: proxy host=192.0.2.7
open:{PLAIN}pw
";

/// What each front says to the right password.
const REFUSALS: [(&str, &str, &str, &str); 3] = [
    (
        "moved",
        "NO [CONTACTADMIN] Moved-to-another-server",
        "[AUTH] Moved-to-another-server",
        ": Moved-to-another-server",
    ),
    ("closed", "NO [CONTACTADMIN] *", "[AUTH] *", ""),
    ("away", "NO [CONTACTADMIN] *", "[AUTH] *", ""),
];

#[test]
fn fronts_refuse_users_with_nologin() {
    let stack = Stack::start();
    let users = stack.state().join("users");
    let before = fs::read_to_string(&users).expect("users");
    fs::write(&users, before + USERS).expect("users");
    let mut dialogue = String::new();
    for (user, imap, pop3, smtp) in REFUSALS {
        dialogue += &format!(
            "open i imaps\ni<~ \\* OK*\ni> 1 LOGIN {user} pw\ni<~ 1 {imap}\ni> 2 AUTHENTICATE PLAIN {{b64:\\0{user}\\0pw}}\n\
             i<~ 2 {imap}\ni> 3 SELECT INBOX\ni<~ 3 BAD*\n\
             open p pop3s\np<~ +OK*\np> USER {user}\np< +OK*\np> PASS pw\np<~ -ERR {pop3}\np> STAT\np<~ -ERR*\n\
             open s submissions\ns<~ 220 *\ns> EHLO test\ns<~ 250 *\ns> AUTH PLAIN {{b64:\\0{user}\\0pw}}\n\
             s<~ 535 5.7.13 Account disabled{smtp}\ns> MAIL FROM:<{user}@{{hostname}}>\ns<~ 530 *\n"
        );
        // Who does not know the password learns nothing of it.
        dialogue += &format!(
            "open i imaps\ni<~ \\* OK*\ni> 1 LOGIN {user} no\ni<~ 1 NO [AUTHENTICATIONFAILED] *\n\
             open s submissions\ns<~ 220 *\ns> EHLO test\ns<~ 250 *\ns> AUTH PLAIN {{b64:\\0{user}\\0no}}\n\
             s<~ 535 5.7.8 *\n"
        );
    }
    dialogue += "open i imaps\ni<~ \\* OK*\ni> 1 LOGIN open pw\ni<~ 1 OK *\n\
                 open s submissions\ns<~ 220 *\ns> EHLO test\ns<~ 250 *\ns> AUTH PLAIN {b64:\\0open\\0pw}\ns<~ 235 *\n";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    if let Err(error) = runtime.block_on(play(&dialogue, &stack)) {
        panic!("{error}\n{}", stack.log());
    }
    // Nothing was made for who did not get in.
    assert!(!stack.maildir("moved").exists() && !stack.maildir("away").exists());
}
