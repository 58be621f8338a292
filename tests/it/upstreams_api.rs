//! Backends that an operator adds, removes, weighs and drains while connections come and go.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use crate::support::backend::{Backend, UnixBackend};
use crate::support::client::{Outcome, free_port, held, loopback, probe, served};
use crate::support::dns::{FOLLOW, assert_served};
use crate::support::hello::to;
use crate::support::load::Load;
use crate::support::named::Named;
use crate::support::process::Finished;
use crate::support::proxy::{Proxy, portcullis};
use crate::support::{UNLIMITED, until, wait_for};

/// A configuration whose upstream `db` has the backends `to`.
fn config(to: &str) -> String {
    format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}\
         [[upstream]]\nname = 'db'\nto = [{to}]\n[[route]]\nsni = 'a.test'\nupstream = 'db'\n"
    )
}

/// Does `verb` to a backend of `db`, with further fields of the body.
fn try_to(proxy: &Proxy, verb: &str, backend: &str, further: &Value) -> (u16, Value) {
    let mut body = json!({ "upstream": "db", "backend": backend });
    body.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
    proxy.api("POST", &format!("upstreams/{verb}"), &body.to_string())
}

fn done(proxy: &Proxy, verb: &str, backend: &Backend) -> Value {
    let (status, answer) = try_to(proxy, verb, &backend.to_string(), &json!({}));
    assert_eq!(status, 200, "{verb}: {answer}");
    answer
}

/// Runs `portcullis upstream` on the running process.
fn upstream(proxy: &Proxy, args: &[&str]) -> Finished {
    let admin = proxy.admin().to_string();
    let file = proxy.file();
    let process = ["--config", file.to_str().unwrap(), "--admin", &admin];
    portcullis(&[&["upstream"], args, &process].concat())
}

/// Who serves so many connections, by tag.
fn shares(proxy: &Proxy, connections: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..connections {
        match probe(proxy.addr(), &to("a.test")) {
            Outcome::Served(tag) => *shares.entry(tag).or_default() += 1,
            other => panic!("{other:?}"),
        }
    }
    shares
}

fn share(tags: &[(&str, usize)]) -> BTreeMap<String, usize> {
    tags.iter().map(|(tag, count)| ((*tag).to_owned(), *count)).collect()
}

/// What is told of an address of `db`.
fn endpoint(proxy: &Proxy, address: &str) -> Value {
    let (_, told) = proxy.api("GET", "upstreams", "");
    let db =
        told["upstreams"].as_array().unwrap().iter().find(|pool| pool["upstream"] == "db").unwrap().clone();
    let backends = db["backends"].as_array().unwrap().iter();
    let mut endpoints = backends.flat_map(|backend| backend["endpoints"].as_array().unwrap().clone());
    endpoints.find(|one| one["address"] == address).unwrap_or(Value::Null)
}

#[test]
fn an_added_backend_gets_its_share_and_a_removed_one_none() {
    let (a, b) = (Backend::tagged("a"), Backend::tagged("b"));
    let dir = tempfile::tempdir().unwrap();
    let unix = UnixBackend::tagged(&dir.path().join("c.sock"), "c");
    let proxy = Proxy::start(&config(&format!("'{a}'")));
    assert_eq!(shares(&proxy, 4), share(&[("a", 4)]));
    done(&proxy, "add", &b);
    assert_eq!(try_to(&proxy, "add", &unix.to(), &json!({ "weight": 2 })).0, 200);
    assert_eq!(shares(&proxy, 40), share(&[("a", 10), ("b", 10), ("c", 20)]));
    let told = endpoint(&proxy, &unix.to());
    assert_eq!((&told["state"], &told["weight"]), (&"up".into(), &2.into()));
    assert_eq!(try_to(&proxy, "remove", &unix.to(), &json!({})).0, 200);
    done(&proxy, "remove", &a);
    assert_eq!(shares(&proxy, 10), share(&[("b", 10)]));
    assert_eq!(endpoint(&proxy, &a.to_string())["state"], "removed", "of the file: it is told");
    assert_eq!(endpoint(&proxy, &unix.to()), Value::Null, "it was never of the file");
    done(&proxy, "add", &a);
    assert_eq!(shares(&proxy, 10), share(&[("a", 5), ("b", 5)]));
    let log = proxy.logged("an operator changed a backend");
    assert_eq!(log.len(), 5, "{log:#?}");
    assert_eq!((&log[0]["change"], &log[0]["upstream"]), (&"add".into(), &"db".into()));
    assert!(log[0]["by"].as_str().unwrap().starts_with("127.0.0.1:"), "{log:#?}");
    assert_eq!(unix.hits(), 20);
}

