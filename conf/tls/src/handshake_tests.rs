//! Both ends of real handshakes, in memory.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use crate::testing::{Authority, Made, ca, self_signed_with};
use crate::{
    Acceptor, Client, ClientStream, HandshakeError, MinimumVersion, Options, PemPair, Tls, TlsStream,
};

const LIMIT: Duration = Duration::from_secs(10);

fn pair(made: &Made) -> PemPair<'_> {
    PemPair { chain: &made.chain, key: made.key.as_bytes() }
}

fn tls(made: &[&Made], options: Options) -> Tls {
    let pairs: Vec<_> = made.iter().map(|made| pair(made)).collect();
    Tls::new(&pairs, options).unwrap()
}

async fn connect(
    acceptor: &Acceptor,
    client: &Client,
    name: &str,
) -> (TlsStream<DuplexStream>, ClientStream<DuplexStream>) {
    let (near, far) = duplex(64 << 10);
    let (server, client) = tokio::join!(acceptor.accept(near, LIMIT), client.connect(name, far));
    let (mut server, mut client) = (server.unwrap(), client.unwrap());
    // TLS 1.3 tickets come after the handshake: the client has them once it has read something.
    server.write_all(b"hello").await.unwrap();
    server.flush().await.unwrap();
    let mut text = [0; 5];
    client.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"hello");
    (server, client)
}

fn presented(client: &ClientStream<DuplexStream>) -> Vec<u8> {
    client.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn authority_and_leaf(names: &[&str]) -> (Authority, Made) {
    let authority = ca();
    let leaf = authority.issue(names);
    (authority, leaf)
}

#[tokio::test]
async fn both_versions_with_their_names() {
    let (authority, leaf) = authority_and_leaf(&["mail.example.org", "127.0.0.1"]);
    let acceptor = tls(&[&leaf], Options::default()).acceptor("imap", &[]).unwrap();
    for (client, protocol, cipher) in [
        (Client::new(&authority.pem).unwrap(), "TLSv1.3", "TLS_AES_256_GCM_SHA384"),
        (Client::tls12_only(&authority.pem).unwrap(), "TLSv1.2", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    ] {
        let (server, _client) = connect(&acceptor, &client, "mail.example.org").await;
        let info = server.info();
        assert_eq!((info.protocol, info.cipher.as_str(), info.bits), (protocol, cipher, 256));
        assert_eq!((server.sni(), info.resumed), (Some("mail.example.org"), false));
        let (server, _client) = connect(&acceptor, &client, "127.0.0.1").await;
        assert_eq!(server.info().sni, None);
    }
}

#[tokio::test]
async fn minimum_version_is_kept() {
    let (authority, leaf) = authority_and_leaf(&["mail.example.org"]);
    let options = Options { minimum: MinimumVersion::Tls13, ..Options::default() };
    let acceptor = tls(&[&leaf], options).acceptor("imap", &[]).unwrap();
    let client = Client::tls12_only(&authority.pem).unwrap();
    let (near, far) = duplex(64 << 10);
    let (server, client) =
        tokio::join!(acceptor.accept(near, LIMIT), client.connect("mail.example.org", far));
    assert!(matches!(server, Err(HandshakeError::Tls(_))));
    assert!(client.is_err());
}

#[tokio::test]
async fn certificate_by_name() {
    let authority = ca();
    let one = authority.issue(&["mail.example.org"]);
    let two = authority.issue(&["*.example.net"]);
    let acceptor = tls(&[&one, &two], Options::default()).acceptor("imap", &[]).unwrap();
    let client = Client::new(&authority.pem).unwrap();
    let (_, first) = connect(&acceptor, &client, "mail.example.org").await;
    let (_, second) = connect(&acceptor, &client, "imap.example.net").await;
    assert_ne!(presented(&first), presented(&second));
    // A name nobody has: the default certificate, and it is the client that objects.
    let (near, far) = duplex(64 << 10);
    let (_, unknown) = tokio::join!(acceptor.accept(near, LIMIT), client.connect("other.example.com", far));
    assert!(unknown.unwrap_err().to_string().contains("not valid for name"));
}

#[tokio::test]
async fn certificates_are_swapped_under_living_connections() {
    let authority = ca();
    let (old, new) = (authority.issue(&["mail.example.org"]), authority.issue(&["mail.example.org"]));
    let tls = tls(&[&old], Options::default());
    let acceptor = tls.acceptor("imap", &[]).unwrap();
    let client = Client::new(&authority.pem).unwrap();
    let (mut server, mut living) = connect(&acceptor, &client, "mail.example.org").await;
    let before = presented(&living);

    assert!(
        tls.replace(&[PemPair { chain: &new.chain, key: old.key.as_bytes() }], Options::default()).is_err()
    );
    let fresh = Client::new(&authority.pem).unwrap();
    let (_, same) = connect(&acceptor, &fresh, "mail.example.org").await;
    assert_eq!(presented(&same), before, "a bad pair changes nothing");

    tls.replace(&[pair(&new)], Options::default()).unwrap();
    living.write_all(b"still here").await.unwrap();
    living.flush().await.unwrap();
    let mut text = [0; 10];
    server.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"still here");
    // The same client would resume; its ticket is worth nothing now.
    let (server, next) = connect(&acceptor, &client, "mail.example.org").await;
    assert!(!server.info().resumed);
    assert_ne!(presented(&next), before);
}

#[tokio::test]
async fn tickets_are_good_for_one_service_only() {
    let (authority, leaf) = authority_and_leaf(&["mail.example.org"]);
    let tls = tls(&[&leaf], Options::default());
    let (imap, pop3) = (tls.acceptor("imap", &[]).unwrap(), tls.acceptor("pop3", &[]).unwrap());
    let imap_again = tls.acceptor("imap", &[]).unwrap();
    for client in [Client::new(&authority.pem).unwrap(), Client::tls12_only(&authority.pem).unwrap()] {
        let resumed = async |acceptor| connect(acceptor, &client, "mail.example.org").await.0.info().resumed;
        assert!(!resumed(&imap).await);
        assert!(resumed(&imap).await);
        // The name of the service decides, not the handle.
        assert!(resumed(&imap_again).await);
        assert!(!resumed(&pop3).await);
        assert!(resumed(&pop3).await);
        // Certificates read again, but the same: sessions go on.
        tls.replace(&[pair(&leaf)], Options { require_ems: true, ..Options::default() }).unwrap();
        assert!(resumed(&pop3).await);
    }
}

#[tokio::test]
async fn channel_bindings_agree_with_the_client() {
    let (authority, leaf) = authority_and_leaf(&["mail.example.org"]);
    for (require_ems, old_client) in [(false, false), (false, true), (true, true)] {
        let options = Options { require_ems, ..Options::default() };
        let acceptor = tls(&[&leaf], options).acceptor("imap", &[]).unwrap();
        let make = if old_client { Client::tls12_only } else { Client::new };
        let client = make(&authority.pem).unwrap();
        for _ in 0..2 {
            let (server, client) = connect(&acceptor, &client, "mail.example.org").await;
            let ours = server.channel_binding();
            let theirs = client
                .get_ref()
                .1
                .export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b""))
                .unwrap();
            assert_eq!(ours.exporter, (require_ems || !old_client).then_some(theirs));
            // The test CA signs with ECDSA and SHA-256.
            use sha2::Digest;
            let digest = sha2::Sha256::digest(presented(&client)).to_vec();
            assert_eq!(ours.server_end_point, Some(digest));
        }
    }
}

