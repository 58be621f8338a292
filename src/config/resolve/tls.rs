//! TLS that ends here: what routes say of it, and where certificates are from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use super::super::decode::{At, Either, OneOrMany, Setting};
use super::super::error::{ConfigError, ErrorKind};
use super::super::file::Route;
use super::super::source::Place;
use super::super::tls_keys::{
    CertificatePair, CertificatePath, CertificatesFrom, ClientAuth as ClientAuthTable, Issuer, Preset, Tls,
};
use super::super::values::SniWord;
use super::super::{
    CertificateSource, CertificateStore, CipherSuite, ClientAuth, ClientAuthMode, Group, RouteKey, Sandbox,
    TlsPolicy, TlsVersion,
};
use super::acme::{self, Ordered};
use super::{Input, Output, inner, string, strings};
use crate::peek::Protocol;

/// The versions of HTTP, the better one first.
const HTTP: [&str; 2] = ["h2", "http/1.1"];

/// What all routes with `tls` have in common.
pub(super) struct Shared {
    /// The certificates at the top of the file; `None` when there are none.
    files: Option<Arc<[CertificateSource]>>,
    /// Whether that is because what is there is wrong.
    bad: bool,
    state: Option<PathBuf>,
    /// The authority that certificates are ordered from.
    pub(super) acme: Ordered,
}

impl Shared {
    pub(super) fn resolve(input: &Input, sandbox: Sandbox, out: &mut Output) -> Self {
        let at = input.once("certificates", |file| &file.certificates, out);
        let files = at.and_then(|at| sources(&at.value));
        if let Some((files, place)) = files.as_ref().zip(at.map(|at| &at.place)) {
            out.note("certificates", strings(files.iter()), Some(place));
        }
        let state = input.once("state", |file| &file.state, out);
        if let Some(at) = state {
            out.note("state", string(at.value.0.display()), Some(&at.place));
        }
        let bad = input.incomplete || input.files.iter().any(|file| !file.certificates.is_absent());
        let state = state.map(|at| at.value.0.clone());
        let acme = acme::resolve(input, state.as_deref(), sandbox, out);
        Self { bad: bad && files.is_none(), files, state, acme }
    }
}

/// What is known of a route beside its `tls`.
pub(super) struct Known<'a> {
    pub(super) keys: &'a [(RouteKey, Place)],
    /// What is spoken inside TLS, where that is said.
    pub(super) inside: Option<&'a [Protocol]>,
    /// Whether that is HTTP, which ends here, too.
    pub(super) http: bool,
}

/// The rules of a route that ends TLS; `Some(None)` for one that does not, `None` when an error was reported.
pub(super) fn resolve(
    name: &str,
    route: &Route,
    known: &Known<'_>,
    shared: &Shared,
    out: &mut Output,
) -> Option<Option<TlsPolicy>> {
    let Known { keys, inside, .. } = *known;
    let at = match &route.tls {
        Setting::Absent => return Some(None),
        Setting::Bad(_) => return None,
        Setting::Given(at) => at,
    };
    if !is_of_tls(keys, &at.place, out) || !can_begin_inside(route, inside, &at.place, out) {
        return None;
    }
    let table = match &at.value {
        Either::Table(table) => Some(table),
        Either::Short(_) => None,
    };
    if table.is_some_and(any_bad) {
        return None;
    }
    let certificates = store(name, at, keys, shared, out)?;
    let preset = inner(Some(at), |table| &table.policy);
    let modern = preset.is_some_and(|at| at.value == Preset::Modern);
    let text = if modern { "modern" } else { "intermediate" };
    out.note(format!("route[{name}].tls.policy"), string(text), preset.map(|at| &at.place));
    let min_version = min_version(name, at, modern, out)?;
    let client_auth = match table.and_then(|table| table.client_auth.given()) {
        Some(at) => Some(client_auth(name, at, out)?),
        None => None,
    };
    let resumption = inner(Some(at), |table| &table.resumption);
    let resumes = resumption.is_none_or(|at| at.value);
    out.note(format!("route[{name}].tls.resumption"), resumes.to_string(), resumption.map(|at| &at.place));
    Some(Some(TlsPolicy {
        certificates,
        min_version,
        suites: suites(name, at, min_version, out)?,
        groups: groups(name, at, out),
        alpn: alpn(name, route, at, known, out),
        resumption: resumes,
        client_auth,
    }))
}

