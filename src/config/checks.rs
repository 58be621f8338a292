//! The shape of `health`, and how its values are written.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::http::uri::PathAndQuery;
use serde_json::{Value, json};
use toml::de::DeValue;

use super::decode::{Decode, Decoder, Either, OneOrMany, Problem, Text, Whole, quote, shape, word};
use super::error::{ConfigError, ErrorKind};
use super::schema::words;
use super::source::Place;
use super::values::{Off, WordOr};
use crate::net::ProxyVersion;
use crate::peek::ServerName;

shape! {
    /// How backends are checked.
    struct Health {
        /// What is asked: `tcp`, `tls`, `http`, `https`, `postgres`, `mysql`, `redis`, `ssh`, `smtp`, or `off`.
        check: HealthWord = required,
        /// From one check to the next, give or take a tenth; `"5s"` if left out.
        interval: Duration,
        /// Deadline of one check; `"2s"` if left out, or half of `interval` when that is shorter.
        timeout: Duration,
        /// Checks in a row that must pass until a backend that is down is up; 2 if left out.
        rise: Whole<1, 100>,
        /// Checks in a row that must fail until a backend that is up is down; 3 if left out.
        fall: Whole<1, 100>,
        /// The port that is checked; by default the one that connections go to.
        port: Whole<1, 65535>,
        /// With `tls` and `https`: the server name that is asked for; by default none.
        sni: ServerName,
        /// With `tls` and `https`: whether the certificate must be good: `off` (the default), `system`, or a file of
        /// authorities.
        verify: VerifyWord,
        /// With `tls` and `https`: how long before its end a certificate is warned of; `"14d"` if left out.
        expiry_warning: Duration,
        /// With `http` and `https`: what is asked for; `"/"` if left out.
        path: HttpPath,
        /// With `http` and `https`: the `Host`; by default `sni`, or the backend's address.
        host: HttpHost,
        /// With `http` and `https`: codes that are good; `"200-399"` if left out.
        status: OneOrMany<StatusRange>,
        /// With `http` and `https`: what must occur in the first 64 KiB of the answer's body.
        body: BodyPart,
        /// The port at which the backend's host says `up`, `down`, `drain` or a share of its weight, as in `75%`.
        agent: Either<Whole<1, 65535>, Agent>,
        /// The version of the PROXY header that is sent first, for backends that expect one: `v1`, `v2` or `off`.
        proxy_protocol: WordOr<Off, ProxyVersion>,
    }
}

shape! {
    /// Who says what a backend's host thinks of itself.
    struct Agent {
        /// The port.
        port: Whole<1, 65535> = required,
    }
}

/// What a check asks, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HealthWord {
    Off,
    Tcp,
    Tls,
    Http,
    Https,
    Postgres,
    Mysql,
    Redis,
    Ssh,
    Smtp,
}

const HEALTH_WORDS: [(&str, HealthWord); 10] = [
    ("off", HealthWord::Off),
    ("tcp", HealthWord::Tcp),
    ("tls", HealthWord::Tls),
    ("http", HealthWord::Http),
    ("https", HealthWord::Https),
    ("postgres", HealthWord::Postgres),
    ("mysql", HealthWord::Mysql),
    ("redis", HealthWord::Redis),
    ("ssh", HealthWord::Ssh),
    ("smtp", HealthWord::Smtp),
];

/// What `verify` holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum VerifyWord {
    Off,
    System,
    File(PathBuf),
}

/// A path of a request, with its query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HttpPath(pub(super) PathAndQuery);

/// A `Host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HttpHost(pub(super) HeaderValue);

/// A part of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BodyPart(pub(super) Box<str>);

/// One code, or several in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StatusRange(pub(super) RangeInclusive<u16>);

/// Longest path that is asked for: what servers take at least (RFC 9110 §4.1).
const MAX_PATH: usize = 8000;
/// Longest part of a body that is looked for.
const MAX_PART: usize = 1024;

