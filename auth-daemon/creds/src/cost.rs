//! What a stored string would cost, and the caps on it. Computes no hash.
//!
//! The daemon asks before it verifies: cheap strings are checked at once, slow ones go to a hash thread that
//! fits into the memory budget. Times are estimates for one core; only their order matters.
//!
//! Trust: stored strings are whatever somebody wrote; their numbers are read here for the first time.
//! Never: let a number above its cap reach a computation.

use crate::crypt::{Asked, Blocks, CryptText, Method, classify};
use crate::encode::text;
use crate::otp::OtpState;
use crate::{Error, Policy, Scheme, Stored, argon, verify};

/// Largest cost parameters that are ever computed. Stored strings may come from a hostile SQL or LDAP server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Memory of one argon2, yescrypt or scrypt computation, in bytes. Default 256 MiB.
    pub memory: u64,
    /// argon2 passes. Default 32.
    pub argon2_passes: u32,
    /// argon2 lanes. Default 16.
    pub argon2_lanes: u32,
    /// bcrypt cost (log2). Default 15, about two seconds.
    pub bcrypt_cost: u32,
    /// Rounds of `$5$`, `$6$`, `$sha1$`, `$md5` and `_`. Default 1,000,000.
    pub crypt_rounds: u32,
    /// PBKDF2 rounds. Default 2,000,000.
    pub pbkdf2_rounds: u32,
    /// SCRAM iterations. Default 1,000,000.
    pub scram_iterations: u32,
    /// OTP sequence number. Default 10,000.
    pub otp_sequence: u32,
    /// Work of yescrypt and scrypt: `N * r * p * (t + 1)`. Default 16 times that of `$y$j9T$`.
    pub block_work: u64,
}

impl Default for Caps {
    fn default() -> Caps {
        Caps {
            memory: 256 << 20,
            argon2_passes: 32,
            argon2_lanes: 16,
            bcrypt_cost: 15,
            crypt_rounds: 1_000_000,
            pbkdf2_rounds: 2_000_000,
            scram_iterations: 1_000_000,
            otp_sequence: 10_000,
            block_work: 16 << 17,
        }
    }
}

/// Estimated cost of one verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Bytes of memory the hash fills.
    pub memory: u64,
    /// Microseconds on one core.
    pub micros: u64,
}

impl Cost {
    /// Longest work done on a thread that also serves sockets.
    const CHEAP_MICROS: u64 = 50;

    /// Whether the work is so small that handing it to another thread would cost more.
    pub fn is_cheap(self) -> bool {
        self.micros <= Cost::CHEAP_MICROS && self.memory < 1 << 16
    }

    const NONE: Cost = Cost { memory: 0, micros: 0 };

    fn micros(micros: u64) -> Cost {
        Cost { memory: 0, micros }
    }
}

/// Checks weakness and caps and estimates the cost. [`Cost::NONE`] for texts nobody computes (locked, empty).
pub(crate) fn cost(stored: &Stored<'_>, policy: &Policy) -> Result<Cost, Error> {
    let scheme = stored.scheme();
    if scheme.is_weak() && !policy.allow_weak {
        return Err(Error::Weak(scheme));
    }
    let caps = &policy.caps;
    let capped = |what, asked: u32, cap: u32| over(scheme, what, u64::from(asked), u64::from(cap));
    match scheme {
        Scheme::Crypt | Scheme::DesCrypt | Scheme::Sha256Crypt | Scheme::Sha512Crypt => {
            crypt_cost(stored, text(stored)?.bytes(), policy)
        }
        Scheme::Md5Crypt => crypt_cost(stored, text(stored)?.bytes(), policy),
        Scheme::Md5 if verify::is_md5_crypt(stored) => crypt_cost(stored, text(stored)?.bytes(), policy),
        Scheme::BlfCrypt => crypt_cost(stored, text(stored)?.bytes(), policy),
        Scheme::Argon2 | Scheme::Argon2i | Scheme::Argon2id => {
            let text = text(stored)?;
            let hash = argon::parse(stored, text.bytes())?;
            let memory = u64::from(hash.memory_kib) << 10;
            over(scheme, "memory", memory, caps.memory)?;
            capped("passes", hash.passes, caps.argon2_passes)?;
            capped("lanes", hash.lanes, caps.argon2_lanes)?;
            Ok(Cost { memory, micros: u64::from(hash.memory_kib) * u64::from(hash.passes) * 6 / 10 + 5 })
        }
        Scheme::Pbkdf2 => {
            let rounds = verify::pbkdf2(stored, text(stored)?.bytes())?.rounds;
            capped("rounds", rounds, caps.pbkdf2_rounds)?;
            Ok(Cost::micros(u64::from(rounds) / 4 + 1))
        }
        Scheme::ScramSha1 | Scheme::ScramSha256 => {
            let iterations = crate::keys::scram(stored, text(stored)?.bytes())?.iterations;
            capped("iterations", iterations, caps.scram_iterations)?;
            Ok(Cost::micros(u64::from(iterations) / 4))
        }
        Scheme::Otp => {
            let text = text(stored)?;
            let sequence = OtpState::parse(stored, text.bytes())?.sequence;
            capped("sequence", sequence, caps.otp_sequence)?;
            Ok(Cost::micros(u64::from(sequence) / 4 + 1))
        }
        _ => Ok(Cost::micros(1)),
    }
}