/// Only TLS can end here.
fn is_of_tls(keys: &[(RouteKey, Place)], tls: &Place, out: &mut Output) -> bool {
    let other = keys.iter().find(|(key, _)| !matches!(key, RouteKey::Sni(_) | RouteKey::NoSni));
    let Some((key, place)) = other else { return true };
    let message = format!("only TLS can end here, and the route matches `{key}`");
    let error = ConfigError::new(ErrorKind::Conflict, message).at(tls).also(place, "matched here");
    out.report(error.hint("add `sni`, or remove `tls`"));
    false
}

/// Where TLS begins within a protocol, the rest of that must begin as if TLS had not been.
fn can_begin_inside(route: &Route, inside: Option<&[Protocol]>, tls: &Place, out: &mut Output) -> bool {
    let starttls = route.starttls.given().map(|at| at.value);
    // After TLS has begun, clients of these begin anew; servers of the others would greet them twice.
    let anew = |protocol: &Protocol| {
        matches!(protocol, Protocol::Postgres | Protocol::Ldap | Protocol::Xmpp) || !protocol.has_starttls()
    };
    let other = inside.unwrap_or_default().iter().find(|protocol| !anew(protocol));
    let Some(protocol) = other.filter(|_| starttls != Some(false)) else { return true };
    let message = format!("TLS that begins within {protocol} cannot end here yet");
    let error = ConfigError::new(ErrorKind::Conflict, message).at(tls);
    out.report(if protocol.is_spoken_in_tls() {
        error.hint("add `starttls = false` for clients whose TLS is there from the first byte")
    } else {
        error.hint("remove `tls`: the stream is then passed through as it is")
    });
    false
}

fn any_bad(table: &Tls) -> bool {
    table.certificates.is_bad()
        || table.issuer.is_bad()
        || table.policy.is_bad()
        || table.min_version.is_bad()
        || table.cipher_suites.is_bad()
        || table.groups.is_bad()
        || table.alpn.is_bad()
        || table.resumption.is_bad()
        || table.client_auth.is_bad()
}

fn store(
    name: &str,
    at: &At<Either<CertificatesFrom, Tls>>,
    keys: &[(RouteKey, Place)],
    shared: &Shared,
    out: &mut Output,
) -> Option<CertificateStore> {
    let key = format!("route[{name}].tls.certificates");
    let own = inner(Some(at), |table| &table.certificates);
    let issuer = inner(Some(at), |table| &table.issuer);
    let made = match &at.value {
        Either::Short(CertificatesFrom::Files) => None,
        Either::Short(CertificatesFrom::SelfSigned) => Some(Issuer::SelfSigned),
        Either::Short(CertificatesFrom::Acme) => Some(Issuer::Acme),
        Either::Table(_) => issuer.map(|at| at.value),
    };
    if let (Some(own), Some(issuer)) = (own, issuer) {
        let message = "certificates are either from files or made here, not both";
        let error = ConfigError::new(ErrorKind::Conflict, message).at(&issuer.place);
        out.report(error.also(&own.place, "`certificates` is here").hint("remove one of the two"));
        return None;
    }
    let place = issuer.map_or(&at.place, |issuer| &issuer.place);
    match made {
        Some(Issuer::SelfSigned) => {
            out.note(key, string("self-signed"), Some(place));
            return Some(CertificateStore::SelfSigned(shared.state.clone()));
        }
        Some(Issuer::Acme) => {
            out.note(key, string("acme"), Some(place));
            return shared.acme.store(keys, place, out);
        }
        None => {}
    }
    if let Some(own) = own {
        let files = sources(&own.value)?;
        out.note(key, strings(files.iter()), Some(&own.place));
        return Some(CertificateStore::Files(files));
    }
    if shared.files.is_none() && !shared.bad {
        let message = "there are no certificates";
        let error = ConfigError::new(ErrorKind::MissingKey, message).at(&at.place);
        out.report(error.hint(
            "write `certificates = \"/etc/portcullis/certs\"` at the top of the file, or `tls = \"self-signed\"` while trying things out",
        ));
    }
    shared.files.clone().map(CertificateStore::Files)
}

