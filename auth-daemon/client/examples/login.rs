//! Tries a login at a Dovecot auth socket and looks the user up: `login LOGIN-SOCKET USERDB-SOCKET USER [MECHANISM]`.
//!
//! The password comes from standard input. Mechanisms: PLAIN (default) and LOGIN, which shows an exchange of several steps.
//! Exit codes: 0 accepted, 1 refused, 75 nobody can say now.
//!
//! Trust: the daemon at the sockets; what it asks is shown with control characters escaped.
//! Never: print the password, or take an outage for a refusal.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::Read as _;
use std::process::ExitCode;

use auth_client::{AuthClient, AuthRequest, Config, Error, Secured, Step};

const TEMPFAIL: u8 = 75;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (login, userdb, user, mechanism) = match arguments.as_slice() {
        [login, userdb, user] => (login, userdb, user, "PLAIN"),
        [login, userdb, user, mechanism] => (login, userdb, user, mechanism.as_str()),
        _ => {
            eprintln!(
                "usage: login LOGIN-SOCKET USERDB-SOCKET USER [PLAIN|LOGIN]  (password on standard input)"
            );
            return ExitCode::from(2);
        }
    };
    let mut password = String::new();
    if let Err(error) = std::io::stdin().read_to_string(&mut password) {
        eprintln!("cannot read the password: {error}");
        return ExitCode::from(2);
    }
    // The session socket is for processes that open mailboxes; this program asks the userdb socket only.
    let client = AuthClient::new(Config::new(login, userdb, userdb));
    match try_login(&client, user, password.trim_end_matches('\n'), mechanism).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("not now: {error}");
            ExitCode::from(TEMPFAIL)
        }
    }
}

async fn try_login(client: &AuthClient, user: &str, password: &str, mechanism: &str) -> Result<bool, Error> {
    let offered = client.mechanisms().await?;
    println!("offered: {}", offered.iter().map(|one| one.name.to_string()).collect::<Vec<_>>().join(" "));

    let mut request = match mechanism {
        "PLAIN" => AuthRequest::plain("example", user.as_bytes(), password.as_bytes()),
        // Without an initial response: the server asks for name and password one after the other.
        other => AuthRequest::new(other, "example"),
    };
    // What the server may know of the connection the password came over.
    request.secured = Some(Secured::Plain);
    request.rip = "127.0.0.1".parse().ok();

    let mut answers = [user, password].into_iter();
    let mut step = client.authenticate(request).await?;
    loop {
        step = match step {
            Step::Challenge(exchange, question) => {
                println!("asked: {}", question.escape_ascii());
                match answers.next() {
                    Some(answer) => exchange.respond(answer.as_bytes()).await?,
                    None => {
                        exchange.cancel();
                        return Ok(false);
                    }
                }
            }
            Step::Ok(login) => {
                println!("accepted as {}", login.user);
                match client.user(&login.user, "example").await? {
                    Some(record) => println!("home: {:?}", record.home),
                    None => println!("but no user database knows the user"),
                }
                return Ok(true);
            }
            Step::Failed(failure) if failure.is_temporary() => return Err(Error::Failed(failure.reason)),
            Step::Failed(failure) => {
                println!("refused: {}", failure.reason.as_deref().unwrap_or("wrong name or password"));
                return Ok(false);
            }
        };
    }
}
