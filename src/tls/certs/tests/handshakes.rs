//! What clients of rustls say of the certificates that they get.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName as Asked};
use rustls::server::ResolvesServerCert;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::super::self_signed::{CA_FILE, CA_KEY_FILE, SelfSigned, SelfSignedError};
use super::*;

/// A handshake with a server that has these certificates: whose certificate it was, or what came instead.
fn handshake(
    certificates: Arc<dyn ResolvesServerCert>,
    root: &str,
    asked: Asked<'static>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<CertificateDer<'static>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    let mut client = ClientConnection::new(Arc::new(client), asked).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut &wire[..]).unwrap();
        server.process_new_packets().map_err(|error| format!("server: {error}"))?;
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut &wire[..]).unwrap();
        client.process_new_packets().map_err(|error| format!("client: {error}"))?;
        if !client.is_handshaking() && !server.is_handshaking() {
            return Ok(client.peer_certificates().unwrap()[0].clone().into_owned());
        }
    }
    Err("no end".to_owned())
}

fn asked(name: &str) -> Asked<'static> {
    Asked::try_from(name.to_owned()).unwrap()
}

#[test]
fn a_name_gets_its_certificate_or_none() {
    let folder = Folder::new();
    let (issuer, root) = issuer();
    folder.write("a.pem", &Wanted::new(&["a.test"]).signed_by(&issuer, &root).whole());
    folder
        .write("w.pem", &Wanted::new(&["*.w.test"]).rsa(RsaKeySize::_2048).signed_by(&issuer, &root).whole());
    let live = Arc::new(folder.live());
    assert!(live.store().served().iter().all(|one| one.is_lazy()), "no key is made before it is wanted");
    for versions in [&[&rustls::version::TLS13], &[&rustls::version::TLS12]] {
        let shake = |name: Asked<'static>| handshake(live.clone(), &root, name, versions);
        assert!(shake(asked("a.test")).is_ok());
        assert!(shake(asked("x.w.test")).is_ok());
        for none in ["b.test", "w.test", "127.0.0.1"] {
            let error = shake(asked(none)).unwrap_err();
            assert!(error.contains("no server certificate chain resolved"), "{none}: {error}");
        }
    }
}

#[test]
fn of_two_certificates_only_the_one_that_is_wanted_is_made() {
    let folder = Folder::new();
    folder.write("a.pem", &made(&["a.test"]).whole());
    folder.write("b.pem", &made(&["b.test"]).whole());
    let store = folder.store();
    store.find(&name("a.test")).unwrap().choose(&BOTH).unwrap();
    let lazy = store.served().iter().filter(|one| one.is_lazy()).map(|one| one.label());
    assert_eq!(lazy.collect::<Vec<_>>(), ["b.test"]);
}

#[test]
fn certificates_of_our_own_authority_are_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state/authority");
    let mode = |file: &str| fs::metadata(folder.join(file)).unwrap().permissions().mode() & 0o777;
    let first = Arc::new(SelfSigned::open(Some(&folder)).unwrap());
    assert_eq!((mode(CA_FILE), mode(CA_KEY_FILE)), (0o644, 0o600));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "nothing unfinished is left");
    assert_eq!(fs::read_to_string(folder.join(CA_FILE)).unwrap(), first.ca_pem());
    // A process after it has the same.
    let second = Arc::new(SelfSigned::open(Some(&folder)).unwrap());
    assert_eq!(first.ca_pem(), second.ca_pem());
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let one = handshake(first.clone(), second.ca_pem(), asked("a.test"), &versions).unwrap();
    handshake(second, first.ca_pem(), asked("long-name.of-some.service.a.test"), &versions).unwrap();
    let again = handshake(first.clone(), first.ca_pem(), asked("a.test"), &versions).unwrap();
    assert_eq!(one, again, "made once");
    // Without a folder.
    let own = Arc::new(SelfSigned::open(None).unwrap());
    handshake(own.clone(), own.ca_pem(), asked("a.test"), &versions).unwrap();
    assert!(handshake(own, first.ca_pem(), asked("a.test"), &versions).is_err());
}

#[test]
fn another_authority_is_not_taken_and_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    SelfSigned::open(Some(dir.path())).unwrap();
    let (ca, key) = (dir.path().join(CA_FILE), dir.path().join(CA_KEY_FILE));
    let kept = fs::read_to_string(&ca).unwrap();
    let foreign = |what: &str| {
        let error = SelfSigned::open(Some(dir.path())).unwrap_err();
        assert!(matches!(error, SelfSignedError::Foreign { .. }), "{what}: {error}");
    };
    fs::write(&ca, issuer().1).unwrap();
    foreign("another certificate");
    fs::write(&ca, "nonsense").unwrap();
    foreign("no certificate");
    fs::write(&ca, &kept).unwrap();
    fs::remove_file(&key).unwrap();
    foreign("no key");
    assert_eq!(fs::read_to_string(&ca).unwrap(), kept);
    // A process that was killed between the two.
    fs::remove_file(&ca).unwrap();
    SelfSigned::open(Some(dir.path())).unwrap();
    fs::remove_file(&ca).unwrap();
    SelfSigned::open(Some(dir.path())).unwrap();
}

#[test]
fn made_certificates_are_renewed_and_bounded() {
    let own = SelfSigned::open(None).unwrap();
    let day = Duration::from_secs(24 * 60 * 60);
    let now = SystemTime::now();
    let make = |host: &str, days: u32| own.certificate(&name(host), now + day * days).unwrap();
    let first = make("a.test", 0);
    assert!(Arc::ptr_eq(&first, &make("a.test", 59)));
    let second = make("a.test", 61);
    assert!(!Arc::ptr_eq(&first, &second));
    let (_, parsed) = x509_parser::parse_x509_certificate(&second.cert[0]).unwrap();
    let end = unix_seconds(now + day * (61 + 90));
    assert_eq!(parsed.validity().not_after.timestamp(), end);
    for number in 0..999 {
        make(&format!("{number}.test"), 61);
    }
    assert!(Arc::ptr_eq(&second, &make("a.test", 61)), "there is room for a thousand");
    let zero = make("0.test", 61);
    make("one-more.test", 61);
    assert!(Arc::ptr_eq(&second, &make("a.test", 61)) && Arc::ptr_eq(&zero, &make("0.test", 61)));
}
