//! Routes to the servers that clients name (`to = "sni:443"`): only to names that the route gives.

use ipnet::IpNet;

use super::super::error::{ConfigError, ErrorKind};
use super::super::file::Route;
use super::super::source::Place;
use super::super::{NamePattern, RouteKey};
use super::{Output, strings};
use crate::net::UpstreamAddr;

/// What may be said of a backend that stands for many; all else tells backends apart, or would let the clients of one
/// name decide about those of another.
const KEYS: [&str; 3] = ["max_connections", "queue", "backend_tls"];
/// Names that no list of servers has; an expression that matches all of them matches everything.
const NOBODYS: [&str; 3] = ["a.invalid", "0.example.invalid", "xn--0-invalid.test"];

/// The place of the backend that is the server name itself.
pub(super) fn place(to: &[(UpstreamAddr, Place)]) -> Option<&Place> {
    to.iter().find(|(addr, _)| is_dynamic(addr)).map(|(_, place)| place)
}

/// Whether it is whatever clients name.
pub(super) fn is_dynamic(addr: &UpstreamAddr) -> bool {
    matches!(addr, UpstreamAddr::ServerName(_))
}

/// Reports what a route to server names may not have, and `internal` where it means nothing. Gives the networks that
/// are allowed beside the public ones.
pub(super) fn check(
    route: &Route,
    to: &[(UpstreamAddr, Place)],
    keys: Option<&[(RouteKey, Place)]>,
    out: &mut Output,
) {
    out.check_repeated(route.internal.values(), ToString::to_string);
    let Some(place) = place(to) else {
        if let Some(internal) = route.internal.place() {
            let message = "`internal` is said of servers that clients name, and this route has backends";
            let error = ConfigError::new(ErrorKind::Conflict, message).at(internal);
            out.report(error.hint("remove `internal`: backends may be anywhere"));
        }
        return;
    };
    if let Some((_, other)) = to.iter().find(|(addr, _)| !is_dynamic(addr)) {
        let message = "the server that a client names stands alone in `to`";
        let error = ConfigError::new(ErrorKind::Conflict, message).at(other).also(place, "it is here");
        out.report(error.hint("write a second `[[route]]` for the other backend"));
    }
    for (key, at) in route.pool_keys().written().filter(|(key, _)| !KEYS.contains(key)) {
        let message = format!("`{key}` is said of backends, and here clients name the server");
        let error = ConfigError::new(ErrorKind::Conflict, message).at(at).also(place, "this leads there");
        out.report(error.hint(format!("remove `{key}`")));
    }
    for (key, at) in keys.into_iter().flatten().filter(|(key, _)| is_open(key)) {
        let message = match key {
            RouteKey::Sni(_) => "every name matches, and clients would be led wherever they want",
            RouteKey::NoSni | RouteKey::Begins(_) | RouteKey::Protocol(_) | RouteKey::Anything => {
                "without a name nobody says which server is meant"
            }
        };
        let error = ConfigError::new(ErrorKind::OpenForward, message).at(at).also(place, "this leads there");
        out.report(error.hint(
            "give the names that may be reached: `sni = [\"api.example.com\", \"*.example.net\"]`, and nothing else",
        ));
    }
}

/// Reports one in a group, which several routes may lead to.
pub(super) fn refuse(to: &[(UpstreamAddr, Place)], out: &mut Output) {
    let Some(place) = place(to) else { return };
    let message = "the server that a client names is no backend of a group";
    let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
    out.report(error.hint("write it as the `to` of the `[[route]]` whose names may be reached"));
}

/// Notes and gives the networks that are allowed beside the public ones.
pub(super) fn internal(
    name: &str,
    to: &[(UpstreamAddr, Place)],
    route: &Route,
    out: &mut Output,
) -> Vec<IpNet> {
    if place(to).is_none() {
        return Vec::new();
    }
    let at = route.internal.given();
    let networks: Vec<_> = route.internal.values().iter().map(|at| at.value).collect();
    out.note(format!("route[{name}].internal"), strings(networks.iter()), at.map(|at| &at.place));
    networks
}

/// Whether names match that nobody has written down.
fn is_open(key: &RouteKey) -> bool {
    match key {
        RouteKey::Sni(NamePattern::Exact(_) | NamePattern::Suffix(_)) => false,
        RouteKey::Sni(NamePattern::Regex(regex)) => NOBODYS.iter().all(|name| regex.is_match(name)),
        RouteKey::Sni(NamePattern::Any)
        | RouteKey::NoSni
        | RouteKey::Begins(_)
        | RouteKey::Protocol(_)
        | RouteKey::Anything => true,
    }
}
