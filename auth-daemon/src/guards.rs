//! Fields that guard the door: who has one of them in an entry gets in only when its condition holds.
//!
//! Rules: a guard without a value, or with one that makes no sense, lets nobody in. `fail`, nets and certificates are
//!        looked at before the password; they make this entry fail as if it did not know the user. `expires` and
//!        `delay_until` count only for who knows the password.
//! Trust: addresses and fingerprints are the client's word; what it is worth depends on who can reach the socket.
//! Source: Dovecot's passdb extra fields; `expires` is Postern's own.
//! Never: let a guard that cannot be judged count as passed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use auth_wire::Secured;

use crate::chain::Said;
use crate::nets;
use crate::request::Request;

/// Furthest that `delay_until` may lie ahead.
const LONGEST_DELAY: u64 = 300;

/// Checks that do not depend on the password.
pub(crate) fn before_password(request: &mut Request) -> Option<Said> {
    if request.fields.take("fail").is_some() {
        return Some(Said::Mismatch("field `fail`".to_owned()));
    }
    if let Some(nets) = request.fields.take("allow_nets")
        && !nets::admits(&nets.unwrap_or_default(), request.params.rip)
    {
        return Some(Said::Unknown(match request.params.rip {
            Some(_) => "allow_nets does not include the address".to_owned(),
            None => "allow_nets is set, the client told no address, and `local` is not listed".to_owned(),
        }));
    }
    if let Some(nets) = request.fields.take("allow_real_nets")
        && !nets::admits(&nets.unwrap_or_default(), request.params.real_rip.or(request.params.rip))
    {
        return Some(Said::Unknown("allow_real_nets does not include the address".to_owned()));
    }
    let params = &request.params;
    let (cert, key) = (params.ssl_client_cert_fp.clone(), params.ssl_client_cert_pubkey_fp.clone());
    let tls = params.secured == Some(Secured::Tls);
    for (name, shown) in [
        ("check_client_fp", [cert.as_deref(), key.as_deref()]),
        ("check_client_cert_fp", [cert.as_deref(), None]),
        ("check_client_pubkey_fp", [key.as_deref(), None]),
    ] {
        if let Some(wanted) = request.fields.take(name) {
            let wanted = wanted.unwrap_or_default();
            if !tls || !shown.into_iter().flatten().any(|shown| same_fingerprint(&wanted, shown)) {
                return Some(Said::Unknown(format!("{name}: no such client certificate over TLS")));
            }
        }
    }
    None
}

/// Digits alone count, so that what openssl prints can be pasted.
fn same_fingerprint(wanted: &str, shown: &str) -> bool {
    let digits = |text: &str| -> String {
        text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect()
    };
    let wanted = digits(wanted);
    !wanted.is_empty() && wanted == digits(shown)
}

/// Why the account has expired, if it has: the `expires` field lies in the past, or is no date.
pub(crate) fn expired(request: &mut Request) -> Option<String> {
    let text = request.fields.take("expires")?.unwrap_or_default();
    let moment = text
        .parse::<i64>()
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .or_else(|| text.parse::<jiff::Timestamp>().ok())
        .or_else(|| {
            // A day ends with itself, in local time.
            let date = text.parse::<jiff::civil::Date>().ok()?.tomorrow().ok()?;
            Some(date.to_zoned(jiff::tz::TimeZone::system()).ok()?.timestamp())
        });
    match moment {
        Some(moment) if moment > jiff::Timestamp::now() => None,
        Some(_) => Some("account has expired".to_owned()),
        None => Some("account counts as expired: field `expires` is no date".to_owned()),
    }
}