fn over(scheme: Scheme, what: &'static str, asked: u64, cap: u64) -> Result<(), Error> {
    if asked > cap { Err(Error::OverCap { scheme, what, asked, cap }) } else { Ok(()) }
}

fn crypt_cost(stored: &Stored<'_>, text: &[u8], policy: &Policy) -> Result<Cost, Error> {
    let scheme = stored.scheme();
    let caps = &policy.caps;
    let (method, asked) = match classify(text).map_err(|why| stored.malformed(why))? {
        CryptText::Empty | CryptText::Locked => return Ok(Cost::NONE),
        CryptText::Hash(method, asked) => (method, asked),
    };
    let forced = match scheme {
        Scheme::Md5Crypt | Scheme::Md5 => method == Method::Md5,
        Scheme::BlfCrypt => method == Method::Bcrypt,
        _ => true,
    };
    if !forced {
        return Err(stored.malformed("hash of another method"));
    }
    if method.is_weak() && !policy.allow_weak {
        return Err(Error::Weak(scheme));
    }
    match asked {
        Asked::Fixed => Ok(Cost::micros(match method {
            Method::Md5 => 350,
            Method::Des => 10 * text.len() as u64 / 13,
            _ => 2,
        })),
        Asked::Rounds(rounds) => {
            over(scheme, "rounds", u64::from(rounds), u64::from(caps.crypt_rounds))?;
            let rounds = u64::from(rounds);
            Ok(Cost::micros(match method {
                Method::SunMd5 | Method::Sha1 => rounds,
                _ => rounds * 3 / 10 + 1,
            }))
        }
        Asked::Log2(cost) => {
            over(scheme, "cost", u64::from(cost), u64::from(caps.bcrypt_cost))?;
            Ok(Cost { memory: 4 << 10, micros: 50_u64.checked_shl(cost).unwrap_or(u64::MAX) })
        }
        Asked::Blocks(blocks) => block_cost(scheme, blocks, caps),
    }
}

