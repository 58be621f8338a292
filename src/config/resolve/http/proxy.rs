//! How requests go to backends: to which, as what, and by what a client stays with them.

use std::sync::Arc;
use std::time::Duration;

use super::super::super::decode::{At, Either, OneOrMany, quote};
use super::super::super::error::{ConfigError, ErrorKind};
use super::super::super::http_keys::{ActionKeys, StickySplit, Variant};
use super::super::super::http_values::SplitWord;
use super::super::super::pool_keys::PoolKeys;
use super::super::super::source::Place;
use super::super::super::units::duration_text;
use super::super::super::upstream::UpstreamName;
use super::super::super::{
    BackendHttp, HostHeader, PassthroughConfig, PathRewrite, ProxyConfig, SplitKey, VariantConfig,
};
use super::super::routes::{Context, has_own_name};
use super::super::upstreams::{self, Written};
use super::super::{Output, passthrough, settings, string};
use super::action::{Spot, path, switch};
use super::headers;

/// From the whole request to the head of the answer: as long as people wait for a page, and nginx does.
const RESPONSE: Duration = Duration::from_secs(60);

/// `None` when an error was reported.
pub(super) fn resolve(
    spot: &Spot<'_>,
    keys: &ActionKeys<'_>,
    context: &Context<'_>,
    out: &mut Output,
) -> Option<ProxyConfig> {
    let prefix = &spot.prefix;
    let timeouts = keys.timeouts.given().map(|at| &at.value);
    if timeouts.is_some_and(|table| table.response.is_bad()) {
        return None;
    }
    let variants = match keys.split.given() {
        Some(at) => split(spot, at, keys, context, out),
        None => {
            let one = target(spot, &spot.group, (&keys.pool, keys.upstream.given()), keys, context, out);
            one.map(|(to, version)| {
                vec![VariantConfig { name: Arc::clone(&spot.name), weight: 1, to, version }]
            })
        }
    };
    let host = keys.host_header.given();
    let header = host.map_or(HostHeader::Keep, |at| at.value.clone());
    out.note(format!("{prefix}.host_header"), string(&header), host.map(|at| &at.place));
    let named = match (&header, host) {
        (HostHeader::Set(text), Some(at)) => headers::has_groups(text, &at.place, spot.groups, out),
        _ => true,
    };
    let response = timeouts.and_then(|table| table.response.given());
    let response_timeout =
        response.map_or(RESPONSE, |at| settings::checked_duration("response", at, settings::DAY, out));
    let text = string(duration_text(response_timeout));
    out.note(format!("{prefix}.timeouts.response"), text, response.map(|at| &at.place));
    let buffer_requests = switch(prefix, "buffer_requests", keys.buffer_requests.given(), out);
    let rewrite = rewrite(prefix, keys, out);
    let sticky = sticky(prefix, keys, out);
    Some(ProxyConfig {
        variants: variants?,
        sticky: sticky?,
        host: named.then_some(header)?,
        rewrite: rewrite?,
        buffer_requests,
        response_timeout,
    })
}

