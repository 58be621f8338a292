//! The pages of our own answers: what went wrong, and what the request is called in the log.
//!
//! Nothing is told of what is behind this server. Browsers get HTML, programs that ask for it JSON, the others text.

use std::fmt::Write;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

/// What a page can be, those first that are taken where the client does not care.
const TYPES: [Type; 4] = [Type::Text, Type::Html, Type::Json, Type::Problem];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Text,
    Html,
    Json,
    Problem,
}

/// What an item of `Accept` says of a type; the greater goes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Preference {
    /// In thousandths.
    quality: u16,
    /// By its name, by `text/*`, by `*/*`.
    specificity: u8,
    /// Items before this one, from the last.
    place: std::cmp::Reverse<usize>,
}

impl Type {
    fn parts(self) -> (&'static str, &'static str) {
        match self {
            Self::Text => ("text", "plain"),
            Self::Html => ("text", "html"),
            Self::Json => ("application", "json"),
            Self::Problem => ("application", "problem+json"),
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; charset=utf-8",
            Self::Html => "text/html; charset=utf-8",
            Self::Json => "application/json",
            Self::Problem => "application/problem+json",
        }
    }

    /// How well an item names this type.
    fn named_by(self, range: &str) -> Option<u8> {
        let (wanted, wanted_sub) = self.parts();
        let (main, sub) = range.split_once('/')?;
        match (main, sub) {
            ("*", "*") => Some(0),
            (main, "*") if main.eq_ignore_ascii_case(wanted) => Some(1),
            (main, sub) if main.eq_ignore_ascii_case(wanted) && sub.eq_ignore_ascii_case(wanted_sub) => {
                Some(2)
            }
            _ => None,
        }
    }
}

/// The type and the body of the page for `status`, of the kind that `accept` prefers (RFC 9110 §12.5.1), for the request that
/// the log calls `id`. A status without content has none.
pub fn page(status: StatusCode, accept: Option<&HeaderValue>, id: &str) -> (&'static str, Bytes) {
    let kind = choose(accept.and_then(|accept| accept.to_str().ok()).unwrap_or("*/*"));
    let empty =
        status.is_informational() || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
    let body = if empty { String::new() } else { body(kind, status, id) };
    (kind.content_type(), body.into())
}

/// The type that is preferred: by its quality, then how it is named, then where; where none is taken, text.
fn choose(accept: &str) -> Type {
    let mut best: Option<(Preference, Type)> = None;
    for kind in TYPES {
        let Some(preference) = preference(kind, accept).filter(|preference| preference.quality > 0) else {
            continue;
        };
        if best.is_none_or(|(before, _)| preference > before) {
            best = Some((preference, kind));
        }
    }
    best.map_or(Type::Text, |(_, kind)| kind)
}

/// What `accept` says of `kind`: its most specific item does.
fn preference(kind: Type, accept: &str) -> Option<Preference> {
    let items = accept.split(',').enumerate().filter_map(|(place, item)| {
        let mut parts = item.split(';').map(str::trim);
        let specificity = kind.named_by(parts.next()?)?;
        let written = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let quality = written.map_or(Some(1000), thousandths)?;
        Some(Preference { quality, specificity, place: std::cmp::Reverse(place) })
    });
    items.max_by_key(|preference| (preference.specificity, preference.place))
}

/// `0.5` as 500 (RFC 9110 §12.4.2).
fn thousandths(quality: &str) -> Option<u16> {
    let (whole, rest) = quality.split_once('.').unwrap_or((quality, ""));
    if rest.len() > 3 || !rest.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let rest: u16 = format!("{rest:0<3}").parse().ok()?;
    match whole {
        "0" => Some(rest),
        "1" if rest == 0 => Some(1000),
        _ => None,
    }
}

fn body(kind: Type, status: StatusCode, id: &str) -> String {
    let code = status.as_u16();
    let title = status.canonical_reason().unwrap_or("Error");
    match kind {
        Type::Text => {
            let id: String = id.chars().filter(|char| !char.is_control()).collect();
            let line = if id.is_empty() { String::new() } else { format!("request {id}\n") };
            format!("{code} {title}\n{line}")
        }
        Type::Html => {
            let id = escape_html(id);
            let line =
                if id.is_empty() { String::new() } else { format!("<p>Request <code>{id}</code></p>\n") };
            format!(
                "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
                 <meta name=\"viewport\" content=\"width=device-width\">\n<title>{code} {title}</title>\n</head>\n\
                 <body>\n<h1>{code} {title}</h1>\n{line}</body>\n</html>\n"
            )
        }
        // RFC 9457 §3.1: `about:blank` says no more than the status; `request` is a member of our own.
        Type::Json | Type::Problem => {
            let id = escape_json(id);
            let member = if id.is_empty() { String::new() } else { format!(",\"request\":\"{id}\"") };
            format!("{{\"type\":\"about:blank\",\"title\":\"{title}\",\"status\":{code}{member}}}\n")
        }
    }
}

fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars().filter(|char| !char.is_control()) {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            char => escaped.push(char),
        }
    }
    escaped
}

fn escape_json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '"' | '\\' => escaped.extend(['\\', char]),
            char if char.is_control() || "<>&\u{2028}\u{2029}".contains(char) => {
                let written = write!(escaped, "\\u{:04x}", u32::from(char));
                debug_assert!(written.is_ok(), "writing to a string cannot fail");
            }
            char => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(accept: &str) -> &'static str {
        let accept = HeaderValue::from_bytes(accept.as_bytes()).unwrap();
        page(StatusCode::NOT_FOUND, Some(&accept), "1").0
    }

    #[test]
    fn clients_get_what_they_prefer() {
        const TEXT: &str = "text/plain; charset=utf-8";
        const HTML: &str = "text/html; charset=utf-8";
        const JSON: &str = "application/json";
        const PROBLEM: &str = "application/problem+json";
        for (accept, expected) in [
            ("*/*", TEXT),
            ("", TEXT),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", HTML),
            ("application/json, text/plain, */*", JSON),
            ("application/json", JSON),
            ("Application/JSON; charset=utf-8", JSON),
            ("application/problem+json, application/json;q=0.9", PROBLEM),
            ("application/json;q=0.9, application/problem+json;q=0.95", PROBLEM),
            ("application/*", JSON),
            ("text/*", TEXT),
            ("text/*, text/plain;q=0.5", HTML),
            ("text/html;q=0.5, application/json;q=0.6", JSON),
            ("text/html;q=0, */*", TEXT),
            ("text/plain;q=0, */*", HTML),
            ("*/*, text/plain;q=0, text/html;q=0.0", JSON),
            ("text/html;level=1;q=0.3, application/json;q=0.2", HTML),
            ("image/png", TEXT),
            ("image/avif,image/webp,*/*;q=0.8", TEXT),
            ("*/*;q=0", TEXT),
            ("text/html;q=2", TEXT),
            ("text/html;q=0.1234, application/json;q=0.1", JSON),
            ("text/html;q=x", TEXT),
            ("text/html, application/json", HTML),
            ("application/json, text/html", JSON),
            (",,;q=1,/,*", TEXT),
            ("ä", TEXT),
        ] {
            assert_eq!(chosen(accept), expected, "{accept}");
        }
        assert_eq!(page(StatusCode::OK, None, "").0, TEXT);
    }

    #[test]
    fn pages_say_what_and_which() {
        let body = |accept: &'static str, id| {
            let (_, body) = page(StatusCode::BAD_GATEWAY, Some(&HeaderValue::from_static(accept)), id);
            String::from_utf8(body.to_vec()).unwrap()
        };
        assert_eq!(body("*/*", "01ab"), "502 Bad Gateway\nrequest 01ab\n");
        assert_eq!(body("*/*", ""), "502 Bad Gateway\n");
        let problem =
            "{\"type\":\"about:blank\",\"title\":\"Bad Gateway\",\"status\":502,\"request\":\"01ab\"}\n";
        assert_eq!(body("application/json", "01ab"), problem);
        let html = body("text/html", "01ab");
        assert!(
            html.contains("<title>502 Bad Gateway</title>") && html.contains("<code>01ab</code>"),
            "{html}"
        );
        assert!(!body("text/html", "").contains("<code>"));
        let strange = StatusCode::from_u16(599).unwrap();
        assert_eq!(&*page(strange, None, "").1, b"599 Error\n");
        for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED, StatusCode::CONTINUE] {
            assert!(page(status, None, "1").1.is_empty());
        }
    }

    #[test]
    fn ids_are_escaped() {
        let evil = "<script>\"'&\\\r\n\u{2028}\0";
        let body = |accept: &'static str| {
            let (_, body) = page(StatusCode::NOT_FOUND, Some(&HeaderValue::from_static(accept)), evil);
            String::from_utf8(body.to_vec()).unwrap()
        };
        assert!(body("text/html").contains("<code>&lt;script&gt;&quot;&#39;&amp;\\\u{2028}</code>"));
        let json = "\"request\":\"\\u003cscript\\u003e\\\"'\\u0026\\\\\\u000d\\u000a\\u2028\\u0000\"}\n";
        assert!(body("application/json").ends_with(json), "{}", body("application/json"));
        assert_eq!(body("*/*").lines().count(), 2);
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(accept in "[a-z*/;,=q0-9. ]{0,40}", id in "\\PC*") {
            let (kind, body) = page(StatusCode::OK, HeaderValue::from_str(&accept).ok().as_ref(), &id);
            proptest::prop_assert!(TYPES.iter().any(|known| known.content_type() == kind) && !body.is_empty());
        }
    }
}
