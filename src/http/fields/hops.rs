//! Fields that are for one connection.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::FieldError;

const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Fields that are for one connection, whether `Connection` names them or not.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Fields that `Connection` cannot take out: without them a message means something else, or says less of its client.
/// RFC 9110 §7.6.1 has no sender name those that are for all recipients.
const LASTING: [&str; 44] = [
    "age",
    "allow",
    "alt-svc",
    "authentication-info",
    "authorization",
    "baggage",
    "cache-control",
    "cdn-loop",
    "clear-site-data",
    "cookie",
    "date",
    "etag",
    "expect",
    "expires",
    "forwarded",
    "from",
    "host",
    "last-modified",
    "location",
    "max-forwards",
    "origin",
    "pragma",
    "priority",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "range",
    "referer",
    "refresh",
    "retry-after",
    "server",
    "set-cookie",
    "strict-transport-security",
    "traceparent",
    "tracestate",
    "trailer",
    "true-client-ip",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
    "x-correlation-id",
    "x-real-ip",
    "x-request-id",
];

/// What such fields begin with.
const LASTING_BEGINNINGS: [&str; 9] = [
    "accept",
    "access-control-",
    "cf-",
    "content-",
    "cross-origin-",
    "if-",
    "sec-",
    "x-forwarded-",
    "x-frame-",
];

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// To a backend.
    Request,
    /// To a client.
    Response,
}

/// What was said for one connection, and is not passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HopByHop {
    /// The protocols that are offered or chosen, in lower case; none unless `Connection` says so too (RFC 9110 §7.8), and
    /// never `h2c`, which is not passed on (RFC 9113 §3.1).
    pub upgrade: Vec<Box<str>>,
    /// Whether trailers are welcome: `TE: trailers`, which is kept in requests.
    pub trailers: bool,
    /// Whether the connection is to be closed behind the message.
    pub close: bool,
    /// Whether it is to be kept, where that has to be said.
    pub keep_alive: bool,
    /// Fields with a `_` in their names, which were dropped.
    pub dropped: usize,
}

/// Takes out what is for one connection: what every `Connection` field names, and what is always so. `TE: trailers` is kept
/// in requests, as nothing but that.
///
/// Names in `Connection` that a message cannot do without are passed over. Fields of requests with a `_` in their names are
/// dropped: `X_Real_IP` and `X-Real-IP` are the same to programs that have them as variables (RFC 3875 §4.1.18).
///
/// # Errors
/// When `Connection` or `Upgrade` is no list of names.
pub fn forwardable(headers: &mut HeaderMap, message: Message) -> Result<HopByHop, FieldError> {
    let options = Options::read(headers)?;
    let mut found = HopByHop { close: options.close, keep_alive: options.keep_alive, ..HopByHop::default() };
    if options.upgrade {
        found.upgrade = upgrades(headers)?;
    }
    found.trailers = message == Message::Request && headers.get_all(header::TE).iter().any(has_trailers);
    for name in HOP_BY_HOP.iter().chain(&options.named) {
        headers.remove(name);
    }
    if found.trailers {
        headers.insert(header::TE, TRAILERS);
    }
    if message == Message::Request {
        found.dropped = drop_underscores(headers);
    }
    Ok(found)
}

/// What `Connection` says.
#[derive(Default)]
struct Options {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    named: Vec<HeaderName>,
}

impl Options {
    fn read(headers: &HeaderMap) -> Result<Self, FieldError> {
        let mut options = Self::default();
        for name in items(headers, header::CONNECTION) {
            let name = HeaderName::from_bytes(name?.as_bytes()).map_err(|_| FieldError::Connection)?;
            match name.as_str() {
                "close" => options.close = true,
                "keep-alive" => options.keep_alive = true,
                "upgrade" => options.upgrade = true,
                name if is_lasting(name) => {}
                _ => options.named.push(name),
            }
        }
        Ok(options)
    }
}

/// The items of a list that may be in several fields; empty ones are none (RFC 9110 §5.6.1).
fn items(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = Result<&str, FieldError>> {
    headers.get_all(name).iter().flat_map(|value| {
        let (text, error) = match value.to_str() {
            Ok(text) => (text, None),
            Err(_) => ("", Some(Err(FieldError::Connection))),
        };
        let items =
            text.split(',').map(|item| item.trim_matches([' ', '\t'])).filter(|item| !item.is_empty());
        error.into_iter().chain(items.map(Ok))
    })
}

fn upgrades(headers: &HeaderMap) -> Result<Vec<Box<str>>, FieldError> {
    let mut protocols = Vec::new();
    for protocol in items(headers, header::UPGRADE) {
        let protocol = protocol?;
        let (name, version) = protocol.split_once('/').unwrap_or((protocol, "1"));
        if [name, version].iter().any(|part| HeaderName::from_bytes(part.as_bytes()).is_err()) {
            return Err(FieldError::Connection);
        }
        if !name.eq_ignore_ascii_case("h2c") {
            protocols.push(protocol.to_ascii_lowercase().into());
        }
    }
    Ok(protocols)
}

/// Whether an answer switches to what its request offered (RFC 9110 §7.8), by their `Upgrade`.
pub fn is_offered(answer: &HeaderMap, request: &HeaderMap) -> bool {
    match (upgrades(answer), upgrades(request)) {
        (Ok(chosen), Ok(offered)) => {
            !chosen.is_empty() && chosen.iter().all(|protocol| offered.contains(protocol))
        }
        _ => false,
    }
}

fn has_trailers(te: &HeaderValue) -> bool {
    te.as_bytes()
        .split(|byte| *byte == b',')
        .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

fn is_lasting(name: &str) -> bool {
    LASTING.binary_search(&name).is_ok()
        || LASTING_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

fn drop_underscores(headers: &mut HeaderMap) -> usize {
    let names: Vec<_> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    for name in &names {
        headers.remove(name);
    }
    names.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lasting_names_are_sorted() {
        assert!(LASTING.is_sorted());
    }
}
