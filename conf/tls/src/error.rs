//! What can be wrong with certificates and keys. One sentence each.
//!
//! Trust: nobody; made of what the TLS library said about files of the administrator.
//! Never: hold a key or a part of one.

/// Why certificates or TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The list of certificates is empty.
    #[error("no certificate is configured")]
    NoCertificates,
    /// The chain file has no contents.
    #[error("the certificate file is empty")]
    EmptyChain,
    /// The key file has no contents.
    #[error("the private key file is empty")]
    EmptyKey,
    /// There is text, but no certificate in it.
    #[error(
        "there is no certificate in the file: it must hold a PEM block that starts with -----BEGIN CERTIFICATE-----"
    )]
    NoCertificate,
    /// A PEM block is damaged.
    #[error("the certificate file is damaged: {0}")]
    BadPem(String),
    /// The bytes of a certificate make no sense.
    #[error("the certificate cannot be read: {0}")]
    BadCertificate(String),
    /// There is text, but no key in it.
    #[error(
        "there is no private key in the file: it must hold a PEM block that starts with -----BEGIN PRIVATE KEY-----"
    )]
    NoKey,
    /// The key is protected with a passphrase.
    #[error(
        "the private key is encrypted with a passphrase; remove it with: openssl pkey -in KEY -out NEWKEY"
    )]
    EncryptedKey,
    /// The key is damaged or of a kind that TLS cannot use.
    #[error("the private key cannot be used: {0}")]
    BadKey(String),
    /// Certificate and key are not a pair.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// The name to connect to is no host name and no address.
    #[error("{0:?} is not a host name")]
    BadName(String),
    /// The TLS library refused the settings.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}
