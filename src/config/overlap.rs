//! Routes that match the same thing.

use std::collections::{HashMap, HashSet};

use ipnet::IpNet;

use super::error::{ConfigError, ErrorKind};
use super::source::Place;
use super::{Conditions, Ja4Pattern, RouteConfig};
use crate::peek::Protocol;

/// Combinations of listener × fingerprint × ALPN × network looked at for a route that shares a key with another.
const MAX_COMBINATIONS: usize = 1 << 20;

/// How many conditions there are beside the key.
const CONDITIONS: usize = 8;

/// One choice of every condition.
type Combination<'r> = [Choice<'r>; CONDITIONS];

/// A value of a condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Choice<'r> {
    /// The route does not have the condition.
    #[default]
    None,
    /// It has, whatever the value.
    There,
    Text(&'r str),
    Ja4(&'r Ja4Pattern),
    Alpn(&'r [u8]),
    Net(IpNet),
    Within(Protocol),
}

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
            let message = "the route has more than a million combinations of its conditions";
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
    let what = if conditions.to_string().is_empty() { "" } else { " under conditions that overlap" };
    let message = format!("two routes match `{key}`{what}");
    let error = ConfigError::new(ErrorKind::DuplicateRoute, message).at(after.keys.get(second.key)?);
    let error = error.label("matched again here").also(before.keys.get(first.key)?, "first matched here");
    Some(
        error.hint(
            "give both backends to one route, or tell them apart by `listener`, `ja4`, `alpn`, `from`, `starttls`, `database` or `user`",
        ),
    )
}

fn combination_count(placed: &Placed) -> usize {
    choices_of(placed).iter().map(Vec::len).fold(1, usize::saturating_mul)
}

/// One choice of every condition after the other.
fn combinations(placed: &Placed) -> impl Iterator<Item = Combination<'_>> {
    let choices = choices_of(placed);
    let first: Box<dyn Iterator<Item = Combination<'_>>> = Box::new(std::iter::once(Combination::default()));
    choices.into_iter().enumerate().fold(first, |so_far, (index, choices)| {
        Box::new(so_far.flat_map(move |combination| {
            choices.clone().into_iter().map(move |choice| {
                let mut next = combination;
                if let Some(place) = next.get_mut(index) {
                    *place = choice;
                }
                next
            })
        }))
    })
}

/// What may be chosen of each condition; of one that the route does not have, that.
fn choices_of(placed: &Placed) -> [Vec<Choice<'_>>; CONDITIONS] {
    let conditions = &placed.route.conditions;
    [
        choices(conditions.listeners.as_deref(), |name| Choice::Text(name)),
        choices(conditions.ja4.as_deref(), Choice::Ja4),
        choices(conditions.alpn.as_deref(), |name| Choice::Alpn(name)),
        choices(conditions.from.as_deref(), |net| Choice::Net(*net)),
        begins(conditions),
        vec![if conditions.inside.is_some() { Choice::There } else { Choice::None }],
        choices(conditions.databases.as_deref(), |name| Choice::Text(name)),
        choices(conditions.users.as_deref(), |name| Choice::Text(name)),
    ]
}

/// In which ways TLS may begin: from the first byte, and within protocols.
fn begins(conditions: &Conditions) -> Vec<Choice<'_>> {
    let within = conditions.inside.iter().flatten().filter(|protocol| protocol.has_starttls());
    let within =
        within.filter(|_| conditions.starttls != Some(false)).map(|protocol| Choice::Within(*protocol));
    let at_once = conditions.starttls != Some(true) && conditions.may_be_tls_at_once();
    let at_once = at_once.then_some(Choice::None);
    at_once.into_iter().chain(within).collect()
}

fn choices<'r, T>(values: Option<&'r [T]>, choice: impl Fn(&'r T) -> Choice<'r>) -> Vec<Choice<'r>> {
    values.map_or_else(|| vec![Choice::None], |values| values.iter().map(choice).collect())
}
