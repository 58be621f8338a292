//! Settings that stand once: limits, timeouts, policies, access log.

use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::super::decode::{At, Either, OneOrMany, Setting};
use super::super::error::{ConfigError, ErrorKind};
use super::super::file::{File, Timeouts as TimeoutsTable};
use super::super::units::{ByteSize, duration_text};
use super::super::values::{Off, ReloadOn, WordOr, nat64};
use super::super::{
    AccessLogConfig, Account, AdminConfig, AnswerTimeout, BanRule, DnsConfig, Identity, LimitConfig, Limits,
    ListFile, ListenerConfig, LogFormat, LogTarget, Policies, RateLimit, RejectWith, Sandbox, Timeouts,
};
use super::{Input, Output, admin, dns, inner, string, strings};

/// Longest deadline: beyond it, it is a slip of the unit.
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// Longest idle limit: sessions of databases and terminals stay for weeks.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(30 * 86_400);

/// A ClientHello of a post-quantum client has 1.5 to 2 KB; records may hold 16 KiB each.
const HELLO_SIZE: ByteSize = ByteSize(16 * 1024);
const HELLO_SIZE_MIN: ByteSize = ByteSize(512);
const HELLO_SIZE_MAX: ByteSize = ByteSize(64 * 1024);
/// Room for one hello of the largest size, and what nobody has.
const HELLO_MEMORY: (ByteSize, ByteSize) = (HELLO_SIZE_MAX, ByteSize(1 << 40));

/// Concurrent connections of one address; an office behind one address stays below.
const PER_IP: u32 = 256;

/// Connections of one address without their hello; a browser opens 6 a name.
const BEFORE_HELLO: u32 = 32;

/// In this time refusals make a ban.
const BAN_WITHIN: Duration = Duration::from_secs(60);
/// How long a ban lasts.
const BAN_FOR: Duration = Duration::from_secs(600);

/// Rounds of handshakes with all backends come no closer: one may take longer, and each is a line in their logs.
const PROBE_MIN: Duration = Duration::from_secs(10);

/// Names of the limits that have a key of their own.
pub(super) const LIMIT_NAMES: [&str; 2] = ["connection_limit", "rate_limit"];

/// What [`resolve`] gives.
pub(super) struct Settings {
    pub(super) policies: Policies,
    pub(super) limits: Limits,
    pub(super) timeouts: Timeouts,
    pub(super) max_hello_size: usize,
    pub(super) hello_memory: Option<usize>,
    pub(super) workers: Option<usize>,
    pub(super) identity: Identity,
    pub(super) sandbox: Sandbox,
    pub(super) dns: DnsConfig,
    pub(super) probe: Option<Duration>,
    pub(super) admin: Option<AdminConfig>,
    pub(super) reload_on_change: bool,
    pub(super) access_log: AccessLogConfig,
}

/// Resolves all of them.
pub(super) fn resolve(input: &Input, listeners: &[ListenerConfig], out: &mut Output) -> Settings {
    Settings {
        workers: workers(input, out),
        identity: identity(input, out),
        sandbox: sandbox(input, out),
        max_hello_size: max_hello_size(input, out),
        hello_memory: hello_memory(input, out),
        timeouts: timeouts(input, out),
        limits: limits(input, out),
        policies: Policies {
            unknown_sni: policy("unknown_sni", |file| &file.unknown_sni, RejectWith::Alert, input, out),
            no_sni: policy("no_sni", |file| &file.no_sni, RejectWith::Alert, input, out),
            unknown_protocol: policy(
                "unknown_protocol",
                |file| &file.unknown_protocol,
                RejectWith::Answer,
                input,
                out,
            ),
        },
        dns: dns::resolve(input, out),
        probe: probe(input, out),
        admin: admin::resolve(input, listeners, out),
        reload_on_change: reload_on_change(input, out),
        access_log: access_log(input, out),
    }
}

