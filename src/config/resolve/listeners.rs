//! Listeners: names and addresses, each once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::super::ListenerConfig;
use super::super::decode::{At, OneOrMany};
use super::super::error::{ConfigError, ErrorKind};
use super::super::source::Place;
use super::super::units::duration_text;
use super::{Input, Output, settings, string, strings};
use crate::net::ListenAddr;

/// Name of the listener that `listen` makes.
const DEFAULT_NAME: &str = "default";

/// Clients of protocols where the server speaks first wait; one round trip round the world is 0.4 s, and a
/// lost segment is sent again after 1 s (RFC 6298 §2).
const SILENT_AFTER: Duration = Duration::from_secs(2);

/// All listeners; `listen` first.
pub(super) fn resolve(input: &Input, out: &mut Output) -> Vec<ListenerConfig> {
    let mut listeners = Listeners::default();
    let listen = input.once("listen", |file| &file.listen, out);
    let silent = input.once("silent_after", |file| &file.silent_after, out);
    let proxies = input.once("proxy_protocol", |file| &file.proxy_protocol, out);
    if let Some(listen) = listen {
        listeners.add(DEFAULT_NAME, &listen.place, &listen.value.0, (silent, proxies), out);
    } else if input.files.iter().all(|file| file.listen.is_absent()) {
        let of_listen =
            [("silent_after", silent.map(|at| &at.place)), ("proxy_protocol", proxies.map(|at| &at.place))];
        for (key, place) in of_listen {
            let Some(place) = place else { continue };
            let message = format!("`{key}` belongs to `listen`, which is not given");
            let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
            out.report(error.hint("write it into the `[[listener]]`"));
        }
    }
    for table in input.listeners() {
        let (Some(name), Some(bind)) = (table.value.name.given(), table.value.bind.given()) else {
            continue;
        };
        let own = (table.value.silent_after.given(), table.value.proxy_protocol.given());
        listeners.add(&name.value.0, &name.place, &bind.value.0, own, out);
    }
    let given =
        input.files.iter().any(|file| file.listener.place().is_some() || file.listen.place().is_some());
    if !given && !input.incomplete {
        let error = ConfigError::new(ErrorKind::MissingKey, "there is no listener").at(&input.top);
        out.report(error.hint("write `listen = \":443\"`"));
    }
    listeners.found
}

#[derive(Default)]
struct Listeners {
    found: Vec<ListenerConfig>,
    names: HashMap<String, Place>,
    sockets: HashMap<SocketAddr, Place>,
}

impl Listeners {
    fn add(
        &mut self,
        name: &str,
        place: &Place,
        bind: &[At<ListenAddr>],
        (silent, proxies): (Option<&At<Duration>>, Option<&At<OneOrMany<IpNet>>>),
        out: &mut Output,
    ) {
        if let Some(first) = self.names.get(name) {
            let error =
                ConfigError::new(ErrorKind::DuplicateName, format!("two listeners are named `{name}`"));
            let error = error.at(place).also(first, "first defined here");
            out.report(match name {
                DEFAULT_NAME => error.hint("`listen` makes a listener named `default`"),
                _ => error,
            });
        } else {
            self.names.insert(name.to_owned(), place.clone());
        }
        for addr in bind {
            self.check_bind(addr, out);
        }
        let silent_after = match silent {
            Some(at) => settings::checked_duration("silent_after", at, settings::DAY, out),
            None => SILENT_AFTER,
        };
        let binds = strings(bind.iter().map(|at| at.value));
        out.note(format!("listener[{name}].bind"), binds, bind.first().map(|at| &at.place));
        let text = string(duration_text(silent_after));
        out.note(format!("listener[{name}].silent_after"), text, silent.map(|at| &at.place));
        let proxy_protocol = settings::networks(&format!("listener[{name}].proxy_protocol"), proxies, out);
        self.found.push(ListenerConfig {
            name: Arc::from(name),
            bind: bind.iter().map(|at| at.value).collect(),
            silent_after,
            proxy_protocol,
            origin: place.origin(),
        });
    }

    /// An address taken twice: `:443` takes that of IPv4 as well.
    fn check_bind(&mut self, addr: &At<ListenAddr>, out: &mut Output) {
        let socket = addr.value.socket();
        if socket.port() == 0 {
            return;
        }
        let v4_any = addr.value.dual_stack().then(|| SocketAddr::from(([0, 0, 0, 0], socket.port())));
        for socket in std::iter::once(socket).chain(v4_any) {
            if let Some(first) = self.sockets.get(&socket) {
                let message = format!("`{}` is listened on twice", addr.value);
                let error = ConfigError::new(ErrorKind::DuplicateValue, message).at(&addr.place);
                out.report(error.also(first, "first given here"));
                return;
            }
        }
        self.sockets.extend(std::iter::once(socket).chain(v4_any).map(|socket| (socket, addr.place.clone())));
    }
}

/// The listener that a connection to `target` from this machine would come in on.
pub(in super::super) fn own(listeners: &[ListenerConfig], target: SocketAddr) -> Option<&ListenerConfig> {
    // Which addresses this host has is not asked: a configuration is also checked elsewhere.
    listeners.iter().find(|listener| listener.bind.iter().any(|bind| bind.takes(target, false)))
}
