//! The shapes of what routes say of HTTP.

use std::time::Duration;

use ipnet::IpNet;

use super::backend_keys::{BackendAddr, BackendTls};
use super::checks::{Health, HealthWord};
use super::decode::{Either, OneOrMany, Setting, Whole, shape};
use super::file::{Backend, Balance, Eject, Queue, Route, RouteTimeouts, Sticky};
use super::http_values::{
    AnswerStatus, ChangedField, ContentType, CookieName, Expression, FieldName, FileName, MethodName, Named,
    PathPrefix, QueryName, RedirectStatus, RedirectTo, RelativePath, RuleName, SplitWord, VariantName,
};
use super::policy_keys::{Cors, OriginName, RequestRate};
use super::pool_keys::PoolKeys;
use super::source::Place;
use super::tls_keys::CertificatePath;
use super::units::{Bandwidth, ByteSize, Rate};
use super::upstream::{BalanceWord, OnDown, Percent, UpstreamName};
use super::values::{Off, SniWord, WordOr};
use super::{HostHeader, PathPattern, Template, ValuePattern};
use crate::net::ProxyVersion;

/// The largest share of a variant: one in a thousand can be told.
pub(super) const MAX_SHARE: u32 = 1000;

shape! {
    /// What becomes of some of the requests of a route. The most specific rule that takes a request decides.
    struct Rule {
        /// A name for logs and metrics; the route's with a number if left out.
        name: RuleName,
        /// The host that is asked for: a name, `*.suffix`, `~regex`, or `*` for any.
        host: OneOrMany<SniWord>,
        /// The path: `/login` for one, `/api/*` for it and all below, `/img/**.png` with `*` for anything but a slash and `**` for
        /// anything, or `~regex` over the whole path.
        path: OneOrMany<PathPattern>,
        /// The method, as in `"GET"`.
        method: OneOrMany<MethodName>,
        /// Header fields, each of which must be there with this value: a text, `~regex` over the whole value, or `*` for any.
        header: Named<FieldName, ValuePattern>,
        /// Parameters of the query, the same.
        query: Named<QueryName, ValuePattern>,
        /// Networks, of which one must contain the client's address.
        from: OneOrMany<IpNet>,
        /// Backends, each with `http://`, `https://`, `h2c://` or `h2://` before it, or tables of an `address` and what there is
        /// to say of it.
        to: OneOrMany<Either<BackendAddr, Backend>>,
        /// The `[[upstream]]` that it leads to, in place of `to`.
        upstream: UpstreamName,
        /// How a backend is chosen: `round_robin`, `least_connections`, `p2c`, `random`, `first` or `hash`.
        balance: Either<BalanceWord, Balance>,
        /// How long a client stays with its backend after its last connection.
        sticky: Either<WordOr<Off, Duration>, Sticky>,
        /// In how much time a backend that comes, or comes back, gets up to its share.
        slow_start: WordOr<Off, Duration>,
        /// The most connections that a backend has at once.
        max_connections: WordOr<Off, Whole<1, { u32::MAX }>>,
        /// Where connections wait while all backends have as many as they may; a number is `size`.
        queue: Either<WordOr<Off, Whole<1, 65_536>>, Queue>,
        /// When backends that fail are passed over; a number is `failures`.
        eject: Either<WordOr<Off, Whole<1, 1000>>, Eject>,
        /// What becomes of the connections of a backend that goes down: `leave` or `close`.
        on_down: OnDown,
        /// Attempts to connect beyond the first, as a part of all connections.
        retry_budget: WordOr<Off, Percent>,
        /// How backends are checked: `tcp`, `tls`, `http`, `https`, `postgres`, `mysql`, `redis`, `ssh`, `smtp`, or `off`.
        health: Either<HealthWord, Health>,
        /// How TLS is spoken with backends that are written with `https://` or `h2://`.
        backend_tls: BackendTls,
        /// Several backends, or groups of them, that requests are split over, in place of `to`.
        split: OneOrMany<Variant>,
        /// By what a client stays with its variant: `source`, or a cookie or header field.
        sticky_split: Either<SplitWord, StickySplit>,
        /// Files that answer; a string is `root`.
        files: Either<CertificatePath, Files>,
        /// Where clients are sent; a string is `to`.
        redirect: Either<RedirectTo, Redirect>,
        /// An answer that is always the same; a number is `status`.
        answer: Either<AnswerStatus, Answer>,
        /// The host that backends are asked for: `keep` (by default) for the client's, `backend` for their own, or a text with
        /// variables.
        host_header: HostHeader,
        /// What is taken off the beginning of the path before a backend sees it.
        strip: PathPrefix,
        /// What the path becomes where a regular expression matches.
        replace: Replace,
        /// What is put before the path.
        add: PathPrefix,
        /// Whether bodies of requests are taken whole before a backend is asked.
        buffer_requests: bool,
        /// What changes in the header fields of requests.
        request_headers: Headers,
        /// What changes in the header fields of answers.
        response_headers: Headers,
        /// How many requests a client may send; a string is `rate`.
        request_rate: Either<Rate, RequestRate>,
        /// Pages of which other sites may use what is here (CORS); a string is the one of `origins`.
        cors: Either<OriginName, Cors>,
        /// Whether answers tell browsers to be careful: HSTS within TLS, no guessing of types, no frames of other sites, short
        /// referrers.
        security_headers: bool,
        /// The version of the PROXY header that backends are sent first: `v1` or `v2`.
        proxy_protocol: WordOr<Off, ProxyVersion>,
        /// Connect to backends from the client's own address.
        transparent: bool,
        /// Timeouts of this rule; those left out are the global ones.
        timeouts: RouteTimeouts,
    }
}

