//! What becomes of requests: exactly one thing, and what belongs to that.

use std::path::PathBuf;
use std::sync::Arc;

use http::StatusCode;

use super::super::super::decode::{At, Either};
use super::super::super::error::{ConfigError, ErrorKind};
use super::super::super::file::Route;
use super::super::super::http_keys::{ActionKeys, Answer, Files, Redirect};
use super::super::super::http_values::{AnswerStatus, PathPrefix, RedirectTo};
use super::super::super::source::Place;
use super::super::super::tls_keys::CertificatePath;
use super::super::super::{
    AnswerConfig, FilesConfig, HeaderChanges, RedirectConfig, RequestAction, Template,
};
use super::super::routes::Context;
use super::super::tls::beside;
use super::super::{Output, string, strings};
use super::{TEXT, headers, proxy};

/// Where it is said what becomes of requests.
pub(super) struct Spot<'a> {
    /// What settings are noted below: `route[app].rule[api]`.
    pub(super) prefix: String,
    /// What a group of backends is named that is written there.
    pub(super) group: String,
    /// What is said so, in logs and metrics.
    pub(super) name: Arc<str>,
    pub(super) place: &'a Place,
    /// The route by which requests come in.
    pub(super) route: &'a Route,
    /// How many groups the expressions of the rule's paths have, if there are any.
    pub(super) groups: Option<usize>,
}

impl Spot<'_> {
    /// Whether requests come in by TLS that ends here.
    fn ends_tls(&self) -> bool {
        self.route.tls.place().is_some()
    }
}

/// What was said.
pub(super) struct Done {
    pub(super) action: RequestAction,
    pub(super) request_headers: HeaderChanges,
    pub(super) response_headers: HeaderChanges,
}

/// `None` when an error was reported.
pub(super) fn resolve(
    spot: &Spot<'_>,
    keys: &ActionKeys<'_>,
    context: &Context<'_>,
    out: &mut Output,
) -> Option<Done> {
    let first = exactly_one(spot, keys, out)?;
    let fits = fits(first, keys, out);
    if keys.any_bad() {
        return None;
    }
    let Spot { prefix, groups, .. } = spot;
    let request = headers::resolve(prefix, "request_headers", keys.request_headers.given(), *groups, out);
    let response = headers::resolve(prefix, "response_headers", keys.response_headers.given(), *groups, out);
    let action = if let Some(at) = keys.files.given() {
        files(prefix, at, out).map(RequestAction::Files)
    } else if let Some(at) = keys.redirect.given() {
        redirect(spot, at, out).map(RequestAction::Redirect)
    } else if let Some(at) = keys.answer.given() {
        answer(spot, at, out).map(RequestAction::Answer)
    } else {
        proxy::resolve(spot, keys, context, out).map(|proxy| RequestAction::Proxy(Box::new(proxy)))
    };
    fits.then_some(Done { action: action?, request_headers: request?, response_headers: response? })
}

/// The key of the one thing that becomes of requests.
fn exactly_one<'k>(
    spot: &Spot<'_>,
    keys: &'k ActionKeys<'_>,
    out: &mut Output,
) -> Option<(&'static str, &'k Place)> {
    let mut actions: Vec<_> = keys.actions().collect();
    actions.sort_by_key(|(_, place)| place.start());
    let mut actions = actions.into_iter();
    let Some((first, place)) = actions.next() else {
        let message = "it is not said what becomes of these requests";
        let error = ConfigError::new(ErrorKind::MissingKey, message).at(spot.place);
        out.report(error.hint(
            "add one of `to = \"http://10.0.0.1:80\"`, `upstream`, `split`, `files`, `redirect` and `answer`",
        ));
        return None;
    };
    if let Some((second, other)) = actions.next() {
        let message = format!("requests have either `{first}` or `{second}`, not both");
        let error = ConfigError::new(ErrorKind::Conflict, message).at(other);
        let error = error.also(place, format!("`{first}` is here"));
        out.report(error.hint("write a second rule, or share requests out by `split`"));
        return None;
    }
    Some((first, place))
}

