//! What is asked of requests before anything becomes of them, and what browsers are told (CORS, security).

use std::time::{Duration, Instant};

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, REFERRER_POLICY, RETRY_AFTER,
    STRICT_TRANSPORT_SECURITY, VARY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::answer::Content;
use super::handle::Taken;
use super::target::Scheme;
use crate::config::CorsConfig;

/// What browsers are told where `security_headers` is on, unless the backend says something of it.
const SECURITY: [(HeaderName, HeaderValue); 3] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN")),
    (REFERRER_POLICY, HeaderValue::from_static("strict-origin-when-cross-origin")),
];
/// A year, which is what it takes to be listed by browsers (RFC 6797 §6.1).
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// What answers a request in place of what its rule says: it is one too many, or a browser that asks whether it may.
pub(super) fn before(taken: &Taken<'_>) -> Option<Content> {
    let policies = &taken.rule.policies;
    if let Some(cors) = &policies.cors
        && *taken.vars.method == Method::OPTIONS
        && let Some(method) = taken.vars.headers.get(ACCESS_CONTROL_REQUEST_METHOD)
        && taken.vars.headers.contains_key(ORIGIN)
    {
        return Some(preflight(cors, method, taken.vars.headers));
    }
    let limiter = taken.site.limiter(taken.index)?;
    let wait = limiter.check(taken.vars.headers, taken.vars.client, Instant::now()).err()?;
    let mut content = Content::page(
        StatusCode::TOO_MANY_REQUESTS,
        taken.vars.headers.get(http::header::ACCEPT),
        taken.vars.id,
    );
    content.headers.insert(RETRY_AFTER, seconds(wait).into());
    Some(content)
}

/// Whole seconds, at least one.
fn seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// What browsers are told by the head of every answer.
pub(super) fn after(taken: &Taken<'_>, headers: &mut HeaderMap) {
    let policies = &taken.rule.policies;
    if policies.security_headers {
        for (name, value) in SECURITY {
            headers.entry(name).or_insert(value);
        }
        if taken.vars.scheme == Scheme::Https {
            headers.entry(STRICT_TRANSPORT_SECURITY).or_insert(HSTS);
        }
    }
    if let Some(cors) = &policies.cors {
        allow_origin(cors, taken.vars.headers, headers);
        if !cors.expose.is_empty() {
            set_list(headers, ACCESS_CONTROL_EXPOSE_HEADERS, cors.expose.iter().map(HeaderName::as_str));
        }
    }
}

/// The answer to a browser that asks before it sends (Fetch, CORS-preflight).
fn preflight(cors: &CorsConfig, method: &HeaderValue, asked: &HeaderMap) -> Content {
    let mut content = Content::new(StatusCode::NO_CONTENT);
    let allowed = allow_origin(cors, asked, &mut content.headers);
    let known = cors.methods.iter().any(|known| known.as_str().as_bytes() == method.as_bytes());
    if !allowed || !known {
        return content;
    }
    set_list(&mut content.headers, ACCESS_CONTROL_ALLOW_METHODS, cors.methods.iter().map(Method::as_str));
    match (cors.headers.as_slice(), asked.get(ACCESS_CONTROL_REQUEST_HEADERS)) {
        ([], Some(asked)) => drop(content.headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone())),
        ([], None) => {}
        (names, _) => {
            set_list(
                &mut content.headers,
                ACCESS_CONTROL_ALLOW_HEADERS,
                names.iter().map(HeaderName::as_str),
            );
        }
    }
    content.headers.insert(ACCESS_CONTROL_MAX_AGE, cors.max_age.as_secs().into());
    content
}

/// Says whether pages of the origin that asks may see the answer.
fn allow_origin(cors: &CorsConfig, asked: &HeaderMap, headers: &mut HeaderMap) -> bool {
    // What a backend says of it would be a second word.
    headers.remove(ACCESS_CONTROL_ALLOW_ORIGIN);
    headers.remove(ACCESS_CONTROL_ALLOW_CREDENTIALS);
    if cors.origins.iter().any(|origin| **origin == *"*") {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        return true;
    }
    headers.append(VARY, HeaderValue::from_static("origin"));
    let Some(origin) = asked.get(ORIGIN) else { return false };
    let known = cors.origins.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(origin.as_bytes()));
    if known {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if cors.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
    known
}

fn set_list<'a>(headers: &mut HeaderMap, name: HeaderName, values: impl Iterator<Item = &'a str>) {
    // Names of methods and fields can stand in a field.
    if let Ok(value) = HeaderValue::try_from(values.collect::<Vec<_>>().join(", ")) {
        headers.insert(name, value);
    }
}
