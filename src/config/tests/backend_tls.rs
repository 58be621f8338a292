//! `tls://` and `backend_tls`.

use rcgen::{CertificateParams, KeyPair};

use super::*;

/// What is said of backends with TLS, in a file of that folder.
fn of(folder: &Path, keys: &str) -> Result<BackendTls, ConfigErrors> {
    let text = format!("listen = ':6379'\n[[route]]\nname = 'cache'\nprotocol = 'redis'\n{keys}\n");
    let config = Config::parse(&folder.join("portcullis.toml"), &text)?;
    let ActionConfig::Passthrough(to) = &config.routes[0].action else { panic!("passed through") };
    Ok(to.upstream.tls.clone().expect("it is said that they speak TLS"))
}

fn good(keys: &str) -> BackendTls {
    of(Path::new("/"), keys).unwrap_or_else(|errors| panic!("{keys}\n{errors}"))
}

#[test]
fn a_backend_with_tls_is_verified_unless_that_is_turned_off() {
    let tls = good("to = 'tls://cache.internal:6379'");
    let Verify::Roots(roots) = &tls.verify else { panic!("verified") };
    assert!(roots.file.is_none() && !roots.certificates.is_empty(), "by the authorities of this system");
    assert_eq!((tls.sni, tls.certificate, tls.alpn), (None, None, None));
    assert_eq!((tls.pins.len(), tls.min_version), (0, TlsVersion::V12));
    let off = good("to = { address = 'tls://10.0.0.1:1', weight = 2 }\nbackend_tls = { verify = 'off' }");
    assert_eq!(off.verify, Verify::Off);
    let all = good(
        "to = ['tls://10.0.0.1:1', 'tls://10.0.0.2:1']\n[route.backend_tls]\nverify = 'off'\nsni = 'A.test'\n\
         pins = 'd6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWmM='\nalpn = ['h2', 'http/1.1']\nmin_version = '1.3'\n",
    );
    assert_eq!(all.sni.unwrap().as_str(), "a.test");
    assert_eq!((all.pins.len(), all.alpn.unwrap().len(), all.min_version), (1, 2, TlsVersion::V13));
}

/// The files are beside the one that they are written in, and the key must be that of the certificate.
#[test]
fn certificates_are_read_with_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
    let keys = [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()];
    let params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    write("a.pem", params.self_signed(&keys[0]).unwrap().pem());
    write("a.key", keys[0].serialize_pem());
    write("b.key", keys[1].serialize_pem());
    let tls = |key: &str| {
        let tls = format!("{{ verify = 'a.pem', certificate = 'a.pem', key = '{key}' }}");
        of(folder.path(), &format!("to = 'tls://10.0.0.1:1'\nbackend_tls = {tls}"))
    };
    let good = tls("a.key").unwrap_or_else(|errors| panic!("{errors}"));
    let files: Vec<_> = good.files().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(files, ["a.pem", "a.key", "a.pem"]);
    assert_eq!(tls("a.key").unwrap(), good, "what is read again is the same");
    assert_eq!(tls("b.key").unwrap_err().iter().next().unwrap().kind(), ErrorKind::BadValue);
}

#[test]
fn checks_go_by_what_connections_go_by() {
    let check = |keys: &str| {
        let text = format!("listen = ':1'\n[[route]]\nprotocol = 'redis'\nto = 'tls://10.0.0.1:1'\n{keys}\n");
        let config = parse(&text).unwrap_or_else(|errors| panic!("{keys}\n{errors}"));
        let ActionConfig::Passthrough(to) = &config.routes[0].action else { panic!("passed through") };
        to.upstream.health.as_ref().unwrap().check.tls().unwrap().clone()
    };
    let named = check("health = 'tls'\nbackend_tls = { sni = 'a.test' }");
    assert_eq!(named.sni.unwrap().as_str(), "a.test");
    assert!(matches!(named.verify, Verify::Roots(_)));
    assert_eq!(check("health = 'tls'").verify, Verify::Off, "there is no name to verify for");
    let own = check("health = { check = 'tls', sni = 'b.test' }\nbackend_tls = { sni = 'a.test' }");
    assert_eq!((own.sni.unwrap().as_str(), own.verify), ("b.test", Verify::Off));
}
