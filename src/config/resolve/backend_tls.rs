//! `backend_tls`: TLS with backends that are written with `tls://`.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::super::backend_keys::{BackendAddr, BackendTls as Table, Scheme, VerifyWith, base64};
use super::super::checks::VerifyWord;
use super::super::decode::{At, Either, Setting};
use super::super::error::{ConfigError, ErrorKind};
use super::super::file::{Backend, Route};
use super::super::pool_keys::PoolKeys;
use super::super::source::Place;
use super::super::tls_keys::CertificatePath;
use super::super::{
    ActionConfig, BackendTls, Check, ClientCertificate, HealthConfig, RouteKey, TlsVersion, Verify,
};
use super::tls::beside;
use super::{Output, health, string, strings};
use crate::net::UpstreamAddr;
use crate::peek::Protocol;

/// What a backend is written as.
pub(super) fn written(backend: &Either<BackendAddr, Backend>) -> Option<&BackendAddr> {
    match backend {
        Either::Short(address) => Some(address),
        Either::Table(table) => table.address.given().map(|at| &at.value),
    }
}

/// How TLS is spoken with the backends of `prefix` (`route[app]`): `Some(None)` when it is not, `None` when an error was
/// reported.
#[expect(clippy::option_option, reason = "that there is no TLS, and that what is said of it is wrong")]
pub(super) fn resolve(prefix: &str, keys: &PoolKeys<'_>, out: &mut Output) -> Option<Option<BackendTls>> {
    let table = match keys.backend_tls {
        Setting::Absent => None,
        Setting::Bad(_) => return None,
        Setting::Given(at) => Some(at),
    };
    let Some((scheme, place)) = all_speak_it(keys, out)? else {
        let Some(at) = table else { return Some(None) };
        let message = "`backend_tls` is said of backends that speak TLS, and these are written without it";
        let error = ConfigError::new(ErrorKind::Conflict, message).at(&at.place);
        out.report(error.hint(
            "write `tls://` (for HTTP `https://` or `h2://`) before the address, or remove `backend_tls`",
        ));
        return None;
    };
    let prefix = format!("{prefix}.backend_tls");
    let values = table.map(|at| &at.value);
    if values.is_some_and(any_bad) {
        return None;
    }
    let verify = verify(&prefix, values, place, out);
    let sni = values.and_then(|table| table.sni.given());
    let text = sni.map_or_else(|| string("auto"), |at| string(at.value.as_str()));
    out.note(format!("{prefix}.sni"), text, sni.map(|at| &at.place));
    let named = sni.is_some() || verify.as_ref().is_some_and(|verify| *verify == Verify::Off);
    let has_name = named || has_names(keys, out);
    let certificate = own_certificate(&prefix, values, out);
    let min_version = values.and_then(|table| table.min_version.given());
    let oldest = min_version.map_or(TlsVersion::V12, |at| at.value);
    out.note(format!("{prefix}.min_version"), string(oldest), min_version.map(|at| &at.place));
    let tls = BackendTls {
        verify: verify?,
        sni: sni.map(|at| at.value.clone()),
        certificate: certificate?,
        pins: pins(&prefix, values, out),
        alpn: alpn(&prefix, values, scheme, out),
        min_version: oldest,
    };
    has_name.then_some(Some(tls))
}

fn any_bad(table: &Table) -> bool {
    table.verify.is_bad()
        || table.sni.is_bad()
        || table.certificate.is_bad()
        || table.key.is_bad()
        || table.pins.is_bad()
        || table.alpn.is_bad()
        || table.min_version.is_bad()
}