#[test]
fn weights_are_shares_and_none_is_drained() {
    let (a, b) = (Backend::tagged("a"), Backend::tagged("b"));
    let proxy = Proxy::start(&config(&format!("'{a}', '{b}'")));
    let weigh = |weight: u32| try_to(&proxy, "weight", &a.to_string(), &json!({ "weight": weight })).0;
    assert_eq!(weigh(3), 200);
    assert_eq!(shares(&proxy, 40), share(&[("a", 30), ("b", 10)]));
    assert_eq!(weigh(0), 200);
    assert_eq!(shares(&proxy, 10), share(&[("b", 10)]));
    assert_eq!(endpoint(&proxy, &a.to_string())["state"], "drained");
    let answer = done(&proxy, "undrain", &a);
    assert!(answer["warning"].as_str().unwrap().contains("weight is 0"), "{answer}");
    assert_eq!(weigh(1), 200);
    assert_eq!(shares(&proxy, 10), share(&[("a", 5), ("b", 5)]));
}

#[test]
fn a_drained_backend_keeps_what_it_has_and_gets_nothing_new() {
    let (a, b) = (Backend::tagged("a"), Backend::tagged("b"));
    let sticky = "sticky = '1h'\n[[route]]";
    let proxy = Proxy::start(&config(&format!("'{a}'")).replacen("[[route]]", sticky, 1));
    let mut open = held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"));
    done(&proxy, "add", &b);
    let (a_addr, admin) = (a.to_string(), proxy.admin().to_string());
    let file = proxy.file();
    let drain = |wait: &str| {
        let process = ["--config", file.to_str().unwrap(), "--admin", &admin];
        portcullis(&[&["upstream", "drain", "db", &a_addr, "--wait", wait], &process[..]].concat())
    };
    let waited = drain("300ms");
    assert_eq!(waited.code, Some(1), "{waited:?}");
    assert!(waited.stdout.contains("1 connection goes on"), "{waited:?}");
    assert_eq!(shares(&proxy, 20), share(&[("b", 20)]));
    assert_served(&mut open);
    let told = endpoint(&proxy, &a_addr);
    assert_eq!((&told["state"], &told["connections"]), (&"drained".into(), &1.into()));
    // The end of its last connection is what is waited for.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| drain("20s"));
        assert_served(&mut open);
        drop(open);
        let waited = waiting.join().unwrap();
        assert_eq!(waited.code, Some(0), "{waited:?}");
        assert!(waited.stdout.contains("no connections"), "{waited:?}");
    });
    done(&proxy, "undrain", &a);
    done(&proxy, "remove", &b);
    assert_eq!(shares(&proxy, 5), share(&[("a", 5)]));
}

#[test]
fn the_last_backend_can_be_drained_and_that_is_warned_of() {
    let a = Backend::tagged("a");
    let proxy = Proxy::start(&config(&format!("'{a}'")));
    let mut open = held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"));
    let drained = upstream(&proxy, &["drain", "db", &a.to_string()]);
    assert_eq!(drained.code, Some(0), "{drained:?}");
    assert!(drained.stderr.contains("warning: db: no backend is left"), "{drained:?}");
    assert_eq!(probe(proxy.addr(), &to("a.test")), Outcome::Alert(80));
    assert_served(&mut open);
    assert_eq!(done(&proxy, "undrain", &a)["warning"], Value::Null);
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
}

