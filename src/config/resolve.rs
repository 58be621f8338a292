//! From the shapes of all files to [`Config`]: defaults filled in, every error collected.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::decode::{At, Either, Setting};
use super::error::{ConfigError, ConfigErrors, ErrorKind};
use super::file::{Admin, File, Limit, Listener, Route, Upstream};
use super::made_up::Test;
use super::source::{Place, Sources};
use super::values::{Off, WordOr};
use super::{AdminAddr, Config, Effective, Origin};
pub(super) use listeners::own;

mod acme;
mod admin;
mod backend_tls;
mod cases;
mod dns;
mod dynamic;
mod health;
mod http;
mod inside;
mod limits;
mod listeners;
mod passthrough;
mod routes;
mod settings;
mod tls;
mod transparent;
mod upstreams;

/// Resolves everything that was read.
pub(super) fn resolve(sources: Sources) -> Result<Config, ConfigErrors> {
    let Sources { files, errors, incomplete, damaged, top } = sources;
    let mut out = Output { errors, effective: Vec::new(), system: OnceCell::new() };
    let input = Input { files, incomplete, top };
    let listeners = listeners::resolve(&input, &mut out);
    let mut settings = settings::resolve(&input, &listeners, &mut out);
    let (upstreams, zone) = upstreams::resolve(&input, &listeners, &mut out);
    let tls = tls::Shared::resolve(&input, settings.sandbox, &mut out);
    let routes = routes::resolve(&input, &listeners, &settings.timeouts, (&upstreams, &tls), &mut out);
    let acme = tls.acme.finish(&routes.found, routes.complete, &mut out);
    settings.limits.by_source.extend(limits::resolve(&input, &listeners, &routes, &mut out));
    let tests = cases::resolve(&input, &listeners, &routes, &mut out);
    if damaged {
        out.errors.retain(|error| error.kind() != ErrorKind::MissingKey);
    }
    if let Some(errors) = ConfigErrors::of(out.errors) {
        return Err(errors);
    }
    Ok(Config {
        listeners,
        routes: routes.found,
        upstreams: upstreams.into_sorted(),
        zone,
        policies: settings.policies,
        limits: settings.limits,
        timeouts: settings.timeouts,
        max_hello_size: settings.max_hello_size,
        hello_memory: settings.hello_memory,
        workers: settings.workers,
        identity: settings.identity,
        sandbox: settings.sandbox,
        dns: settings.dns,
        acme,
        probe: settings.probe,
        admin: settings.admin,
        reload_on_change: settings.reload_on_change,
        access_log: settings.access_log,
        tests,
        effective: out.effective,
    })
}

/// The admin address, of whatever could be read; the usual one when that gives none.
pub(super) fn admin_of(sources: Option<Sources>) -> AdminAddr {
    let bind = |at: &At<Either<WordOr<Off, AdminAddr>, Admin>>| match &at.value {
        Either::Short(bind) => bind.0.clone(),
        Either::Table(table) => table.bind.given().map(|bind| bind.value.clone()),
    };
    let files = sources.map_or(Vec::new(), |sources| sources.files);
    let given = files.iter().filter_map(|file| file.admin.given()).find_map(bind);
    given.unwrap_or_else(|| AdminAddr::Unix(admin::DEFAULT.into()))
}

/// The files, main one first.
struct Input {
    files: Vec<File>,
    /// Whether something could not be read, so that nothing may be said to be missing.
    incomplete: bool,
    top: Place,
}

/// What comes out beside the values.
struct Output {
    errors: Vec<ConfigError>,
    effective: Vec<Effective>,
    /// The authorities of this system, once they were asked for: all that trust them share these.
    system: OnceCell<Arc<[CertificateDer<'static>]>>,
}

impl Input {
    /// The one value of a setting over all files; a second one is an error.
    fn once<'f, T>(
        &'f self,
        name: &str,
        of: impl Fn(&'f File) -> &'f Setting<T>,
        out: &mut Output,
    ) -> Option<&'f At<T>> {
        let mut places = self.files.iter().filter_map(|file| of(file).place());
        if let Some(first) = places.next() {
            for place in places {
                let error = ConfigError::new(ErrorKind::Conflict, format!("`{name}` is set in two files"));
                out.report(error.at(place).also(first, "first set here"));
            }
        }
        self.files.iter().find_map(|file| of(file).given())
    }

    /// Whether the `found` listeners are all that were written, so that another name is unknown.
    fn listeners_complete(&self, found: usize) -> bool {
        let listens = self.files.iter().filter(|file| !file.listen.is_absent()).count();
        let bad = self.files.iter().any(|file| file.listener.is_bad());
        !self.incomplete && !bad && found == listens + self.listeners().count()
    }

    fn listeners(&self) -> impl Iterator<Item = &At<Listener>> {
        self.files.iter().flat_map(|file| file.listener.tables())
    }

    fn routes(&self) -> impl Iterator<Item = &At<Route>> {
        self.files.iter().flat_map(|file| file.route.tables())
    }

    fn upstreams(&self) -> impl Iterator<Item = &At<Upstream>> {
        self.files.iter().flat_map(|file| file.upstream.tables())
    }

    fn limits(&self) -> impl Iterator<Item = &At<Limit>> {
        self.files.iter().flat_map(|file| file.limit.tables())
    }

    fn tests(&self) -> impl Iterator<Item = &At<Test>> {
        self.files.iter().flat_map(|file| file.test.tables())
    }
}

impl Output {
    fn report(&mut self, error: ConfigError) {
        self.errors.push(error);
    }

    /// Notes a resolved setting.
    fn note(&mut self, key: impl Into<String>, value: impl Into<String>, place: Option<&Place>) {
        self.note_from(key, value, place.map(Place::origin));
    }

    /// The same with the origin of another setting.
    fn note_from(&mut self, key: impl Into<String>, value: impl Into<String>, origin: Option<Origin>) {
        self.effective.push(Effective { key: key.into(), value: value.into(), origin });
    }

    /// Where a setting noted before comes from.
    fn origin_of(&self, key: &str) -> Option<Origin> {
        self.effective.iter().find(|setting| setting.key == key)?.origin.clone()
    }

    /// Reports values that stand twice in a list.
    fn check_repeated<T>(&mut self, items: &[At<T>], text: impl Fn(&T) -> String) {
        let mut seen: HashMap<String, &Place> = HashMap::new();
        for item in items {
            let text = text(&item.value);
            if let Some(first) = seen.get(&text) {
                let error = ConfigError::new(ErrorKind::DuplicateValue, format!("`{text}` is given twice"));
                self.report(error.at(&item.place).also(first, "first given here"));
            } else {
                seen.insert(text, &item.place);
            }
        }
    }
}

/// The value of a key in a table that may be absent.
fn inner<'t, S, T, V>(
    outer: Option<&'t At<Either<S, T>>>,
    of: impl Fn(&'t T) -> &'t Setting<V>,
) -> Option<&'t At<V>> {
    match outer.map(|at| &at.value) {
        Some(Either::Table(table)) => of(table).given(),
        Some(Either::Short(_)) | None => None,
    }
}

/// `text` as a TOML string.
fn string(text: impl ToString) -> String {
    toml::Value::String(text.to_string()).to_string()
}

/// A list as TOML: a single value by itself, several as an array.
fn strings<T: ToString>(items: impl Iterator<Item = T>) -> String {
    let items: Vec<_> = items.map(string).collect();
    match items.as_slice() {
        [one] => one.clone(),
        items => format!("[{}]", items.join(", ")),
    }
}
