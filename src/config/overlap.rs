//! Routes that match the same thing.

use std::collections::{HashMap, HashSet};

use ipnet::IpNet;

use super::error::{ConfigError, ErrorKind};
use super::source::Place;
use super::{Ja4Pattern, RouteConfig};

/// Combinations of listener × fingerprint × ALPN × network looked at for a route that shares a key with another.
const MAX_COMBINATIONS: usize = 1 << 20;

/// One choice of every condition; `None` where the route does not have that condition.
type Combination<'r> = (Option<&'r str>, Option<&'r Ja4Pattern>, Option<&'r [u8]>, Option<IpNet>);

/// A route, and where each of its keys is written.
pub(super) struct Placed {
    pub(super) route: RouteConfig,
    pub(super) place: Place,
    pub(super) keys: Vec<Place>,
}

/// A key of a route, both as indices.
#[derive(Clone, Copy)]
struct Member {
    route: usize,
    key: usize,
}

/// The errors for routes that share a key, have the same kinds of conditions, and a common choice of every
/// condition: such a connection would have two routes with nothing to decide between them.
pub(super) fn check(routes: &[Placed]) -> Vec<ConfigError> {
    let mut groups: HashMap<String, Vec<Member>> = HashMap::new();
    for (route, placed) in routes.iter().enumerate() {
        for (key, what) in placed.route.keys.iter().enumerate() {
            let group = groups.entry(what.to_string()).or_default();
            if group.last().is_none_or(|last| last.route != route) {
                group.push(Member { route, key });
            }
        }
    }
    let mut shared: Vec<_> = groups.into_iter().filter(|(_, members)| members.len() > 1).collect();
    shared.sort_by_key(|(_, members)| members.first().map(|member| (member.route, member.key)));
    let (mut examined, mut errors) = (HashSet::new(), Vec::new());
    for (key, members) in shared {
        // Routes that share many keys are compared once.
        if examined.insert(members.iter().map(|member| member.route).collect::<Vec<_>>()) {
            compare(&key, &members, routes, &mut errors);
        }
    }
    let mut pairs = HashSet::new();
    errors.retain(|(pair, _)| pairs.insert(*pair));
    errors.into_iter().map(|(_, error)| error).collect()
}

/// Reports each member that has a combination in common with an earlier one.
fn compare(
    key: &str,
    members: &[Member],
    routes: &[Placed],
    errors: &mut Vec<((usize, usize), ConfigError)>,
) {
    let mut taken: HashMap<Combination<'_>, Member> = HashMap::new();
    for member in members {
        let Some(placed) = routes.get(member.route) else {
            continue;
        };
        if combination_count(placed) > MAX_COMBINATIONS {
            let message =
                "the route has more than a million combinations of `listener`, `ja4`, `alpn` and `from`";
            let error = ConfigError::new(ErrorKind::OutOfRange, message).at(&placed.place);
            errors
                .push(((member.route, member.route), error.hint("use networks instead of single addresses")));
            continue;
        }
        let mut first = None;
        for combination in combinations(placed) {
            let holder = taken.entry(combination).or_insert(*member);
            if holder.route != member.route {
                first.get_or_insert(*holder);
            }
        }
        if let Some(first) = first
            && let Some(error) = duplicate(key, first, *member, routes)
        {
            errors.push(((first.route, member.route), error));
        }
    }
}

fn duplicate(key: &str, first: Member, second: Member, routes: &[Placed]) -> Option<ConfigError> {
    let (before, after) = (routes.get(first.route)?, routes.get(second.route)?);
    let conditions = &after.route.conditions;
    let conditional = conditions.listeners.is_some()
        || conditions.ja4.is_some()
        || conditions.alpn.is_some()
        || conditions.from.is_some();
    let what = if conditional { " under conditions that overlap" } else { "" };
    let message = format!("two routes match `{key}`{what}");
    let error = ConfigError::new(ErrorKind::DuplicateRoute, message).at(after.keys.get(second.key)?);
    let error = error.label("matched again here").also(before.keys.get(first.key)?, "first matched here");
    Some(
        error.hint(
            "give both backends to one route, or tell them apart by `listener`, `ja4`, `alpn` or `from`",
        ),
    )
}

fn combination_count(placed: &Placed) -> usize {
    let conditions = &placed.route.conditions;
    let len = |len: Option<usize>| len.unwrap_or(1);
    len(conditions.listeners.as_ref().map(Vec::len))
        .saturating_mul(len(conditions.ja4.as_ref().map(Vec::len)))
        .saturating_mul(len(conditions.alpn.as_ref().map(Vec::len)))
        .saturating_mul(len(conditions.from.as_ref().map(Vec::len)))
}

fn combinations(placed: &Placed) -> impl Iterator<Item = Combination<'_>> {
    let conditions = &placed.route.conditions;
    let listeners = choices(conditions.listeners.as_deref().map(|all| all.iter().map(AsRef::as_ref)));
    let alpn = choices(conditions.alpn.as_deref().map(|all| all.iter().map(AsRef::as_ref)));
    let from = choices(conditions.from.as_deref().map(|all| all.iter().copied()));
    let ja4 = choices(conditions.ja4.as_deref().map(|all| all.iter()));
    listeners.into_iter().flat_map(move |listener| {
        let (alpn, from) = (alpn.clone(), from.clone());
        ja4.clone().into_iter().flat_map(move |ja4| {
            let from = from.clone();
            alpn.clone()
                .into_iter()
                .flat_map(move |alpn| from.clone().into_iter().map(move |net| (listener, ja4, alpn, net)))
        })
    })
}

/// The values of a condition, or the one choice of not having it.
fn choices<T>(values: Option<impl Iterator<Item = T>>) -> Vec<Option<T>> {
    match values {
        Some(values) => values.map(Some).collect(),
        None => vec![None],
    }
}
