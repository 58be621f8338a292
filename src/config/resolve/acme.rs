//! Certificates from an authority: which one, how, and for which names.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::super::acme_keys::{Acme, Challenge, ExternalAccount as ExternalAccountTable, LETS_ENCRYPT};
use super::super::decode::{At, Either};
use super::super::error::{ConfigError, ErrorKind};
use super::super::source::Place;
use super::super::units::duration_text;
use super::super::{
    AcmeChallenge, AcmeConfig, ActionConfig, CertificateStore, ExternalAccount, NamePattern, RouteConfig,
    RouteKey, Sandbox,
};
use super::settings::duration;
use super::{Input, Output, admin, health, inner, string, strings, tls};
use crate::peek::Protocol;

/// Where the account and certificates are unless the configuration says otherwise; systemd makes it (`StateDirectory=`).
const STATE: &str = "/var/lib/portcullis";
/// Beyond it, it is a slip of the unit: authorities of the public issue for 398 days, and less each year.
const RENEW_BEFORE_MAX: Duration = Duration::from_secs(365 * 86_400);
/// So late an authority that is down for a day leaves no time.
const RENEW_BEFORE_MIN: Duration = Duration::from_secs(1);
/// What the hellos of authorities offer (RFC 8737 §4).
const ALPN: &[u8] = b"acme-tls/1";

/// What routes need to know of it.
pub(super) struct Ordered {
    /// What there is so far; `None` when there is nothing, or what there is is wrong.
    config: Option<AcmeConfig>,
    /// Whether that is because what is there is wrong.
    bad: bool,
    challenge: Option<(Challenge, Place)>,
}

/// Resolves what is said once; [`Ordered::finish`] adds the names.
pub(super) fn resolve(input: &Input, state: Option<&Path>, sandbox: Sandbox, out: &mut Output) -> Ordered {
    let at = input.once("acme", |file| &file.acme, out);
    let table = match at.map(|at| &at.value) {
        Some(Either::Table(table)) => Some(table),
        Some(Either::Short(_)) | None => None,
    };
    let challenge = table.and_then(|table| table.challenge.given()).map(|at| (at.value, at.place.clone()));
    let config = at.filter(|_| !table.is_some_and(any_bad)).and_then(|at| one(at, state, sandbox, out));
    let written = input.incomplete || input.files.iter().any(|file| !file.acme.is_absent());
    Ordered { bad: written && config.is_none(), config, challenge }
}

fn any_bad(table: &Acme) -> bool {
    table.email.is_bad()
        || table.directory.is_bad()
        || table.ca.is_bad()
        || table.challenge.is_bad()
        || table.dns_hook.is_bad()
        || table.eab.is_bad()
        || table.renew_before.is_bad()
}

fn one(
    at: &At<Either<super::super::acme_keys::Email, Acme>>,
    state: Option<&Path>,
    sandbox: Sandbox,
    out: &mut Output,
) -> Option<AcmeConfig> {
    let (emails, email_place): (Vec<&str>, _) = match &at.value {
        Either::Short(email) => (vec![&email.0], Some(&at.place)),
        Either::Table(table) => {
            (table.email.values().iter().map(|at| at.value.0.as_str()).collect(), table.email.place())
        }
    };
    if let Some(place) = email_place {
        out.note("acme.email", strings(emails.iter()), Some(place));
    }
    let directory = inner(Some(at), |table| &table.directory);
    let url = directory.map_or(LETS_ENCRYPT, |at| &at.value.0);
    out.note("acme.directory", string(url), directory.map(|at| &at.place));
    let ca = inner(Some(at), |table| &table.ca);
    let file = ca.map(|at| tls::beside(&at.value, &at.place));
    out.note(
        "acme.ca",
        string(file.as_deref().map_or("system".into(), Path::to_string_lossy)),
        ca.map(|at| &at.place),
    );
    let roots = health::roots(file.as_deref(), ca.map_or(&at.place, |at| &at.place), out);
    let challenge = challenge(at, sandbox, out);
    let eab = inner(Some(at), |table| &table.eab);
    let external_account = eab.map(|at| external_account(at, out));
    let renew_before = inner(Some(at), |table| &table.renew_before);
    let renew_before = renew_before.map(|at| renewed_before(at, out));
    if state.is_none() {
        out.note("state", string(STATE), None);
    }
    Some(AcmeConfig {
        directory: url.into(),
        contacts: emails.iter().map(|email| format!("mailto:{email}").into()).collect(),
        roots: roots?,
        challenge: challenge?,
        external_account: match external_account {
            Some(account) => Some(account?),
            None => None,
        },
        renew_before,
        state: state.map_or_else(|| PathBuf::from(STATE), Path::to_owned),
        names: Vec::new(),
    })
}

