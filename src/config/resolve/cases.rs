//! The `[[test]]` assertions.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::decode::{At, Either, Setting, quote, similar};
use super::super::error::{ConfigError, ErrorKind};
use super::super::made_up::{Expect, Hello, Test};
use super::super::values::RouteName;
use super::super::{Expectation, ExpectedAction, ListenerConfig, TestCase, TestInput};
use super::routes::{Routes, find_listener};
use super::{Input, Output};
use crate::peek::{Protocol, Startup};

/// What a test is resolved against.
struct Context<'a> {
    listeners: &'a [ListenerConfig],
    listeners_complete: bool,
    routes: HashMap<&'a str, Arc<str>>,
    routes_complete: bool,
}

/// All tests in file order.
pub(super) fn resolve(
    input: &Input,
    listeners: &[ListenerConfig],
    routes: &Routes,
    out: &mut Output,
) -> Vec<TestCase> {
    let context = Context {
        listeners,
        listeners_complete: input.listeners_complete(listeners.len()),
        routes: routes.found.iter().map(|route| (&*route.name, Arc::clone(&route.name))).collect(),
        routes_complete: routes.complete,
    };
    input.tests().filter_map(|table| case(table, &context, out)).collect()
}

/// `None` when an error was reported; all errors of the test are.
fn case(table: &At<Test>, context: &Context<'_>, out: &mut Output) -> Option<TestCase> {
    let test = &table.value;
    let input = test_input(table, out);
    let listener = test
        .listener
        .given()
        .map(|name| find_listener(name, context.listeners, context.listeners_complete, out));
    let expect = expectation(test, context, out);
    let input = input?;
    let name = match test.name.given() {
        Some(name) => name.value.clone(),
        None => match &input {
            TestInput::Hello { sni: Some(name), .. } => name.to_string(),
            TestInput::Hello { sni: None, .. } => "no-sni".to_owned(),
            TestInput::Startup(startup) => format!("protocol:postgres:{}", startup.database),
            TestInput::Protocol(protocol) => format!("protocol:{protocol}"),
            TestInput::First(bytes) => format!("first:{}", bytes.escape_ascii()),
        },
    };
    Some(TestCase {
        name: Arc::from(name),
        input,
        from: test.from.given().map(|at| at.value),
        listener: listener.flatten(),
        expect: expect?,
        origin: table.place.origin(),
    })
}

/// Exactly one of `hello`, `protocol` and `first`.
fn test_input(table: &At<Test>, out: &mut Output) -> Option<TestInput> {
    let test = &table.value;
    let all =
        [("hello", test.hello.place()), ("protocol", test.protocol.place()), ("first", test.first.place())];
    let mut given = all.into_iter().filter_map(|(key, place)| Some((key, place?)));
    let Some((first, place)) = given.next() else {
        let message = "the test does not say what the client sends";
        let error = ConfigError::new(ErrorKind::MissingKey, message).at(&table.place);
        out.report(error.hint(
            "add `hello = { sni = \"app.example.com\" }`, `protocol = \"ssh\"` or `first = \"SSH-2.0-x\"`",
        ));
        return None;
    };
    if let Some((second, other)) = given.next() {
        let message = format!("a test has either `{first}` or `{second}`, not both");
        let error = ConfigError::new(ErrorKind::Conflict, message).at(other);
        out.report(error.also(place, format!("`{first}` is here")));
        return None;
    }
    let bytes = || test.first.given().map(|at| TestInput::First(at.value.0.clone()));
    match test.hello.given() {
        Some(hello) => hello_input(&hello.value),
        None => plain_input(test, out).or_else(bytes),
    }
}

