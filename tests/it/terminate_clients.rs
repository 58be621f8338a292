//! Certificates that clients must show: whose are let in, and that nobody else comes near a backend.

use std::process::Command;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::DnType;
use rustls::AlertDescription;

use crate::support::authority::{Authority, DAY, Identity, alert, converse, openssl, params, shake};
use crate::support::backend::Backend;
use crate::support::client::{connect, read_to_end};
use crate::support::process::finish;
use crate::support::proxy::Proxy;
use crate::support::{SOON, wait_for};

/// One who asks clients for certificates, and what is behind.
struct Place {
    authority: Authority,
    backend: Backend,
    proxy: Proxy,
}

/// What became of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Served,
    Alert(AlertDescription),
}

impl Place {
    /// With an authority of servers and clients, and what `client_auth` says.
    fn new(authority: Authority, client_auth: &str) -> Self {
        let backend = Backend::of_lines("inside");
        let proxy = Proxy::start(&format!(
            "{}[[route]]\nsni = 'a.test'\ntls = {{ client_auth = {client_auth} }}\nto = '{backend}'\n",
            authority.top()
        ));
        Self { authority, backend, proxy }
    }

    /// What a client sees that shows this.
    fn visit(&self, identity: Option<&Identity>) -> Seen {
        let config = match identity {
            Some(identity) => self.authority.config_of(identity),
            None => self.authority.config(),
        };
        let shaken = shake(self.proxy.addr(), &Arc::new(config), "a.test");
        // By TLS 1.3 a client is done before the server has looked at its certificate.
        match shaken.and_then(|mut stream| converse(&mut stream, "hello\n")) {
            Ok(answer) => {
                assert_eq!(answer, "tag:inside\nhello\n");
                Seen::Served
            }
            Err(error) => Seen::Alert(alert(&error).unwrap_or_else(|| panic!("{error:?}"))),
        }
    }

    /// The same by OpenSSL: whether it was served, and the number of the alert.
    fn visit_by_openssl(&self, identity: Option<&Identity>, version: &str) -> (bool, Option<u8>) {
        let mut options = vec![version];
        let files = identity.map(|one| [&one.certificate, &one.key].map(|file| file.display().to_string()));
        if let Some([certificate, key]) = &files {
            options.extend(["-cert", certificate, "-key", key]);
        }
        let done = openssl(self.proxy.addr(), Some("a.test"), &self.authority.ca(), &options);
        let number = done.stderr.split("SSL alert number ").nth(1);
        let number = number.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        (done.stdout.contains("tag:inside"), number)
    }

    /// That nobody was served, and why in a word.
    fn refused(&self, identity: Option<&Identity>, expected: AlertDescription, reason: &str) {
        let hits = self.backend.hits();
        assert_eq!(self.visit(identity), Seen::Alert(expected));
        let number = u8::from(expected);
        for version in ["-tls1_2", "-tls1_3"] {
            assert_eq!(self.visit_by_openssl(identity, version), (false, Some(number)), "{version}");
        }
        assert_eq!(self.backend.hits(), hits, "the backend was connected to");
        let line = self.proxy.access_line(reason, |line| line["reason"] == reason);
        assert_eq!((&line["stage"], &line["cause"]), (&"handshake".into(), &"client".into()), "{line}");
        assert_eq!(line["backend"], serde_json::Value::Null);
    }

    fn served(&self, identity: Option<&Identity>) {
        let hits = self.backend.hits();
        assert_eq!(self.visit(identity), Seen::Served);
        for version in ["-tls1_2", "-tls1_3"] {
            assert_eq!(self.visit_by_openssl(identity, version), (true, None), "{version}");
        }
        assert_eq!(self.backend.hits(), hits + 3);
    }
}

