//! The self-signed CA of the embedded default and the server certificate it signs.
//!
//! Purpose:   made on the first start, renewed when the end is near or the host name changed, otherwise kept.
//! Trust:     nobody sends it bytes; what it finds in the folder it made is checked before it is kept.
//! Never:     a key others can read, a CA renewed while it is good (people have told their programs to trust it).

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

const DAY: Duration = Duration::from_secs(86_400);
/// Life of the CA.
const CA_LIFE: Duration = Duration::from_secs(3650 * 86_400);
/// Life of the server's certificate; clients refuse more than 825 days.
const SERVER_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// Renewed when it ends within this time.
const RENEW: Duration = Duration::from_secs(30 * 86_400);

/// What [`ensure`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// Everything was there and good.
    Kept,
    /// A new server certificate, by the CA that was there.
    Server,
    /// A new CA and server certificate.
    All,
}

/// Makes sure that `folder` holds `ca.pem`, `ca-key.pem`, `cert.pem` and `key.pem` for `hostname`.
pub(crate) fn ensure(folder: &Path, hostname: &str, now: SystemTime) -> anyhow::Result<Made> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let (ca, ca_key) = (read("ca.pem"), read("ca-key.pem"));
    let good_ca = match (&ca, &ca_key) {
        (Some(ca), Some(key)) => {
            tls_config::check(ca, key.as_bytes(), now).is_ok_and(|report| lasts(&report, now))
        }
        _ => false,
    };
    let good_server = match (read("cert.pem"), read("key.pem")) {
        (Some(chain), Some(key)) => tls_config::check(&chain, key.as_bytes(), now).is_ok_and(|report| {
            lasts(&report, now) && names(hostname).iter().all(|name| report.names.contains(name))
        }),
        _ => false,
    };
    match (good_ca, good_server) {
        (true, true) => Ok(Made::Kept),
        (true, false) => {
            let key = KeyPair::from_pem(&ca_key.unwrap_or_default()).context("ca-key.pem")?;
            let issuer = Issuer::from_ca_cert_pem(&ca.unwrap_or_default(), key).context("ca.pem")?;
            write_server(folder, hostname, &issuer, now)?;
            Ok(Made::Server)
        }
        (false, _) => {
            let key = KeyPair::generate().context("cannot make a key")?;
            let params = authority(hostname, now);
            let certificate = params.self_signed(&key).context("cannot make the CA")?;
            write(folder, "ca-key.pem", &key.serialize_pem(), 0o600)?;
            write(folder, "ca.pem", &certificate.pem(), 0o644)?;
            write_server(folder, hostname, &Issuer::new(params, key), now)?;
            Ok(Made::All)
        }
    }
}

fn lasts(report: &tls_config::Report, now: SystemTime) -> bool {
    report.not_before <= now && report.not_after > now + RENEW
}

/// What the server's certificate is for, as [`tls_config::check`] reports it.
fn names(hostname: &str) -> Vec<String> {
    let mut names = vec![hostname.to_ascii_lowercase(), "localhost".to_owned()];
    names.dedup();
    names.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].map(|ip| ip.to_string()));
    names
}

fn authority(hostname: &str, now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::OrganizationName, "Postern");
    params.distinguished_name.push(DnType::CommonName, format!("Postern CA of {hostname}"));
    params.not_before = (now - DAY).into();
    params.not_after = (now + CA_LIFE).into();
    params
}

fn write_server(
    folder: &Path,
    hostname: &str,
    issuer: &Issuer<'_, KeyPair>,
    now: SystemTime,
) -> anyhow::Result<()> {
    let mut params = CertificateParams::default();
    for name in names(hostname) {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.as_str().try_into().context("the host name")?),
        });
    }
    params.distinguished_name.push(DnType::CommonName, hostname);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = (now - DAY).into();
    params.not_after = (now + SERVER_LIFE).into();
    let key = KeyPair::generate().context("cannot make a key")?;
    let certificate = params.signed_by(&key, issuer).context("cannot make the certificate")?;
    write(folder, "key.pem", &key.serialize_pem(), 0o600)?;
    write(folder, "cert.pem", &certificate.pem(), 0o644)
}

/// Replaces a file in one step; it never has more rights than it should.
fn write(folder: &Path, name: &str, text: &str, mode: u32) -> anyhow::Result<()> {
    let path = folder.join(name);
    let fresh = folder.join(format!(".{name}.new"));
    let replace = || -> std::io::Result<()> {
        let _ = std::fs::remove_file(&fresh);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)
    };
    replace().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{DAY, Made, ensure};
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::SystemTime;

    #[test]
    fn made_kept_and_renewed() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path();
        let now = SystemTime::now();
        let read = |name: &str| std::fs::read_to_string(path.join(name)).expect("a file");
        assert_eq!(ensure(path, "mail.localhost", now).expect("made"), Made::All);
        for (name, mode) in
            [("ca.pem", 0o644), ("ca-key.pem", 0o600), ("cert.pem", 0o644), ("key.pem", 0o600)]
        {
            let found = std::fs::metadata(path.join(name)).expect("a file").permissions().mode();
            assert_eq!(found & 0o777 & !mode, 0, "{name} {found:o}");
        }
        let report = tls_config::check(&read("cert.pem"), read("key.pem").as_bytes(), now).expect("usable");
        for name in ["mail.localhost", "localhost", "127.0.0.1", "::1"] {
            assert!(report.names.iter().any(|n| n == name), "{name} in {:?}", report.names);
        }
        assert_eq!(report.warnings, []);

        let (ca, cert) = (read("ca.pem"), read("cert.pem"));
        assert_eq!(ensure(path, "mail.localhost", now).expect("kept"), Made::Kept);
        assert_eq!((&ca, &cert), (&read("ca.pem"), &read("cert.pem")));
        // Another name, or the end in sight: a new certificate by the same CA.
        assert_eq!(ensure(path, "mx.example.org", now).expect("renewed"), Made::Server);
        assert_eq!(ensure(path, "mx.example.org", now + 340 * DAY).expect("renewed"), Made::Server);
        assert_eq!(ca, read("ca.pem"));
        assert_ne!(cert, read("cert.pem"));
        // A broken key, or a CA at its end: everything new.
        std::fs::write(path.join("ca-key.pem"), "broken").expect("written");
        assert_eq!(ensure(path, "mx.example.org", now).expect("renewed"), Made::All);
        assert_ne!(ca, read("ca.pem"));
        assert_eq!(ensure(path, "mx.example.org", now + 3640 * DAY).expect("renewed"), Made::All);
    }
}