fn block_cost(scheme: Scheme, asked: Blocks, caps: &Caps) -> Result<Cost, Error> {
    // N below 2^40 keeps every product inside u128; larger ones are over any cap anyway.
    over(scheme, "N (log2)", u64::from(asked.n_log2), 40)?;
    let n = 1_u128 << asked.n_log2;
    let (r, p) = (u128::from(asked.r), u128::from(asked.p));
    let memory = u64::try_from(128 * r * (n + p)).unwrap_or(u64::MAX);
    over(scheme, "memory", memory, caps.memory)?;
    let work = u64::try_from(n * r * p * (u128::from(asked.t) + 1)).unwrap_or(u64::MAX);
    over(scheme, "work", work, caps.block_work)?;
    Ok(Cost { memory, micros: work / 5 + 10 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, policy: &Policy) -> Result<Cost, Error> {
        cost(&Stored::parse(text.as_bytes(), Scheme::Crypt).unwrap(), policy)
    }

    #[test]
    fn classes() {
        let policy = Policy { allow_weak: true, ..Policy::default() };
        let bcrypt = format!("{{BLF-CRYPT}}$2y$10${}", "a".repeat(53));
        let cases = [
            ("{PLAIN}x", true),
            ("{SSHA}Z+RZcoKaNliQ6I0AsTOYmkoec3CdEaoy", true),
            ("{CRAM-MD5}4e3771a1a672bdc8bd8db861c1f2a29a8e043c99300ca203a1a92bbea7506691", true),
            ("fcd8T/LTN2P9w", true),
            ("!x", true),
            ("", true),
            ("$1$s$h", false),
            ("$6$s$h", false),
            ("$y$j9T$s$h", false),
            (bcrypt.as_str(), false),
            (
                "{ARGON2ID}$argon2id$v=19$m=64,t=2,p=1$3+L499XhRrhMMwdmaWG8mA$/qPrNwZBHOv/d4HR7db336Zv5LHCsZmAoj/BmyxKn/c",
                false,
            ),
            ("{PBKDF2}$1$abc$5000$2c52cde6ab8be50c7608dc382b6e984da1157f4d", false),
        ];
        for (text, cheap) in cases {
            assert_eq!(of(text, &policy).unwrap().is_cheap(), cheap, "{text}");
        }
        let yescrypt = of("$y$j9T$s$h", &policy).unwrap();
        assert_eq!(yescrypt.memory >> 20, 16);
    }

    #[test]
    fn caps_hold_before_any_computation() {
        let policy = Policy { allow_weak: true, ..Policy::default() };
        let long = "a".repeat(53);
        for text in [
            "{ARGON2ID}$argon2id$v=19$m=1048576,t=2,p=1$3+L499XhRrhMMwdmaWG8mA$/qPrNwZBHOv/d4HR7db336Zv5LHCsZmAoj/BmyxKn/c".to_owned(),
            "{ARGON2ID}$argon2id$v=19$m=64,t=1000000,p=1$3+L499XhRrhMMwdmaWG8mA$/qPrNwZBHOv/d4HR7db336Zv5LHCsZmAoj/BmyxKn/c".to_owned(),
            "{ARGON2ID}$argon2id$v=19$m=65536,t=1,p=255$3+L499XhRrhMMwdmaWG8mA$/qPrNwZBHOv/d4HR7db336Zv5LHCsZmAoj/BmyxKn/c".to_owned(),
            "$6$rounds=999999999$s$h".to_owned(),
            "$5$rounds=1000001$s$h".to_owned(),
            "$y$jTT$s$h".to_owned(),
            "$y$jz./T$s$h".to_owned(),
            "$7$zU..../....s$h".to_owned(),
            "$7$Czzzzz/....s$h".to_owned(),
            "$7$CU....zzzzzs$h".to_owned(),
            format!("$2b$16${long}"),
            "$sha1$4000000000$a$b".to_owned(),
            "$md5,rounds=4000000000$a$b".to_owned(),
            "_zzzzqa2fvyKUaw2VQk.".to_owned(),
            "{PBKDF2}$1$abc$4000000000$2c52cde6ab8be50c7608dc382b6e984da1157f4d".to_owned(),
            "{SCRAM-SHA-1}4000000000,AQ==,nL9Jn08VqiT0KngbiEafG3NJvIw=,vktRN0ZhfhYsQBb/1LABBBo3rWU=".to_owned(),
        ] {
            let result = of(&text, &policy);
            assert!(matches!(result, Err(Error::OverCap { .. } | Error::Malformed { .. })), "{text}: {result:?}");
        }
    }

    #[test]
    fn weak_ones_need_the_switch() {
        let strict = Policy::default();
        for text in [
            "{DES-CRYPT}4SLp6xFn5ZRBo",
            "{MD5}14cbfb845af1f030e372b1cb9275e6dd",
            "{MD5-CRYPT}$1$a$b",
            "{SMD5}x",
            "{PLAIN-MD4}x",
            "{PLAIN-MD5}x",
            "{LDAP-MD5}x",
            "{HMAC-MD5}x",
            "4SLp6xFn5ZRBo",
            "$1$a$b",
            "$3$$c5",
            "_J9..qa2fvyKUaw2VQk.",
        ] {
            assert!(matches!(of(text, &strict), Err(Error::Weak(_))), "{text}");
        }
        assert!(of("{CRAM-MD5}x", &strict).is_ok());
    }
}