fn renewed_before(at: &At<Duration>, out: &mut Output) -> Duration {
    let value = duration("acme.renew_before", Some(at), RENEW_BEFORE_MIN, RENEW_BEFORE_MAX, out);
    if value < RENEW_BEFORE_MIN && !value.is_zero() {
        let message = format!("`acme.renew_before` is below {}", duration_text(RENEW_BEFORE_MIN));
        out.report(ConfigError::new(ErrorKind::OutOfRange, message).at(&at.place));
    }
    value
}

fn challenge(
    at: &At<Either<super::super::acme_keys::Email, Acme>>,
    sandbox: Sandbox,
    out: &mut Output,
) -> Option<AcmeChallenge> {
    let word = inner(Some(at), |table| &table.challenge);
    let hook = inner(Some(at), |table| &table.dns_hook);
    let challenge = match (word.map(|at| at.value), hook) {
        (Some(Challenge::Dns), Some(hook)) => AcmeChallenge::Dns01(hook.value.0.clone()),
        (Some(Challenge::Dns), None) => {
            let error =
                ConfigError::new(ErrorKind::MissingKey, "`dns-01` needs a command that publishes records");
            let error = error.at(word.map_or(&at.place, |at| &at.place));
            out.report(error.hint(
                "add `dns_hook = \"/etc/portcullis/dns-hook\"`, called as `HOOK set|clear NAME VALUE`",
            ));
            return None;
        }
        (word, None) => match word {
            Some(Challenge::Http) => AcmeChallenge::Http01,
            _ => AcmeChallenge::TlsAlpn01,
        },
        (_, Some(hook)) => {
            let error = ConfigError::new(ErrorKind::Conflict, "`dns_hook` is only called for `dns-01`");
            out.report(error.at(&hook.place).hint("add `challenge = \"dns-01\"`, or remove `dns_hook`"));
            return None;
        }
    };
    out.note("acme.challenge", string(&challenge), word.map(|at| &at.place));
    if let (AcmeChallenge::Dns01(path), Some(hook)) = (&challenge, hook) {
        out.note("acme.dns_hook", string(path.display()), Some(&hook.place));
        if sandbox == Sandbox::Landlock {
            let error = ConfigError::new(ErrorKind::Conflict, "in the sandbox no command can be started");
            out.report(error.at(&hook.place).hint("remove `sandbox = \"landlock\"`, or use `tls-alpn-01`"));
            return None;
        }
    }
    Some(challenge)
}

fn external_account(at: &At<ExternalAccountTable>, out: &mut Output) -> Option<ExternalAccount> {
    let (kid, hmac) = (at.value.kid.given()?, at.value.hmac.given()?);
    out.note("acme.eab.kid", string(&kid.value), Some(&kid.place));
    let hmac = admin::secret("acme.eab.hmac", hmac, out)?;
    Some(ExternalAccount { kid: kid.value.as_str().into(), hmac })
}

impl Ordered {
    /// Where the certificates of a route are kept that wants such, which is written at `place`; `None` when an error was reported.
    pub(super) fn store(
        &self,
        keys: &[(RouteKey, Place)],
        place: &Place,
        out: &mut Output,
    ) -> Option<CertificateStore> {
        if self.config.is_none() && !self.bad {
            let error = ConfigError::new(ErrorKind::MissingKey, "nothing is said of the authority");
            out.report(error.at(place).hint(
                "write `acme = \"you@example.com\"` at the top of the file: certificates are then from Let's Encrypt, \
                 whose terms you agree to by that",
            ));
        }
        let mut good = true;
        for (key, key_place) in keys {
            good &= self.can_order(key, key_place, out);
        }
        if good && !keys.iter().any(|(key, _)| name(key).is_some()) {
            let error = ConfigError::new(
                ErrorKind::Conflict,
                "the route has no name that a certificate could be for",
            );
            out.report(error.at(place).hint("add `sni = \"app.example.com\"`"));
            good = false;
        }
        let config = self.config.as_ref()?;
        good.then(|| CertificateStore::Acme(config.certificates()))
    }

