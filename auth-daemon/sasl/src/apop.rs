//! APOP, RFC 1939 §7, as Dovecot carries it: the POP3 server made the banner's challenge from the numbers of
//! this connection's greeting, so the daemon can check that it is its own.
//!
//! Response: `challenge NUL user NUL 16 digest bytes`, challenge = `<SPIDhex.CUIDhex.timehex@host>`; Dovecot's pop3-login
//!           writes `.random` behind the time.
//! Trust:    the POP3 server is believed about the challenge only as far as the numbers go; the digest is the user's.
//! Never:    take a challenge that another connection was greeted with.

use md5::{Digest as _, Md5};
use subtle::ConstantTimeEq as _;

use crate::{Context, Credentials, Failure, KeyKind, Lookup, Step, Success, user_name};

/// What the challenge of this connection must contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApopSeed {
    /// Server process id of the greeting.
    pub spid: u32,
    /// Connection id of the greeting.
    pub cuid: u32,
    /// When the process started, seconds since the epoch.
    pub started: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Apop {
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    user: String,
    challenge: Vec<u8>,
    digest: [u8; 16],
}

impl Apop {
    pub(crate) fn respond(&mut self, data: &[u8], ctx: &Context<'_>) -> Step {
        if self.pending.is_some() {
            return Step::Failure(Failure::OutOfOrder);
        }
        match parse(data, ctx) {
            Ok(pending) => {
                let user = pending.user.clone();
                self.pending = Some(pending);
                Step::NeedCredentials(Lookup { user, authzid: None, kind: KeyKind::Plain })
            }
            Err(failure) => Step::Failure(failure),
        }
    }

    pub(crate) fn credentials(&mut self, credentials: &Credentials) -> Step {
        let Some(Pending { user, challenge, digest }) = self.pending.take() else {
            return Step::Failure(Failure::OutOfOrder);
        };
        let Credentials::Plain(password) = credentials else {
            return Step::Failure(Failure::Mismatch);
        };
        let expected = Md5::new().chain_update(&challenge).chain_update(password.expose()).finalize();
        if bool::from(expected.as_slice().ct_eq(&digest)) {
            Step::Success(Success { user, authzid: None, final_data: None })
        } else {
            Step::Failure(Failure::Mismatch)
        }
    }
}

fn parse(data: &[u8], ctx: &Context<'_>) -> Result<Pending, Failure> {
    // The digest may contain NUL itself, so only the first two separate fields.
    let mut fields = data.splitn(3, |&b| b == 0);
    let (Some(challenge), Some(user), Some(digest)) = (fields.next(), fields.next(), fields.next()) else {
        return Err(Failure::Malformed);
    };
    let digest = <[u8; 16]>::try_from(digest).map_err(|_| Failure::Malformed)?;
    check_challenge(challenge, ctx)?;
    Ok(Pending { user: user_name(user)?, challenge: challenge.to_vec(), digest })
}

fn check_challenge(challenge: &[u8], ctx: &Context<'_>) -> Result<(), Failure> {
    let seed = ctx.apop.ok_or(Failure::Unsupported)?;
    let text = std::str::from_utf8(challenge).map_err(|_| Failure::Malformed)?;
    let inner = text.strip_prefix('<').and_then(|t| t.strip_suffix('>')).ok_or(Failure::Malformed)?;
    let (numbers, _host) = inner.split_once('@').ok_or(Failure::Malformed)?;
    // The random part is base64, which has no dot.
    let mut parts = numbers.splitn(4, '.');
    let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
    let (Some(spid), Some(cuid), Some(time)) = (number(), number(), number()) else {
        return Err(Failure::Malformed);
    };
    if spid != u64::from(seed.spid) || cuid != u64::from(seed.cuid) || time < seed.started {
        return Err(Failure::Mismatch);
    }
    Ok(())
}