/// Where the first backend is written and what it speaks, when that is TLS; `Some(None)` when none does, `None` when they differ,
/// which is reported.
#[expect(clippy::option_option, reason = "that none speaks TLS, and that only some do")]
fn all_speak_it<'k>(keys: &PoolKeys<'k>, out: &mut Output) -> Option<Option<(Scheme, &'k Place)>> {
    let mut all = keys.to.values().iter().filter_map(|at| Some((written(&at.value)?, &at.place)));
    let Some((first, place)) = all.next() else { return Some(None) };
    let Some((second, other)) = all.find(|(backend, _)| backend.scheme != first.scheme) else {
        return Some(first.scheme.tls().then_some((first.scheme, place)));
    };
    let message = if first.scheme.http().or(second.scheme.http()).is_some() {
        format!("`{first}` and `{second}` do not speak the same, and both serve the same clients")
    } else {
        let (tls, clear) = if first.scheme.tls() { (first, second) } else { (second, first) };
        format!("`{tls}` speaks TLS and `{clear}` does not, and both serve the same connections")
    };
    let error = ConfigError::new(ErrorKind::Conflict, message).at(other);
    let same = BackendAddr { scheme: first.scheme, ..second.clone() };
    out.report(
        error
            .also(place, "the first one is here")
            .hint(format!("write `{same}`, or give all the same scheme")),
    );
    None
}

/// Against what certificates are verified; `None` when an error was reported.
fn verify(prefix: &str, table: Option<&Table>, to: &Place, out: &mut Output) -> Option<Verify> {
    let given = table.and_then(|table| table.verify.given());
    let place = given.map_or(to, |at| &at.place);
    let word = match given.map(|at| &at.value) {
        None | Some(VerifyWith::System) => VerifyWord::System,
        Some(VerifyWith::Off) => VerifyWord::Off,
        Some(VerifyWith::File(path)) => VerifyWord::File(beside(path, place)),
    };
    let verify = health::verify(&At { value: word, place: place.clone() }, out)?;
    out.note(format!("{prefix}.verify"), string(&verify), given.map(|at| &at.place));
    Some(verify)
}

/// Reports a backend whose certificate could not be verified for any name or address.
fn has_names(keys: &PoolKeys<'_>, out: &mut Output) -> bool {
    let is_unix = |at: &&At<Either<BackendAddr, Backend>>| {
        written(&at.value).is_some_and(|backend| matches!(backend.address, UpstreamAddr::Unix(_)))
    };
    let Some(at) = keys.to.values().iter().find(is_unix) else { return true };
    let message = "a certificate is verified for a name, and a Unix socket has none";
    let error = ConfigError::new(ErrorKind::MissingKey, message).at(&at.place);
    out.report(error.hint("add `backend_tls = { sni = \"app.example.com\" }`"));
    false
}

