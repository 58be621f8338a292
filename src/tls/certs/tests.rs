use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use rustls::SignatureScheme::{self, ECDSA_NISTP256_SHA256, ED25519, RSA_PSS_SHA256};
use tempfile::TempDir;

use super::certificate::unix_seconds;
use super::*;
use crate::peek::ServerName;
use crate::telemetry::Registry;

mod files;
mod handshakes;
mod many;

const BOTH: [SignatureScheme; 2] = [RSA_PSS_SHA256, ECDSA_NISTP256_SHA256];

/// Certificates to be written.
struct Made {
    chain: String,
    key: String,
}

impl Made {
    fn whole(&self) -> String {
        format!("{}{}", self.chain, self.key)
    }
}

/// What a certificate is to be.
struct Wanted<'a> {
    names: &'a [&'a str],
    /// Days from now.
    days: (i64, i64),
    key: KeyPair,
}

impl<'a> Wanted<'a> {
    fn new(names: &'a [&'a str]) -> Self {
        Self { names, days: (-1, 90), key: KeyPair::generate().unwrap() }
    }

    fn days(self, from: i64, to: i64) -> Self {
        Self { days: (from, to), ..self }
    }

    fn rsa(self, size: RsaKeySize) -> Self {
        Self { key: KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size).unwrap(), ..self }
    }

    fn params(&self) -> CertificateParams {
        let names = self.names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names).unwrap();
        let day = |days: i64| {
            let seconds = unix_seconds(SystemTime::now()) + days * 24 * 60 * 60;
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(seconds).unwrap())
        };
        (params.not_before, params.not_after) = (day(self.days.0), day(self.days.1));
        params
    }

    fn made(self) -> Made {
        let chain = self.params().self_signed(&self.key).unwrap().pem();
        Made { chain, key: self.key.serialize_pem() }
    }

    fn signed_by(self, issuer: &Issuer<'static, KeyPair>, pem: &str) -> Made {
        let leaf = self.params().signed_by(&self.key, issuer).unwrap().pem();
        Made { chain: format!("{leaf}{pem}"), key: self.key.serialize_pem() }
    }
}

fn made(names: &[&str]) -> Made {
    Wanted::new(names).made()
}

/// An authority and its certificate.
fn issuer() -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

/// Certificates of one folder, and how they are looked at.
struct Folder {
    dir: TempDir,
    registry: Arc<Registry>,
}

impl Folder {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), registry: Arc::new(Registry::new().unwrap()) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes as whoever replaces a file does.
    fn write(&self, name: &str, text: &str) {
        let (new, path) = (self.path(".new"), self.path(name));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o640)).unwrap();
        fs::rename(&new, &path).unwrap();
    }

    fn source(&self) -> Source {
        Source::Path(self.dir.path().to_owned())
    }

    fn load(&self) -> (Store, Vec<CertificateError>) {
        Store::load(&[self.source()], None)
    }

    /// Loads what has to be good.
    fn store(&self) -> Store {
        let (store, errors) = self.load();
        assert!(errors.is_empty(), "{errors:?}");
        store
    }

    fn live(&self) -> Certificates {
        Certificates::new(vec![self.source()], self.store(), &self.registry)
    }

    /// The only error there is.
    fn error(&self) -> String {
        let (store, errors) = self.load();
        assert!(store.is_empty(), "{store:?}");
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors[0].told().replace(self.dir.path().to_str().unwrap(), "DIR")
    }

    fn metrics(&self, line: &str) {
        let text = self.registry.render();
        assert!(text.contains(&format!("\n{line}\n")), "no {line}: {text}");
    }
}

fn name(name: &str) -> ServerName {
    ServerName::parse(name.as_bytes()).unwrap()
}

/// Whose certificate a client gets: its first name and the file.
fn chosen(store: &Store, asked: &str, schemes: &[SignatureScheme]) -> Option<String> {
    let chosen = store.find(&name(asked))?.choose(schemes)?;
    let mut all = store.served().iter();
    let same = |one: &&Arc<Certificate>| one.signing().is_some_and(|key| Arc::ptr_eq(&key, &chosen.key));
    let file = all.find(same).unwrap().file().file_name().unwrap().to_str().unwrap().to_owned();
    Some(file)
}

fn refreshed(read: usize, gone: usize, errors: usize) -> Refreshed {
    Refreshed { read, gone, errors }
}

#[test]
fn a_wildcard_stands_for_one_label_and_case_for_nothing() {
    let folder = Folder::new();
    folder.write("exact.pem", &made(&["WWW.Example.com", "b.example.com"]).whole());
    folder.write("wild.pem", &made(&["*.EXAMPLE.com"]).whole());
    let store = folder.store();
    let file = |asked: &str| chosen(&store, asked, &BOTH);
    assert_eq!(file("www.example.com").as_deref(), Some("exact.pem"), "rather than the wildcard");
    assert_eq!(file("Www.EXAMPLE.Com.").as_deref(), Some("exact.pem"));
    assert_eq!(file("other.example.com").as_deref(), Some("wild.pem"));
    for none in ["example.com", "a.b.example.com", "com", "example.org", "wwwexample.com"] {
        assert_eq!(file(none), None, "{none}");
    }
    assert_eq!(store.len(), 2);
    let names = store.served().iter().flat_map(|one| one.names()).collect::<Vec<_>>();
    assert!(names.contains(&"*.example.com".to_owned()) && names.len() == 3, "{names:?}");
}

