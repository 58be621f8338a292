//! The admin address: where it is, and who may ask.

use std::path::Path;

use super::super::decode::{At, Either, Setting};
use super::super::error::{ConfigError, ErrorKind};
use super::super::file::Secret;
use super::super::{AdminAddr, AdminConfig, ListenerConfig, SecretSource};
use super::settings::networks;
use super::{Input, Output, listeners, string};

/// Where it is unless the configuration says otherwise; `portcullis` asks there, too.
pub(super) const DEFAULT: &str = "/run/portcullis/admin.sock";

pub(super) fn resolve(input: &Input, listeners: &[ListenerConfig], out: &mut Output) -> Option<AdminConfig> {
    let at = input.once("admin", |file| &file.admin, out);
    let (bind, table) = match at.map(|at| &at.value) {
        Some(Either::Short(bind)) => (bind.0.as_ref().zip(at.map(|at| &at.place)), None),
        Some(Either::Table(table)) => (table.bind.given().map(|at| (&at.value, &at.place)), Some(table)),
        None => {
            let bind = AdminAddr::Unix(Path::new(DEFAULT).to_owned());
            out.note("admin.bind", string(&bind), None);
            return Some(AdminConfig { bind, allow: Vec::new(), token: None, by_default: true });
        }
    };
    let Some((bind, place)) = bind else {
        out.note("admin", string("off"), at.map(|at| &at.place));
        return None;
    };
    let allow = table.map(|table| &table.allow);
    let networks = networks("admin.allow", allow.and_then(Setting::given), out);
    out.note("admin.bind", string(bind), Some(place));
    let token = table.and_then(|table| table.token.given()).and_then(|at| secret("admin.token", at, out));
    if let AdminAddr::Tcp(socket) = bind {
        if !socket.ip().is_loopback() && allow.is_none_or(Setting::is_absent) {
            let message = format!("`{socket}` is not on loopback, so anyone who reaches it could ask");
            let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
            out.report(error.hint(format!(
                "say who may: `admin = {{ bind = \"{socket}\", allow = \"10.0.0.0/8\" }}`, or use `127.0.0.1`"
            )));
        }
        if let Some(listener) = listeners::own(listeners, *socket) {
            let message = format!("`{socket}` is taken by the listener `{}`", listener.name);
            out.report(ConfigError::new(ErrorKind::Conflict, message).at(place));
        }
    }
    Some(AdminConfig { bind: bind.clone(), allow: networks, token, by_default: false })
}

/// Where a secret is, which the configuration itself must not hold.
pub(super) fn secret(key: &str, at: &At<Secret>, out: &mut Output) -> Option<SecretSource> {
    let Secret { env, file, credential } = &at.value;
    let given = [
        env.given().map(|at| SecretSource::Environment(at.value.0.clone())),
        file.given().map(|at| SecretSource::File(at.value.0.clone())),
        credential.given().map(|at| SecretSource::Credential(at.value.0.clone())),
    ];
    let mut given = given.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(source), None) => {
            out.note(key, source.to_string(), Some(&at.place));
            Some(source)
        }
        // What was given and is bad has been told.
        (None, _) if env.is_bad() || file.is_bad() || credential.is_bad() => None,
        _ => {
            let error = ConfigError::new(ErrorKind::Conflict, format!("`{key}` takes one of three keys"));
            out.report(error.at(&at.place).hint(
                "write `{ file = \"/path\" }`, `{ env = \"NAME\" }` or `{ credential = \"name\" }` (systemd's LoadCredential)",
            ));
            None
        }
    }
}