/// Reports keys that say nothing to what becomes of requests.
fn fits((action, at): (&str, &Place), keys: &ActionKeys<'_>, out: &mut Output) -> bool {
    let mut good = true;
    let mut refuse = |place: &Place, message: String, hint: String| {
        let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
        out.report(error.also(at, format!("`{action}` is here")).hint(hint));
        good = false;
    };
    if !matches!(action, "to" | "upstream" | "split") {
        for (key, place) in keys.of_backends().chain(keys.pool.written()).chain(keys.of_connections()) {
            let message =
                format!("`{key}` is said of requests that go to backends, and these have `{action}`");
            refuse(
                place,
                message,
                match (action, key) {
                    ("files", "strip") => {
                        "write it in the table: `files = { root = \"/srv/www\", strip = \"/static\" }`"
                            .to_owned()
                    }
                    _ => format!("remove `{key}`"),
                },
            );
        }
        return good;
    }
    let (sticky, sticky_split) = (keys.pool.sticky.place(), keys.sticky_split.place());
    let both = sticky.is_some() && sticky_split.is_some();
    if let (Some(place), true) = (sticky_split, both) {
        let message =
            "`sticky` keeps clients with a backend and `sticky_split` with a variant, not both at once";
        refuse(place, message.to_owned(), "remove one of the two".to_owned());
    } else if let (Some(place), true) = (sticky_split, action != "split") {
        let message = "`sticky_split` belongs to `split`";
        refuse(
            place,
            message.to_owned(),
            "write `sticky = \"1h\"` for clients that stay with their backend".to_owned(),
        );
    }
    for (key, place) in keys.pool.written().filter(|_| action != "to") {
        if key == "sticky" && both {
            continue;
        }
        let message = format!("`{key}` is said of backends, which stand in the `[[upstream]]`");
        refuse(place, message, format!("move `{key}` there"));
    }
    good
}

/// Reports what a route says of requests without saying what becomes of them; `None` when it does.
pub(super) fn refuse_without_action(keys: &ActionKeys<'_>, out: &mut Output) -> Option<()> {
    let mut good = true;
    for (key, place) in keys.of_backends().chain(keys.pool.written()).chain(keys.of_connections()) {
        let message = format!("`{key}` is said of requests that no rule takes, and those go nowhere");
        let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
        out.report(error.hint(format!("write `{key}` in the rules, or give the route a `to`")));
        good = false;
    }
    good.then_some(())
}

fn files(prefix: &str, at: &At<Either<CertificatePath, Files>>, out: &mut Output) -> Option<FilesConfig> {
    let prefix = format!("{prefix}.files");
    let (root, table) = match &at.value {
        Either::Short(root) => (beside(root, &at.place), None),
        Either::Table(table) => (beside(&table.root.given()?.value, &table.root.given()?.place), Some(table)),
    };
    let bad = |table: &Files| {
        table.index.is_bad()
            || table.fallback.is_bad()
            || table.strip.is_bad()
            || table.dotfiles.is_bad()
            || table.precompressed.is_bad()
    };
    if table.is_some_and(bad) {
        return None;
    }
    out.note(format!("{prefix}.root"), string(root.display()), Some(&at.place));
    let index = table.and_then(|table| table.index.given());
    let names: Vec<Box<str>> = match index {
        Some(at) => {
            out.check_repeated(&at.value.0, |name| name.0.to_string());
            at.value.0.iter().map(|at| at.value.0.clone()).collect()
        }
        None => vec!["index.html".into()],
    };
    out.note(format!("{prefix}.index"), strings(names.iter()), index.map(|at| &at.place));
    let fallback = table.and_then(|table| table.fallback.given());
    if let Some(at) = fallback {
        out.note(format!("{prefix}.fallback"), string(&at.value.0), Some(&at.place));
    }
    let strip = path(&prefix, "strip", table.and_then(|table| table.strip.given()), out);
    let dotfiles = switch(&prefix, "dotfiles", table.and_then(|table| table.dotfiles.given()), out);
    let precompressed =
        switch(&prefix, "precompressed", table.and_then(|table| table.precompressed.given()), out);
    let fallback = fallback.map(|at| PathBuf::from(&*at.value.0));
    Some(FilesConfig { root, index: names, fallback, strip, dotfiles, precompressed })
}

