//! Which files are read, what is wrong with them, and what becomes of them.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn openssl(words: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn a_key_is_in_the_file_or_beside_it() {
    let folder = Folder::new();
    let pair = |certificate: &str, key: &str, host: &str| {
        let made = made(&[host]);
        folder.write(certificate, &made.chain);
        folder.write(key, &made.key);
    };
    pair("a.crt", "a.key", "a.test");
    pair("b.pem", "b-key.pem", "b.test");
    pair("c.cer", "c.key.pem", "c.test");
    pair("d.pem", "d.pem.key", "d.test");
    pair("site/cert.pem", "site/key.pem", "e.test");
    pair("acme/fullchain.cer", "acme/example.com.key", "f.test");
    // Neither hidden files, nor what is deeper, nor what else lies about.
    folder.write(".hidden.pem", "nothing");
    folder.write(".hidden/x.pem", "nothing");
    folder.write("site/deeper/x.pem", "nothing");
    folder.write("README", "nothing");
    let (_, authority) = issuer();
    folder.write("ca.crt", &authority);
    let store = folder.store();
    for host in ["a.test", "b.test", "c.test", "d.test", "e.test", "f.test"] {
        assert!(chosen(&store, host, &BOTH).is_some(), "{host}");
    }
    assert_eq!(store.len(), 6);
    // A file by name, and a pair.
    let one = Store::load(&[Source::Path(folder.path("b.pem"))], None);
    assert!(one.1.is_empty() && one.0.find(&name("b.test")).is_some());
    let pair = Source::Pair { certificate: folder.path("a.crt"), key: folder.path("a.key") };
    assert!(Store::load(&[pair], None).0.find(&name("a.test")).is_some());
    let pair = Source::Pair { certificate: folder.path("a.crt"), key: folder.path("b-key.pem") };
    assert!(matches!(*Store::load(&[pair], None).1, [CertificateError::Mismatch { .. }]));
}

#[test]
fn folders_of_certbot() {
    let folder = Folder::new();
    let (issuer, authority) = issuer();
    let archive = |number: u8| {
        let made = Wanted::new(&["a.test"]).signed_by(&issuer, &authority);
        let leaf = made.chain.replace(&authority, "");
        let files =
            [("cert", &leaf), ("chain", &authority), ("fullchain", &made.chain), ("privkey", &made.key)];
        for (file, text) in files {
            folder.write(&format!("archive/a.test/{file}{number}.pem"), text);
            let (link, new) =
                (folder.path(&format!("live/a.test/{file}.pem")), folder.path("live/a.test/.new"));
            fs::create_dir_all(folder.path("live/a.test")).unwrap();
            symlink(format!("../../archive/a.test/{file}{number}.pem"), &new).unwrap();
            fs::rename(new, link).unwrap();
        }
    };
    archive(1);
    folder.write("live/README", "text");
    let source = vec![Source::Path(folder.path("live"))];
    let (store, errors) = Store::load(&source, None);
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(store.len(), 1);
    let key = |store: &Store| store.find(&name("a.test")).unwrap().choose(&BOTH).unwrap().key;
    assert_eq!(key(&store).cert.len(), 2, "with its issuer");
    let first = key(&store);
    let live = Certificates::new(source, store, &folder.registry);
    assert_eq!(live.refresh(), refreshed(0, 0, 0));
    assert!(Arc::ptr_eq(&first, &key(&live.store())), "what signs is made once");
    archive(2);
    assert_eq!(live.refresh(), refreshed(1, 0, 0));
    assert_ne!(first.cert, key(&live.store()).cert);
    // As it begins: no whole chain yet.
    fs::remove_file(folder.path("live/a.test/fullchain.pem")).unwrap();
    let (store, errors) = Store::load(&[Source::Path(folder.path("live"))], None);
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(chosen(&store, "a.test", &BOTH).as_deref(), Some("cert.pem"));
}