/// The files and folders; what is in them is for who serves with them to find out.
fn sources(values: &OneOrMany<Either<CertificatePath, CertificatePair>>) -> Option<Arc<[CertificateSource]>> {
    let source = |at: &At<Either<CertificatePath, CertificatePair>>| match &at.value {
        Either::Short(path) => Some(CertificateSource::Path(beside(path, &at.place))),
        Either::Table(pair) => {
            let path = |at: &At<CertificatePath>| beside(&at.value, &at.place);
            let (certificate, key) = (path(pair.certificate.given()?), path(pair.key.given()?));
            Some(CertificateSource::Pair { certificate, key })
        }
    };
    values.0.iter().map(source).collect()
}

/// The path, of the folder of the file that it is written in.
pub(super) fn beside(path: &CertificatePath, place: &Place) -> PathBuf {
    place.file().name().parent().unwrap_or(Path::new("")).join(&path.0)
}

fn min_version(
    name: &str,
    at: &At<Either<CertificatesFrom, Tls>>,
    modern: bool,
    out: &mut Output,
) -> Option<TlsVersion> {
    let given = inner(Some(at), |table| &table.min_version);
    let preset = if modern { TlsVersion::V13 } else { TlsVersion::V12 };
    let version = given.map_or(preset, |at| at.value);
    out.note(format!("route[{name}].tls.min_version"), string(version), given.map(|at| &at.place));
    if let Some(at) = given.filter(|at| modern && at.value < TlsVersion::V13) {
        let message = "`modern` has TLS 1.3 alone";
        let error = ConfigError::new(ErrorKind::Conflict, message).at(&at.place);
        out.report(error.hint("write `policy = \"intermediate\"`, or remove `min_version`"));
        return None;
    }
    Some(version)
}

fn suites(
    name: &str,
    at: &At<Either<CertificatesFrom, Tls>>,
    min_version: TlsVersion,
    out: &mut Output,
) -> Option<Vec<CipherSuite>> {
    let given = inner(Some(at), |table| &table.cipher_suites);
    let of_versions = |suite: &CipherSuite| suite.version() >= min_version;
    let suites: Vec<_> = match given {
        Some(at) => {
            out.check_repeated(&at.value.0, ToString::to_string);
            at.value.0.iter().map(|at| at.value).filter(of_versions).collect()
        }
        None => CipherSuite::ALL.iter().copied().filter(of_versions).collect(),
    };
    out.note(format!("route[{name}].tls.cipher_suites"), strings(suites.iter()), given.map(|at| &at.place));
    let lacking = |version| suites.iter().all(|suite| suite.version() != version);
    let (version, place) = match given {
        Some(at) if lacking(TlsVersion::V13) => (TlsVersion::V13, &at.place),
        Some(at) if min_version == TlsVersion::V12 && lacking(TlsVersion::V12) => {
            (TlsVersion::V12, &at.place)
        }
        _ => return Some(suites),
    };
    let message = format!("none of the suites is of TLS {version}");
    let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
    out.report(error.hint(match version {
        TlsVersion::V13 => "add `\"TLS_AES_128_GCM_SHA256\"`",
        TlsVersion::V12 => {
            "add one such as `\"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256\"`, or `min_version = \"1.3\"`"
        }
    }));
    None
}

fn groups(name: &str, at: &At<Either<CertificatesFrom, Tls>>, out: &mut Output) -> Vec<Group> {
    let given = inner(Some(at), |table| &table.groups);
    let groups: Vec<_> = match given {
        Some(at) => {
            out.check_repeated(&at.value.0, ToString::to_string);
            at.value.0.iter().map(|at| at.value).collect()
        }
        None => vec![Group::X25519Mlkem768, Group::X25519, Group::Secp256r1, Group::Secp384r1],
    };
    out.note(format!("route[{name}].tls.groups"), strings(groups.iter()), given.map(|at| &at.place));
    groups
}

