//! Lines of the access log.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use jiff::{Timestamp, Unit};
use serde::Serialize;
use serde_json::Value;

use crate::config::LogFormat;
use crate::net::AnnouncedTls;
use crate::tls::{Negotiated, Subject};

/// What the handshake came to where TLS ended here.
#[derive(Debug, Serialize)]
pub(super) struct EndedTls {
    tls_version: &'static str,
    tls_cipher: Option<String>,
    tls_group: Option<&'static str>,
    tls_alpn: Option<String>,
    tls_resumed: bool,
    /// Whose certificate the client has shown: the common name, or else the first of the other names.
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_client: Option<String>,
    /// The common name of that.
    #[serde(skip)]
    common_name: Option<Option<String>>,
}

/// Longest name of a client in a line, in bytes.
const MAX_NAME: usize = 256;

impl EndedTls {
    pub(super) fn new(negotiated: &Negotiated<'_>) -> Self {
        let subject = negotiated.certificates.first().map(Subject::of);
        let common_name = subject.as_ref().map(|subject| subject.common_name.clone());
        let named = subject.map(|Subject { common_name, names }| {
            common_name.or_else(|| names.into_iter().next()).unwrap_or_default()
        });
        Self {
            tls_version: negotiated.version(),
            // By its name in IANA's registry; the library's own say the version twice.
            tls_cipher: negotiated.suite.and_then(|suite| Some(suite.as_str()?.replace("TLS13_", "TLS_"))),
            tls_group: negotiated.group.and_then(|group| group.as_str()),
            tls_alpn: negotiated.alpn.map(|name| name.escape_ascii().to_string()),
            tls_resumed: negotiated.resumed,
            tls_client: named.map(|mut name| {
                // Whatever an authority signs: a line has its bounds.
                name.truncate(name.floor_char_boundary(MAX_NAME));
                name
            }),
            common_name,
        }
    }

    /// What a header of the PROXY protocol tells of it.
    pub(super) fn announced(&self) -> AnnouncedTls<'_> {
        AnnouncedTls {
            version: if self.tls_version == "1.3" { "TLSv1.3" } else { "TLSv1.2" },
            cipher: self.tls_cipher.as_deref(),
            group: self.tls_group,
            client: self.common_name.as_ref().map(Option::as_deref),
        }
    }

    /// The protocol that was agreed on.
    pub(super) fn alpn(&self) -> Option<&str> {
        self.tls_alpn.as_deref()
    }
}

/// A line of the access log.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    /// When the connection was accepted, RFC 3339 in UTC.
    pub(super) time: String,
    pub(super) id: String,
    pub(super) listener: &'a str,
    pub(super) client: SocketAddr,
    pub(super) via: Option<SocketAddr>,
    pub(super) sni: Option<&'a str>,
    pub(super) alpn: Vec<String>,
    /// Only where the configuration asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ja4: Option<&'a str>,
    pub(super) protocol: Option<&'static str>,
    /// Of TLS that ended here.
    #[serde(flatten)]
    pub(super) tls: Option<&'a EndedTls>,
    pub(super) route: Option<&'a str>,
    pub(super) action: &'static str,
    pub(super) reason: Option<&'static str>,
    pub(super) limit: Option<&'a str>,
    pub(super) backend: Option<&'a str>,
    /// Where that is, when its name does not say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<String>,
    pub(super) connect_ms: Option<f64>,
    pub(super) duration_ms: f64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) bytes_spliced: u64,
    /// Only where they are answered here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) requests: Option<u64>,
    pub(super) cause: Option<&'static str>,
    pub(super) stage: &'static str,
}

impl Line<'_> {
    pub(super) fn render(&self, format: LogFormat) -> String {
        // No value can fail to serialise: strings, numbers, options and a list of strings.
        let value = serde_json::to_value(self).unwrap_or_default();
        match format {
            LogFormat::Json => serde_json::to_string(self).unwrap_or_default(),
            LogFormat::Logfmt => logfmt(&value),
        }
    }
}

/// `key=value` pairs; values with spaces or quotes are quoted as in JSON, absent ones left out.
pub(in crate::conn) fn logfmt(value: &Value) -> String {
    let mut line = String::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        let text = match value {
            Value::Null => continue,
            Value::Array(items) if items.is_empty() => continue,
            Value::String(text) => text.clone(),
            Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
            other => other.to_string(),
        };
        let bare =
            !text.is_empty() && !text.contains([' ', '"', '=', '\\']) && !text.chars().any(char::is_control);
        let text = if bare { text } else { Value::String(text).to_string() };
        let space = if line.is_empty() { "" } else { " " };
        // Writing to a string cannot fail.
        let _ = write!(line, "{space}{key}={text}");
    }
    line
}

/// The time `ago`, to the millisecond.
pub(in crate::conn) fn format_time(ago: Duration) -> String {
    let now = Timestamp::now();
    let time = now.checked_sub(ago).unwrap_or(now);
    format!("{:.3}", time.round(Unit::Millisecond).unwrap_or(time))
}

/// To a thousandth of a millisecond.
pub(super) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logfmt_quotes_what_would_be_ambiguous() {
        let value = serde_json::json!({
            "a": "plain", "b": "two words", "c": null, "d": ["h2", "http/1.1"], "e": 1.5, "f": "", "g": "x\ny"
        });
        assert_eq!(logfmt(&value), r#"a=plain b="two words" d=h2,http/1.1 e=1.5 f="" g="x\ny""#);
    }
}