/// A path that is taken off or put before another one, noted if there is one.
pub(super) fn path(
    prefix: &str,
    key: &str,
    at: Option<&At<PathPrefix>>,
    out: &mut Output,
) -> Option<Box<str>> {
    let at = at?;
    out.note(format!("{prefix}.{key}"), string(&at.value.0), Some(&at.place));
    Some(at.value.0.clone())
}

/// What is only done when it is said.
pub(super) fn switch(prefix: &str, key: &str, at: Option<&At<bool>>, out: &mut Output) -> bool {
    let on = at.is_some_and(|at| at.value);
    out.note(format!("{prefix}.{key}"), on.to_string(), at.map(|at| &at.place));
    on
}

fn redirect(
    spot: &Spot<'_>,
    at: &At<Either<RedirectTo, Redirect>>,
    out: &mut Output,
) -> Option<RedirectConfig> {
    let prefix = format!("{}.redirect", spot.prefix);
    let (to, place, status) = match &at.value {
        Either::Short(to) => (to, &at.place, None),
        Either::Table(table) if table.status.is_bad() => return None,
        Either::Table(table) => (&table.to.given()?.value, &table.to.given()?.place, table.status.given()),
    };
    let url = match to {
        RedirectTo::Https if spot.ends_tls() => {
            let message = "these requests come by `https` already, and would be sent to where they are";
            let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
            out.report(error.hint("write a URL, as in `\"https://new.example.com{uri}\"`"));
            return None;
        }
        RedirectTo::Https => Template::parse("https://{host}{uri}").ok()?,
        RedirectTo::Url(url) => url.clone(),
    };
    if !headers::has_groups(&url, place, spot.groups, out) {
        return None;
    }
    out.note(format!("{prefix}.to"), string(&url), Some(place));
    let code = status.map_or(StatusCode::PERMANENT_REDIRECT, |at| at.value.0);
    out.note(format!("{prefix}.status"), code.as_str(), status.map(|at| &at.place));
    Some(RedirectConfig { to: url, status: code })
}

fn answer(spot: &Spot<'_>, at: &At<Either<AnswerStatus, Answer>>, out: &mut Output) -> Option<AnswerConfig> {
    let prefix = format!("{}.answer", spot.prefix);
    let (status, place, table) = match &at.value {
        Either::Short(status) => (status.0, &at.place, None),
        Either::Table(table) if table.body.is_bad() || table.content_type.is_bad() => return None,
        Either::Table(table) => (table.status.given()?.value.0, &table.status.given()?.place, Some(table)),
    };
    out.note(format!("{prefix}.status"), status.as_str(), Some(place));
    let body = table.and_then(|table| table.body.given());
    let of_body = table.and_then(|table| table.content_type.given());
    let empty =
        matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED);
    if let Some(at) = body.filter(|_| empty) {
        let message = format!("an answer with {} has no body", status.as_str());
        let error = ConfigError::new(ErrorKind::Conflict, message).at(&at.place);
        out.report(error.also(place, "the status is here").hint("remove `body`, or write another status"));
        return None;
    }
    if let (Some(at), None) = (of_body, body) {
        let error =
            ConfigError::new(ErrorKind::Conflict, "`content_type` is said of `body`, which is not given");
        out.report(error.at(&at.place).hint("add `body`, or remove `content_type`"));
        return None;
    }
    let text = match body {
        Some(at) if !headers::has_groups(&at.value, &at.place, spot.groups, out) => return None,
        Some(at) => {
            out.note(format!("{prefix}.body"), string(&at.value), Some(&at.place));
            let text = of_body.map_or(TEXT, |at| &at.value.0);
            out.note(format!("{prefix}.content_type"), string(text), of_body.map(|at| &at.place));
            Some(at.value.clone())
        }
        None => None,
    };
    Some(AnswerConfig {
        status,
        body: text,
        content_type: of_body.map_or(TEXT.into(), |at| at.value.0.clone()),
    })
}