    fn can_order(&self, key: &RouteKey, place: &Place, out: &mut Output) -> bool {
        let (message, hint) = match key {
            RouteKey::Sni(NamePattern::Suffix(_))
                if self.challenge.as_ref().is_none_or(|(word, _)| *word != Challenge::Dns) =>
            {
                (
                    format!("`{key}` takes a wildcard certificate, which is only issued by `dns-01`"),
                    "write the names one by one, or `acme = { challenge = \"dns-01\", dns_hook = … }`",
                )
            }
            RouteKey::Sni(NamePattern::Regex(_) | NamePattern::Any) => {
                (format!("`{key}` is no name that a certificate could be for"), "write the names one by one")
            }
            _ => return true,
        };
        // Of what is wrong nothing is concluded.
        if self.bad {
            return false;
        }
        out.report(ConfigError::new(ErrorKind::Conflict, message).at(place).hint(hint));
        false
    }

    /// Adds the names of the routes.
    pub(super) fn finish(
        self,
        routes: &[RouteConfig],
        complete: bool,
        out: &mut Output,
    ) -> Option<AcmeConfig> {
        let mut config = self.config?;
        let mut seen = HashSet::new();
        let wanted = routes.iter().filter(|route| is_acme(&route.action)).flat_map(|route| &route.keys);
        config.names =
            wanted.filter_map(name).filter(|name| seen.insert(name.clone())).map(Arc::from).collect();
        if config.challenge == AcmeChallenge::Http01
            && !config.names.is_empty()
            && complete
            && !takes_http(routes)
        {
            let message = "with `http-01` the authority asks in clear, and no route takes HTTP";
            let error = ConfigError::new(ErrorKind::Conflict, message);
            let error = match &self.challenge {
                Some((_, place)) => error.at(place),
                None => error,
            };
            out.report(error.hint(
                "listen on port 80 too, and add a `[[route]]` with `protocol = \"http\"` and `redirect = \"https\"`",
            ));
        }
        Some(config)
    }
}

/// What clients must offer of which a route takes those, and authorities beside them that look whether its names are ours.
pub(super) fn with_challenges(alpn: Option<Vec<Box<[u8]>>>, action: &ActionConfig) -> Option<Vec<Box<[u8]>>> {
    let mut alpn = alpn?;
    if is_acme(action) && !alpn.iter().any(|name| **name == *ALPN) {
        alpn.push(ALPN.into());
    }
    Some(alpn)
}

fn is_acme(action: &ActionConfig) -> bool {
    action.tls().is_some_and(|tls| matches!(tls.certificates, CertificateStore::Acme(_)))
}

/// Whether a route answers what authorities ask for in clear.
fn takes_http(routes: &[RouteConfig]) -> bool {
    let http = |route: &RouteConfig| {
        route.keys.iter().any(|key| matches!(key, RouteKey::Protocol(Protocol::Http) | RouteKey::Anything))
    };
    let answers = |route: &RouteConfig| match &route.action {
        ActionConfig::Redirect => true,
        ActionConfig::Http(config) => config.tls.is_none(),
        ActionConfig::Passthrough(_) | ActionConfig::Terminate(_) | ActionConfig::Reject(_) => false,
    };
    routes.iter().any(|route| answers(route) && http(route))
}

/// The name of a certificate for it.
fn name(key: &RouteKey) -> Option<String> {
    match key {
        RouteKey::Sni(NamePattern::Exact(name)) => Some(name.as_str().to_owned()),
        RouteKey::Sni(NamePattern::Suffix(suffix)) => Some(format!("*.{}", suffix.as_str())),
        _ => None,
    }
}
