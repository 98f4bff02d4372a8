//! Which recipients are taken.
//!
//! Rules:     local domains only; the daemon knows the users. An exact name wins over `user+detail`. `postmaster`
//!            of any local domain has a configured stand-in where it is no user (RFC 5321 §4.5.1).
//! Trust:     the address is a stranger's; the authentication daemon is believed about users.
//! Never:     a 250 for a message that has nowhere to go: without a queue nothing is relayed, whoever asks.

use std::net::IpAddr;
use std::sync::Arc;

use auth_client::AuthClient;
use smtp::{ForwardPath, Reply, Status};

use crate::deliver::{Place, Target};
use crate::location;
use crate::policy::Policy;

/// What separates the user's name from a detail (RFC 5233).
const DETAIL: char = '+';

/// A recipient's verdict.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    Local(Target),
    Refused(Reply),
}

/// Asks the daemon about a recipient.
pub(crate) async fn resolve(
    policy: &Policy,
    auth: &AuthClient,
    path: &ForwardPath,
    own_ip: IpAddr,
    service: &'static str,
) -> Verdict {
    let (local, domain) = match path {
        ForwardPath::Postmaster => ("postmaster", policy.local.main()),
        ForwardPath::Mailbox(address) => match policy.local.resolve(address.domain(), own_ip) {
            Some(domain) => (address.local().as_str(), domain),
            None => return Verdict::Refused(RELAY),
        },
    };
    for name in candidates(local, domain) {
        if let Some(verdict) = look_up(policy, auth, &name, service).await {
            return verdict;
        }
    }
    let Some(stand_in) = policy.postmaster.as_deref().filter(|_| is_postmaster(local)) else {
        return Verdict::Refused(UNKNOWN);
    };
    look_up(policy, auth, stand_in, service).await.unwrap_or_else(|| {
        tracing::error!(postmaster = stand_in, "smtp.postmaster is not a user: its mail is put off");
        Verdict::Refused(OUTAGE)
    })
}

/// Asks for one name; `None` when no user has it.
async fn look_up(policy: &Policy, auth: &AuthClient, name: &str, service: &'static str) -> Option<Verdict> {
    match auth.user(name, service).await {
        // Accounts that may have no mail, such as root: a 250 to them could not be kept.
        Ok(Some(user)) if !user.uid.is_none_or(|uid| policy.may_have_mail(uid)) => None,
        Ok(Some(user)) => {
            let place = match &policy.delivery {
                // Where that is, is nothing to this process.
                Some(socket) => {
                    let (socket, user) = (Arc::clone(socket), user.user.clone());
                    Some(Place::Channel { socket, user, service })
                }
                None => location::maildir_root(user.mail.as_deref(), user.home.as_deref()).map(Place::Folder),
            };
            match place {
                Some(place) => Some(Verdict::Local(Target { user: user.user, place })),
                None => {
                    tracing::error!(user = %user.user, mail = ?user.mail, home = ?user.home,
                        "user has no usable Maildir");
                    Some(Verdict::Refused(OUTAGE))
                }
            }
        }
        Ok(None) => None,
        Err(error) => {
            tracing::warn!(recipient = %name, %error, "user look-up failed");
            Some(Verdict::Refused(OUTAGE))
        }
    }
}

/// The reserved name in any case (RFC 5321 §4.5.1), with or without a detail.
fn is_postmaster(local: &str) -> bool {
    local.split(DETAIL).next().is_some_and(|name| name.eq_ignore_ascii_case("postmaster"))
}

/// The names to look for, best first. A local part that no user name can be is not asked for: an `@` in it would
/// turn it into somebody else's address.
fn candidates(local: &str, domain: &str) -> Vec<String> {
    let unfit = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '@' | '/' | '\\' | '"');
    if matches!(local, "" | "." | "..") || local.contains(unfit) {
        return Vec::new();
    }
    let mut names = vec![format!("{local}@{domain}")];
    if let Some((user, _)) = local.split_once(DETAIL).filter(|(user, _)| !user.is_empty()) {
        names.push(format!("{user}@{domain}"));
    }
    names
}

const RELAY: Reply =
    Reply::new(550, Status(5, 7, 1), "Relaying denied: this server takes mail for its own users only");
const UNKNOWN: Reply = Reply::new(550, Status(5, 1, 1), "No such user here");
const OUTAGE: Reply = Reply::new(451, Status(4, 3, 0), "User look-up failed, try again later");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_to_look_for() {
        for (local, names) in [
            ("bob", &["bob@x"][..]),
            ("bob+lists", &["bob+lists@x", "bob@x"]),
            ("bob+a+b", &["bob+a+b@x", "bob@x"]),
            ("+bob", &["+bob@x"]),
            ("a@evil", &[]),
            ("../../etc", &[]),
            ("a b", &[]),
            ("", &[]),
            ("..", &[]),
        ] {
            assert_eq!(candidates(local, "x"), names, "{local}");
        }
    }

    #[test]
    fn the_reserved_name() {
        for name in ["postmaster", "PostMaster", "postmaster+x"] {
            assert!(is_postmaster(name), "{name}");
        }
        for name in ["postmasters", "", "x+postmaster", "hostmaster"] {
            assert!(!is_postmaster(name), "{name}");
        }
    }
}