fn workers(input: &Input, out: &mut Output) -> Option<usize> {
    let at = input.once("workers", |file| &file.workers, out);
    let workers = at.and_then(|at| at.value.0);
    out.note("workers", count(workers.map(|workers| workers.0), "auto"), at.map(|at| &at.place));
    workers.map(|workers| workers.0 as usize)
}

fn identity(input: &Input, out: &mut Output) -> Identity {
    let at = input.once("user", |file| &file.user, out);
    let group = input.once("group", |file| &file.group, out);
    let user = at.and_then(|at| at.value.0.as_ref().map(|user| (user, &at.place)));
    let name = user.map_or("off", |(user, _)| user.name.as_str());
    out.note("user", string(name), at.map(|at| &at.place));
    if let Some(group) = group {
        out.note("group", string(&group.value.name), Some(&group.place));
    }
    let Some((user, place)) = user else {
        let bad = input.files.iter().any(|file| file.user.is_bad());
        if let Some(group) = group.filter(|_| !bad) {
            let error = ConfigError::new(ErrorKind::Conflict, "`group` needs a `user`").at(&group.place);
            out.report(error.hint("write `user = \"portcullis\"`, or remove `group`"));
        }
        return if at.is_some() { Identity::Kept } else { Identity::Unsaid };
    };
    let gid = group.map(|group| group.value.gid).or(user.gid);
    if gid.is_none() && input.files.iter().all(|file| file.group.is_absent()) {
        let message = format!("user {} has no entry on this machine, and so no group", user.uid);
        let error = ConfigError::new(ErrorKind::MissingKey, message).at(place);
        out.report(error.hint("add `group`, a name or a number"));
    }
    // Where there is no group an error has been reported.
    Identity::Account(Account {
        name: user.name.as_str().into(),
        uid: user.uid,
        gid: gid.unwrap_or(user.uid),
    })
}

fn sandbox(input: &Input, out: &mut Output) -> Sandbox {
    let at = input.once("sandbox", |file| &file.sandbox, out);
    let value = at.map_or(Sandbox::Off, |at| at.value);
    let word = match value {
        Sandbox::Off => "off",
        Sandbox::Landlock => "landlock",
    };
    out.note("sandbox", string(word), at.map(|at| &at.place));
    value
}

fn probe(input: &Input, out: &mut Output) -> Option<Duration> {
    let at = input.once("probe", |file| &file.probe, out);
    let given = at.and_then(|at| Some(At { value: at.value.0?, place: at.place.clone() }));
    let interval = given.as_ref().map(|given| checked_duration("probe", given, IDLE_MAX, out));
    if let Some(given) = given.filter(|given| !given.value.is_zero() && given.value < PROBE_MIN) {
        let message = format!("`probe` is below {}", duration_text(PROBE_MIN));
        let error = ConfigError::new(ErrorKind::OutOfRange, message).at(&given.place);
        out.report(error.hint("write `\"1h\"`: certificates change seldom"));
    }
    let text = interval.map_or_else(|| string("off"), |interval| string(duration_text(interval)));
    out.note("probe", text, at.map(|at| &at.place));
    interval
}

fn max_hello_size(input: &Input, out: &mut Output) -> usize {
    let at = input.once("max_hello_size", |file| &file.max_hello_size, out);
    let size = at.map_or(HELLO_SIZE, |at| at.value);
    if let Some(at) = at
        && !(HELLO_SIZE_MIN..=HELLO_SIZE_MAX).contains(&size)
    {
        let message = format!("`max_hello_size` is not between {HELLO_SIZE_MIN} and {HELLO_SIZE_MAX}");
        out.report(ConfigError::new(ErrorKind::OutOfRange, message).at(&at.place));
    }
    out.note("max_hello_size", string(size), at.map(|at| &at.place));
    usize::try_from(size.0).unwrap_or(usize::MAX)
}

