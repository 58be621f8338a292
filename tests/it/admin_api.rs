//! What the admin server tells and does, beside its own description, and who may ask.

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::support::backend::Backend;
use crate::support::client::{End, Outcome, held, loopback, probe, probe_from, read_to_end, served};
use crate::support::hello::to;
use crate::support::proxy::{Answer, Proxy, on_config, on_file};
use crate::support::{SOON, UNLIMITED, wait_for};

fn config(admin: &str, backend: &Backend) -> String {
    format!(
        "listen = '127.0.0.1:0'\nadmin = {admin}\n{UNLIMITED}\
         [[route]]\nsni = 'a.test'\nto = '{backend}'\n[[route]]\nsni = 'no.test'\nreject = 'close'\n\
         [[limit]]\nname = 'many'\nconnections = 1000\n"
    )
}

const LOOPBACK: &str = "'127.0.0.1:0'";

/// Asserts that `value` is what `schema` says, with nothing beside it.
fn assert_is(value: &Value, schema: &Value, all: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        return assert_is(value, all.pointer(name.trim_start_matches('#')).unwrap(), all, at);
    }
    if let Some(only) = schema.get("const") {
        return assert_eq!(value, only, "{at}");
    }
    if let Some(words) = schema["enum"].as_array() {
        return assert!(words.contains(value), "{at}: {value}");
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let kinds = match &schema["type"] {
        Value::Array(kinds) => kinds.clone(),
        kind => vec![kind.clone()],
    };
    let fits = |wanted: &Value| wanted == kind || (wanted == "number" && kind == "integer");
    assert!(kinds.iter().any(fits), "{at}: {value} is no {kinds:?}");
    if let Value::Array(items) = value {
        items.iter().for_each(|item| assert_is(item, &schema["items"], all, at));
    }
    if let (Value::Object(fields), Some(known)) = (value, schema["properties"].as_object()) {
        for (name, field) in fields {
            let schema = known.get(name).unwrap_or_else(|| panic!("{at}: `{name}` is not described"));
            assert_is(field, schema, all, &format!("{at}.{name}"));
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            assert!(fields.contains_key(name.as_str().unwrap()), "{at}: {name} is missing in {value}");
        }
    }
}

/// Asks, and asserts that the answer is one that the description has for it.
fn ask(proxy: &Proxy, description: &Value, method: &str, path: &str, body: &str) -> (u16, Value) {
    let (status, value) = proxy.api(method, path, body);
    let template = if path.starts_with("connections/") { "connections/{id}" } else { path };
    let template = format!("/{}", template.split('?').next().unwrap());
    let answers = &description["paths"][&template][method.to_lowercase()]["responses"];
    let schema = &answers[status.to_string()]["content"]["application/json"]["schema"];
    assert!(schema.is_object(), "{method} {path}: {status} is not described: {value}");
    assert_is(&value, schema, description, path);
    (status, value)
}

