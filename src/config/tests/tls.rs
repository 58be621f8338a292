//! `tls` of routes.

use super::*;

/// What is said of TLS that ends here, in a route with further keys.
fn of(tls: &str, keys: &str) -> Result<TlsPolicy, ConfigErrors> {
    let text = format!(
        "listen = ':443'\ncertificates = 'certs'\n[[route]]\nsni = 'a.test'\nto = '10.0.0.1:80'\n{keys}\ntls = {tls}\n"
    );
    let config = Config::parse(Path::new("/etc/p/portcullis.toml"), &text)?;
    let ActionConfig::Terminate(terminate) = &config.routes[0].action else { panic!("it ends TLS") };
    Ok((*terminate.tls).clone())
}

fn good(tls: &str, keys: &str) -> TlsPolicy {
    of(tls, keys).unwrap_or_else(|errors| panic!("{tls}\n{errors}"))
}

fn alpn(policy: &TlsPolicy) -> Vec<&str> {
    policy.alpn.iter().map(|name| std::str::from_utf8(name).unwrap()).collect()
}

#[test]
fn what_is_not_said_is_after_mozillas_intermediate_guideline() {
    let policy = good("'files'", "");
    assert_eq!(policy.min_version, TlsVersion::V12);
    assert_eq!(policy.suites, CipherSuite::ALL);
    let groups = [Group::X25519Mlkem768, Group::X25519, Group::Secp256r1, Group::Secp384r1];
    assert_eq!(policy.groups, groups, "what quantum computers cannot break comes first");
    assert!(policy.resumption && policy.client_auth.is_none() && policy.alpn.is_empty());
    let CertificateStore::Files(sources) = &policy.certificates else { panic!("from files") };
    assert_eq!(**sources, [CertificateSource::Path("/etc/p/certs".into())], "relative to the file");
}

#[test]
fn modern_is_one_version_and_its_suites() {
    let policy = good("{ policy = 'modern' }", "");
    assert_eq!(policy.min_version, TlsVersion::V13);
    assert!(policy.suites.iter().all(|suite| suite.version() == TlsVersion::V13));
    assert_eq!(policy.suites.len(), 3);
    let chosen =
        good("{ min_version = '1.3', cipher_suites = ['tls_aes_128_gcm_sha256'], groups = 'X25519' }", "");
    assert_eq!((chosen.suites, chosen.groups), (vec![CipherSuite::Aes128Gcm], vec![Group::X25519]));
}

#[test]
fn clients_choose_from_what_the_route_takes_unless_more_is_said() {
    assert_eq!(alpn(&good("'files'", "alpn = ['h2', 'http/1.1']")), ["h2", "http/1.1"]);
    assert_eq!(alpn(&good("'files'", "protocol = 'postgres'")), ["postgresql"]);
    assert_eq!(alpn(&good("{ alpn = 'mqtt' }", "protocol = 'redis'")), ["mqtt"]);
}

#[test]
fn certificates_of_a_route_are_its_own_or_made_here() {
    let own = good("{ certificates = ['/a.pem', { certificate = 'b.pem', key = 'b.key' }] }", "");
    let pair = CertificateSource::Pair { certificate: "/etc/p/b.pem".into(), key: "/etc/p/b.key".into() };
    let sources = [CertificateSource::Path("/a.pem".into()), pair];
    assert_eq!(own.certificates, CertificateStore::Files(sources.into()));
    assert_eq!(good("'self-signed'", "").certificates, CertificateStore::SelfSigned(None));
    assert_eq!(good("{ issuer = 'self-signed' }", "").certificates, CertificateStore::SelfSigned(None));
}

#[test]
fn tls_within_protocols_ends_here_where_clients_begin_anew() {
    for protocol in ["postgres", "ldap", "xmpp", "redis", "http"] {
        good("'files'", &format!("protocol = '{protocol}'"));
    }
    good("'files'", "protocol = 'imap'\nstarttls = false");
    for protocol in ["imap", "mysql"] {
        let errors = of("'files'", &format!("protocol = '{protocol}'")).unwrap_err();
        assert!(kinds(&errors).contains(&"conflict"), "{errors}");
    }
}