/// The backends of `to`, or the group of `upstream`.
fn target(
    spot: &Spot<'_>,
    group: &str,
    (pool, upstream): (&PoolKeys<'_>, Option<&At<UpstreamName>>),
    keys: &ActionKeys<'_>,
    context: &Context<'_>,
    out: &mut Output,
) -> Option<(PassthroughConfig, BackendHttp)> {
    let prefix = &spot.prefix;
    let said = (keys, spot.route);
    if let Some(name) = upstream {
        let Written { config, to, scheme } = context.upstreams.find(name, out)?;
        let Some((version, _)) = scheme.http() else {
            let message = format!("the backends of {} are not said to speak HTTP", quote(&config.name));
            let error = ConfigError::new(ErrorKind::Conflict, message).at(&name.place);
            out.report(error.hint(
                "write `http://` before their addresses (`https://`, `h2c://` or `h2://` where they speak that)",
            ));
            return None;
        };
        out.note(format!("{prefix}.upstream"), string(&config.name), Some(&name.place));
        return Some((passthrough::of_keys(prefix, config, &to, said, context, out), version));
    }
    let to = upstreams::check_backends(pool.to, context.listeners, out)?;
    let place = pool.to.place()?;
    if !upstreams::speaks_http(pool.to) {
        return without_scheme(pool, place, out);
    }
    if !has_own_name(group, place, context, out) {
        return None;
    }
    // Where only some do, that is reported.
    let upstream = upstreams::keys_to_config(group, prefix, pool, out)?;
    let (version, _) = upstreams::scheme(pool.to).http()?;
    Some((passthrough::of_keys(prefix, Arc::new(upstream), &to, said, context, out), version))
}

/// Reports backends that are not said to speak HTTP.
fn without_scheme<T>(pool: &PoolKeys<'_>, place: &Place, out: &mut Output) -> Option<T> {
    let without = pool.to.values().iter().find_map(|at| {
        let address = super::super::backend_tls::written(&at.value)?;
        address.scheme.http().is_none().then_some((address, &at.place))
    });
    let (text, at) = match without {
        Some((address, at)) => (address.address.to_string(), at),
        None => ("10.0.0.1:80".to_owned(), place),
    };
    let error = ConfigError::new(ErrorKind::Conflict, "requests go to backends that speak HTTP").at(at);
    out.report(error.hint(format!(
        "write `http://` before it: `\"http://{text}\"`; or `https://`, `h2c://` or `h2://` where it speaks that"
    )));
    None
}

/// Several backends, or groups of them.
fn split(
    spot: &Spot<'_>,
    at: &At<OneOrMany<Variant>>,
    keys: &ActionKeys<'_>,
    context: &Context<'_>,
    out: &mut Output,
) -> Option<Vec<VariantConfig>> {
    let variants = &at.value.0;
    let names: Vec<_> = variants.iter().filter_map(|at| at.value.name.given().cloned()).collect();
    out.check_repeated(&names, |name| name.0.clone());
    if let [_] = variants.as_slice() {
        let error = ConfigError::new(ErrorKind::OutOfRange, "requests are split over two variants or more");
        out.report(error.at(&at.place).hint("write its `to` in place of `split`, or add another variant"));
        return None;
    }
    let all: Vec<_> = variants.iter().map(|variant| one(spot, variant, keys, context, out)).collect();
    let all: Vec<_> = all.into_iter().collect::<Option<_>>()?;
    if all.iter().all(|variant| variant.weight == 0) {
        let error =
            ConfigError::new(ErrorKind::OutOfRange, "no variant gets any requests: all weights are 0");
        out.report(error.at(&at.place).hint("give one of them a `weight` of 1 or more"));
        return None;
    }
    Some(all)
}

fn one(
    spot: &Spot<'_>,
    at: &At<Variant>,
    keys: &ActionKeys<'_>,
    context: &Context<'_>,
    out: &mut Output,
) -> Option<VariantConfig> {
    let variant = &at.value;
    let name = variant.name.given()?.value.0.as_str();
    if variant.weight.is_bad() || variant.to.is_bad() || variant.upstream.is_bad() {
        return None;
    }
    match (variant.to.place(), variant.upstream.place()) {
        (Some(first), Some(second)) => {
            let error =
                ConfigError::new(ErrorKind::Conflict, "a variant has either `to` or `upstream`, not both");
            out.report(error.at(second).also(first, "`to` is here"));
            return None;
        }
        (None, None) => {
            let error = ConfigError::new(ErrorKind::MissingKey, "the variant leads nowhere").at(&at.place);
            out.report(error.hint("add `to = \"http://10.0.0.1:80\"`, or `upstream`"));
            return None;
        }
        _ => {}
    }
    let group = format!("{}/{name}", spot.group);
    let inner = Spot {
        prefix: format!("{}.split[{name}]", spot.prefix),
        group: group.clone(),
        name: Arc::from(name),
        ..*spot
    };
    let weight = variant.weight.given();
    let share = weight.map_or(1, |at| at.value.0);
    out.note(format!("{}.weight", inner.prefix), share.to_string(), weight.map(|at| &at.place));
    let own = (&variant.pool_keys(), variant.upstream.given());
    let (to, version) = target(&inner, &group, own, keys, context, out)?;
    Some(VariantConfig { name: inner.name, weight: share, to, version })
}

/// By what a client stays with its variant; by its address when nothing is said.
fn sticky(prefix: &str, keys: &ActionKeys<'_>, out: &mut Output) -> Option<SplitKey> {
    if keys.split.is_absent() {
        return Some(SplitKey::Source);
    }
    let at = keys.sticky_split.given();
    let (key, text) = match at.map(|at| &at.value) {
        None => (SplitKey::Source, string("source")),
        Some(Either::Short(SplitWord(key))) => (key.clone(), string("source")),
        Some(Either::Table(table)) => sticky_by(table, &at?.place, out)?,
    };
    out.note(format!("{prefix}.sticky_split"), text, at.map(|at| &at.place));
    Some(key)
}

/// Exactly one of `cookie` and `header`.
pub(super) fn sticky_by(table: &StickySplit, place: &Place, out: &mut Output) -> Option<(SplitKey, String)> {
    if table.cookie.is_bad() || table.header.is_bad() {
        return None;
    }
    match (table.cookie.given(), table.header.given()) {
        (Some(at), None) => {
            Some((SplitKey::Cookie(at.value.0.clone()), format!("{{ cookie = {} }}", string(&at.value.0))))
        }
        (None, Some(at)) => {
            Some((SplitKey::Header(at.value.0.clone()), format!("{{ header = {} }}", string(&at.value.0))))
        }
        (Some(first), Some(second)) => {
            let message = "clients are told apart by a cookie or by a header field, not both";
            let error = ConfigError::new(ErrorKind::Conflict, message).at(&second.place);
            out.report(error.also(&first.place, "`cookie` is here"));
            None
        }
        (None, None) => {
            let error =
                ConfigError::new(ErrorKind::MissingKey, "it is not said by what clients are told apart");
            out.report(
                error
                    .at(place)
                    .hint("write `\"source\"`, `{ cookie = \"name\" }` or `{ header = \"x-user\" }`"),
            );
            None
        }
    }
}

fn rewrite(prefix: &str, keys: &ActionKeys<'_>, out: &mut Output) -> Option<PathRewrite> {
    let strip = path(prefix, "strip", keys.strip.given(), out);
    let add = path(prefix, "add", keys.add.given(), out);
    let Some(at) = keys.replace.given() else { return Some(PathRewrite { strip, replace: None, add }) };
    let (regex, with) = (at.value.r#match.given()?, at.value.with.given()?);
    let groups = regex.value.0.captures_len().saturating_sub(1);
    if !headers::has_groups(&with.value, &with.place, Some(groups), out) {
        return None;
    }
    let text = with.value.to_string();
    if !text.starts_with(['/', '{']) || text.starts_with("{{") {
        let message = format!("{} is no path: it does not begin with `/`", quote(&text));
        let error = ConfigError::new(ErrorKind::BadValue, message).at(&with.place);
        out.report(error.hint(format!("write {}", quote(&format!("/{text}")))));
        return None;
    }
    out.note(format!("{prefix}.replace.match"), string(regex.value.0.as_str()), Some(&regex.place));
    out.note(format!("{prefix}.replace.with"), string(&text), Some(&with.place));
    Some(PathRewrite { strip, replace: Some((regex.value.0.clone(), with.value.clone())), add })
}