#[test]
fn everything_is_as_it_is_described() {
    let backend = Backend::tagged("a");
    let proxy = Proxy::start(&config(LOOPBACK, &backend));
    let (_, description) = proxy.api("GET", "openapi.json", "");
    let ask = |method: &str, path: &str, body: &str| ask(&proxy, &description, method, path, body);
    let mut open = held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"));
    for path in ["openapi.json", "config", "routes", "upstreams", "connections", "limits", "bans"] {
        assert_eq!(ask("GET", path, "").0, 200, "{path}");
    }
    let (_, routes) = ask("GET", "routes", "");
    assert_eq!(routes["routes"][0]["route"], "a.test");
    assert_eq!(routes["routes"][1]["action"], "reject (close)");
    let (_, upstreams) = ask("GET", "upstreams", "");
    assert_eq!(upstreams["upstreams"][0]["backends"][0]["addresses"], json!([backend.addr().to_string()]));
    let (_, limits) = ask("GET", "limits", "");
    assert_eq!(limits["limits"][0], json!({ "name": "many", "sources": 1, "rejections": 0 }));
    // One open connection, told of and closed by its id.
    let (_, told) = ask("GET", "connections", "");
    let connection = &told["connections"][0];
    assert_eq!((&told["open"], &connection["sni"]), (&1.into(), &"a.test".into()));
    assert_eq!(connection["client"], open.local_addr().unwrap().to_string());
    assert_eq!(
        (&connection["stage"], &connection["bytes_in"]),
        (&"relay".into(), &to("a.test").len().into())
    );
    let id = connection["id"].as_str().unwrap().to_owned();
    assert_eq!(ask("GET", "connections?limit=0", "").0, 400);
    assert_eq!(ask("DELETE", &format!("connections/{id}"), "").0, 200);
    assert_eq!(read_to_end(&mut open, SOON).end, End::Reset);
    let line = proxy.access_line("its end", |line| line["id"] == id.as_str());
    assert_eq!((&line["cause"], &line["reason"]), (&"forced".into(), &"closed".into()));
    assert_eq!(ask("DELETE", &format!("connections/{id}"), "").0, 404);
    // Bans.
    let ban = r#"{ "network": "127.0.0.2", "for": "1h", "reason": "test" }"#;
    assert_eq!(ask("POST", "ban", ban).0, 200);
    assert_eq!(probe_from(loopback(2), proxy.addr(), &to("a.test")), Outcome::Reset);
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    assert_eq!(ask("GET", "bans", "").1["bans"][0]["network"], "127.0.0.2/32");
    for body in ["", "{}", r#"{"network": "x", "for": "1h"}"#, r#"{"network": "::1", "for": "1"}"#] {
        assert_eq!(ask("POST", "ban", body).0, 400, "{body}");
    }
    assert_eq!(ask("POST", "ban", &"x".repeat(20_000)).0, 413);
    assert_eq!(ask("POST", "unban", r#"{ "network": "127.0.0.2" }"#).0, 200);
    assert_eq!(ask("POST", "unban", r#"{ "network": "127.0.0.2" }"#).0, 404);
    assert_eq!(probe_from(loopback(2), proxy.addr(), &to("a.test")), served("a"));
    // A reload, good and bad; and the end.
    assert_eq!(ask("POST", "reload", "").0, 200);
    proxy.write("listen = 5\n");
    assert_eq!(ask("POST", "reload", "").0, 422);
    assert_eq!(ask("POST", "drain", "").0, 202);
}

#[test]
fn changes_of_backends_are_as_they_are_described() {
    let (backend, more) = (Backend::tagged("a"), Backend::tagged("b"));
    let proxy = Proxy::start(&config(LOOPBACK, &backend));
    let (_, description) = proxy.api("GET", "openapi.json", "");
    let asked = |method: &str, path: &str, body: &str| ask(&proxy, &description, method, path, body);
    let ask = |verb: &str, body: &str| asked("POST", &format!("upstreams/{verb}"), body).0;
    let of = |backend: &Backend| json!({ "upstream": "a.test", "backend": backend.to_string() });
    let known = of(&backend).to_string();
    for verb in ["add", "remove", "weight", "drain", "undrain"] {
        assert_eq!(ask(verb, "{}"), 400, "{verb}");
        assert_eq!(ask(verb, &"x".repeat(20_000)), 413, "{verb}");
        let mut unknown = json!({ "upstream": "b.test", "backend": "10.0.0.1:1" });
        if verb == "weight" {
            unknown["weight"] = 1.into();
        }
        assert_eq!(ask(verb, &unknown.to_string()), 404, "{verb}");
    }
    assert_eq!(ask("drain", &known), 200);
    assert_eq!(ask("undrain", &known), 200);
    assert_eq!(ask("add", &known), 409);
    assert_eq!(ask("add", &of(&more).to_string()), 200);
    let mut weighed = of(&more);
    weighed["weight"] = 3.into();
    assert_eq!(ask("weight", &weighed.to_string()), 200);
    let told = |state: &str| {
        let (_, told) = asked("GET", "upstreams", "");
        let endpoints = told["upstreams"][0]["backends"].as_array().unwrap().clone();
        let states = endpoints.iter().map(|backend| backend["endpoints"][0]["state"].clone());
        assert!(states.clone().any(|told| told == state), "{state}: {told}");
    };
    told("up");
    assert_eq!(ask("remove", &known), 200);
    told("removed");
}

/// Whatever is not described is not there, and what is takes no other method.
#[test]
fn nothing_is_there_beside_what_is_described() {
    let backend = Backend::tagged("a");
    let proxy = Proxy::start(&config(LOOPBACK, &backend));
    let (_, description) = proxy.api("GET", "openapi.json", "");
    let paths = description["paths"].as_object().unwrap();
    assert!(paths.len() > 10, "{paths:?}");
    for (path, methods) in paths {
        let methods = methods.as_object().unwrap();
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            let described = methods.contains_key(&method.to_lowercase());
            let path = path.trim_start_matches('/').replace("{id}", "f");
            // What is described is tried elsewhere: it may end the process.
            if !described {
                assert_eq!(proxy.api(method, &path, "").0, 405, "{method} {path}");
            }
        }
    }
    for path in ["", "v2", "connections/", "connections/xyz", "../metrics", "Config"] {
        assert_eq!(proxy.api("GET", path, "").0, 404, "{path}");
    }
}

#[test]
fn a_token_is_asked_for_where_there_is_one() {
    let backend = Backend::tagged("a");
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "correct horse\n").unwrap();
    let admin = format!("{{ bind = '127.0.0.1:0', token = {{ file = '{}' }} }}", token.display());
    let proxy = Proxy::start(&config(&admin, &backend));
    let status = |headers: &str| proxy.api_with("GET", "limits", headers, "").status;
    assert_eq!(status(""), 401);
    for wrong in ["correct", "correct horse battery", "", "Correct horse"] {
        assert_eq!(status(&format!("Authorization: Bearer {wrong}\r\n")), 401, "{wrong}");
    }
    assert_eq!(status("Authorization: Basic correct horse\r\n"), 401);
    assert_eq!(status("Authorization: Bearer correct horse\r\n"), 200);
    assert_eq!(status("Host: proxy.example\r\nAuthorization: Bearer correct horse\r\n"), 200);
    assert_eq!(status("Authorization: Bearer correct horse\r\nOrigin: http://evil.test\r\n"), 403);
    assert_eq!(proxy.ask("/metrics").status, 200, "scrapers have none");
    let address = proxy.admin().to_string();
    let bans = |options: &[&str]| on_file("bans", &proxy.file(), &[&["--admin", &address], options].concat());
    assert_eq!(bans(&[]).code, Some(1));
    assert_eq!(bans(&["--token-file", token.to_str().unwrap()]).code, Some(0));
}

/// Beyond loopback there is no API without a token.
#[test]
fn from_elsewhere_nobody_asks_without_a_token() {
    let backend = Backend::tagged("a");
    let admin = "{ bind = '0.0.0.0:0', allow = '127.0.0.0/8' }";
    let proxy = Proxy::start(&config(admin, &backend));
    let (status, answer) = proxy.api("GET", "limits", "");
    assert_eq!(status, 403);
    assert!(answer["text"].as_str().unwrap().contains("admin.token"), "{answer}");
    assert_eq!(proxy.ask("/metrics").status, 200);
    let missing = "{ bind = '127.0.0.1:0', token = { file = '/nowhere/token' } }";
    let refused = on_config("run", &config(missing, &backend), &[]);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
}

/// The socket's rights are who may ask; over it there is no token.
#[test]
fn the_commands_find_the_process_by_its_configuration() {
    let backend = Backend::tagged("a");
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let mut proxy = Proxy::start(&config(&format!("'unix:{}'", socket.display()), &backend));
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    let verb = |verb: &str, args: &[&str]| {
        let done = on_file(verb, &proxy.file(), args);
        assert_eq!(done.code, Some(0), "{verb}: {}", done.stderr);
        done.stdout
    };
    assert_eq!(verb("bans", &[]), "");
    verb("ban", &["127.0.0.0/30", "--for", "10m", "--reason", "too loud"]);
    let bans = verb("bans", &[]);
    assert!(bans.starts_with("127.0.0.0/30\t") && bans.ends_with("\ttoo loud\n"), "{bans}");
    assert_eq!(probe(proxy.addr(), &to("a.test")), Outcome::Reset);
    verb("unban", &["127.0.0.0/30"]);
    assert_eq!(on_file("unban", &proxy.file(), &["127.0.0.0/30"]).code, Some(1));
    assert_eq!(on_file("ban", &proxy.file(), &["127.0.0.300"]).code, Some(2));
    let mut open = held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"));
    let told: Value = serde_json::from_str(&verb("connections", &[])).unwrap();
    assert_eq!(told["sni"], "a.test");
    verb("close", &[told["id"].as_str().unwrap()]);
    assert_eq!(read_to_end(&mut open, SOON).end, End::Reset);
    assert!(verb("reload", &[]).contains("generation 2"));
    let mut stream = UnixStream::connect(&socket).unwrap();
    write!(stream, "GET /api/v1/limits HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut stream).unwrap().status, 200);
    verb("drain", &[]);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    assert_eq!(on_file("bans", &proxy.file(), &[]).code, Some(1), "nobody answers any more");
}

/// Many connections, told of in parts while the loops go on.
#[test]
fn all_connections_of_all_workers_are_told_of() {
    const OPEN: usize = 300;
    let backend = Backend::tagged("a");
    let proxy = Proxy::start(&config(LOOPBACK, &backend));
    let open: Vec<_> = (0..OPEN).map(|_| held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"))).collect();
    let (_, told) = proxy.api("GET", "connections?limit=1000", "");
    let clients: std::collections::BTreeSet<_> =
        told["connections"].as_array().unwrap().iter().map(|one| one["client"].to_string()).collect();
    assert_eq!((clients.len(), &told["open"]), (OPEN, &OPEN.into()));
    assert_eq!(proxy.api("GET", "connections?limit=7", "").1["connections"].as_array().unwrap().len(), 7);
    drop(open);
    wait_for("all to be gone", || proxy.api("GET", "connections", "").1["open"] == 0);
}

#[test]
fn without_a_word_about_it_there_is_a_socket_or_none_but_always_a_proxy() {
    let backend = Backend::tagged("a");
    let text = format!("listen = '127.0.0.1:0'\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n");
    let (one, two) = (Proxy::start(&text), Proxy::start(&text));
    for proxy in [&one, &two] {
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
        let bound = proxy.logged("admin listening").len() + proxy.logged("no admin socket").len();
        assert_eq!(bound, 1, "{:?}", proxy.process.stderr.all());
    }
    // Two of them do not have it both, whoever else does.
    let having = [&one, &two].iter().filter(|proxy| !proxy.logged("admin listening").is_empty()).count();
    assert!(having <= 1);
}
