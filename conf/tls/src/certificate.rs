//! Certificates and keys from PEM text: reading, checking, choosing by name.
//!
//! Trust:  the text is the administrator's; certificates are parsed by x509-parser, keys by the provider.
//! Never:  print a key.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::signature_algorithm::SignatureAlgorithm;

use crate::Error;

/// A warning is given when a certificate ends within this time.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);

/// A certificate chain and its key as PEM text.
#[derive(Clone, Copy)]
pub struct PemPair<'a> {
    /// The server's certificate first, then the intermediate ones.
    pub chain: &'a str,
    /// The private key.
    pub key: &'a [u8],
}

impl fmt::Debug for PemPair<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PemPair").field("chain", &self.chain).field("key", &"…").finish()
    }
}

/// What [`check`] found out about a usable pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// DNS names and addresses the certificate is for.
    pub names: Vec<String>,
    /// Whom it was issued to.
    pub subject: String,
    /// Who issued it.
    pub issuer: String,
    /// First moment of validity.
    pub not_before: SystemTime,
    /// Last moment of validity.
    pub not_after: SystemTime,
    /// What clients will complain about.
    pub warnings: Vec<Warning>,
}

/// Usable, but clients will complain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Warning {
    /// Past its last day.
    #[error("the certificate expired {days} days ago")]
    Expired {
        /// Full days since then.
        days: u64,
    },
    /// Before its first day.
    #[error("the certificate is not valid before {days} days from now; is the clock right?")]
    NotYetValid {
        /// Full days until then.
        days: u64,
    },
    /// Ends within two weeks.
    #[error("the certificate expires in {days} days")]
    ExpiresSoon {
        /// Full days left.
        days: u64,
    },
    /// No subjectAltName.
    #[error("the certificate has no subjectAltName; clients will not accept it for any name")]
    NoNames,
    /// The file's second certificate did not issue the first, and so on.
    #[error("the chain is not in order: certificate {position} was not issued by the one after it")]
    ChainOrder {
        /// Counted from 1.
        position: usize,
    },
}

/// Checks a pair the way the server would load it, and what a client would say at `now`.
///
/// # Errors
/// The first reason why it cannot be used.
pub fn check(chain: &str, key: &[u8], now: SystemTime) -> Result<Report, Error> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let loaded = Loaded::new(PemPair { chain, key }, &provider)?;
    report(&loaded.key.cert, now)
}

/// One loaded certificate.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) key: Arc<CertifiedKey>,
    /// Lower-case DNS names; wildcards start with `*.`.
    names: Vec<String>,
    /// `tls-server-end-point`, if the signature's digest defines one.
    pub(crate) end_point: Option<Box<[u8]>>,
}

impl Loaded {
    pub(crate) fn new(pair: PemPair<'_>, provider: &CryptoProvider) -> Result<Self, Error> {
        let chain = read_chain(pair.chain)?;
        let key = read_key(pair.key)?;
        let signing =
            provider.key_provider.load_private_key(key).map_err(|error| Error::BadKey(error.to_string()))?;
        let certified = CertifiedKey::new(chain, signing);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => return Err(Error::KeyMismatch),
            Err(error) => return Err(Error::BadCertificate(error.to_string())),
        }
        let leaf = certified.end_entity_cert()?;
        let parsed = parse(leaf)?;
        let names = dns_names(&parsed);
        let end_point = end_point(leaf, &parsed);
        Ok(Self { key: Arc::new(certified), names, end_point })
    }

    fn fits(&self, schemes: &[SignatureScheme]) -> bool {
        self.key.key.choose_scheme(schemes).is_some()
    }

    fn is_for(&self, name: &str) -> bool {
        self.names.iter().any(|own| own == name)
    }

    /// RFC 6125 §6.4.3: the wildcard stands for exactly one whole label.
    fn wildcard_is_for(&self, name: &str) -> bool {
        let Some((label, rest)) = name.split_once('.') else { return false };
        !label.is_empty() && self.names.iter().any(|own| own.strip_prefix("*.") == Some(rest))
    }
}

/// Which certificate answers a client: by exact name, by wildcard, else the first; among those for one name the first
/// whose key the client can check (an RSA and an ECDSA certificate may stand side by side).
pub(crate) fn choose(all: &[Loaded], sni: Option<&str>, schemes: &[SignatureScheme]) -> usize {
    let pick = |wanted: &dyn Fn(&Loaded) -> bool| {
        let fitting = all.iter().position(|one| wanted(one) && one.fits(schemes));
        fitting.or_else(|| all.iter().position(wanted))
    };
    if let Some(sni) = sni {
        let name = sni.trim_end_matches('.').to_ascii_lowercase();
        let found = pick(&|one| one.is_for(&name)).or_else(|| pick(&|one| one.wildcard_is_for(&name)));
        if let Some(found) = found {
            return found;
        }
    }
    // The default is the first; one beside it for the very same names may replace it for the sake of the key type.
    let Some(first) = all.first() else { return 0 };
    if first.fits(schemes) {
        return 0;
    }
    pick(&|one| one.names == first.names).unwrap_or(0)
}