/// What is written, or what the route takes anyhow.
fn alpn(
    name: &str,
    route: &Route,
    at: &At<Either<CertificatesFrom, Tls>>,
    known: &Known<'_>,
    out: &mut Output,
) -> Vec<Box<[u8]>> {
    let given = inner(Some(at), |table| &table.alpn).or_else(|| route.alpn.given());
    let names: Vec<Box<[u8]>> = match given {
        Some(at) => {
            out.check_repeated(&at.value.0, |name| String::from_utf8_lossy(&name.0).into_owned());
            at.value.0.iter().map(|at| at.value.0.clone()).collect()
        }
        None if known.http => HTTP.map(|name| name.as_bytes().into()).into(),
        None => {
            let of = known.inside.unwrap_or_default().iter().flat_map(|protocol| protocol.alpn_names());
            of.map(|name| (*name).into()).collect()
        }
    };
    let texts = names.iter().map(|name| String::from_utf8_lossy(name).into_owned());
    out.note(format!("route[{name}].tls.alpn"), strings(texts), given.map(|at| &at.place));
    names
}

fn client_auth(
    name: &str,
    at: &At<Either<CertificatePath, ClientAuthTable>>,
    out: &mut Output,
) -> Option<ClientAuth> {
    let prefix = format!("route[{name}].tls.client_auth");
    let short;
    let (authorities, table) = match &at.value {
        Either::Short(path) => {
            short = [At { value: path.clone(), place: at.place.clone() }];
            (&short[..], None)
        }
        Either::Table(table) => (table.ca.values(), Some(table)),
    };
    let bad = |table: &ClientAuthTable| {
        table.ca.is_bad()
            || table.mode.is_bad()
            || table.crl.is_bad()
            || table.names.is_bad()
            || table.common_names.is_bad()
    };
    if authorities.is_empty() || table.is_some_and(bad) {
        return None;
    }
    out.note(format!("{prefix}.ca"), strings(authorities.iter().map(|at| &at.value.0)), Some(&at.place));
    let authorities = pem_files::<CertificateDer<'static>>(authorities, "certificate", out);
    let mode = table.and_then(|table| table.mode.given());
    let required = mode.is_none_or(|at| at.value == ClientAuthMode::Required);
    let word = if required { "required" } else { "optional" };
    out.note(format!("{prefix}.mode"), string(word), mode.map(|at| &at.place));
    let lists = table.map_or(&[][..], |table| table.crl.values());
    let revoked = pem_files::<CertificateRevocationListDer<'static>>(lists, "list of certificates", out);
    Some(ClientAuth {
        mode: if required { ClientAuthMode::Required } else { ClientAuthMode::Optional },
        authorities: authorities?.into(),
        revoked: revoked?.into(),
        names: client_names(table.map(|table| &table.names), out)?,
        common_names: table
            .and_then(|table| table.common_names.given())
            .map(|at| at.value.0.iter().map(|at| at.value.as_str().into()).collect()),
    })
}

/// `Some(None)` when nothing is said.
#[expect(clippy::option_option, reason = "that nothing is said, and that what is said is wrong")]
fn client_names(
    names: Option<&Setting<OneOrMany<SniWord>>>,
    out: &mut Output,
) -> Option<Option<Vec<super::super::NamePattern>>> {
    let Some(names) = names.and_then(Setting::given) else { return Some(None) };
    let mut all = Vec::new();
    for at in &names.value.0 {
        match &at.value {
            SniWord::Name(pattern) => all.push(pattern.clone()),
            SniWord::None => {
                let message = "`none` is no name of a certificate";
                let error = ConfigError::new(ErrorKind::BadName, message).at(&at.place);
                out.report(error.hint("write `mode = \"optional\"` for clients without a certificate"));
                return None;
            }
        }
    }
    Some(Some(all))
}

/// All that is in the files.
fn pem_files<T: PemObject>(paths: &[At<CertificatePath>], what: &str, out: &mut Output) -> Option<Vec<T>> {
    let mut all = Vec::new();
    let mut good = true;
    for at in paths {
        let path = beside(&at.value, &at.place);
        let read: Result<Vec<T>, pem::Error> = T::pem_file_iter(&path).and_then(Iterator::collect);
        let message = match read {
            Ok(items) if items.is_empty() => format!("there is no {what} in `{}`", path.display()),
            Ok(items) => {
                all.extend(items);
                continue;
            }
            Err(error) => format!("cannot read `{}`: {error}", path.display()),
        };
        good = false;
        let error = ConfigError::new(ErrorKind::BadValue, message).at(&at.place);
        out.report(error.hint("write the path of a file in PEM, relative to the folder of this file"));
    }
    good.then_some(all)
}