#[tokio::test]
async fn an_ed25519_signature_gives_no_end_point() {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let made = self_signed_with(&["mail.example.org"], &key);
    let acceptor = tls(&[&made], Options::default()).acceptor("imap", &[]).unwrap();
    let client = Client::new(&made.chain).unwrap();
    let (server, _client) = connect(&acceptor, &client, "mail.example.org").await;
    let binding = server.channel_binding();
    assert!(binding.server_end_point.is_none() && binding.exporter.is_some());
}

#[tokio::test]
async fn silent_rude_and_plain_clients() {
    let (_, leaf) = authority_and_leaf(&["mail.example.org"]);
    let acceptor = tls(&[&leaf], Options::default()).acceptor("imap", &[]).unwrap();
    let (near, _silent) = duplex(1024);
    let silent = acceptor.accept(near, Duration::from_millis(20)).await;
    assert!(matches!(silent, Err(HandshakeError::Timeout(_))));
    let (near, gone) = duplex(1024);
    drop(gone);
    assert!(matches!(acceptor.accept(near, LIMIT).await, Err(HandshakeError::Closed)));
    let (near, mut plain) = duplex(1024);
    plain.write_all(b"EHLO client.example\r\n").await.unwrap();
    let plain = acceptor.accept(near, LIMIT).await;
    assert!(matches!(plain, Err(HandshakeError::Tls(_))), "{plain:?}");
}

#[tokio::test]
async fn a_missing_close_notify_is_an_end_of_file() {
    let (authority, leaf) = authority_and_leaf(&["mail.example.org"]);
    let acceptor = tls(&[&leaf], Options::default()).acceptor("imap", &[]).unwrap();
    let client = Client::new(&authority.pem).unwrap();
    let (mut server, client) = connect(&acceptor, &client, "mail.example.org").await;
    drop(client);
    assert_eq!(server.read(&mut [0; 16]).await.unwrap(), 0);
}

#[tokio::test]
async fn alpn_is_agreed_or_left_out() {
    let (authority, leaf) = authority_and_leaf(&["mail.example.org"]);
    let tls = tls(&[&leaf], Options::default());
    let client = Client::new(&authority.pem).unwrap();
    for offered in [&["imap"][..], &[]] {
        let acceptor = tls.acceptor("imap", offered).unwrap();
        let (server, _client) = connect(&acceptor, &client, "mail.example.org").await;
        // This client offers nothing, and is served all the same.
        assert_eq!(server.info().alpn, None);
    }
}