#[test]
fn what_is_asked_outlives_reloads_until_the_file_says_something_else() {
    let [a, b, c] = ["a", "b", "c"].map(Backend::tagged);
    let both = format!("'{a}', '{b}'");
    let proxy = Proxy::start(&config(&both));
    done(&proxy, "drain", &a);
    done(&proxy, "add", &c);
    // Something else changes.
    let unrelated = proxy.reconfigure(&(config(&both) + "[[route]]\nsni = 'no.test'\nreject = 'close'\n"));
    assert!(!unrelated.stdout.contains("forgotten"), "{unrelated:?}");
    assert_eq!(probe(proxy.addr(), &to("no.test")), Outcome::Closed);
    assert_eq!(shares(&proxy, 10), share(&[("b", 5), ("c", 5)]));
    // So does another backend of the upstream.
    proxy.reconfigure(&config(&format!("'{a}', {{ address = '{b}', weight = 3 }}")));
    assert_eq!(shares(&proxy, 8), share(&[("b", 6), ("c", 2)]));
    // The drained one does, and the added one is of the file now.
    let told = proxy.reconfigure(&config(&format!(
        "{{ address = '{a}', weight = 2 }}, {{ address = '{b}', weight = 3 }}, {{ address = '{c}', weight = 5 }}"
    )));
    for backend in [&a, &c] {
        assert!(told.stdout.contains(&format!("db {backend}: what was asked")), "{told:?}");
    }
    assert_eq!(shares(&proxy, 20), share(&[("a", 4), ("b", 6), ("c", 10)]));
    let lines = proxy.logged("the new configuration serves");
    let overruled: Vec<_> = lines.iter().map(|line| line["overruled"].clone()).collect();
    assert_eq!(overruled, [json!(0), json!(0), json!(2)]);
    // An upstream that goes takes all of it along.
    done(&proxy, "drain", &a);
    proxy.reconfigure(&config(&both).replace("'db'", "'other'"));
    proxy.reconfigure(&config(&both));
    assert_eq!(shares(&proxy, 10), share(&[("a", 5), ("b", 5)]));
}

/// Asks for what cannot be; the answer must say so.
fn refused(proxy: &Proxy, verb: &str, body: &Value, status: u16, part: &str) {
    let (got, answer) = proxy.api("POST", &format!("upstreams/{verb}"), &body.to_string());
    assert_eq!(got, status, "{verb} {body}: {answer}");
    let text = answer["text"].as_str().unwrap();
    assert!(text.contains(part), "{verb} {body}: {text}");
}

#[test]
fn what_is_unknown_is_told_with_what_there_is() {
    let a = Backend::tagged("a");
    let proxy = Proxy::start(&config(&format!("'{a}'")));
    let a = a.to_string();
    let told = |verb: &str, upstream: &str, backend: &str, part: &str| {
        refused(&proxy, verb, &json!({ "upstream": upstream, "backend": backend }), 404, part);
    };
    told("drain", "bd", &a, "did you mean `db`?");
    told("add", "elsewhere", &a, "there are `db`");
    told("drain", "db", "192.0.2.200:1", &format!("there are `{a}`"));
    told("undrain", "db", "app.internal:443", &format!("there are `{a}`"));
    told("remove", "db", "127.0.0.1:1", "no backend `127.0.0.1:1`");
    for path in ["upstreams/", "upstreams/ban", "upstreams/db/drain"] {
        assert_eq!(proxy.api("POST", path, "{}").0, 404, "{path}");
    }
    assert_eq!(shares(&proxy, 3), share(&[("a", 3)]), "nothing has changed");
    // The commands pass that on.
    let unknown = upstream(&proxy, &["drain", "bd", &a]);
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert!(unknown.stderr.contains("did you mean `db`?"), "{unknown:?}");
    assert_eq!(upstream(&proxy, &["list", "bd"]).code, Some(1));
    assert_eq!(upstream(&proxy, &["weight", "db", &a, "257"]).code, Some(2));
    assert_eq!(upstream(&proxy, &["drain", "db", &a, "--wait", "long"]).code, Some(2));
}

#[test]
fn what_cannot_be_is_told_with_what_to_write() {
    let a = Backend::tagged("a");
    let own = format!("127.0.0.1:{}", free_port());
    let listen = format!("listen = '{own}'");
    let proxy = Proxy::start(&config(&format!("'{a}'")).replace("listen = '127.0.0.1:0'", &listen));
    let backend = a.to_string();
    let told = |verb: &str, backend: &str, further: Value, status: u16, part: &str| {
        let mut body = json!({ "upstream": "db", "backend": backend });
        body.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
        refused(&proxy, verb, &body, status, part);
    };
    told("add", &backend, json!({}), 409, "already");
    told("add", &own, json!({}), 400, "connect to itself: the listener `default`");
    told("add", "10.0.0.9", json!({}), 400, "has no port; write `10.0.0.9:443`");
    told("add", "https://app:443", json!({}), 400, "bytes are passed on as they are");
    told("add", "10.0.0.9:1", json!({ "weight": 257 }), 400, "from 0 to 256");
    told("add", "10.0.0.9:1", json!({ "tier": 0 }), 400, "from 1 to 16");
    told("add", "10.0.0.9:1", json!({ "zone": "a b" }), 400, "letters, digits");
    told("add", "10.0.0.9:1", json!({ "max_connections": 0 }), 400, "from 1 on");
    told("weight", &backend, json!({}), 400, "missing field `weight`");
    told("weight", &backend, json!({ "weight": 257 }), 400, "from 0 to 256");
    told("weight", &backend, json!({ "weight": -1 }), 400, "the body is not what this takes");
    told("drain", &backend, json!({ "wait": 1 }), 400, "unknown field `wait`");
    told("remove", &"x".repeat(20_000), json!({}), 413, "16384 bytes");
    assert_eq!(shares(&proxy, 3), share(&[("a", 3)]), "nothing has changed");
}

