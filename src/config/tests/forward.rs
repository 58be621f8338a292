//! Routes to the servers that clients name.

use super::*;

/// What a route with this text becomes.
fn route(text: &str) -> Result<Config, ConfigErrors> {
    parse(&format!("listen = \":443\"\n[[route]]\n{text}\n"))
}

fn refused(text: &str, kind: &str, message: &str) {
    let errors = route(text).expect_err(text);
    assert_eq!(kinds(&errors), [kind], "{text}\n{errors}");
    let drawn = errors.render(false);
    assert!(drawn.contains(message), "{message} is not in\n{drawn}");
}

#[test]
fn a_route_may_lead_to_the_servers_that_its_names_are_of() {
    let text =
        "sni = [\"api.example.com\", \"*.example.net\", '~db[0-9]+\\.example\\.org']\nto = \"sni:443\"";
    let config =
        route(&format!("{text}\ninternal = [\"10.1.0.0/16\", \"fd00::/8\"]\nmax_connections = 100")).unwrap();
    let ActionConfig::Passthrough(to) = &config.routes[0].action else { panic!("{config:?}") };
    assert_eq!(to.upstream.server_name(), Some(443));
    assert_eq!(to.internal, [net("10.1.0.0/16"), net("fd00::/8")]);
    assert_eq!(to.upstream.backends[0].max_connections, Some(100));
    assert_eq!(to.upstream.eject, None, "one client's bad names are nobody else's");
    let effective = |config: &Config, key: &str| {
        let found = config.effective.iter().find(|setting| setting.key == format!("route[r].{key}"));
        found.map(|setting| (setting.value.clone(), setting.origin.is_some()))
    };
    let named = |more: &str| route(&format!("name = \"r\"\n{text}\n{more}")).unwrap();
    let config = named("internal = \"10.1.0.0/16\"");
    assert_eq!(effective(&config, "to"), Some(("\"sni:443\"".to_owned(), true)));
    assert_eq!(effective(&config, "internal"), Some(("\"10.1.0.0/16\"".to_owned(), true)));
    assert_eq!(effective(&named(""), "internal"), Some(("[]".to_owned(), false)));
    assert_eq!(effective(&named(""), "eject"), Some(("\"off\"".to_owned(), false)));
}

#[test]
fn only_names_that_are_written_may_be_reached() {
    let hint = "give the names that may be reached";
    for matched in [
        "sni = \"*\"",
        "sni = [\"a.test\", \"*\"]",
        "sni = [\"a.test\", \"none\"]",
        "sni = '~.*'",
        "sni = '~[a-z0-9.-]+'",
        "protocol = \"any\"",
        "protocol = \"http\"",
    ] {
        refused(&format!("{matched}\nto = \"sni:443\""), "open-forward", hint);
    }
    for matched in ["protocol = \"tls\"", "alpn = \"h2\""] {
        let errors = route(&format!("{matched}\nto = \"sni:443\"")).expect_err(matched);
        assert!(kinds(&errors).iter().all(|kind| *kind == "open-forward"), "{errors}");
    }
    refused("sni = \"a.test\"\nto = \"sni:0\"", "bad-address", "`0` is not a port");
    refused("sni = \"a.test\"\nto = \"sni\"", "bad-address", "has no port");
}

#[test]
fn what_is_said_of_backends_is_not_said_of_servers_that_clients_name() {
    let with = |more: &str| format!("sni = \"a.test\"\nto = \"sni:443\"\n{more}");
    refused("sni = \"a.test\"\nto = [\"sni:443\", \"10.0.0.1:443\"]", "conflict", "stands alone in `to`");
    for (key, value) in
        [("balance", "\"random\""), ("sticky", "\"1h\""), ("eject", "3"), ("slow_start", "\"3s\"")]
    {
        refused(&with(&format!("{key} = {value}")), "conflict", &format!("`{key}` is said of backends"));
    }
    refused(&with("internal = \"10.1.0.1/16\""), "bad-network", "bits set behind its prefix");
    refused(&with("internal = [\"10.1.0.0/16\", \"10.1.0.0/16\"]"), "duplicate-value", "is given twice");
    let of_backends = "sni = \"a.test\"\nto = \"10.0.0.1:443\"\ninternal = \"10.0.0.0/8\"";
    refused(of_backends, "conflict", "this route has backends");
    let rejects = "sni = \"a.test\"\nreject = \"close\"\ninternal = \"10.0.0.0/8\"";
    refused(rejects, "conflict", "a route that rejects has no `internal`");
    let group = "sni = \"a.test\"\nupstream = \"out\"\n[[upstream]]\nname = \"out\"\nto = \"sni:443\"";
    refused(group, "conflict", "no backend of a group");
}