fn read_chain(text: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    if text.trim().is_empty() {
        return Err(Error::EmptyChain);
    }
    let chain = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::BadPem(error.to_string()))?;
    if chain.is_empty() { Err(Error::NoCertificate) } else { Ok(chain) }
}

fn read_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    if text.trim_ascii().is_empty() {
        return Err(Error::EmptyKey);
    }
    // PKCS #8 says it in the label, the older forms in a header line (RFC 1421 §4.6.1.1).
    let encrypted = [&b"-----BEGIN ENCRYPTED PRIVATE KEY-----"[..], b"Proc-Type: 4,ENCRYPTED"];
    if encrypted.iter().any(|mark| contains(text, mark)) {
        return Err(Error::EncryptedKey);
    }
    match PrivateKeyDer::from_pem_slice(text) {
        Ok(key) => Ok(key),
        Err(rustls_pki_types::pem::Error::NoItemsFound) => Err(Error::NoKey),
        Err(error) => Err(Error::BadKey(error.to_string())),
    }
}

fn contains(text: &[u8], mark: &[u8]) -> bool {
    text.windows(mark.len()).any(|window| window == mark)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    let (_, parsed) =
        X509Certificate::from_der(der).map_err(|error| Error::BadCertificate(error.to_string()))?;
    Ok(parsed)
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = alternative_names(certificate, false);
    if !names.is_empty() {
        return names;
    }
    // Certificates of old home-made CAs have only a common name; good enough for choosing among our own.
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    common.map(str::to_ascii_lowercase).collect()
}

fn alternative_names(certificate: &X509Certificate<'_>, addresses: bool) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) if addresses => address(bytes),
        _ => None,
    });
    names.collect()
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string())
}

/// RFC 5929 §4.1: the certificate hashed with the digest of its own signature; MD5 and SHA-1 become SHA-256.
/// Ed25519 and Ed448 have no such digest, so there is no binding.
fn end_point(leaf: &CertificateDer<'_>, parsed: &X509Certificate<'_>) -> Option<Box<[u8]>> {
    let oid = match SignatureAlgorithm::try_from(&parsed.signature_algorithm) {
        Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) => parameters.hash_algorithm_oid().to_id_string(),
        _ => parsed.signature_algorithm.algorithm.to_id_string(),
    };
    match oid.as_str() {
        // md5WithRSA, sha1WithRSA, sha256WithRSA, ecdsa-with-SHA1, ecdsa-with-SHA256, id-sha1, id-sha256
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2"
        | "1.3.14.3.2.26"
        | "2.16.840.1.101.3.4.2.1" => Some(Sha256::digest(leaf).to_vec().into()),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => {
            Some(Sha384::digest(leaf).to_vec().into())
        }
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => {
            Some(Sha512::digest(leaf).to_vec().into())
        }
        _ => None,
    }
}