/// A client of another protocol than TLS.
fn plain_input(test: &Test, out: &mut Output) -> Option<TestInput> {
    let protocol = test.protocol.given()?;
    let (database, user) = (&test.database, &test.user);
    if database.is_bad() || user.is_bad() {
        return None;
    }
    let Some(place) = database.place().or(user.place()) else {
        return Some(TestInput::Protocol(protocol.value.0));
    };
    if protocol.value.0 != Protocol::Postgres {
        let message = format!("clients of {} ask for no database in clear", protocol.value.0);
        let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
        out.report(error.also(&protocol.place, "`protocol` is here").hint("write `protocol = \"postgres\"`"));
        return None;
    }
    let user = user.given().map_or("postgres", |at| at.value.as_str());
    let database = database.given().map_or(user, |at| at.value.as_str());
    Some(TestInput::Startup(Startup { database: database.into(), user: user.into() }))
}

fn hello_input(hello: &Hello) -> Option<TestInput> {
    if hello.sni.is_bad() || hello.alpn.is_bad() || hello.ja4.is_bad() || hello.within.is_bad() {
        return None;
    }
    Some(TestInput::Hello {
        sni: hello.sni.given().map(|at| at.value.clone()),
        alpn: hello.alpn.values().iter().map(|at| at.value.0.clone()).collect(),
        ja4: hello.ja4.given().map(|at| at.value.clone()),
        within: hello.within.given().map(|at| at.value.0),
    })
}

fn expectation(test: &Test, context: &Context<'_>, out: &mut Output) -> Option<Expectation> {
    let at = test.expect.given()?;
    let table = match &at.value {
        Either::Short(action) => {
            return Some(Expectation { action: Some(*action), ..Expectation::default() });
        }
        Either::Table(table) => table,
    };
    let nothing = table.action.is_absent() && table.route.is_absent();
    if nothing && table.to.is_absent() && table.reject.is_absent() {
        let error = ConfigError::new(ErrorKind::MissingKey, "the test expects nothing").at(&at.place);
        out.report(error.hint("give one of `action`, `route`, `to` and `reject`"));
        return None;
    }
    check_contradiction(table, out);
    let route = match &table.route {
        Setting::Given(name) => Some(find_route(name, context, out)?),
        Setting::Absent => None,
        Setting::Bad(_) => return None,
    };
    out.check_repeated(table.to.values(), ToString::to_string);
    Some(Expectation {
        action: table.action.given().map(|at| at.value),
        route,
        to: table.to.values().iter().map(|at| at.value.clone()).collect(),
        reject: table.reject.given().map(|at| at.value),
    })
}

/// A rejected connection has no backend, and one that is passed through is not rejected.
fn check_contradiction(expect: &Expect, out: &mut Output) {
    let (to, reject) = (expect.to.place(), expect.reject.place());
    let action = expect.action.given();
    let is = |wanted: ExpectedAction| action.filter(|at| at.value == wanted).map(|at| &at.place);
    let redirected = is(ExpectedAction::Redirect);
    let rejected = [
        (to, is(ExpectedAction::Reject)),
        (reject, is(ExpectedAction::Passthrough)),
        (reject, is(ExpectedAction::Terminate)),
        (reject, is(ExpectedAction::Http)),
        (to, reject),
    ];
    let pairs = rejected.into_iter().chain([(to, redirected), (reject, redirected)]);
    for (second, first) in pairs {
        if let (Some(second), Some(first)) = (second, first) {
            let error = ConfigError::new(ErrorKind::Conflict, "a connection that is rejected has no backend");
            out.report(error.at(second).also(first, "contradicts this"));
            return;
        }
    }
}

fn find_route(name: &At<RouteName>, context: &Context<'_>, out: &mut Output) -> Option<Arc<str>> {
    let text = name.value.0.as_str();
    let found = context.routes.get(text).cloned();
    if found.is_none() && context.routes_complete {
        let message = format!("there is no route {}", quote(text));
        let error = ConfigError::new(ErrorKind::UnknownRoute, message).at(&name.place);
        out.report(match similar(text, context.routes.keys().copied()) {
            Some(name) => error.hint(format!("did you mean `{name}`?")),
            None => error.hint("`check --effective` lists the routes with their names"),
        });
    }
    found
}