#[test]
fn the_client_decides_between_ecdsa_and_rsa() {
    let folder = Folder::new();
    folder.write("ec.pem", &made(&["a.test"]).whole());
    folder.write("rsa.pem", &Wanted::new(&["a.test", "r.test"]).rsa(RsaKeySize::_3072).made().whole());
    let store = folder.store();
    let file = |schemes: &[SignatureScheme]| chosen(&store, "a.test", schemes);
    assert_eq!(file(&BOTH).as_deref(), Some("ec.pem"));
    assert_eq!(file(&[RSA_PSS_SHA256]).as_deref(), Some("rsa.pem"));
    assert_eq!(file(&[ED25519]), None);
    let slow = |asked: &str| store.find(&name(asked)).unwrap().choose(&BOTH).unwrap().slow;
    assert!(slow("r.test") && !slow("a.test"));
    assert!(!KeyKind::Rsa(2048).is_slow());
}

#[test]
fn of_one_kind_the_last_to_end_counts_if_it_is_valid() {
    let folder = Folder::new();
    for (file, from, to) in [("old", -80, 10), ("new", -1, 89), ("expired", -90, -1), ("early", 2, 300)] {
        folder.write(&format!("{file}.pem"), &Wanted::new(&["a.test"]).days(from, to).made().whole());
    }
    folder.write("past.pem", &Wanted::new(&["past.test"]).days(-90, -1).made().whole());
    folder.write("more-past.pem", &Wanted::new(&["past.test"]).days(-90, -9).made().whole());
    folder.write("exact.pem", &Wanted::new(&["x.wild.test"]).days(-90, -1).made().whole());
    folder.write("wild.pem", &made(&["*.wild.test"]).whole());
    let store = folder.store();
    let file = |asked: &str| chosen(&store, asked, &BOTH).unwrap();
    assert_eq!(file("a.test"), "new.pem");
    assert_eq!(file("past.test"), "past.pem", "rather than nothing");
    assert_eq!(file("x.wild.test"), "wild.pem", "rather than one that has expired");
    let ends = store.served().iter().map(|one| one.file().file_stem().unwrap().to_str().unwrap());
    assert_eq!(ends.collect::<Vec<_>>(), ["exact", "past", "new", "wild", "early"], "none that is of no use");
    // The early one becomes valid.
    let later = SystemTime::now() + Duration::from_secs(3 * 24 * 60 * 60);
    let then = store.find(&name("a.test")).unwrap().choose_at(&BOTH, later).unwrap();
    let early = store.served().iter().find(|one| one.file().ends_with("early.pem")).unwrap();
    assert!(Arc::ptr_eq(&then.key, &early.signing().unwrap()));
    let live = Certificates::new(vec![folder.source()], store, &folder.registry);
    assert_eq!(live.refresh_at(later).read, 0);
    assert!(live.store().served().iter().all(|one| !one.file().ends_with("new.pem")));
}

#[test]
fn warnings_come_by_days_and_not_all_life_long() {
    use super::report::Term;
    let folder = Folder::new();
    folder.write("long.pem", &Wanted::new(&["long.test"]).days(0, 90).made().whole());
    folder.write("short.pem", &Wanted::new(&["short.test"]).days(0, 6).made().whole());
    let store = folder.store();
    let now = unix_seconds(SystemTime::now());
    let term = |asked: &str, days: i64| {
        let found = store.find(&name(asked)).unwrap();
        Term::of(found.iter().next().unwrap(), now + days * 24 * 60 * 60 - 60)
    };
    let long = [0, 75, 76, 83, 87, 89, 90, 91].map(|days| term("long.test", days));
    let ends = |days| Term::Ends(days);
    let all = [Term::Early, Term::Good, Term::Good, ends(14), ends(7), ends(3), ends(1), Term::Over];
    assert_eq!(long, all);
    assert_eq!([1, 3, 5, 6].map(|days| term("short.test", days)), [Term::Good, Term::Good, ends(3), ends(1)]);
}

#[test]
fn metrics_tell_of_the_end_of_what_is_served() {
    let folder = Folder::new();
    folder.write("one.pem", &made(&["*.one.test", "one.test"]).whole());
    folder.write("two.pem", &made(&["two.test"]).whole());
    folder.write("two-old.pem", &Wanted::new(&["two.test"]).days(-80, 10).made().whole());
    let live = folder.live();
    let end = |file: &str| {
        let store = live.store();
        store.served().iter().find(|one| one.file().ends_with(file)).unwrap().not_after()
    };
    let line = |name: &str, value: String| {
        folder.metrics(&format!(
            "portcullis_tls_certificate_not_after_timestamp_seconds{{certificate=\"{name}\"}} {value}"
        ));
    };
    line("*.one.test", end("one.pem").to_string());
    line("two.test", end("two.pem").to_string());
    folder.metrics("portcullis_tls_certificates 3");
    fs::remove_file(folder.path("one.pem")).unwrap();
    live.refresh();
    assert_eq!(live.refresh(), refreshed(0, 1, 0));
    line("*.one.test", "NaN".to_owned());
    folder.metrics("portcullis_tls_certificates 2");
    folder.metrics("portcullis_tls_certificate_errors_total 0");
}
