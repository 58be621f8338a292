//! What is asked of requests, whatever becomes of them.

use std::time::Duration;

use http::Method;

use super::super::super::decode::{At, Either, OneOrMany, Setting};
use super::super::super::error::{ConfigError, ErrorKind};
use super::super::super::http_values::{FieldName, MethodName, SplitWord};
use super::super::super::policy_keys::{Cors, OriginName, PolicyKeys, RequestRate};
use super::super::super::units::Rate;
use super::super::super::{CorsConfig, PoliciesOfRequests, RateLimit, RequestRateConfig, SplitKey};
use super::super::settings::{DAY, duration};
use super::super::{Output, string, strings};
use super::action::switch;
use super::proxy::sticky_by;

/// How long a browser may remember what it was told.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// `None` when an error was reported.
pub(super) fn resolve(prefix: &str, keys: &PolicyKeys<'_>, out: &mut Output) -> Option<PoliciesOfRequests> {
    if keys.any_bad() {
        return None;
    }
    let rate = match keys.request_rate.given() {
        Some(at) => Some(rate(prefix, at, out)?),
        None => None,
    };
    let cors = match keys.cors.given() {
        Some(at) => Some(cors(prefix, at, out)?),
        None => None,
    };
    let security_headers = switch(prefix, "security_headers", keys.security_headers.given(), out);
    Some(PoliciesOfRequests { rate, cors, security_headers })
}

fn rate(prefix: &str, at: &At<Either<Rate, RequestRate>>, out: &mut Output) -> Option<RequestRateConfig> {
    let (rate, burst, per) = match &at.value {
        Either::Short(rate) => (*rate, None, (SplitKey::Source, string("source"))),
        Either::Table(table) => {
            if table.rate.is_bad() || table.burst.is_bad() || table.per.is_bad() {
                return None;
            }
            let per = match table.per.given().map(|at| (&at.value, &at.place)) {
                None => (SplitKey::Source, string("source")),
                Some((Either::Short(SplitWord(key)), _)) => (key.clone(), string("source")),
                Some((Either::Table(by), place)) => sticky_by(by, place, out)?,
            };
            (table.rate.given()?.value, table.burst.given(), per)
        }
    };
    let (per, text) = per;
    let limit = RateLimit { rate, burst: burst.map_or(rate.count, |burst| burst.value.0) };
    let prefix = format!("{prefix}.request_rate");
    out.note(format!("{prefix}.rate"), string(rate), Some(&at.place));
    out.note(format!("{prefix}.burst"), limit.burst.to_string(), burst.map(|at| &at.place));
    out.note(format!("{prefix}.per"), text, Some(&at.place));
    Some(RequestRateConfig { limit, per })
}

fn cors(prefix: &str, at: &At<Either<OriginName, Cors>>, out: &mut Output) -> Option<CorsConfig> {
    let prefix = format!("{prefix}.cors");
    let table = match &at.value {
        Either::Short(origin) => {
            out.note(format!("{prefix}.origins"), string(&origin.0), Some(&at.place));
            return Some(CorsConfig { origins: vec![origin.0.clone()], ..CorsConfig::of(MAX_AGE) });
        }
        Either::Table(table) => table,
    };
    let any_bad = table.origins.is_bad()
        || table.methods.is_bad()
        || table.headers.is_bad()
        || table.expose.is_bad()
        || table.credentials.is_bad()
        || table.max_age.is_bad();
    if any_bad {
        return None;
    }
    let credentials = switch(&prefix, "credentials", table.credentials.given(), out);
    let origins: Vec<Box<str>> = table.origins.values().iter().map(|at| at.value.0.clone()).collect();
    if let (true, Some(any)) = (credentials, table.origins.values().iter().find(|at| *at.value.0 == *"*")) {
        let message = "cookies cannot be allowed for pages of any site";
        let error = ConfigError::new(ErrorKind::Conflict, message).at(&any.place);
        out.report(error.hint("write the origins that may send them, or remove `credentials`"));
        return None;
    }
    out.note(format!("{prefix}.origins"), strings(origins.iter()), table.origins.place());
    let methods = named(&prefix, "methods", &table.methods, |method: &MethodName| method.0.clone(), out);
    let headers = named(&prefix, "headers", &table.headers, |name: &FieldName| name.0.clone(), out);
    let expose = named(&prefix, "expose", &table.expose, |name: &FieldName| name.0.clone(), out);
    let max_age = duration(&format!("{prefix}.max_age"), table.max_age.given(), MAX_AGE, DAY, out);
    let usual = vec![Method::GET, Method::HEAD, Method::POST];
    let methods = if methods.is_empty() { usual } else { methods };
    Some(CorsConfig { origins, methods, headers, expose, credentials, max_age })
}

/// The values of a list, which is noted where it is written.
fn named<T, V: AsRef<str>>(
    prefix: &str,
    key: &str,
    setting: &Setting<OneOrMany<T>>,
    value: impl Fn(&T) -> V,
    out: &mut Output,
) -> Vec<V> {
    let values: Vec<V> = setting.values().iter().map(|at| value(&at.value)).collect();
    if let Some(place) = setting.place() {
        out.note(format!("{prefix}.{key}"), strings(values.iter().map(AsRef::as_ref)), Some(place));
    }
    values
}