/// As volumes of Kubernetes do it: `..data` leads to a folder, and is swapped.
#[test]
fn a_swapped_link_brings_another_certificate() {
    let folder = Folder::new();
    let swap = |number: u8| {
        let made = made(&["a.test"]);
        folder.write(&format!("..{number}/tls.crt"), &made.chain);
        folder.write(&format!("..{number}/tls.key"), &made.key);
        symlink(format!("..{number}"), folder.path("..new")).unwrap();
        fs::rename(folder.path("..new"), folder.path("..data")).unwrap();
    };
    swap(1);
    for file in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{file}"), folder.path(file)).unwrap();
    }
    let live = folder.live();
    let first = live.choose(&name("a.test"), &BOTH).unwrap().key;
    swap(2);
    assert_eq!(live.refresh(), refreshed(1, 0, 0));
    assert_ne!(first.cert, live.choose(&name("a.test"), &BOTH).unwrap().key.cert);
    assert_eq!(live.store().len(), 1);
    // The link is gone for a moment, and with it what it leads to.
    fs::rename(folder.path("..data"), folder.path("..gone")).unwrap();
    assert_eq!(live.refresh(), refreshed(0, 0, 1));
    assert_eq!(live.refresh(), refreshed(0, 0, 0), "it is told once");
    assert!(live.choose(&name("a.test"), &BOTH).is_some());
    fs::rename(folder.path("..gone"), folder.path("..data")).unwrap();
    assert_eq!(live.refresh(), refreshed(0, 0, 0));
}

#[test]
fn what_is_wrong_is_told_with_what_to_do() {
    let told = |files: &[(&str, &str)]| {
        let folder = Folder::new();
        files.iter().for_each(|(file, text)| folder.write(file, text));
        folder.error()
    };
    let (one, two) = (made(&["a.test"]), made(&["b.test"]));
    let begin = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let table = [
        (told(&[("a.pem", &one.chain)]), "no private key for `DIR/a.pem`: write it into the same file"),
        (told(&[("a.pem", &one.key)]), "`DIR/a.pem` holds a private key and no certificate: name it"),
        (told(&[("a.pem", "")]), "`DIR/a.pem` holds no certificate: write the server's first"),
        (told(&[("a.crt", &one.chain), ("a.key", "")]), "`DIR/a.key` holds no private key"),
        (
            told(&[("a.crt", &one.chain), ("a.key", begin)]),
            "`DIR/a.key` holds a private key with a passphrase",
        ),
        (told(&[("a.pem", &one.whole()[..200])]), "`DIR/a.pem` is damaged or cut off"),
        (
            told(&[("a.crt", &one.chain), ("a.key", &two.key)]),
            "the private key in `DIR/a.key` is not that of the certificate in `DIR/a.crt`",
        ),
        (
            told(&[("a.pem", &format!("{}{}", two.chain, one.whole()))]),
            "`DIR/a.pem` begins with another certificate than the private key's, which is number 2",
        ),
        (told(&[("a.pem", &made(&[]).whole())]), "the certificate in `DIR/a.pem` has no DNS name"),
        (told(&[("a.pem", &made(&["127.0.0.1"]).whole())]), "the certificate in `DIR/a.pem` has no DNS name"),
    ];
    for (told, expected) in table {
        assert!(told.starts_with(expected), "{told}\ninstead of {expected}");
    }
    let folder = Folder::new();
    fs::create_dir(folder.path("a.pem")).unwrap();
    assert!(folder.error().starts_with("`DIR/a.pem` is not a file"));
    let gone = Store::load(&[Source::Path(folder.path("gone"))], None).1;
    assert!(gone[0].told().contains("No such file"), "{gone:?}");
}

#[test]
fn other_kinds_of_keys_and_files() {
    let folder = Folder::new();
    let path = |file: &str| folder.path(file).to_str().unwrap().to_owned();
    let request = |key: &[&str], file: &str| {
        let (key_file, out) = (path(&format!("{file}.key")), path(&format!("{file}.crt")));
        fs::write(&key_file, openssl(key)).unwrap();
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
        let san = format!("subjectAltName=DNS:{file}.test");
        let words = ["req", "-x509", "-key", &key_file, "-subj", "/CN=x", "-addext", &san, "-out", &out];
        openssl(&words);
    };
    request(&["genrsa", "-traditional", "2048"], "pkcs1");
    request(&["ecparam", "-name", "prime256v1", "-genkey", "-noout"], "sec1");
    request(&["ecparam", "-name", "secp384r1", "-genkey"], "p384");
    request(&["genpkey", "-algorithm", "ed25519"], "ed25519");
    let store = folder.store();
    let kinds = ["pkcs1", "sec1", "p384", "ed25519"].map(|file| {
        let one = store.find(&name(&format!("{file}.test"))).unwrap().iter().next().unwrap();
        assert!(one.signing().is_some());
        one.kind()
    });
    assert_eq!(kinds, [KeyKind::Rsa(2048), KeyKind::P256, KeyKind::P384, KeyKind::Ed25519]);
    request(&["ecparam", "-name", "secp256k1", "-genkey", "-noout"], "k1");
    fs::write(path("der.cer"), openssl(&["x509", "-in", &path("sec1.crt"), "-outform", "der"])).unwrap();
    let (store, errors) = folder.load();
    let told = errors.iter().map(CertificateError::told).collect::<Vec<_>>();
    assert_eq!((store.len(), told.len()), (4, 2), "{told:?}");
    assert!(told[1].contains("has a key of the kind 1.3.132.0.10"), "{told:?}");
    // Its length takes two bytes only when it is long.
    assert!(told[0].contains("is DER and not PEM"), "{told:?}");
}