fn hello_memory(input: &Input, out: &mut Output) -> Option<usize> {
    let at = input.once("hello_memory", |file| &file.hello_memory, out);
    let size = at.and_then(|at| at.value.0);
    let (least, most) = HELLO_MEMORY;
    if let (Some(at), Some(size)) = (at, size)
        && !(least..=most).contains(&size)
    {
        let message = format!("`hello_memory` is not between {least} and {most}");
        let error = ConfigError::new(ErrorKind::OutOfRange, message).at(&at.place);
        out.report(error.hint("write `\"auto\"` for a share that follows from the cap on connections"));
    }
    out.note("hello_memory", size.map_or_else(|| string("auto"), string), at.map(|at| &at.place));
    size.map(|size| usize::try_from(size.0).unwrap_or(usize::MAX))
}

/// A duration that is neither zero nor above `max`; anything else is reported.
pub(super) fn checked_duration(key: &str, at: &At<Duration>, max: Duration, out: &mut Output) -> Duration {
    let error = |message| ConfigError::new(ErrorKind::OutOfRange, message).at(&at.place);
    if at.value.is_zero() {
        out.report(error(format!("`{key}` cannot be zero")));
    } else if at.value > max {
        out.report(error(format!("`{key}` is above {}", duration_text(max))));
    }
    at.value
}

/// A duration with its default, noted as `key`.
pub(super) fn duration(
    key: &str,
    at: Option<&At<Duration>>,
    default: Duration,
    max: Duration,
    out: &mut Output,
) -> Duration {
    let value = at.map_or(default, |at| checked_duration(key, at, max, out));
    out.note(key, string(duration_text(value)), at.map(|at| &at.place));
    value
}

fn timeouts(input: &Input, out: &mut Output) -> Timeouts {
    let table = input.once("timeouts", |file| &file.timeouts, out).map(|at| &at.value);
    let mut one = |key: &str, of: fn(&TimeoutsTable) -> &Setting<Duration>, default, max| {
        let at = table.and_then(|table| of(table).given());
        duration(&format!("timeouts.{key}"), at, Duration::from_secs(default), max, out)
    };
    let mut timeouts = Timeouts {
        hello: one("hello", |table| &table.hello, 5, DAY),
        connect: one("connect", |table| &table.connect, 3, DAY),
        answer: AnswerTimeout::LikeConnect,
        handshake: one("handshake", |table| &table.handshake, 10, DAY),
        idle: one("idle", |table| &table.idle, 300, IDLE_MAX),
        half_closed: one("half_closed", |table| &table.half_closed, 60, DAY),
        drain: one("drain", |table| &table.drain, 30, DAY),
    };
    let at = table.and_then(|table| table.answer.given());
    if let Some(at) = at {
        timeouts.answer = AnswerTimeout::Of(answer(at, out));
    }
    out.note("timeouts.answer", answer_text(timeouts.answer.of(timeouts.connect)), at.map(|at| &at.place));
    timeouts
}

/// How long a backend has for its first byte, as it is written.
pub(super) fn answer(at: &At<WordOr<Off, Duration>>, out: &mut Output) -> Option<Duration> {
    let value = at.value.0?;
    Some(checked_duration("answer", &At { value, place: at.place.clone() }, DAY, out))
}

/// The same for who reads all settings.
pub(super) fn answer_text(answer: Option<Duration>) -> String {
    answer.map_or_else(|| string("off"), |answer| string(duration_text(answer)))
}