impl HealthWord {
    pub(super) fn as_str(self) -> &'static str {
        HEALTH_WORDS.iter().find(|(_, word)| *word == self).map_or("", |(word, _)| word)
    }
}

impl Text for HealthWord {
    const EXPECTED: &'static str = "the name of a check";

    fn constraints() -> Value {
        words(HEALTH_WORDS.iter().map(|(word, _)| *word))
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        word(text, &HEALTH_WORDS)
    }
}

impl Text for VerifyWord {
    const EXPECTED: &'static str = "\"off\", \"system\" or an absolute path";

    fn parse(text: &str) -> Result<Self, Problem> {
        match text {
            "off" => Ok(Self::Off),
            "system" => Ok(Self::System),
            path if Path::new(path).is_absolute() => Ok(Self::File(PathBuf::from(path))),
            _ => Err(Problem::new(
                ErrorKind::BadValue,
                format!("{} is no way to verify a certificate", quote(text)),
            )
            .hint("write `\"off\"`, `\"system\"`, or the absolute path of a file of authorities (PEM)")),
        }
    }
}

impl Text for HttpPath {
    const EXPECTED: &'static str = "a path such as \"/up\"";

    fn constraints() -> Value {
        json!({ "pattern": "^/" })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        // RFC 9112 §3.2.1: what is not visible ASCII is written in percent-encoding; a fragment is never sent.
        let good = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
        if text.starts_with('/')
            && text.len() <= MAX_PATH
            && text.bytes().all(good)
            && let Ok(path) = text.parse()
        {
            return Ok(Self(path));
        }
        Err(Problem::new(ErrorKind::BadValue, format!("{} is not a path of HTTP", quote(text)))
            .hint("write it from the first slash on, as in `\"/up?full=1\"`, and other than ASCII as `%…`"))
    }
}

impl Text for HttpHost {
    const EXPECTED: &'static str = "a host such as \"app.example.com\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        if (1..=255).contains(&text.len())
            && text.bytes().all(good)
            && let Ok(host) = text.parse()
        {
            return Ok(Self(host));
        }
        Err(Problem::new(ErrorKind::BadName, format!("{} is not a `Host` of HTTP", quote(text)))
            .hint("write a name or an address, with a port if need be: `\"app.example.com:8080\"`"))
    }
}

impl Text for BodyPart {
    const EXPECTED: &'static str = "a part of a body";

    fn constraints() -> Value {
        json!({ "minLength": 1 })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        match text.len() {
            1..=MAX_PART => Ok(Self(text.into())),
            len => Err(Problem::new(
                ErrorKind::OutOfRange,
                format!("a part of a body has 1 to {MAX_PART} bytes, this one has {len}"),
            )),
        }
    }
}

impl StatusRange {
    fn parse(text: &str) -> Result<Self, Problem> {
        let code = |text: &str| {
            let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u16>().ok().filter(|code| digits && (100..=599).contains(code))
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (code(first), code(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self(first..=last)),
            _ => Err(Problem::new(ErrorKind::BadValue, format!("{} is no status of HTTP", quote(text)))
                .hint("write a code from 100 to 599, or two of them: `204`, `\"200-299\"`")),
        }
    }
}

impl Decode for StatusRange {
    fn expected() -> String {
        "a status such as 204 or \"200-299\"".to_owned()
    }

    fn schema() -> Value {
        json!({ "anyOf": [
            { "type": "integer", "minimum": 100, "maximum": 599 },
            { "type": "string", "pattern": "^[1-5][0-9][0-9](-[1-5][0-9][0-9])?$" },
        ] })
    }

    fn decode(value: &DeValue<'_>, place: &Place, cx: &mut Decoder<'_>) -> Option<Self> {
        let parsed = match value {
            DeValue::String(text) => Self::parse(text),
            DeValue::Integer(number) if number.radix() == 10 => Self::parse(number.as_str()),
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => return cx.wrong_type(&Self::expected(), value, place),
        };
        let report = |problem: Problem| -> ConfigError { problem.at(place) };
        parsed.map_err(|problem| cx.report(report(problem))).ok()
    }
}
