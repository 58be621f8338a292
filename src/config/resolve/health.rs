//! `health`: what is asked of backends, and what counts as well.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::http::uri::PathAndQuery;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::super::checks::{Health, HealthWord, VerifyWord};
use super::super::decode::{At, Either, Whole, list};
use super::super::error::{ConfigError, ErrorKind};
use super::super::source::Place;
use super::super::units::duration_text;
use super::super::{BackendTls, Check, HealthConfig, HttpCheck, Roots, TlsCheck, Verify};
use super::settings::{DAY, duration};
use super::{Output, string, strings};

/// From one check to the next: a backend that fails is noticed within some 15 seconds.
const INTERVAL: Duration = Duration::from_secs(5);
/// More often a check would be a load of its own.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Deadline of a check; half of the interval where that is shorter.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Checks that must pass, and fail, in a row: one that was lost changes nothing.
const RISE: u32 = 2;
const FALL: u32 = 3;
/// Certificates that live for 90 days are renewed 30 days before their end: this late something is wrong.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 86_400);
const EXPIRY_WARNING_MAX: Duration = Duration::from_secs(3650 * 86_400);
/// Codes that tell of a server that can answer.
const STATUS: std::ops::RangeInclusive<u16> = 200..=399;

/// Which checks a key is for.
const OF_TLS: [HealthWord; 2] = [HealthWord::Tls, HealthWord::Https];
const OF_HTTP: [HealthWord; 2] = [HealthWord::Http, HealthWord::Https];

/// How the backends of `prefix` (`route[app]`) are checked; `None` when they are not, or when what is written is wrong,
/// which is reported.
pub(super) fn resolve(
    prefix: &str,
    at: Option<&At<Either<HealthWord, Health>>>,
    backend: Option<&BackendTls>,
    out: &mut Output,
) -> Option<HealthConfig> {
    let key = format!("{prefix}.health");
    let (word, table) = match at.map(|at| &at.value) {
        None => (Some((HealthWord::Off, None)), None),
        Some(Either::Short(word)) => (Some((*word, at.map(|at| &at.place))), None),
        Some(Either::Table(table)) => {
            (table.check.given().map(|at| (at.value, Some(&at.place))), Some(table))
        }
    };
    let (word, place) = word?;
    if let Some(table) = table {
        check_keys(word, place, table, out);
    }
    if word == HealthWord::Off {
        out.note(key, string("off"), place);
        return None;
    }
    out.note(format!("{key}.check"), string(word.as_str()), place);
    let (interval, timeout) = times(&key, table, out);
    let rise = count(&format!("{key}.rise"), table.and_then(|table| table.rise.given()), RISE, out);
    let fall = count(&format!("{key}.fall"), table.and_then(|table| table.fall.given()), FALL, out);
    let port = table.and_then(|table| table.port.given());
    let port = port.and_then(|port| noted_port(&format!("{key}.port"), port.value.0, &port.place, out));
    let agent = table.and_then(|table| table.agent.given()).and_then(|agent| {
        let (number, place) = match &agent.value {
            Either::Short(port) => (port.0, &agent.place),
            Either::Table(table) => (table.port.given()?.value.0, &agent.place),
        };
        noted_port(&format!("{key}.agent"), number, place, out)
    });
    let header = table.and_then(|table| table.proxy_protocol.given());
    let proxy_protocol = header.and_then(|at| at.value.0);
    let text = proxy_protocol.map_or_else(|| string("off"), string);
    out.note(format!("{key}.proxy_protocol"), text, header.map(|at| &at.place));
    let mut tls = || tls(&key, table, backend, out);
    let check = match word {
        HealthWord::Off => return None,
        HealthWord::Tcp => Check::Tcp,
        HealthWord::Tls => Check::Tls(tls()?),
        HealthWord::Http => Check::Http(http(&key, table, out), None),
        HealthWord::Https => {
            let tls = tls()?;
            Check::Http(http(&key, table, out), Some(tls))
        }
        HealthWord::Postgres => Check::Postgres,
        HealthWord::Mysql => Check::Mysql,
        HealthWord::Redis => Check::Redis,
        HealthWord::Ssh => Check::Ssh,
        HealthWord::Smtp => Check::Smtp,
    };
    Some(HealthConfig { check, interval, timeout, rise, fall, port, agent, proxy_protocol })
}

