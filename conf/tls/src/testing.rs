//! Certificates for this crate's tests.
//!
//! Trust: nobody; keys are made anew for each test.
//! Never: be part of a program: compiled for tests only.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

pub(crate) struct Made {
    pub(crate) chain: String,
    pub(crate) key: String,
}

pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

pub(crate) fn ca() -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "test CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { pem, issuer: Issuer::new(params, key) }
}

impl Authority {
    pub(crate) fn issue(&self, names: &[&str]) -> Made {
        let key = KeyPair::generate().unwrap();
        let chain = params(names).signed_by(&key, &self.issuer).unwrap().pem();
        Made { chain, key: key.serialize_pem() }
    }
}

pub(crate) fn self_signed(names: &[&str]) -> Made {
    self_signed_with(names, &KeyPair::generate().unwrap())
}

pub(crate) fn self_signed_with(names: &[&str], key: &KeyPair) -> Made {
    let chain = params(names).self_signed(key).unwrap().pem();
    Made { chain, key: key.serialize_pem() }
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2045, 1, 1);
    params
}
