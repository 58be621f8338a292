//! What clients of HTTP may take of time and memory.

use std::time::Duration;

use super::super::super::HttpLimits;
use super::super::super::decode::{At, Setting, Whole};
use super::super::super::error::{ConfigError, ErrorKind};
use super::super::super::http_keys::Http;
use super::super::super::units::{Bandwidth, ByteSize};
use super::super::settings::{DAY, duration};
use super::super::{Output, string};

/// Heads of browsers have 2 KiB, those with large cookies and tokens 16.
const HEADER_SIZE: (ByteSize, ByteSize) = (ByteSize(1 << 10), ByteSize(1 << 20));
const URI_SIZE: (ByteSize, ByteSize) = (ByteSize(256), ByteSize(64 << 10));

/// `None` when a value is no value; those out of range are reported.
pub(super) fn resolve(prefix: &str, at: Option<&At<Http>>, out: &mut Output) -> Option<HttpLimits> {
    let table = at.map(|at| &at.value);
    if table.is_some_and(any_bad) {
        return None;
    }
    let prefix = format!("{prefix}.http");
    let default = HttpLimits::DEFAULT;
    let mut time = |key: &str, of: fn(&Http) -> &Setting<Duration>, default| {
        let at = table.and_then(|table| of(table).given());
        duration(&format!("{prefix}.{key}"), at, default, DAY, out)
    };
    let header_timeout = time("header_timeout", |table| &table.header_timeout, default.header_timeout);
    let keep_alive = time("keep_alive", |table| &table.keep_alive, default.keep_alive);
    let body_timeout = time("body_timeout", |table| &table.body_timeout, default.body_timeout);
    let write_timeout = time("write_timeout", |table| &table.write_timeout, default.write_timeout);
    let max_headers = table.and_then(|table| table.max_headers.given());
    let max_streams = table.and_then(|table| table.max_streams.given());
    let header_size = table.and_then(|table| table.max_header_size.given());
    let uri = table.and_then(|table| table.max_uri.given());
    let body = table.and_then(|table| table.max_body.given());
    let rate = table.and_then(|table| table.min_body_rate.given());
    let max_body = body.map_or(default.max_body, |at| at.value.0.map(|size| size.0));
    let text = max_body.map_or_else(|| string("off"), |size| string(ByteSize(size)));
    out.note(format!("{prefix}.max_body"), text, body.map(|at| &at.place));
    let min_body_rate = rate.map_or(default.min_body_rate, |at| at.value.0.map(|rate| rate.0));
    let text = min_body_rate.map_or_else(|| string("off"), |rate| string(Bandwidth(rate)));
    out.note(format!("{prefix}.min_body_rate"), text, rate.map(|at| &at.place));
    let streams = max_streams.map_or(default.max_streams, |at| at.value.0);
    out.note(format!("{prefix}.max_streams"), streams.to_string(), max_streams.map(|at| &at.place));
    Some(HttpLimits {
        max_headers: fields(&prefix, max_headers, out),
        max_header_size: size(
            &prefix,
            "max_header_size",
            header_size,
            (default.max_header_size, HEADER_SIZE),
            out,
        ),
        max_uri: size(&prefix, "max_uri", uri, (default.max_uri, URI_SIZE), out),
        max_body,
        header_timeout,
        keep_alive,
        body_timeout,
        min_body_rate,
        write_timeout,
        max_streams: streams,
    })
}

fn any_bad(table: &Http) -> bool {
    table.max_headers.is_bad()
        || table.max_header_size.is_bad()
        || table.max_uri.is_bad()
        || table.max_body.is_bad()
        || table.header_timeout.is_bad()
        || table.keep_alive.is_bad()
        || table.body_timeout.is_bad()
        || table.min_body_rate.is_bad()
        || table.write_timeout.is_bad()
        || table.max_streams.is_bad()
}

fn fields(prefix: &str, at: Option<&At<Whole<1, 1000>>>, out: &mut Output) -> usize {
    let count = at.map_or(HttpLimits::DEFAULT.max_headers, |at| at.value.0 as usize);
    out.note(format!("{prefix}.max_headers"), count.to_string(), at.map(|at| &at.place));
    count
}

/// A size with its default, within bounds; others are reported.
fn size(
    prefix: &str,
    key: &str,
    at: Option<&At<ByteSize>>,
    (default, (least, most)): (usize, (ByteSize, ByteSize)),
    out: &mut Output,
) -> usize {
    if let Some(at) = at.filter(|at| !(least..=most).contains(&at.value)) {
        let message = format!("`{key}` is not between {least} and {most}");
        out.report(ConfigError::new(ErrorKind::OutOfRange, message).at(&at.place));
    }
    let size = at.map_or(default, |at| usize::try_from(at.value.0).unwrap_or(usize::MAX));
    out.note(format!("{prefix}.{key}"), string(ByteSize(size as u64)), at.map(|at| &at.place));
    size
}