#[test]
fn who_must_show_a_certificate_is_served_only_with_a_good_one() {
    let authority = Authority::of(&["a.test"]);
    let good = authority.client(&["ann.test"]);
    let mut old = params(&["ann.test"]);
    old.not_after = (SystemTime::now() - DAY / 2).into();
    let mut early = params(&["ann.test"]);
    early.not_before = (SystemTime::now() + DAY).into();
    let (old, early) = (authority.client_with(old), authority.client_with(early));
    let strangers = Authority::new();
    let stranger = strangers.client(&["ann.test"]);
    let client_auth = format!("'{}'", authority.ca().display());
    let place = Place::new(authority, &client_auth);
    place.served(Some(&good));
    place.refused(None, AlertDescription::CertificateRequired, "no_client_certificate");
    place.refused(Some(&old), AlertDescription::CertificateExpired, "certificate_expired");
    let hits = place.backend.hits();
    for other in [&early, &stranger] {
        let seen = place.visit(Some(other));
        assert!(matches!(seen, Seen::Alert(_)), "{seen:?}");
        assert!(!place.visit_by_openssl(Some(other), "-tls1_2").0);
    }
    assert_eq!(place.backend.hits(), hits);
    place.proxy.access_line("untrusted", |line| line["reason"] == "bad_certificate");
    place.served(Some(&good));
}

/// A certificate of a server is none of a client, whoever has signed it.
#[test]
fn the_certificate_of_a_server_lets_nobody_in() {
    let authority = Authority::of(&["a.test"]);
    let server = authority.certs().join("one.pem");
    let mut identity = authority.client(&["ann.test"]);
    (identity.certificate, identity.key) = (server.clone(), server);
    let client_auth = format!("'{}'", authority.ca().display());
    let place = Place::new(authority, &client_auth);
    assert!(matches!(place.visit(Some(&identity)), Seen::Alert(_)));
    assert_eq!(place.backend.hits(), 0);
}

#[test]
fn who_may_come_without_must_not_show_a_bad_one() {
    let authority = Authority::of(&["a.test"]);
    let good = authority.client(&["ann.test"]);
    let strangers = Authority::new();
    let stranger = strangers.client(&["ann.test"]);
    let client_auth = format!("{{ ca = '{}', mode = 'optional' }}", authority.ca().display());
    let place = Place::new(authority, &client_auth);
    place.served(Some(&good));
    place.served(None);
    let hits = place.backend.hits();
    assert!(matches!(place.visit(Some(&stranger)), Seen::Alert(_)));
    assert_eq!(place.backend.hits(), hits);
}

#[test]
fn certificates_that_were_taken_back_are_refused() {
    let authority = Authority::of(&["a.test"]);
    let [good, bad] = ["ann.test", "bob.test"].map(|name| authority.client(&[name]));
    let list = authority.revoke(&[&bad]);
    let client_auth = format!("{{ ca = '{}', crl = '{}' }}", authority.ca().display(), list.display());
    let place = Place::new(authority, &client_auth);
    place.served(Some(&good));
    place.refused(Some(&bad), AlertDescription::CertificateRevoked, "certificate_revoked");
    // Another list is taken up by a reload, and the one that is bad is not.
    place.authority.revoke(&[&good]);
    assert_eq!(place.proxy.reload().code, Some(0));
    place.served(Some(&bad));
    place.refused(Some(&good), AlertDescription::CertificateRevoked, "certificate_revoked");
    std::fs::write(&list, "no list").unwrap();
    assert_ne!(place.proxy.reload().code, Some(0));
    place.served(Some(&bad));
    assert_eq!(place.visit(Some(&good)), Seen::Alert(AlertDescription::CertificateRevoked));
}

#[test]
fn only_some_of_those_that_are_signed_are_let_in() {
    let authority = Authority::of(&["a.test"]);
    let of = |names: &[&str]| authority.client(names);
    let served = [
        of(&["exact.test"]),
        of(&["EXACT.test"]),
        of(&["other.test", "a.suffix.test"]),
        of(&["a.b.suffix.test"]),
        of(&["ann@mail.test"]),
        of(&["spiffe://corp.test/web"]),
    ];
    let refused = [
        of(&["xexact.test"]),
        of(&["suffix.test"]),
        of(&["evilsuffix.test"]),
        of(&["ann@mail.test.evil"]),
        of(&["spiffe://corp.test/db"]),
        of(&["bob@mail.test"]),
        // A mailbox is no server.
        of(&["a@x.suffix.test"]),
        of(&[]),
    ];
    let client_auth = format!(
        "{{ ca = '{}', names = ['exact.test', '*.suffix.test', '~^ann@mail\\.test$', \
         '~^spiffe://corp\\.test/web$'] }}",
        authority.ca().display()
    );
    let place = Place::new(authority, &client_auth);
    for (index, identity) in served.iter().enumerate() {
        assert_eq!(place.visit(Some(identity)), Seen::Served, "{index}");
    }
    for (index, identity) in refused.iter().enumerate() {
        assert_eq!(place.visit(Some(identity)), Seen::Alert(AlertDescription::AccessDenied), "{index}");
    }
    assert_eq!(place.backend.hits(), served.len());
    place.refused(Some(&refused[0]), AlertDescription::AccessDenied, "bad_certificate");
    place.served(Some(&served[0]));
}