#[test]
fn a_change_needs_the_token_where_there_is_one() {
    let (a, b) = (Backend::tagged("a"), Backend::tagged("b"));
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "correct horse\n").unwrap();
    let admin = format!("admin = {{ bind = '127.0.0.1:0', token = {{ file = '{}' }} }}", token.display());
    let proxy = Proxy::start(&config(&format!("'{a}'")).replace("admin = '127.0.0.1:0'", &admin));
    let body = json!({ "upstream": "db", "backend": b.to_string() }).to_string();
    let add = |headers: &str| proxy.api_with("POST", "upstreams/add", headers, &body).status;
    assert_eq!(add(""), 401);
    assert_eq!(add("Authorization: Bearer wrong horse\r\n"), 401);
    assert_eq!(upstream(&proxy, &["add", "db", &b.to_string()]).code, Some(1));
    assert_eq!(shares(&proxy, 4), share(&[("a", 4)]));
    let given = ["add", "db", &b.to_string(), "--token-file", token.to_str().unwrap()];
    assert_eq!(upstream(&proxy, &given).code, Some(0));
    assert_eq!(shares(&proxy, 4), share(&[("a", 2), ("b", 2)]));
    assert_eq!(add("Authorization: Bearer correct horse\r\n"), 409, "it is there now");
}

/// As many as may be, each of which is told.
#[test]
fn the_number_of_changes_is_bounded() {
    const MOST: usize = 1024;
    let (a, b) = (Backend::tagged("a"), Backend::tagged("b"));
    let proxy = Proxy::start(&config(&format!("'{a}'")));
    let nowhere = |n: usize| format!("127.3.{}.{}:9", n / 256, n % 256);
    for n in 0..MOST {
        // Without weight nobody is sent there.
        assert_eq!(try_to(&proxy, "add", &nowhere(n), &json!({ "weight": 0 })).0, 200, "{n}");
    }
    for (verb, backend) in [("add", &b), ("drain", &a), ("remove", &a)] {
        let (status, answer) = try_to(&proxy, verb, &backend.to_string(), &json!({}));
        assert_eq!(status, 409, "{verb}");
        assert!(answer["text"].as_str().unwrap().contains("of 1024 backends"), "{answer}");
    }
    let (_, told) = proxy.api("GET", "upstreams", "");
    assert_eq!(told["upstreams"][0]["backends"].as_array().unwrap().len(), 1 + MOST);
    assert_eq!(shares(&proxy, 3), share(&[("a", 3)]));
    assert_eq!(try_to(&proxy, "remove", &nowhere(7), &json!({})).0, 200);
    done(&proxy, "add", &b);
    assert_eq!(shares(&proxy, 4), share(&[("a", 2), ("b", 2)]));
}

#[test]
fn names_are_looked_up_when_they_are_added_and_their_addresses_drained_one_by_one() {
    let a = Backend::tagged("a");
    let one = Backend::tagged_at(SocketAddr::from((loopback(21), 0)), "one");
    let two = Backend::tagged_at(SocketAddr::from((loopback(22), one.addr().port())), "two");
    let mut named = Named::start(&[("app", loopback(21)), ("app", loopback(22))]);
    let dns = format!("dns = {{ servers = '{}', timeout = '1s', max_ttl = '1s' }}\n", named.addr());
    let text = dns + &config(&format!("'{a}'"));
    let proxy = Proxy::start(&text);
    let name = format!("app.backend.test:{}", one.addr().port());
    assert_eq!(try_to(&proxy, "add", &name, &json!({})).0, 200);
    wait_for("its addresses", || endpoint(&proxy, &two.to_string())["state"] == "up");
    assert_eq!(shares(&proxy, 9), share(&[("a", 3), ("one", 3), ("two", 3)]));
    done(&proxy, "drain", &one);
    assert_eq!(shares(&proxy, 10), share(&[("a", 5), ("two", 5)]));
    assert_eq!(
        proxy.api("GET", "upstreams", "").1["upstreams"][0]["drained_addresses"],
        json!([one.to_string()])
    );
    let (status, answer) = try_to(&proxy, "remove", &one.to_string(), &json!({}));
    assert_eq!(status, 400, "{answer}");
    assert!(answer["text"].as_str().unwrap().contains(&format!("an address of `{name}`")), "{answer}");
    // A reload looks it up again, and knows of it what it knew.
    proxy.reconfigure(&(text.clone() + "[[route]]\nsni = 'no.test'\nreject = 'close'\n"));
    assert_eq!(shares(&proxy, 10), share(&[("a", 5), ("two", 5)]));
    done(&proxy, "undrain", &one);
    done(&proxy, "remove", &a);
    named.replace(&[("app", loopback(21))]);
    until("the other address to be gone", FOLLOW, || {
        (endpoint(&proxy, &two.to_string()) == Value::Null).then_some(())
    });
    assert_eq!(shares(&proxy, 4), share(&[("one", 4)]));
    done(&proxy, "add", &a);
    assert_eq!(try_to(&proxy, "remove", &name, &json!({})).0, 200);
    assert_eq!(shares(&proxy, 4), share(&[("a", 4)]));
}

