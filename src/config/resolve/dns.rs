//! How names of backends are resolved.

use std::time::Duration;

use super::super::decode::At;
use super::super::error::{ConfigError, ErrorKind};
use super::super::file::Dns;
use super::super::units::duration_text;
use super::super::{DnsConfig, DnsFamily};
use super::settings::{DAY, IDLE_MAX, checked_duration, duration};
use super::{Input, Output, string, strings};

/// Zones say hours; whoever has put a name right does not want to wait for that.
const NEGATIVE_TTL: Duration = Duration::from_secs(30);

/// Resolves it.
pub(super) fn resolve(input: &Input, out: &mut Output) -> DnsConfig {
    let table = input.once("dns", |file| &file.dns, out).map(|at| &at.value);
    let servers = table.map_or(&[][..], |table| table.servers.values());
    out.check_repeated(servers, |server| server.0.to_string());
    out.note(
        "dns.servers",
        strings(servers.iter().map(|at| at.value.0)),
        servers.first().map(|at| &at.place),
    );
    let family = table.and_then(|table| table.family.given());
    out.note("dns.family", string(family.map_or(DnsFamily::Both, |at| at.value)), family.map(|at| &at.place));
    let max_at = table.and_then(|table| table.max_ttl.given());
    let min_at = table.and_then(|table| table.min_ttl.given());
    let timeout = table.and_then(|table| table.timeout.given());
    let negative_at = table.and_then(|table| table.negative_ttl.given());
    let dns = DnsConfig {
        family: family.map_or(DnsFamily::Both, |at| at.value),
        servers: servers.iter().map(|at| at.value.0).collect(),
        timeout: duration("dns.timeout", timeout, Duration::from_secs(5), DAY, out),
        min_ttl: duration("dns.min_ttl", min_at, Duration::from_secs(1), DAY, out),
        max_ttl: duration("dns.max_ttl", max_at, Duration::from_secs(300), DAY, out),
        negative_ttl: duration("dns.negative_ttl", negative_at, NEGATIVE_TTL, DAY, out),
        stale_max: stale_max(table, out),
    };
    if dns.min_ttl > dns.max_ttl
        && let Some(at) = min_at.or(max_at)
    {
        let (min, max) = (duration_text(dns.min_ttl), duration_text(dns.max_ttl));
        let error =
            ConfigError::new(ErrorKind::Conflict, format!("`min_ttl` ({min}) is above `max_ttl` ({max})"));
        let error = error.at(&at.place);
        out.report(match (min_at, max_at) {
            (Some(_), Some(max)) => error.also(&max.place, "`max_ttl` is here"),
            _ => error.hint(format!("`max_ttl` is {max} and `min_ttl` {min}, one of them by default")),
        });
    }
    dns
}

/// How long stale answers are used; `None`: without end.
fn stale_max(table: Option<&Dns>, out: &mut Output) -> Option<Duration> {
    let at = table.and_then(|table| table.stale_max.given());
    let value = at.and_then(|at| {
        let value = at.value.0?;
        Some(checked_duration("dns.stale_max", &At { value, place: at.place.clone() }, IDLE_MAX, out))
    });
    let text = value.map_or_else(|| string("unlimited"), |value| string(duration_text(value)));
    out.note("dns.stale_max", text, at.map(|at| &at.place));
    value
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::super::{Config, ConfigErrors};
    use super::*;

    fn parse(dns: &str) -> Result<Config, ConfigErrors> {
        let text =
            format!("listen = ':443'\ndns = {{ {dns} }}\n[[route]]\nsni = 'a.test'\nto = 'b.test:1'\n");
        Config::parse(Path::new("test.toml"), &text)
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn all_keys_are_what_they_say() {
        let full = "servers = '[::1]:5353', timeout = '2s', family = 'ipv6', min_ttl = '3s', max_ttl = '1h', \
                    negative_ttl = '4s', stale_max = '2d'";
        let expected = DnsConfig {
            servers: vec!["[::1]:5353".parse().unwrap()],
            timeout: secs(2),
            family: DnsFamily::V6,
            min_ttl: secs(3),
            max_ttl: secs(3600),
            negative_ttl: secs(4),
            stale_max: Some(secs(2 * 86_400)),
        };
        assert_eq!(parse(full).unwrap().dns, expected);
        let default = DnsConfig {
            servers: vec![],
            timeout: secs(5),
            family: DnsFamily::Both,
            min_ttl: secs(1),
            max_ttl: secs(300),
            negative_ttl: secs(30),
            stale_max: None,
        };
        for same in ["", "family = 'both', stale_max = 'unlimited'"] {
            assert_eq!(parse(same).unwrap().dns, default, "{same}");
        }
    }

    #[test]
    fn all_keys_are_told_as_they_are_written() {
        let config = parse("family = 'ipv4', stale_max = '90m'").unwrap();
        let told = |config: &Config, key: &str| {
            let of_key = config.effective.iter().find(|setting| setting.key == key).unwrap();
            (of_key.value.clone(), of_key.origin.as_ref().map(|origin| origin.line))
        };
        assert_eq!(told(&config, "dns.family"), ("\"ipv4\"".to_owned(), Some(2)));
        assert_eq!(told(&config, "dns.stale_max"), ("\"1h30m\"".to_owned(), Some(2)));
        assert_eq!(told(&config, "dns.negative_ttl"), ("\"30s\"".to_owned(), None));
        assert_eq!(told(&parse("").unwrap(), "dns.stale_max"), ("\"unlimited\"".to_owned(), None));
    }

    #[test]
    fn bad_values_are_told_with_what_to_write() {
        for (dns, kind, told) in [
            ("family = 'ipv5'", "bad-value", "`ipv5` is not one of `both`, `ipv4` and `ipv6`"),
            ("family = 4", "wrong-type", "\"both\", \"ipv4\" or \"ipv6\""),
            ("negative_ttl = '0s'", "out-of-range", "`dns.negative_ttl` cannot be zero"),
            ("negative_ttl = 5", "missing-unit", "write `\"5s\"` for seconds"),
            ("stale_max = '0s'", "out-of-range", "`dns.stale_max` cannot be zero"),
            ("stale_max = '31d'", "out-of-range", "`dns.stale_max` is above 30d"),
            ("stale_max = 'off'", "bad-value", "`off` is not a duration"),
            ("stale_may = '1h'", "unknown-key", "did you mean `stale_max`?"),
        ] {
            let errors = parse(dns).expect_err(dns);
            let kinds: Vec<&str> = errors.iter().map(|error| error.kind().as_str()).collect();
            assert_eq!(kinds, [kind], "{dns}: {errors}");
            assert!(errors.to_string().contains(told), "{dns}: {errors}");
            assert_eq!(errors.iter().next().unwrap().origin().unwrap().line, 2, "{dns}");
        }
    }
}