#[test]
fn common_names_count_where_they_are_asked_for() {
    let authority = Authority::of(&["a.test"]);
    let with = |common: &str, names: &[&str]| {
        let mut params = params(names);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common);
        authority.client_with(params)
    };
    let [ann, bob] = ["Ann Example", "Bob Example"].map(|name| with(name, &["ann.test"]));
    // Both are asked for: one alone is not enough.
    let other = with("Ann Example", &["bob.test"]);
    let client_auth = format!(
        "{{ ca = '{}', names = 'ann.test', common_names = ['Ann Example'] }}",
        authority.ca().display()
    );
    let place = Place::new(authority, &client_auth);
    place.served(Some(&ann));
    for wrong in [bob, other] {
        assert_eq!(place.visit(Some(&wrong)), Seen::Alert(AlertDescription::AccessDenied));
    }
    assert_eq!(place.backend.hits(), 3);
}

/// What a client says inside before it was let in goes nowhere, by TLS 1.3 as well.
#[test]
fn nothing_that_is_said_before_the_certificate_is_good_arrives() {
    let authority = Authority::of(&["a.test"]);
    let client_auth = format!("'{}'", authority.ca().display());
    let place = Place::new(authority, &client_auth);
    let config = Arc::new(place.authority.config());
    for _ in 0..20 {
        let mut stream = shake(place.proxy.addr(), &config, "a.test").unwrap();
        let end = converse(&mut stream, "hello\n");
        assert!(end.is_err(), "{end:?}");
    }
    assert_eq!(place.backend.hits(), 0);
    // Nor does anybody come in with a hello alone.
    let mut stream = connect(place.proxy.addr());
    std::io::Write::write_all(&mut stream, &crate::support::hello::to("a.test")).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let _ = read_to_end(&mut stream, SOON);
    wait_for("all to be over", || place.proxy.access_log().len() == 21);
    assert_eq!(place.backend.hits(), 0);
}

#[test]
fn curl_and_python_come_in_with_their_certificates() {
    let authority = Authority::of(&["a.test"]);
    let ann = authority.client(&["ann.test"]);
    let client_auth = format!("'{}'", authority.ca().display());
    let place = Place::new(authority, &client_auth);
    let (addr, ca) = (place.proxy.addr(), place.authority.ca());
    let [certificate, key] = [&ann.certificate, &ann.key].map(|file| file.display().to_string());
    // The backend answers the first line, as servers of HTTP/0.9 did.
    let options = ["--http0.9", "--cert", &certificate, "--key", &key];
    let page = crate::support::programs::curl("a.test", addr, &ca, &options);
    assert!(page.stdout.starts_with("tag:inside\nGET / HTTP/1.1"), "{} {}", page.stdout, page.stderr);
    let without = crate::support::programs::curl("a.test", addr, &ca, &["--http0.9"]);
    assert!(without.code != Some(0) && without.stdout.is_empty(), "{without:?}");
    let script = "
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[2])
context.load_cert_chain(sys.argv[3], sys.argv[4])
s = context.wrap_socket(socket.create_connection(('127.0.0.1', int(sys.argv[1]))), server_hostname='a.test')
s.sendall(b'hello\\n')
print(s.recv(100) + s.recv(100))
";
    let mut command = Command::new("python3");
    command.args(["-c", script, &addr.port().to_string()]).arg(&ca).args([&certificate, &key]);
    let done = finish(&mut command, "python3", "");
    assert!(done.stdout.contains("tag:inside\\nhello\\n"), "{} {}", done.stdout, done.stderr);
}