fn limits(input: &Input, out: &mut Output) -> Limits {
    let (allow, deny) = acl(input, out);
    let allow_files = list_files("allow_files", |file| &file.allow_files, input, out);
    let deny_files = list_files("deny_files", |file| &file.deny_files, input, out);
    let exempt = input.once("exempt", |file| &file.exempt, out);
    let exempt = listed("exempt", exempt, out);
    let rate = rate(input, out);
    let at = input.once("connection_limit", |file| &file.connection_limit, out);
    let per_ip = match at.map(|at| &at.value) {
        Some(Either::Short(limit)) => at.map(|at| (limit, &at.place)),
        Some(Either::Table(table)) => table.per_ip.given().map(|at| (&at.value, &at.place)),
        None => None,
    };
    let before_hello = inner(at, |table| &table.before_hello).map(|at| (&at.value, &at.place));
    let total = inner(at, |table| &table.total).map(|at| (&at.value, &at.place));
    let mut limit = |key: &str, given: Option<(Option<u32>, _)>, default: Option<u32>, none: &str| {
        let value = given.map_or(default, |(value, _)| value);
        out.note(format!("connection_limit.{key}"), count(value, none), given.map(|(_, place)| place));
        value
    };
    let connections = limit("per_ip", per_ip.map(|(at, p)| (at.0.map(|n| n.0), p)), Some(PER_IP), "off");
    let given = before_hello.map(|(at, p)| (at.0.map(|n| n.0), p));
    let before_hello = limit("before_hello", given, Some(BEFORE_HELLO), "off");
    let total = limit("total", total.map(|(at, p)| (at.0.map(|n| n.0), p)), None, "auto");
    let [of_connections, of_rate] = LIMIT_NAMES.map(LimitConfig::named);
    let short =
        [LimitConfig { connections, before_hello, ..of_connections }, LimitConfig { rate, ..of_rate }];
    let limits = |limit: &LimitConfig| {
        limit.connections.is_some() || limit.before_hello.is_some() || limit.rate.is_some()
    };
    let by_source = short.into_iter().filter(limits).collect();
    let ban = ban(input, out);
    Limits { allow, deny, allow_files, deny_files, exempt, by_source, ban, total: total.map(|n| n as usize) }
}

/// A number, or the word for having none.
fn count(value: Option<u32>, none: &str) -> String {
    value.map_or_else(|| string(none), |value| value.to_string())
}

fn rate(input: &Input, out: &mut Output) -> Option<RateLimit> {
    let at = input.once("rate_limit", |file| &file.rate_limit, out);
    let (rate, burst) = match at.map(|at| &at.value) {
        Some(Either::Short(rate)) => (rate.0.map(|rate| (rate, at.map(|at| &at.place))), None),
        Some(Either::Table(table)) => {
            (table.per_ip.given().map(|at| (at.value, Some(&at.place))), table.burst.given())
        }
        None => (None, None),
    };
    let Some((rate, place)) = rate else {
        out.note("rate_limit", string("off"), at.map(|at| &at.place));
        return None;
    };
    let limit = RateLimit { rate, burst: burst.map_or(rate.count, |burst| burst.value.0) };
    out.note("rate_limit.per_ip", string(rate), place);
    out.note("rate_limit.burst", limit.burst.to_string(), burst.map(|at| &at.place));
    Some(limit)
}

