//! The shapes of what routes and rules ask of requests, whatever becomes of them.

use std::time::Duration;

use serde_json::{Value, json};

use super::decode::{Either, OneOrMany, Problem, Setting, Text, Whole, quote, shape};
use super::error::ErrorKind;
use super::file::Route;
use super::http_keys::{Rule, StickySplit};
use super::http_values::{FieldName, MethodName, SplitWord};
use super::source::Place;
use super::units::Rate;

shape! {
    /// How many requests a client may send.
    struct RequestRate {
        /// The average, as in `"10/s"`.
        rate: Rate = required,
        /// How many may come at once; by default the number in `rate`.
        burst: Whole<1, { u32::MAX }>,
        /// By what clients are told apart: `source` (by default), or a cookie or header field.
        per: Either<SplitWord, StickySplit>,
    }
}

shape! {
    /// Pages of which other sites may use what is here (CORS).
    struct Cors {
        /// Their origins, as in `"https://app.example.com"`, or `*` for all.
        origins: OneOrMany<OriginName> = required,
        /// The methods that they may use; by default GET, HEAD and POST.
        methods: OneOrMany<MethodName>,
        /// The header fields that they may send; by default those that they ask for.
        headers: OneOrMany<FieldName>,
        /// The header fields of answers that they may see beside the usual ones.
        expose: OneOrMany<FieldName>,
        /// Whether cookies and the like may be sent; by default they may not.
        credentials: bool,
        /// How long a browser may remember it; `"1h"` if left out.
        max_age: Duration,
    }
}

/// Where a page is from: scheme, host and port, or `*` for any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OriginName(pub(super) Box<str>);

/// What is asked of requests, be it written in a rule or in a route.
pub(super) struct PolicyKeys<'f> {
    pub(super) request_rate: &'f Setting<Either<Rate, RequestRate>>,
    pub(super) cors: &'f Setting<Either<OriginName, Cors>>,
    pub(super) security_headers: &'f Setting<bool>,
}

/// For both shapes that have these keys.
macro_rules! policy_keys {
    ($($shape:ty),*) => {
        $(impl $shape {
            /// What it asks of requests.
            pub(super) fn policy_keys(&self) -> PolicyKeys<'_> {
                PolicyKeys {
                    request_rate: &self.request_rate,
                    cors: &self.cors,
                    security_headers: &self.security_headers,
                }
            }
        })*
    };
}
policy_keys!(Route, Rule);

impl PolicyKeys<'_> {
    /// Those that are there, with where they are.
    pub(super) fn written(&self) -> impl Iterator<Item = (&'static str, &Place)> {
        let all = [
            ("request_rate", self.request_rate.place()),
            ("cors", self.cors.place()),
            ("security_headers", self.security_headers.place()),
        ];
        all.into_iter().filter_map(|(key, place)| Some((key, place?)))
    }

    /// Whether one of them cannot be used.
    pub(super) fn any_bad(&self) -> bool {
        self.request_rate.is_bad() || self.cors.is_bad() || self.security_headers.is_bad()
    }
}

impl Text for OriginName {
    const EXPECTED: &'static str = "an origin, as in \"https://app.example.com\", or \"*\"";

    fn constraints() -> Value {
        json!({ "pattern": "^(\\*|https?://[^/]+)$" })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let bad = |hint: String| {
            Problem::new(ErrorKind::BadValue, format!("{} is no origin", quote(text))).hint(hint)
        };
        if text == "*" {
            return Ok(Self(text.into()));
        }
        let lower = text.to_ascii_lowercase();
        let Some((scheme, host)) = lower.split_once("://") else {
            return Err(bad(format!("write {}", quote(&format!("https://{text}")))));
        };
        let known = ["http", "https"].contains(&scheme);
        let plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte));
        if !known || host.is_empty() || !plain {
            let end = host.find('/').unwrap_or(host.len());
            let host = host.get(..end).unwrap_or_default();
            return Err(bad(format!(
                "write scheme, host and port, and nothing else: {}",
                quote(&format!("https://{host}"))
            )));
        }
        Ok(Self(lower.into()))
    }
}