/// The certificate that backends are shown; `Some(None)` without one, `None` when an error was reported.
#[expect(clippy::option_option, reason = "that there is none, and that what is written is wrong")]
fn own_certificate(
    prefix: &str,
    table: Option<&Table>,
    out: &mut Output,
) -> Option<Option<ClientCertificate>> {
    let (certificate, key) =
        table.map_or((None, None), |table| (table.certificate.given(), table.key.given()));
    let (at, key_at) = match (certificate, key) {
        (None, None) => return Some(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(one), None) | (None, Some(one)) => {
            let lacks = if key.is_none() { "key" } else { "certificate" };
            let message = format!("a certificate and its key belong together, and there is no `{lacks}`");
            let error = ConfigError::new(ErrorKind::MissingKey, message).at(&one.place);
            out.report(error.hint(format!("add `{lacks} = \"…\"`, the path of a file in PEM")));
            return None;
        }
    };
    let [certificate, key]: [Arc<Path>; 2] = [at, key_at].map(|at| beside(&at.value, &at.place).into());
    let shown = |path: &Path| string(path.display());
    out.note(format!("{prefix}.certificate"), shown(&certificate), Some(&at.place));
    out.note(format!("{prefix}.key"), shown(&key), Some(&key_at.place));
    let chain = CertificateDer::pem_file_iter(&certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = match chain {
        Ok(chain) if !chain.is_empty() => chain,
        Ok(_) => return unusable(at, "there is no certificate in it", out),
        Err(error) => return unusable(at, &error.to_string(), out),
    };
    let secret = match PrivateKeyDer::from_pem_file(&key) {
        Ok(secret) => secret,
        Err(error) => return unusable(key_at, &error.to_string(), out),
    };
    match CertifiedKey::from_der(chain, secret, &default_provider()) {
        Ok(certified) => Some(Some(ClientCertificate { certificate, key, certified: Arc::new(certified) })),
        Err(error) => unusable(key_at, &error.to_string(), out),
    }
}

fn unusable<T>(at: &At<CertificatePath>, why: &str, out: &mut Output) -> Option<T> {
    let message = format!("`{}` cannot be used: {why}", beside(&at.value, &at.place).display());
    let error = ConfigError::new(ErrorKind::BadValue, message).at(&at.place);
    out.report(error.hint(
        "write a certificate in PEM and the key that belongs to it, relative to the folder of this file",
    ));
    None
}

fn pins(prefix: &str, table: Option<&Table>, out: &mut Output) -> Vec<[u8; 32]> {
    let Some(at) = table.and_then(|table| table.pins.given()) else { return Vec::new() };
    out.check_repeated(&at.value.0, |pin| base64(&pin.0));
    let pins: Vec<_> = at.value.0.iter().map(|at| at.value.0).collect();
    out.note(format!("{prefix}.pins"), strings(pins.iter().map(base64)), Some(&at.place));
    pins
}

fn alpn(prefix: &str, table: Option<&Table>, scheme: Scheme, out: &mut Output) -> Option<Vec<Box<[u8]>>> {
    let at = table.and_then(|table| table.alpn.given());
    let Some(at) = at else {
        let of_scheme = scheme.alpn();
        let text = of_scheme.map_or("auto".into(), String::from_utf8_lossy);
        out.note(format!("{prefix}.alpn"), string(text), None);
        return of_scheme.map(|name| vec![name.into()]);
    };
    out.check_repeated(&at.value.0, |name| String::from_utf8_lossy(&name.0).into_owned());
    let names: Vec<_> = at.value.0.iter().map(|at| at.value.0.clone()).collect();
    let texts = names.iter().map(|name| String::from_utf8_lossy(name).into_owned());
    out.note(format!("{prefix}.alpn"), strings(texts), Some(&at.place));
    Some(names)
}

/// Reports a route that would put the client's TLS into another one; `None` when it does.
pub(super) fn check_route(
    action: &ActionConfig,
    keys: &[(RouteKey, Place)],
    route: &Route,
    out: &mut Output,
) -> Option<()> {
    let ActionConfig::Passthrough(passthrough) = action else { return Some(()) };
    if passthrough.upstream.tls.is_none() {
        return Some(());
    }
    let of_tls = keys.iter().find(|(key, _)| match key {
        RouteKey::Sni(_) | RouteKey::NoSni | RouteKey::Anything => true,
        RouteKey::Protocol(protocol) => *protocol == Protocol::Tls,
        RouteKey::Begins(_) => false,
    });
    let to = route.to.place().or(route.upstream.place());
    let (Some((key, place)), Some(to)) = (of_tls, to) else { return Some(()) };
    let message = format!("the TLS of clients would be put into another one: the route matches `{key}`");
    let error = ConfigError::new(ErrorKind::Conflict, message).at(to).also(place, "matched here");
    out.report(
        error.hint("add `tls = \"files\"` to end the TLS of clients, or drop `tls://` to pass it through"),
    );
    None
}

/// Reports a check that would speak in clear to a port where TLS is spoken.
pub(super) fn check_health(
    health: Option<&HealthConfig>,
    tls: Option<&BackendTls>,
    place: Option<&Place>,
    out: &mut Output,
) {
    let (Some(health), Some(_), Some(place)) = (health, tls, place) else { return };
    let in_clear = match &health.check {
        Check::Tcp | Check::Tls(_) | Check::Http(_, Some(_)) => false,
        Check::Http(_, None) | Check::Postgres | Check::Mysql | Check::Redis | Check::Ssh | Check::Smtp => {
            true
        }
    };
    if in_clear && health.port.is_none() {
        let message =
            format!("a check of `{}` is in clear, and the backends speak TLS", health.check.as_str());
        let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
        out.report(error.hint("write `health = \"tls\"`, or add the `port` on which they speak in clear"));
    }
}