shape! {
    /// One of several backends, or groups of them, that requests are split over.
    struct Variant {
        /// Its name, for logs, metrics and backends.
        name: VariantName = required,
        /// Its share beside the others; 1 if left out.
        weight: Whole<0, { MAX_SHARE }>,
        /// Backends, as those of a rule.
        to: OneOrMany<Either<BackendAddr, Backend>>,
        /// The `[[upstream]]` that it leads to, in place of `to`.
        upstream: UpstreamName,
    }
}

shape! {
    /// By what a client stays with its variant: one of two.
    struct StickySplit {
        /// A cookie of this name, which is set where a client has none.
        cookie: CookieName,
        /// The value of a header field; clients without it are told apart by address.
        header: FieldName,
    }
}

shape! {
    /// Files that answer requests.
    struct Files {
        /// The folder that they lie in, relative to the folder of this file.
        root: CertificatePath = required,
        /// Files that answer for their folder, the first that there is; `index.html` if left out.
        index: OneOrMany<FileName>,
        /// The file below the root that answers what there is no file for.
        fallback: RelativePath,
        /// What is taken off the beginning of the path first.
        strip: PathPrefix,
        /// Whether files and folders are served whose names begin with a dot; by default they are not.
        dotfiles: bool,
        /// Whether `NAME.br`, `NAME.zst` and `NAME.gz` beside a file answer for it; by default they do not.
        precompressed: bool,
    }
}

shape! {
    /// Where clients are sent.
    struct Redirect {
        /// `https` for the same place there, or a URL with variables, as in `"https://new.example.com{uri}"`.
        to: RedirectTo = required,
        /// 301, 302, 303, 307 or 308; 308 if left out.
        status: RedirectStatus,
    }
}

shape! {
    /// An answer that is always the same.
    struct Answer {
        /// Its status, from 200 to 599.
        status: AnswerStatus = required,
        /// What it says, a text with variables; of errors a page is made if left out.
        body: Template,
        /// The type of `body`; `text/plain; charset=utf-8` if left out.
        content_type: ContentType,
    }
}

shape! {
    /// What a path becomes where a regular expression matches.
    struct Replace {
        /// The regular expression, which may match a part of the path.
        r#match: Expression = required,
        /// The whole path then, a text with variables; `{1}` is what the first group matched.
        with: Template = required,
    }
}

shape! {
    /// What changes in header fields: first some are removed, then set, then added.
    struct Headers {
        /// Fields that are there once, with these values: texts with variables.
        set: Named<ChangedField, Template>,
        /// Fields that are put behind what there is of the same name.
        add: Named<ChangedField, OneOrMany<Template>>,
        /// Names of fields that are taken out.
        remove: OneOrMany<ChangedField>,
    }
}

shape! {
    /// What clients of HTTP may take of time and memory.
    struct Http {
        /// Fields of a head; 100 if left out.
        max_headers: Whole<1, 1000>,
        /// A head, from 1KiB to 1MiB; `"32KiB"` if left out.
        max_header_size: ByteSize,
        /// A URI, from 256B to 64KiB; `"16KiB"` if left out.
        max_uri: ByteSize,
        /// The body of a request; `"off"` if left out.
        max_body: WordOr<Off, ByteSize>,
        /// From the first byte of a head to its last; `"10s"` if left out.
        header_timeout: Duration,
        /// Between two requests of a connection; `"60s"` if left out.
        keep_alive: Duration,
        /// Between two pieces of a body; `"30s"` if left out.
        body_timeout: Duration,
        /// What a body must come in with, on average once it has had a while; `"256B/s"` if left out.
        min_body_rate: WordOr<Off, Bandwidth>,
        /// How long a client may take nothing of its answer; `"60s"` if left out.
        write_timeout: Duration,
        /// Streams of HTTP/2 that a connection may have at once; 100 if left out.
        max_streams: Whole<1, 10_000>,
    }
}