/// Reports keys that say nothing to this check.
fn check_keys(word: HealthWord, place: Option<&Place>, table: &Health, out: &mut Output) {
    let keys = [
        ("sni", table.sni.place(), OF_TLS),
        ("verify", table.verify.place(), OF_TLS),
        ("expiry_warning", table.expiry_warning.place(), OF_TLS),
        ("path", table.path.place(), OF_HTTP),
        ("host", table.host.place(), OF_HTTP),
        ("status", table.status.place(), OF_HTTP),
        ("body", table.body.place(), OF_HTTP),
    ];
    for (key, at, checks) in keys {
        let Some(at) = at.filter(|_| !checks.contains(&word)) else { continue };
        let message = format!("a check of `{}` has no `{key}`", word.as_str());
        let mut error = ConfigError::new(ErrorKind::Conflict, message).at(at);
        if let Some(place) = place {
            error = error.also(place, "`check` is here");
        }
        let names = list(checks.iter().map(|check| check.as_str()));
        out.report(error.hint(format!("`{key}` is for {names}: change `check`, or remove `{key}`")));
    }
    if let (HealthWord::Off, Some(agent)) = (word, table.agent.place()) {
        let error = ConfigError::new(ErrorKind::Conflict, "an agent is asked beside a check").at(agent);
        out.report(error.hint("write `check = \"tcp\"`, or remove `agent`"));
    }
}

/// Interval and timeout.
fn times(key: &str, table: Option<&Health>, out: &mut Output) -> (Duration, Duration) {
    let given = table.and_then(|table| table.interval.given());
    let interval = duration(&format!("{key}.interval"), given, INTERVAL, DAY, out);
    let bad = given.filter(|_| !interval.is_zero() && interval < INTERVAL_MIN);
    if let Some(at) = bad {
        let message = format!("`{key}.interval` is below {}", duration_text(INTERVAL_MIN));
        out.report(ConfigError::new(ErrorKind::OutOfRange, message).at(&at.place));
    }
    let interval_at = given;
    let given = table.and_then(|table| table.timeout.given());
    let timeout = duration(&format!("{key}.timeout"), given, TIMEOUT.min(interval / 2), DAY, out);
    if let Some(at) = given
        && timeout >= interval
        && !interval.is_zero()
    {
        let message = format!(
            "a check may take {}, and the next one begins after {}",
            duration_text(timeout),
            duration_text(interval)
        );
        let mut error = ConfigError::new(ErrorKind::Conflict, message).at(&at.place);
        if let Some(interval) = interval_at {
            error = error.also(&interval.place, "`interval` is here");
        }
        out.report(error.hint("write a `timeout` below the `interval`"));
    }
    (interval, timeout)
}

fn count(key: &str, at: Option<&At<Whole<1, 100>>>, default: u32, out: &mut Output) -> u32 {
    let value = at.map_or(default, |at| at.value.0);
    out.note(key, value.to_string(), at.map(|at| &at.place));
    value
}

fn noted_port(key: &str, port: u32, place: &Place, out: &mut Output) -> Option<u16> {
    out.note(key, port.to_string(), Some(place));
    // The shape lets nothing else through.
    u16::try_from(port).ok()
}

fn http(key: &str, table: Option<&Health>, out: &mut Output) -> HttpCheck {
    let path = table.and_then(|table| table.path.given());
    let asked = path.map_or_else(|| PathAndQuery::from_static("/"), |at| at.value.0.clone());
    out.note(format!("{key}.path"), string(&asked), path.map(|at| &at.place));
    let host = table.and_then(|table| table.host.given());
    if let Some(host) = host {
        out.note(format!("{key}.host"), string(host.value.0.to_str().unwrap_or_default()), Some(&host.place));
    }
    let status = table.and_then(|table| table.status.given());
    let codes = status.map_or_else(
        || vec![STATUS],
        |at| at.value.0.iter().map(|range| range.value.0.clone()).collect::<Vec<_>>(),
    );
    let shown = codes.iter().map(|range| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    });
    out.note(format!("{key}.status"), strings(shown), status.map(|at| &at.place));
    let body = table.and_then(|table| table.body.given());
    if let Some(body) = body {
        out.note(format!("{key}.body"), string(&body.value.0), Some(&body.place));
    }
    HttpCheck {
        path: asked,
        host: host.map(|at| at.value.0.clone()),
        status: codes,
        body: body.map(|at| at.value.0.clone()),
    }
}