#[test]
fn keys_are_compared_alike_in_both_ways() {
    use super::super::key::{Match, compare};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;
    let rsa = |host| Wanted::new(&[host]).rsa(RsaKeySize::_2048).made();
    let (one, other) = (rsa("a.test"), rsa("b.test"));
    let traditional = String::from_utf8({
        let folder = Folder::new();
        folder.write("key", &one.key);
        openssl(&["rsa", "-traditional", "-in", folder.path("key").to_str().unwrap()])
    })
    .unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(one.chain.as_bytes()).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&pem.contents).unwrap();
    for (key, its) in
        [(&one.key, true), (&traditional, true), (&other.key, false), (&made(&["a"]).key, false)]
    {
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        for quick in [true, false] {
            let found = compare(&key, certificate.public_key(), quick);
            assert_eq!(matches!(found, Ok(Match::Its)), its, "quick: {quick}");
        }
    }
}

#[test]
fn warnings_do_not_keep_a_certificate_from_being_served() {
    let folder = Folder::new();
    folder.write("a.pem", &made(&["a.test", "f*.test", "b_c.test", "x y.test"]).whole());
    fs::set_permissions(folder.path("a.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let (store, errors) = folder.load();
    assert!(store.find(&name("b_c.test")).is_some());
    assert!(errors.iter().all(CertificateError::is_warning));
    let told = errors.iter().map(CertificateError::told).collect::<Vec<_>>();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].contains("has the name `f*.test`, which is no DNS name"), "{told:?}");
    assert!(told[2].contains("(mode 644): `chmod o= "), "{told:?}");
    // Once.
    let (store, again) = Store::load(&[folder.source()], Some(&store));
    assert!(again.is_empty(), "{again:?}");
    fs::set_permissions(folder.path("a.pem"), fs::Permissions::from_mode(0o640)).unwrap();
    let (store, errors) = Store::load(&[folder.source()], Some(&store));
    assert!(errors.is_empty() && store.len() == 1);
}

#[test]
fn a_bad_file_never_takes_the_place_of_a_good_one() {
    let folder = Folder::new();
    folder.write("a.crt", &made(&["a.test"]).chain);
    let first = made(&["a.test"]);
    folder.write("a.crt", &first.chain);
    folder.write("a.key", &first.key);
    folder.write("other.pem", &made(&["other.test"]).whole());
    let live = Arc::new(folder.live());
    let (over, served) = (Arc::new(AtomicBool::new(false)), Arc::clone(&live));
    let asking = {
        let over = Arc::clone(&over);
        std::thread::spawn(move || {
            let mut asked = 0;
            while !over.load(Ordering::Relaxed) {
                let chosen = served.choose(&name("a.test"), &BOTH).expect("there is one at all times");
                assert_eq!(chosen.key.keys_match(), Ok(()));
                asked += 1;
            }
            asked
        })
    };
    let mut errors = 0;
    for round in 0..100 {
        let good = made(&["a.test"]);
        // In place, as careless scripts do, and by renaming.
        let write = |file: &str, text: &str| match round % 2 {
            0 => fs::write(folder.path(file), text).unwrap(),
            _ => folder.write(file, text),
        };
        match round % 5 {
            0 => write("a.crt", &good.chain[..300]),
            1 => write("a.key", &good.key),
            2 => write("a.crt", "nonsense"),
            3 => fs::remove_file(folder.path("a.key")).unwrap(),
            _ => write("a.key", &good.key[..100]),
        }
        assert_eq!(live.refresh(), refreshed(0, 0, 1), "{round}");
        assert_eq!(live.refresh(), refreshed(0, 0, 0), "{round}: it is told once");
        errors += 1;
        write("a.crt", &good.chain);
        write("a.key", &good.key);
        assert_eq!(live.refresh(), refreshed(1, 0, 0), "{round}");
    }
    over.store(true, Ordering::Relaxed);
    assert!(asking.join().unwrap() > 100);
    // What is new and bad changes nothing.
    folder.write("new.pem", "nonsense");
    assert_eq!(live.refresh(), refreshed(0, 0, 1));
    live.refresh();
    folder.metrics(&format!("portcullis_tls_certificate_errors_total {}", errors + 1));
    assert_eq!(live.store().len(), 2);
}