/// What is said of requests, be it written in a rule or in a route.
pub(super) struct ActionKeys<'f> {
    pub(super) pool: PoolKeys<'f>,
    pub(super) upstream: &'f Setting<UpstreamName>,
    pub(super) split: &'f Setting<OneOrMany<Variant>>,
    pub(super) sticky_split: &'f Setting<Either<SplitWord, StickySplit>>,
    pub(super) files: &'f Setting<Either<CertificatePath, Files>>,
    pub(super) redirect: &'f Setting<Either<RedirectTo, Redirect>>,
    pub(super) answer: &'f Setting<Either<AnswerStatus, Answer>>,
    pub(super) host_header: &'f Setting<HostHeader>,
    pub(super) strip: &'f Setting<PathPrefix>,
    pub(super) replace: &'f Setting<Replace>,
    pub(super) add: &'f Setting<PathPrefix>,
    pub(super) buffer_requests: &'f Setting<bool>,
    pub(super) request_headers: &'f Setting<Headers>,
    pub(super) response_headers: &'f Setting<Headers>,
    pub(super) proxy_protocol: &'f Setting<WordOr<Off, ProxyVersion>>,
    pub(super) transparent: &'f Setting<bool>,
    pub(super) timeouts: &'f Setting<RouteTimeouts>,
}

/// For both shapes that have these keys.
macro_rules! action_keys {
    ($($shape:ty),*) => {
        $(impl $shape {
            /// What it says of requests.
            pub(super) fn action_keys(&self) -> ActionKeys<'_> {
                ActionKeys {
                    pool: self.pool_keys(),
                    upstream: &self.upstream,
                    split: &self.split,
                    sticky_split: &self.sticky_split,
                    files: &self.files,
                    redirect: &self.redirect,
                    answer: &self.answer,
                    host_header: &self.host_header,
                    strip: &self.strip,
                    replace: &self.replace,
                    add: &self.add,
                    buffer_requests: &self.buffer_requests,
                    request_headers: &self.request_headers,
                    response_headers: &self.response_headers,
                    proxy_protocol: &self.proxy_protocol,
                    transparent: &self.transparent,
                    timeouts: &self.timeouts,
                }
            }
        })*
    };
}
action_keys!(Route, Rule);

impl ActionKeys<'_> {
    /// What may become of requests, of which one must be said.
    pub(super) fn actions(&self) -> impl Iterator<Item = (&'static str, &Place)> {
        let all = [
            ("to", self.pool.to.place()),
            ("upstream", self.upstream.place()),
            ("split", self.split.place()),
            ("files", self.files.place()),
            ("redirect", self.redirect.place()),
            ("answer", self.answer.place()),
        ];
        all.into_iter().filter_map(|(key, place)| Some((key, place?)))
    }

    /// What is said of requests that go to backends, and of no others.
    pub(super) fn of_backends(&self) -> impl Iterator<Item = (&'static str, &Place)> {
        let all = [
            ("sticky_split", self.sticky_split.place()),
            ("host_header", self.host_header.place()),
            ("strip", self.strip.place()),
            ("replace", self.replace.place()),
            ("add", self.add.place()),
            ("buffer_requests", self.buffer_requests.place()),
            ("request_headers", self.request_headers.place()),
        ];
        all.into_iter().filter_map(|(key, place)| Some((key, place?)))
    }

    /// What is said of connections to backends.
    pub(super) fn of_connections(&self) -> impl Iterator<Item = (&'static str, &Place)> {
        let all = [
            ("proxy_protocol", self.proxy_protocol.place()),
            ("transparent", self.transparent.place()),
            ("timeouts", self.timeouts.place()),
        ];
        all.into_iter().filter_map(|(key, place)| Some((key, place?)))
    }

    /// Whether one of them cannot be used.
    pub(super) fn any_bad(&self) -> bool {
        self.pool.any_bad()
            || self.upstream.is_bad()
            || self.split.is_bad()
            || self.sticky_split.is_bad()
            || self.files.is_bad()
            || self.redirect.is_bad()
            || self.answer.is_bad()
            || self.host_header.is_bad()
            || self.strip.is_bad()
            || self.replace.is_bad()
            || self.add.is_bad()
            || self.buffer_requests.is_bad()
            || self.request_headers.is_bad()
            || self.response_headers.is_bad()
            || self.proxy_protocol.is_bad()
            || self.transparent.is_bad()
            || self.timeouts.is_bad()
    }
}
