//! Listeners: names and addresses, each once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::super::ListenerConfig;
use super::super::decode::{At, Either, OneOrMany};
use super::super::error::{ConfigError, ErrorKind};
use super::super::file::ServerFirst;
use super::super::protocols::ServerFirstWord;
use super::super::source::Place;
use super::super::units::duration_text;
use super::{Input, Output, settings, string, strings};
use crate::net::ListenAddr;
use crate::peek::{Protocol, ServerName};
use crate::prelude::{Greeting, MYSQL_VERSION};

/// Name of the listener that `listen` makes.
const DEFAULT_NAME: &str = "default";

/// Clients of protocols where the server speaks first wait; one round trip round the world is 0.4 s, and a
/// lost segment is sent again after 1 s (RFC 6298 §2).
const SILENT_AFTER: Duration = Duration::from_secs(2);

/// What a listener says beside its name and addresses.
#[derive(Clone, Copy)]
struct Keys<'f> {
    silent_after: Option<&'f At<Duration>>,
    server_first: Option<&'f At<Either<ServerFirstWord, ServerFirst>>>,
    proxy_protocol: Option<&'f At<OneOrMany<IpNet>>>,
}

/// All listeners; `listen` first.
pub(super) fn resolve(input: &Input, out: &mut Output) -> Vec<ListenerConfig> {
    let mut listeners = Listeners::default();
    let listen = input.once("listen", |file| &file.listen, out);
    let keys = Keys {
        silent_after: input.once("silent_after", |file| &file.silent_after, out),
        server_first: input.once("server_first", |file| &file.server_first, out),
        proxy_protocol: input.once("proxy_protocol", |file| &file.proxy_protocol, out),
    };
    if let Some(listen) = listen {
        listeners.add(DEFAULT_NAME, &listen.place, &listen.value.0, keys, out);
    } else if input.files.iter().all(|file| file.listen.is_absent()) {
        let of_listen = [
            ("silent_after", keys.silent_after.map(|at| &at.place)),
            ("server_first", keys.server_first.map(|at| &at.place)),
            ("proxy_protocol", keys.proxy_protocol.map(|at| &at.place)),
        ];
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
        let keys = Keys {
            silent_after: table.value.silent_after.given(),
            server_first: table.value.server_first.given(),
            proxy_protocol: table.value.proxy_protocol.given(),
        };
        listeners.add(&name.value.0, &name.place, &bind.value.0, keys, out);
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
    fn add(&mut self, name: &str, place: &Place, bind: &[At<ListenAddr>], keys: Keys<'_>, out: &mut Output) {
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
        let silent_after = match keys.silent_after {
            Some(at) => settings::checked_duration("silent_after", at, settings::DAY, out),
            None => SILENT_AFTER,
        };
        let binds = strings(bind.iter().map(|at| at.value));
        out.note(format!("listener[{name}].bind"), binds, bind.first().map(|at| &at.place));
        let text = string(duration_text(silent_after));
        out.note(format!("listener[{name}].silent_after"), text, keys.silent_after.map(|at| &at.place));
        let server_first = server_first(name, keys.server_first, out);
        let greeting = greeting(name, keys.server_first, out);
        let proxy_protocol =
            settings::networks(&format!("listener[{name}].proxy_protocol"), keys.proxy_protocol, out);
        self.found.push(ListenerConfig {
            name: Arc::from(name),
            bind: bind.iter().map(|at| at.value).collect(),
            silent_after,
            server_first,
            greeting,
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

/// The protocol whose servers speak first, and after how long.
fn server_first(
    name: &str,
    at: Option<&At<Either<ServerFirstWord, ServerFirst>>>,
    out: &mut Output,
) -> Option<(Protocol, Duration)> {
    let at = at?;
    let (protocol, after) = match &at.value {
        Either::Short(ServerFirstWord(protocol)) => (*protocol, None),
        Either::Table(table) => (table.protocol.given()?.value.0, table.after.given()),
    };
    let waits =
        after.map_or(Duration::ZERO, |at| settings::checked_duration("after", at, settings::DAY, out));
    out.note(format!("listener[{name}].server_first.protocol"), string(protocol), Some(&at.place));
    let text = after.map_or_else(|| string("0s"), |_| string(duration_text(waits)));
    out.note(format!("listener[{name}].server_first.after"), text, after.map(|at| &at.place));
    Some((protocol, waits))
}

/// What is said of the servers before TLS.
fn greeting(name: &str, at: Option<&At<Either<ServerFirstWord, ServerFirst>>>, out: &mut Output) -> Greeting {
    let server = super::inner(at, |table| &table.name);
    let version = super::inner(at, |table| &table.version);
    let protocol = super::inner(at, |table| &table.protocol);
    if let (Some(version), Some(protocol)) = (version, protocol)
        && protocol.value.0 != Protocol::Mysql
    {
        let message = format!("servers of {} tell no version before TLS", protocol.value.0);
        let error = ConfigError::new(ErrorKind::Conflict, message).at(&version.place);
        out.report(error.also(&protocol.place, "`protocol` is here").hint("remove `version`"));
    }
    let text = server.map_or_else(host_name, |at| at.value.as_str().to_owned());
    let mysql_version = version.map_or(MYSQL_VERSION, |at| at.value.0.as_str());
    if at.is_some() {
        out.note(format!("listener[{name}].server_first.name"), string(&text), server.map(|at| &at.place));
        let key = format!("listener[{name}].server_first.version");
        out.note(key, string(mysql_version), version.map(|at| &at.place));
    }
    Greeting { name: text.into(), mysql_version: mysql_version.into() }
}

/// The name of this host, as greetings have it.
fn host_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_str().ok().and_then(|name| ServerName::parse(name.as_bytes()).ok());
    name.map_or_else(|| "localhost".to_owned(), |name| name.as_str().to_owned())
}

/// The listener that a connection to `target` from this machine would come in on.
pub(in super::super) fn own(listeners: &[ListenerConfig], target: SocketAddr) -> Option<&ListenerConfig> {
    // Which addresses this host has is not asked: a configuration is also checked elsewhere.
    listeners.iter().find(|listener| listener.bind.iter().any(|bind| bind.takes(target, false)))
}