/// How long a success is to be held back (`delay_until=SECONDS[+RANDOM]`); an error says what is wrong with the field.
pub(crate) fn delay(request: &mut Request, now: SystemTime, random: u64) -> Result<Duration, String> {
    let Some(text) = request.fields.take("delay_until") else { return Ok(Duration::ZERO) };
    let text = text.unwrap_or_default();
    let (moment, spread) = match text.split_once('+') {
        Some((moment, spread)) => (moment, spread.parse::<u64>().ok()),
        None => (text.as_str(), Some(0)),
    };
    let (Ok(moment), Some(spread)) = (moment.parse::<u64>(), spread) else {
        return Err("field `delay_until` is no time".to_owned());
    };
    let ahead = |seconds: u64| {
        let then = UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
        Some(then.duration_since(now).unwrap_or_default())
    };
    let longest = Duration::from_secs(LONGEST_DELAY);
    // Judged with the whole spread, so that the answer does not depend on chance.
    match ahead(moment.saturating_add(spread)) {
        Some(delay) if delay <= longest => {}
        _ => return Err(format!("field `delay_until` lies more than {LONGEST_DELAY} s ahead")),
    }
    let drawn = random.checked_rem(spread.saturating_add(1)).unwrap_or(0);
    Ok(ahead(moment.saturating_add(drawn)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::request::PeerCredentials;

    fn request(fields: &str) -> Request {
        let peer = PeerCredentials { uid: 0, gid: 0, pid: None };
        let mut request = Request::new(auth_wire::Params::default(), "imap".into(), peer, Instant::now());
        for field in fields.split(' ').filter(|field| !field.is_empty()) {
            match field.split_once('=') {
                Some((name, value)) => request.fields.set(name, Some(value)),
                None => request.fields.set(field, None),
            }
        }
        request
    }

    #[test]
    fn guards_that_make_no_sense_are_closed() {
        for (fields, rip, open) in [
            ("", None, true),
            ("allow_nets=192.0.2.0/24", Some("192.0.2.1"), true),
            ("allow_nets=192.0.2.0/24", Some("198.51.100.1"), false),
            ("allow_nets=192.0.2.0/24", None, false),
            ("allow_nets", Some("192.0.2.1"), false),
            ("allow_nets=", Some("192.0.2.1"), false),
            ("allow_nets=rubbish", Some("192.0.2.1"), false),
            ("allow_real_nets=local", None, true),
            ("allow_real_nets", None, false),
            ("fail", None, false),
            ("fail=no", None, false),
        ] {
            let mut request = request(fields);
            request.params.rip = rip.map(|ip| ip.parse().unwrap());
            assert_eq!(before_password(&mut request).is_none(), open, "{fields} {rip:?}");
        }
        for (fields, expected) in [
            ("", false),
            ("expires", true),
            ("expires=", true),
            ("expires=soon", true),
            ("expires=0", true),
            ("expires=2001-01-01", true),
            ("expires=2999-01-01", false),
            ("expires=32472144000", false),
            ("expires=2999-01-01T00:00:00Z", false),
        ] {
            assert_eq!(expired(&mut request(fields)).is_some(), expected, "{fields}");
        }
    }

    #[test]
    fn client_certificates() {
        for (fields, tls, cert, key, open) in [
            ("check_client_fp=AA:bb", true, Some("aabb"), None, true),
            ("check_client_fp=aabb", true, None, Some("aabb"), true),
            ("check_client_fp=aabb", true, Some("aabc"), Some("ccdd"), false),
            ("check_client_fp=aabb", false, Some("aabb"), Some("aabb"), false),
            ("check_client_fp=aabb", true, None, None, false),
            ("check_client_fp", true, Some(""), None, false),
            ("check_client_cert_fp=aabb", true, Some("aabb"), None, true),
            ("check_client_cert_fp=aabb", true, None, Some("aabb"), false),
            ("check_client_pubkey_fp=aabb", true, None, Some("aabb"), true),
            ("check_client_pubkey_fp=aabb", true, Some("aabb"), None, false),
        ] {
            let mut request = request(fields);
            request.params.secured = Some(if tls { Secured::Tls } else { Secured::Plain });
            request.params.ssl_client_cert_fp = cert.map(str::to_owned);
            request.params.ssl_client_cert_pubkey_fp = key.map(str::to_owned);
            assert_eq!(before_password(&mut request).is_none(), open, "{fields} {cert:?} {key:?}");
        }
    }

    #[test]
    fn delays() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (fields, random, want) in [
            ("", 0, Some(0)),
            ("delay_until=999999", 0, Some(0)),
            ("delay_until=1000007", 0, Some(7)),
            ("delay_until=1000007+2", 5, Some(9)),
            ("delay_until=1000007+2", 3, Some(7)),
            ("delay_until=1000300", 0, Some(300)),
            ("delay_until=1000301", 0, None),
            ("delay_until=1000300+1", 0, None),
            ("delay_until=18446744073709551615+18446744073709551615", 0, None),
            ("delay_until", 0, None),
            ("delay_until=", 0, None),
            ("delay_until=soon", 0, None),
            ("delay_until=1000007+", 0, None),
            ("delay_until=-1", 0, None),
        ] {
            let delay = delay(&mut request(fields), now, random).ok();
            assert_eq!(delay, want.map(Duration::from_secs), "{fields}");
        }
    }
}