#[test]
fn what_is_gone_twice_is_gone() {
    let folder = Folder::new();
    folder.write("a.pem", &made(&["a.test"]).whole());
    folder.write("sub/b.pem", &made(&["b.test"]).whole());
    folder.write("c.pem", &made(&["c.test"]).whole());
    let live = folder.live();
    let has = |host: &str| live.choose(&name(host), &BOTH).is_some();
    fs::rename(folder.path("a.pem"), folder.path("a.away")).unwrap();
    assert_eq!(live.refresh(), refreshed(0, 0, 0));
    assert!(has("a.test"), "it may be back in a moment");
    fs::rename(folder.path("a.away"), folder.path("a.pem")).unwrap();
    assert_eq!(live.refresh(), refreshed(0, 0, 0));
    fs::remove_file(folder.path("a.pem")).unwrap();
    fs::remove_dir_all(folder.path("sub")).unwrap();
    assert_eq!((live.refresh(), has("a.test")), (refreshed(0, 0, 0), true));
    assert_eq!((live.refresh(), has("a.test"), has("b.test")), (refreshed(0, 2, 0), false, false));
    assert_eq!((live.refresh(), has("c.test")), (refreshed(0, 0, 0), true));
}

#[test]
fn what_the_configuration_names_stays_when_it_is_gone() {
    let folder = Folder::new();
    folder.write("in/a.pem", &made(&["a.test"]).whole());
    folder.write("b.pem", &made(&["b.test"]).whole());
    let pair = made(&["c.test"]);
    folder.write("c.crt", &pair.chain);
    folder.write("c.key", &pair.key);
    let sources = vec![
        Source::Path(folder.path("in")),
        Source::Path(folder.path("b.pem")),
        Source::Pair { certificate: folder.path("c.crt"), key: folder.path("c.key") },
    ];
    let (store, errors) = Store::load(&sources, None);
    assert!(errors.is_empty(), "{errors:?}");
    let live = Certificates::new(sources.clone(), store, &folder.registry);
    fs::rename(folder.path("in"), folder.path("away")).unwrap();
    for file in ["b.pem", "c.crt", "c.key"] {
        fs::remove_file(folder.path(file)).unwrap();
    }
    assert_eq!(live.refresh(), refreshed(0, 0, 3));
    for _ in 0..3 {
        assert_eq!(live.refresh(), refreshed(0, 0, 0));
    }
    let has = |host: &str| live.choose(&name(host), &BOTH).is_some();
    assert!(has("a.test") && has("b.test") && has("c.test"));
    fs::rename(folder.path("away"), folder.path("in")).unwrap();
    assert_eq!(live.refresh(), refreshed(0, 0, 0));
    // Another configuration does not name them any more.
    let before = live.choose(&name("a.test"), &BOTH).unwrap().key;
    let sources = sources[..1].to_vec();
    let (store, errors) = live.prepare(&sources);
    assert!(errors.is_empty() && has("b.test"), "{errors:?}");
    live.take(sources, store);
    assert!(has("a.test") && !has("b.test") && !has("c.test"));
    assert!(Arc::ptr_eq(&before, &live.choose(&name("a.test"), &BOTH).unwrap().key));
}

#[tokio::test]
async fn files_are_looked_at_from_time_to_time() {
    let folder = Folder::new();
    folder.write("a.pem", &made(&["a.test"]).whole());
    let live = Arc::new(folder.live());
    let watch = tokio::spawn(Arc::clone(&live).watch(Duration::from_millis(5)));
    folder.write("b.pem", &made(&["b.test"]).whole());
    // The look is on another thread, and tells nobody: it is asked for what it found, for a minute at most.
    let found = async {
        while live.choose(&name("b.test"), &BOTH).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), found).await.unwrap();
    watch.abort();
    assert!(watch.await.unwrap_err().is_cancelled());
}