fn ban(input: &Input, out: &mut Output) -> Option<BanRule> {
    let at = input.once("ban", |file| &file.ban, out);
    let (after, table) = match at.map(|at| &at.value) {
        Some(Either::Short(after)) => (after.0.map(|after| (after, at.map(|at| &at.place))), None),
        Some(Either::Table(table)) => {
            (table.after.given().map(|at| (at.value, Some(&at.place))), Some(table))
        }
        None => (None, None),
    };
    let Some((after, place)) = after else {
        out.note("ban", string("off"), at.map(|at| &at.place));
        return None;
    };
    out.note("ban.after", after.0.to_string(), place);
    let within = table.and_then(|table| table.within.given());
    let length = table.and_then(|table| table.r#for.given());
    Some(BanRule {
        after: after.0,
        within: duration("ban.within", within, BAN_WITHIN, DAY, out),
        length: duration("ban.for", length, BAN_FOR, IDLE_MAX, out),
    })
}

fn acl(input: &Input, out: &mut Output) -> (Vec<IpNet>, Vec<IpNet>) {
    let allow = input.once("allow", |file| &file.allow, out);
    let deny = input.once("deny", |file| &file.deny, out);
    let allowed = listed("allow", allow, out);
    let denied = listed("deny", deny, out);
    if let (Some(allow), Some(deny)) = (allow, deny) {
        let first: std::collections::HashMap<_, _> =
            allow.value.0.iter().map(|at| (at.value, &at.place)).collect();
        for at in &deny.value.0 {
            if let Some(place) = first.get(&at.value) {
                let message = format!("`{}` is both allowed and denied", at.value);
                let error = ConfigError::new(ErrorKind::Conflict, message).at(&at.place);
                out.report(error.also(place, "allowed here"));
            }
        }
    }
    (allowed, denied)
}

/// A list of networks, each once, noted as `key`.
pub(super) fn networks(key: &str, at: Option<&At<OneOrMany<IpNet>>>, out: &mut Output) -> Vec<IpNet> {
    let items = at.map_or(&[][..], |at| &at.value.0);
    out.check_repeated(items, ToString::to_string);
    out.note(key, strings(items.iter().map(|at| at.value)), at.map(|at| &at.place));
    items.iter().map(|at| at.value).collect()
}

/// The same for a list of clients.
fn listed(key: &str, at: Option<&At<OneOrMany<IpNet>>>, out: &mut Output) -> Vec<IpNet> {
    for at in at.map_or(&[][..], |at| &at.value.0) {
        if let Err(problem) = nat64(at.value) {
            out.report(problem.at(&at.place));
        }
    }
    networks(key, at, out)
}

/// Reads files of networks.
fn list_files(
    key: &str,
    of: fn(&File) -> &Setting<OneOrMany<String>>,
    input: &Input,
    out: &mut Output,
) -> Vec<ListFile> {
    let at = input.once(key, of, out);
    let items = at.map_or(&[][..], |at| &at.value.0);
    out.check_repeated(items, Clone::clone);
    out.note(key, strings(items.iter().map(|at| &at.value)), at.map(|at| &at.place));
    let mut files = Vec::new();
    for item in items {
        let folder = item.place.file().name().parent().unwrap_or(Path::new(""));
        let path = folder.join(&item.value);
        match ListFile::read(&path) {
            Ok(file) => files.push(file),
            Err(errors) => {
                // Bad lines have a place of their own; that there is nothing to read is wrong here.
                let place = |error: &ConfigError| match error.origin() {
                    Some(_) => error.clone(),
                    None => error.clone().at(&item.place),
                };
                errors.iter().for_each(|error| out.report(place(error)));
            }
        }
    }
    files
}

fn policy(
    key: &str,
    of: fn(&File) -> &Setting<RejectWith>,
    default: RejectWith,
    input: &Input,
    out: &mut Output,
) -> RejectWith {
    let at = input.once(key, of, out);
    let value = at.map_or(default, |at| at.value);
    out.note(key, string(value), at.map(|at| &at.place));
    value
}

fn reload_on_change(input: &Input, out: &mut Output) -> bool {
    let at = input.once("reload_on", |file| &file.reload_on, out);
    let change = at.is_some_and(|at| at.value == ReloadOn::Change);
    out.note("reload_on", string(if change { "change" } else { "signal" }), at.map(|at| &at.place));
    change
}

fn access_log(input: &Input, out: &mut Output) -> AccessLogConfig {
    let at = input.once("access_log", |file| &file.access_log, out);
    let target = match at.map(|at| &at.value) {
        Some(Either::Short(to)) => at.map(|at| (to, &at.place)),
        Some(Either::Table(table)) => table.to.given().map(|at| (&at.value, &at.place)),
        None => None,
    };
    let to = target.map_or(LogTarget::Stdout, |(to, _)| to.clone());
    let text = match &to {
        LogTarget::Off => string("off"),
        LogTarget::Stdout => string("stdout"),
        LogTarget::Stderr => string("stderr"),
        LogTarget::File(path) => string(path.display()),
    };
    out.note("access_log.to", text, target.map(|(_, place)| place));
    let format = inner(at, |table| &table.format);
    let value = format.map_or(LogFormat::Json, |at| at.value);
    let text = match value {
        LogFormat::Json => "json",
        LogFormat::Logfmt => "logfmt",
    };
    out.note("access_log.format", string(text), format.map(|at| &at.place));
    let ja4 = inner(at, |table| &table.ja4);
    let tells = ja4.is_some_and(|at| at.value);
    out.note("access_log.ja4", tells.to_string(), ja4.map(|at| &at.place));
    AccessLogConfig { to, format: value, ja4: tells }
}