fn report(chain: &[CertificateDer<'_>], now: SystemTime) -> Result<Report, Error> {
    let parsed = chain.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let leaf = parsed.first().ok_or(Error::NoCertificate)?;
    let not_before = moment(leaf.validity().not_before.timestamp());
    let not_after = moment(leaf.validity().not_after.timestamp());
    let mut warnings = Vec::new();
    let days = |time: Duration| time.as_secs() / 86_400;
    if let Ok(since) = now.duration_since(not_after) {
        warnings.push(Warning::Expired { days: days(since) });
    } else if let Ok(left) = not_after.duration_since(now)
        && left < EXPIRES_SOON
    {
        warnings.push(Warning::ExpiresSoon { days: days(left) });
    }
    if let Ok(until) = not_before.duration_since(now)
        && !until.is_zero()
    {
        warnings.push(Warning::NotYetValid { days: days(until) });
    }
    let names = alternative_names(leaf, true);
    if names.is_empty() {
        warnings.push(Warning::NoNames);
    }
    for (index, pair) in parsed.windows(2).enumerate() {
        if let [one, next] = pair
            && one.issuer().as_raw() != next.subject().as_raw()
        {
            warnings.push(Warning::ChainOrder { position: index + 1 });
        }
    }
    let (subject, issuer) = (leaf.subject().to_string(), leaf.issuer().to_string());
    Ok(Report { names, subject, issuer, not_before, not_after, warnings })
}

fn moment(timestamp: i64) -> SystemTime {
    let distance = Duration::from_secs(timestamp.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let moment = if timestamp < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) };
    moment.unwrap_or(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Made, ca, self_signed, self_signed_with};

    fn check_now(chain: &str, key: &str) -> Result<Report, Error> {
        check(chain, key.as_bytes(), SystemTime::now())
    }

    #[test]
    fn each_mistake_has_its_own_sentence() {
        let made = self_signed(&["mail.example.org"]);
        let other = self_signed(&["mail.example.org"]);
        let encrypted = made.key.replace("BEGIN PRIVATE", "BEGIN ENCRYPTED PRIVATE");
        let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        let garbage = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let damaged = "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n";
        let hollow = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        let cases: [(&str, &str, &str); 10] = [
            ("", &made.key, "certificate file is empty"),
            ("hello", &made.key, "there is no certificate"),
            (&made.key, &made.key, "there is no certificate"),
            (damaged, &made.key, "damaged"),
            (hollow, &made.key, "cannot be read"),
            (&made.chain, " \n", "key file is empty"),
            (&made.chain, &made.chain, "there is no private key"),
            (&made.chain, &encrypted, "encrypted"),
            (&made.chain, legacy, "encrypted"),
            (&made.chain, &other.key, "does not belong"),
        ];
        for (chain, key, expected) in cases {
            let text = check_now(chain, key).unwrap_err().to_string();
            assert!(text.contains(expected), "{text:?} should contain {expected:?}");
            assert!(!text.contains('\n'));
        }
        assert!(matches!(check_now(&made.chain, garbage), Err(Error::BadKey(_))));
    }

    #[test]
    fn report_names_and_dates() {
        let made = self_signed(&["mail.example.org", "*.example.net", "127.0.0.1"]);
        let day = Duration::from_secs(86_400);
        let report = check_now(&made.chain, &made.key).unwrap();
        assert_eq!(report.names, ["mail.example.org", "*.example.net", "127.0.0.1"]);
        assert_eq!(report.warnings, []);
        let at = |now| check(&made.chain, made.key.as_bytes(), now).unwrap().warnings;
        assert_eq!(at(report.not_after + day * 3), [Warning::Expired { days: 3 }]);
        assert_eq!(at(report.not_after - day * 5), [Warning::ExpiresSoon { days: 5 }]);
        assert_eq!(at(report.not_before - day * 2), [Warning::NotYetValid { days: 2 }]);
    }

    #[test]
    fn chain_order_is_checked() {
        let authority = ca();
        let leaf = authority.issue(&["mail.example.org"]);
        let stranger = self_signed(&["other.example.org"]);
        let right = format!("{}{}", leaf.chain, authority.pem);
        let wrong = format!("{}{}", leaf.chain, stranger.chain);
        assert_eq!(check_now(&right, &leaf.key).unwrap().warnings, []);
        assert_eq!(check_now(&wrong, &leaf.key).unwrap().warnings, [Warning::ChainOrder { position: 1 }]);
    }

    #[test]
    fn choice_by_name() {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let load = |made: &Made| {
            Loaded::new(PemPair { chain: &made.chain, key: made.key.as_bytes() }, &provider).unwrap()
        };
        let all = [
            load(&self_signed(&["mail.example.org"])),
            load(&self_signed(&["*.example.net", "example.net"])),
            load(&self_signed(&["imap.example.net"])),
        ];
        let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256];
        let cases = [
            (None, 0),
            (Some("mail.example.org"), 0),
            (Some("MAIL.Example.NET"), 1),
            (Some("example.net."), 1),
            (Some("imap.example.net"), 2),
            (Some("a.b.example.net"), 0),
            (Some(".example.net"), 0),
            (Some("unknown.example"), 0),
            (Some(""), 0),
        ];
        for (sni, expected) in cases {
            assert_eq!(choose(&all, sni, &schemes), expected, "{sni:?}");
        }
    }

    #[test]
    fn choice_by_key_type() {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let load = |made: &Made| {
            Loaded::new(PemPair { chain: &made.chain, key: made.key.as_bytes() }, &provider).unwrap()
        };
        let edwards = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let all = [
            load(&self_signed_with(&["mail.example.org"], &edwards)),
            load(&self_signed(&["other.example.org"])),
            load(&self_signed(&["mail.example.org"])),
        ];
        let (ed25519, ecdsa) = (SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256);
        for (sni, schemes, expected) in [
            (Some("mail.example.org"), &[ed25519, ecdsa][..], 0),
            (Some("mail.example.org"), &[ecdsa], 2),
            (Some("other.example.org"), &[ed25519], 1),
            (None, &[ecdsa], 2),
            (None, &[SignatureScheme::RSA_PKCS1_SHA256], 0),
        ] {
            assert_eq!(choose(&all, sni, schemes), expected, "{sni:?} {schemes:?}");
        }
    }

    #[test]
    fn key_is_never_printed() {
        let pair = PemPair { chain: "c", key: b"hunter2" };
        assert!(!format!("{pair:?}").contains("hunter2"));
    }
}