#[test]
fn the_commands_do_and_tell_all_of_it() {
    let (a, b) = (Backend::tagged("a"), Backend::tagged("b"));
    let proxy = Proxy::start(&config(&format!("'{a}'")));
    let (a, b) = (a.to_string(), b.to_string());
    let does = |args: &[&str], expected: &str| {
        let done = upstream(&proxy, args);
        assert_eq!(done.code, Some(0), "{args:?}: {done:?}");
        assert!(done.stdout.contains(expected), "{args:?}: {}", done.stdout);
    };
    let add = ["add", "db", &b, "--weight", "3", "--tier", "2", "--zone", "west", "--max-connections", "9"];
    does(&add, &format!("db {b} is added"));
    assert_eq!(shares(&proxy, 4), share(&[("a", 4)]), "the other one is of a tier that is not needed");
    does(&["drain", "db", &a, "--wait", "5s"], "is drained; it has no connections");
    assert_eq!(shares(&proxy, 4), share(&[("b", 4)]));
    does(&["weight", "db", &b, "7"], "has the weight 7");
    let listed = upstream(&proxy, &["list"]);
    assert_eq!(listed.code, Some(0), "{listed:?}");
    let lines: Vec<Vec<&str>> = listed.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    let head = ["UPSTREAM", "BACKEND", "ADDRESS", "STATE", "SINCE", "WEIGHT", "CONNECTIONS", "ERROR"];
    assert_eq!(lines[0], head);
    assert_eq!((&lines[1][..4], &lines[1][5..]), (&["db", &a, &a, "drained"][..], &["1", "0", "-"][..]));
    assert_eq!(&lines[2][..5], ["db", &b, "(added)", &b, "up"]);
    assert_eq!((lines[2][6], lines.len()), ("7", 3));
    let json: Value = serde_json::from_str(&upstream(&proxy, &["list", "db", "--json"]).stdout).unwrap();
    let added = &json["upstreams"][0]["backends"][1];
    assert_eq!((&added["tier"], &added["zone"]), (&2.into(), &"west".into()));
    assert_eq!((&added["max_connections"], &added["added"]), (&9.into(), &true.into()));
    does(&["undrain", "db", &a], "no longer drained");
    does(&["remove", "db", &b], "is removed; it has no connections");
    assert_eq!(shares(&proxy, 4), share(&[("a", 4)]));
}

/// Backends come and go under load; nobody notices.
#[test]
fn backends_come_and_go_under_load_and_nobody_notices() {
    const ROUNDS: usize = 30;
    let load = Load::new();
    let more = Backend::tagged("canary");
    let text = format!("listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}{}", load.routes());
    let proxy = Proxy::start(&text);
    let body = json!({ "upstream": "canary.test", "backend": more.to_string() }).to_string();
    let connections = load.during(proxy.addr(), || {
        for round in 0..ROUNDS {
            for verb in ["add", "drain", "undrain", "remove"] {
                let before = more.hits();
                let (status, answer) = proxy.api("POST", &format!("upstreams/{verb}"), &body);
                assert_eq!(status, 200, "{round} {verb}: {answer}");
                if ["add", "undrain"].contains(&verb) {
                    wait_for("its share", || more.hits() > before);
                }
            }
        }
    });
    assert!(connections > 4 * ROUNDS, "{connections}");
    let refused = proxy.metrics().sum("portcullis_upstream_connect_failures_total", &[]);
    assert!(refused < 0.5, "{refused} attempts failed");
}