/// `None` when an error was reported.
fn tls(
    key: &str,
    table: Option<&Health>,
    backend: Option<&BackendTls>,
    out: &mut Output,
) -> Option<TlsCheck> {
    let sni = table.and_then(|table| table.sni.given());
    // What connections to backends with TLS go by, checks do too, unless they are told a name of their own.
    let backend = backend.filter(|_| sni.is_none());
    let name = sni.map(|at| &at.value).or_else(|| backend.and_then(|tls| tls.sni.as_ref()));
    if let Some(name) = name {
        out.note(format!("{key}.sni"), string(name.as_str()), sni.map(|at| &at.place));
    }
    let given = table.and_then(|table| table.verify.given());
    let verify = match given {
        None => Some(backend.filter(|tls| tls.sni.is_some()).map_or(Verify::Off, |tls| tls.verify.clone())),
        Some(at) => verify(at, out),
    };
    if let Some(verify) = &verify {
        out.note(format!("{key}.verify"), string(verify), given.map(|at| &at.place));
    }
    let bad = table.is_some_and(|table| table.sni.is_bad());
    if let Some(at) = given
        && name.is_none()
        && !bad
        && at.value != VerifyWord::Off
    {
        let message = "a certificate is verified for a name, and none is given";
        let error = ConfigError::new(ErrorKind::MissingKey, message).at(&at.place);
        out.report(error.hint("add `sni = \"app.example.com\"`"));
    }
    let warning = table.and_then(|table| table.expiry_warning.given());
    let key = format!("{key}.expiry_warning");
    let expiry_warning = duration(&key, warning, EXPIRY_WARNING, EXPIRY_WARNING_MAX, out);
    Some(TlsCheck { sni: name.cloned(), verify: verify?, expiry_warning })
}

/// Reads the certificates of the authorities; `None` when an error was reported.
pub(super) fn verify(at: &At<VerifyWord>, out: &mut Output) -> Option<Verify> {
    let file = match &at.value {
        VerifyWord::Off => return Some(Verify::Off),
        VerifyWord::System => None,
        VerifyWord::File(path) => Some(path.as_path()),
    };
    roots(file, &at.place, out).map(Verify::Roots)
}

/// The authorities of a file, or those of the system; `None` when an error was reported.
pub(super) fn roots(file: Option<&Path>, place: &Place, out: &mut Output) -> Option<Roots> {
    let certificates = match file {
        None => {
            let all = out.system.get_or_init(|| usable(rustls_native_certs::load_native_certs().certs));
            Ok(Arc::clone(all))
        }
        Some(path) => read(path).map(usable),
    };
    let (message, hint) = match certificates {
        Ok(certificates) if !certificates.is_empty() => {
            return Some(Roots { file: file.map(Arc::from), certificates });
        }
        Ok(_) if file.is_none() => (
            "this system has no certificates of authorities".to_owned(),
            "install them (`ca-certificates`), or write the path of a file of them",
        ),
        Ok(_) => {
            ("the file holds no certificate".to_owned(), "write the path of a file of certificates in PEM")
        }
        Err(error) => (
            format!("cannot read the certificates: {error}"),
            "write the path of a file of certificates in PEM",
        ),
    };
    out.report(ConfigError::new(ErrorKind::BadValue, message).at(place).hint(hint));
    None
}

/// What rustls does not understand it cannot trust; systems have some such.
fn usable(certificates: Vec<CertificateDer<'static>>) -> Arc<[CertificateDer<'static>]> {
    let good = |certificate: &CertificateDer<'_>| RootCertStore::empty().add(certificate.clone()).is_ok();
    certificates.into_iter().filter(good).collect()
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
    CertificateDer::pem_file_iter(path)?.collect()
}

#[cfg(test)]
mod tests;
