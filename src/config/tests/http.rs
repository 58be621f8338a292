//! Routes that speak HTTP: what they resolve to, and what they cannot say.

use super::*;

/// What `[[route]]` with this text becomes; upstreams may follow it.
fn route(text: &str) -> Result<Config, ConfigErrors> {
    parse(&format!("listen = ':443'\n[[route]]\nname = 'r'\n{text}\n"))
}

/// A route for HTTP in clear.
fn plain(text: &str) -> HttpConfig {
    let config =
        route(&format!("protocol = 'http'\n{text}")).unwrap_or_else(|errors| panic!("{text}\n{errors}"));
    let ActionConfig::Http(http) = &config.routes[0].action else { panic!("{text}: it speaks HTTP") };
    HttpConfig::clone(http)
}

/// The only rule of a route for HTTP in clear.
fn rule(text: &str) -> RuleConfig {
    plain(&format!("[[route.rule]]\n{text}")).rules[0].clone()
}

fn proxy(action: &RequestAction) -> &ProxyConfig {
    let RequestAction::Proxy(proxy) = action else { panic!("{action:?}") };
    proxy
}

#[track_caller]
fn refused(text: &str, kind: &str, message: &str) {
    let errors = route(text).expect_err(text);
    assert_eq!(kinds(&errors), [kind], "{text}\n{errors}");
    let drawn = errors.render(false);
    assert!(drawn.contains(message), "{message} is not in\n{drawn}");
}

/// The same of the only rule of a route in clear.
#[track_caller]
fn bad_rule(text: &str, kind: &str, message: &str) {
    refused(&format!("protocol = 'http'\n[[route.rule]]\n{text}"), kind, message);
}

#[test]
fn a_scheme_of_http_makes_the_route_one_of_http() {
    let certificates = "[{ certificate = 'a.pem', key = 'a.key' }]";
    for (to, version, alpn, port) in [
        ("http://10.0.0.1", BackendHttp::Http1, None, 80),
        ("https://10.0.0.1", BackendHttp::Http1, Some("http/1.1"), 443),
        ("h2c://10.0.0.1", BackendHttp::Http2, None, 80),
        ("h2://10.0.0.1:8443", BackendHttp::Http2, Some("h2"), 8443),
    ] {
        let config =
            route(&format!("sni = 'a.test'\ntls = {{ certificates = {certificates} }}\nto = '{to}'"));
        let config = config.unwrap_or_else(|errors| panic!("{to}\n{errors}"));
        let ActionConfig::Http(http) = &config.routes[0].action else { panic!("{to}") };
        let tls = http.tls.as_ref().expect("TLS ends here");
        assert_eq!(tls.alpn, [b"h2".as_slice().into(), b"http/1.1".as_slice().into()]);
        let [last] = http.rules.as_slice() else { panic!("the route's own") };
        let [variant] = proxy(&last.action).variants.as_slice() else { panic!("one") };
        assert_eq!((variant.version, &*variant.name, &*variant.to.upstream.name), (version, "r", "r"));
        let spoken =
            variant.to.upstream.tls.as_ref().map(|tls| tls.alpn.clone().expect("what the scheme says"));
        assert_eq!(spoken, alpn.map(|name: &str| vec![name.as_bytes().into()]));
        assert!(variant.to.upstream.addresses().eq([&format!("10.0.0.1:{port}").parse().unwrap()]));
        assert_eq!(config.routes[0].action.backends().count(), 1);
    }
    let own = "tls = { issuer = 'self-signed', alpn = 'http/1.1' }\nto = 'http://a.test'\nsni = 'a.test'";
    assert_eq!(route(own).unwrap().routes[0].action.tls().unwrap().alpn, [b"http/1.1".as_slice().into()]);
    let passed = route("sni = 'a.test'\nto = '10.0.0.1:443'").unwrap();
    assert!(matches!(passed.routes[0].action, ActionConfig::Passthrough(_)), "as it always was");
}

#[test]
fn a_group_may_speak_http() {
    let group = "[[upstream]]\nname = 'app'\nto = ['h2c://10.0.0.1:80', { address = 'h2c://10.0.0.2:80', weight = 2 }]\n";
    let http = plain(&format!("upstream = 'app'\n{group}"));
    let [variant] = proxy(&http.rules[0].action).variants.as_slice() else { panic!("one") };
    assert_eq!((variant.version, &*variant.to.upstream.name), (BackendHttp::Http2, "app"));
    let same = "protocol = 'http'\nto = ['http://10.0.0.1:80', 'h2c://10.0.0.2:80']";
    refused(same, "conflict", "do not speak the same");
    refused(
        "protocol = 'http'\nto = ['10.0.0.1:80', 'http://10.0.0.2:80']",
        "conflict",
        "do not speak the same",
    );
    let clear = "[[upstream]]\nname = 'app'\nto = '10.0.0.1:80'\n";
    bad_rule(&format!("upstream = 'app'\n{clear}"), "conflict", "not said to speak HTTP");
    bad_rule("to = '10.0.0.1:80'", "conflict", "write `http://` before it: `\"http://10.0.0.1:80\"`");
    bad_rule("to = 'http://10.0.0.1/x'", "bad-address", "write `\"http://10.0.0.1\"`");
    bad_rule("to = 'http://sni:443'", "bad-address", "only sent to those that are named");
}

#[test]
fn a_rule_says_which_requests_it_takes() {
    let when = rule(
        "answer = 200\nhost = ['a.test', '*.b.test', '~c[0-9]\\.test', '*']\n\
         path = ['/api/*', '/v1/**.json', '~/x[0-9]+', '/login', '/*', '/a*/b', '/']\nmethod = ['GET', 'PROPFIND']\n\
         header = { X-Beta = '1', x-any = '*', user-agent = '~.*curl.*' }\nquery = { debug = '*', 'a b' = 'c' }\n\
         from = ['10.0.0.0/8', '2001:db8::/32']",
    )
    .when;
    assert_eq!(strings(&when.hosts), ["a.test", "*.b.test", "~c[0-9]\\.test", "*"]);
    let written = ["/api/*", "/v1/**.json", "~/x[0-9]+", "/login", "/*", "/a*/b", "/"];
    assert_eq!(strings(&when.paths), written);
    let [PathPattern::Prefix(api), PathPattern::Glob(glob, _), PathPattern::Regex(regex, _), rest @ ..] =
        when.paths.as_slice()
    else {
        panic!("{:?}", when.paths)
    };
    assert_eq!(&**api, "/api");
    assert!(
        glob.is_match("/v1/a/b.json") && !glob.is_match("/v1/a/bxjson") && !glob.is_match("/x/v1/a.json")
    );
    assert!(regex.is_match("/x12") && !regex.is_match("/x12/") && !regex.is_match("/a/x12"));
    let [
        PathPattern::Exact(login),
        PathPattern::Prefix(all),
        PathPattern::Glob(one, _),
        PathPattern::Exact(_),
    ] = rest
    else {
        panic!("{rest:?}")
    };
    assert_eq!((&**login, &**all), ("/login", ""));
    assert!(one.is_match("/abc/b") && !one.is_match("/a/c/b"));
    assert_eq!(strings(&when.methods), ["GET", "PROPFIND"]);
    let headers: Vec<_> = when.headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(headers, ["x-beta=1", "x-any=*", "user-agent=~.*curl.*"]);
    let query: Vec<_> = when.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(query, ["debug=*", "a b=c"]);
    assert_eq!(when.from, [net("10.0.0.0/8"), net("2001:db8::/32")]);
}

#[test]
fn rules_have_names_and_their_backends_too() {
    let http = plain(
        "to = 'http://10.0.0.9'\n[[route.rule]]\nname = 'api'\npath = '/api/*'\nto = 'http://10.0.0.1'\n\
         [[route.rule]]\npath = '/b'\nto = 'http://10.0.0.2'\nbalance = 'random'\n[[route.rule]]\npath = '/c'\n\
         split = [{ name = 'old', weight = 9, to = 'http://10.0.0.3' }, { name = 'new', upstream = 'u' }]\n\
         [[upstream]]\nname = 'u'\nto = 'https://10.0.0.4'\n",
    );
    let names: Vec<_> = http.rules.iter().map(|rule| &*rule.name).collect();
    assert_eq!(names, ["api", "r/2", "r/3", "r"]);
    let groups: Vec<_> = http.backends().map(|to| &*to.upstream.name).collect();
    assert_eq!(groups, ["r/api", "r/2", "r/3/old", "u", "r"]);
    let split = proxy(&http.rules[2].action);
    let shares: Vec<_> = split.variants.iter().map(|variant| (&*variant.name, variant.weight)).collect();
    assert_eq!(shares, [("old", 9), ("new", 1)]);
    assert_eq!(split.sticky, SplitKey::Source);
    assert!(split.variants[1].to.upstream.tls.is_some());
}

#[test]
fn what_no_rule_takes_is_for_the_route_or_not_found() {
    let last = |text: &str| {
        plain(&format!("{text}\n[[route.rule]]\npath = '/a'\nanswer = 200")).rules.pop().unwrap()
    };
    let RequestAction::Answer(answer) = last("").action else { panic!("an answer") };
    assert_eq!((answer.status.as_u16(), answer.body), (404, None));
    let RequestAction::Redirect(redirect) = last("redirect = 'https'").action else { panic!("a redirect") };
    assert_eq!((redirect.to.to_string().as_str(), redirect.status.as_u16()), ("https://{host}{uri}", 308));
    let config = route("protocol = 'http'\nredirect = 'https'").unwrap();
    assert!(matches!(config.routes[0].action, ActionConfig::Redirect), "as it always was");
    let config = route("protocol = 'http'\nredirect = { to = 'https' }").unwrap();
    assert!(matches!(config.routes[0].action, ActionConfig::Redirect), "the table that it is short for");
}

#[test]
fn requests_are_changed_before_they_go_to_backends() {
    let rule = rule(
        "path = ['~/old/(.*)/(.*)', '/x']\nto = 'http://10.0.0.1'\nhost_header = 'app-{1}.internal'\nstrip = '/api'\n\
         replace = { match = '^/a/(.*)$', with = '/b/{1}' }\nadd = '/base'\nbuffer_requests = true\n\
         request_headers = { set = { X-A = '{client}' }, add = { x-b = ['1', '{2}'] }, remove = 'x-debug' }\n\
         response_headers = { remove = ['server', 'x-powered-by'] }\ntimeouts = { response = '5s', connect = '1s' }",
    );
    let proxy = proxy(&rule.action);
    let HostHeader::Set(host) = &proxy.host else { panic!("{:?}", proxy.host) };
    assert_eq!(host.to_string(), "app-{1}.internal");
    assert_eq!((proxy.rewrite.strip.as_deref(), proxy.rewrite.add.as_deref()), (Some("/api"), Some("/base")));
    let (regex, with) = proxy.rewrite.replace.as_ref().unwrap();
    assert_eq!((regex.as_str(), with.to_string().as_str()), ("^/a/(.*)$", "/b/{1}"));
    assert!(proxy.buffer_requests);
    assert_eq!((proxy.response_timeout, proxy.variants[0].to.connect_timeout), (secs(5), secs(1)));
    let pairs = |pairs: &[(::http::HeaderName, Template)]| {
        pairs.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>()
    };
    assert_eq!(pairs(&rule.request_headers.set), ["x-a: {client}"]);
    assert_eq!(pairs(&rule.request_headers.add), ["x-b: 1", "x-b: {2}"]);
    assert_eq!(strings(&rule.request_headers.remove), ["x-debug"]);
    assert_eq!(strings(&rule.response_headers.remove), ["server", "x-powered-by"]);
    let plain = plain("to = 'http://10.0.0.1'");
    let RequestAction::Proxy(proxy) = &plain.rules[0].action else { panic!("proxied") };
    assert!(matches!(proxy.host, HostHeader::Keep) && !proxy.buffer_requests);
    assert_eq!(proxy.response_timeout, secs(60));
    assert!(plain.rules[0].request_headers.is_empty() && plain.rules[0].response_headers.is_empty());
}

#[test]
fn files_redirects_and_answers() {
    let config = Config::parse(
        Path::new("/etc/p/test.toml"),
        "listen = ':80'\n[[route]]\nprotocol = 'http'\nfiles = 'www'\n[[route.rule]]\npath = '/static/*'\n\
         files = { root = '/srv/www', index = ['a.html'], fallback = 'b/a.html', strip = '/static', dotfiles = true, precompressed = true }\n",
    )
    .unwrap_or_else(|errors| panic!("{errors}"));
    let http = config.routes[0].action.http().unwrap();
    assert!(http.roots().eq([Path::new("/srv/www"), Path::new("/etc/p/www")]));
    let RequestAction::Files(files) = &http.rules[0].action else { panic!("files") };
    assert_eq!(files.fallback.as_deref(), Some(Path::new("b/a.html")));
    assert_eq!((files.strip.as_deref(), files.dotfiles, files.precompressed), (Some("/static"), true, true));
    let RequestAction::Files(files) = &http.rules[1].action else { panic!("files") };
    assert_eq!(
        (strings(&files.index), files.dotfiles, files.precompressed),
        (vec!["index.html".to_owned()], false, false)
    );
    let redirect = |text: &str| {
        let RequestAction::Redirect(redirect) = rule(text).action else { panic!("{text}") };
        (redirect.to.to_string(), redirect.status.as_u16())
    };
    let url = "https://new.example.com{uri}".to_owned();
    assert_eq!(redirect("redirect = 'https://new.example.com{uri}'"), (url.clone(), 308));
    let moved = "redirect = { to = 'https://new.example.com{uri}', status = 301 }";
    assert_eq!(redirect(moved), (url, 301));
    assert_eq!(redirect("path = '~/a/(.*)'\nredirect = '/b/{1}'").0, "/b/{1}");
    let answer = |text: &str| {
        let RequestAction::Answer(answer) = rule(text).action else { panic!("{text}") };
        (answer.status.as_u16(), answer.body.map(|body| body.to_string()), answer.content_type)
    };
    assert_eq!(answer("answer = 200"), (200, None, "text/plain; charset=utf-8".into()));
    let json = "answer = { status = 503, body = '{{\"id\": \"{id}\"}', content_type = 'application/json' }";
    assert_eq!(answer(json), (503, Some("{{\"id\": \"{id}\"}".to_owned()), "application/json".into()));
}

#[test]
fn limits_of_clients_and_proxies_that_are_believed() {
    let http = plain("to = 'http://10.0.0.1'");
    assert_eq!(http.limits, HttpLimits::DEFAULT);
    assert!(http.trusted_proxies.is_empty() && http.tls.is_none());
    let http = plain(
        "to = 'http://10.0.0.1'\ntrusted_proxies = ['10.0.0.0/8', '::1']\n\
         http = { max_headers = 50, max_header_size = '8KiB', max_uri = '4KiB', max_body = '10MiB', header_timeout = '5s', keep_alive = '1m30s', body_timeout = '1s', min_body_rate = 'off', write_timeout = '2s', max_streams = 8 }",
    );
    let limits = HttpLimits {
        max_headers: 50,
        max_header_size: 8192,
        max_uri: 4096,
        max_body: Some(10 << 20),
        header_timeout: secs(5),
        keep_alive: secs(90),
        body_timeout: secs(1),
        min_body_rate: None,
        write_timeout: secs(2),
        max_streams: 8,
    };
    assert_eq!(http.limits, limits);
    assert_eq!(*http.trusted_proxies, [net("10.0.0.0/8"), net("::1/128")]);
    let with = |limit: &str| format!("protocol = 'http'\nto = 'http://10.0.0.1'\nhttp = {{ {limit} }}");
    refused(&with("max_header_size = '1B'"), "out-of-range", "not between 1KiB and 1MiB");
    refused(&with("max_uri = 100"), "missing-unit", "a size needs a unit");
    refused(&with("keep_alive = 60"), "missing-unit", "a duration needs a unit");
    refused(&with("min_body_rate = 256"), "missing-unit", "a bandwidth needs a unit");
}

#[test]
fn what_is_said_of_http_needs_http() {
    for key in [
        "host_header = 'backend'",
        "strip = '/api'",
        "add = '/api'",
        "replace = { match = '/a', with = '/b' }",
        "buffer_requests = true",
        "request_headers = { remove = 'x-a' }",
        "response_headers = { remove = 'x-a' }",
        "sticky_split = 'source'",
        "trusted_proxies = '10.0.0.0/8'",
        "http = { max_headers = 10 }",
        "timeouts = { response = '1s' }",
    ] {
        refused(
            &format!("sni = 'a.test'\nto = '10.0.0.1:443'\n{key}"),
            "conflict",
            "TLS must end here: add `tls",
        );
        refused(
            &format!("protocol = 'http'\nto = '10.0.0.1:80'\n{key}"),
            "conflict",
            "write `http://` before",
        );
    }
    for action in [
        "to = 'http://10.0.0.1'",
        "files = '/srv'",
        "answer = 200",
        "redirect = '/b'",
        "[[route.rule]]\nanswer = 200",
    ] {
        refused(&format!("sni = 'a.test'\n{action}"), "conflict", "TLS must end here: add `tls");
        refused(&format!("protocol = 'ssh'\n{action}"), "conflict", "clients of this route speak ssh");
    }
    assert!(route("protocol = 'any'\nanswer = 200").is_ok());
    let of_streams = "protocol = 'http'\nto = 'http://10.0.0.1'\n";
    refused(&format!("{of_streams}reject = 'close'"), "conflict", "write `answer = 403`");
    let tls =
        "sni = 'a.test'\ntls = 'self-signed'\nredirect = 'https'\n[[route.rule]]\npath = '/a'\nanswer = 200";
    refused(tls, "conflict", "come by `https` already");
}

#[test]
fn requests_have_exactly_one_thing_that_becomes_of_them() {
    bad_rule("path = '/a'", "missing-key", "add one of");
    refused("protocol = 'http'\nrule = 5", "wrong-type", "expected an array of tables");
    bad_rule("answer = 200\nfiles = '/srv'", "conflict", "either `answer` or `files`");
    let both = "protocol = 'http'\nto = 'http://10.0.0.1'\nsplit = []";
    refused(both, "out-of-range", "the list is empty");
    bad_rule("answer = 200\nstrip = '/a'", "conflict", "`strip` is said of requests that go to backends");
    bad_rule("files = '/srv'\nstrip = '/a'", "conflict", "write it in the table");
    bad_rule("answer = 200\nsticky = '1h'", "conflict", "`sticky` is said of requests that go to backends");
    let nowhere = "protocol = 'http'\nstrip = '/a'\n[[route.rule]]\npath = '/a'\nanswer = 200";
    refused(nowhere, "conflict", "write `strip` in the rules");
    bad_rule(
        "to = 'http://10.0.0.1'\nsticky_split = 'source'",
        "conflict",
        "`sticky_split` belongs to `split`",
    );
    bad_rule(
        "to = 'http://10.0.0.1'\nsticky = '1h'\nsticky_split = 'source'",
        "conflict",
        "not both at once",
    );
}

#[test]
fn a_split_has_two_variants_with_a_share() {
    let split = |a: &str, b: &str| format!("split = [{{ name = 'a', {a} }}, {{ name = 'b', {b} }}]");
    let to = "to = 'http://10.0.0.1'";
    let sticky = |by: &str| {
        let rule = rule(&format!("{}\nsticky_split = {by}", split(to, to)));
        proxy(&rule.action).sticky.clone()
    };
    assert_eq!(sticky("'source'"), SplitKey::Source);
    assert_eq!(sticky("{ cookie = 'ab' }"), SplitKey::Cookie("ab".into()));
    assert_eq!(sticky("{ header = 'X-User' }"), SplitKey::Header(::http::HeaderName::from_static("x-user")));
    bad_rule(&format!("split = [{{ name = 'a', {to} }}]"), "out-of-range", "two variants or more");
    bad_rule(
        &split("weight = 0, to = 'http://10.0.0.1'", "weight = 0, to = 'http://10.0.0.2'"),
        "out-of-range",
        "all weights are 0",
    );
    bad_rule(&split("weight = 1", to), "missing-key", "leads nowhere");
    bad_rule(&split("to = '10.0.0.1:80'", to), "conflict", "speak HTTP");
    bad_rule(
        &format!("{}\nsticky = '1h'\nsticky_split = 'source'", split(to, to)),
        "conflict",
        "not both at once",
    );
    bad_rule(&format!("{}\nbalance = 'random'", split(to, to)), "conflict", "move `balance` there");
    bad_rule(
        &format!("{}\nsticky_split = {{ }}", split(to, to)),
        "missing-key",
        "by what clients are told apart",
    );
    let twice = format!("split = [{{ name = 'a', {to} }}, {{ name = 'a', {to} }}]");
    bad_rule(&twice, "duplicate-value", "given twice");
}

#[test]
fn paths_are_written_as_they_are_compared() {
    for (path, hint) in [
        ("/a//b", "write `/a/b`"),
        ("/a/./b", "write `/a/b`"),
        ("/a/../b/*", "write `/b/*`"),
        ("/%61", "write `/a`"),
        ("/%2e%2e/a", "write `/a`"),
        ("/a%2fb", "write `/a%2Fb`"),
        ("/ä", "write `/%C3%A4`"),
        ("api", "does not begin with `/`"),
        ("*", "write `/*` for all paths"),
        ("/a?b=c", "parameters are told by `query`"),
        ("/a%", "two digits"),
    ] {
        bad_rule(&format!("answer = 200\npath = '{path}'"), "bad-value", hint);
    }
    bad_rule("answer = 200\npath = '~/a('", "bad-regex", "does not compile");
    bad_rule("answer = 200\npath = '~/a)(b'", "bad-regex", "does not compile");
    bad_rule("to = 'http://a.test'\nstrip = '/a/'", "bad-value", "write `/a`");
    bad_rule("to = 'http://a.test'\nadd = '/'", "bad-value", "leave it out");
    bad_rule("to = 'http://a.test'\nreplace = { match = 'a', with = 'b' }", "bad-value", "write `/b`");
}

#[test]
fn values_that_cannot_be_sent_or_filled_in() {
    let to = |more: &str| format!("to = 'http://a.test'\n{more}");
    let set =
        |name: &str, value: &str| to(&format!("request_headers = {{ set = {{ {name} = \"{value}\" }} }}"));
    bad_rule(&set("x-a", "{hots}"), "bad-value", "the variables are {scheme}");
    bad_rule(&set("x-a", "{1}"), "conflict", "there is none");
    bad_rule(&set("x-a", "a\\nb"), "bad-value", "control characters");
    bad_rule(&set("host", "a"), "bad-name", "use `host_header`");
    for name in [
        "connection",
        "Keep-Alive",
        "te",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "trailer",
        "proxy-connection",
    ] {
        bad_rule(&set(name, "a"), "bad-name", "cannot be changed by hand");
    }
    bad_rule(&to("response_headers = { remove = 'Connection' }"), "bad-name", "cannot be changed by hand");
    bad_rule(
        &to("request_headers = { set = { x-a = '1', X-A = '2' } }"),
        "duplicate-value",
        "`x-a` is given twice",
    );
    bad_rule("path = '~/(a)'\nredirect = '/{2}'", "conflict", "has 1 group");
    bad_rule(&to("replace = { match = '/a(b)', with = '/{2}' }"), "conflict", "has 1 group");
    bad_rule("redirect = 'http'", "bad-value", "is no URL");
    bad_rule("redirect = { to = '/a', status = 200 }", "out-of-range", "301, 302, 303, 307 or 308");
    bad_rule("answer = 99", "out-of-range", "between 200 and 599");
    bad_rule("answer = { status = 204, body = 'x' }", "conflict", "has no body");
    bad_rule("answer = 200\nheader = { host = 'a' }", "bad-name", "write `host =");
    bad_rule("answer = 200\nmethod = 'get'", "bad-value", "write `\"GET\"`");
    bad_rule("answer = 200\nhost = 'none'", "bad-name", "asks for a host");
    bad_rule("files = { root = '/srv', fallback = '../a' }", "bad-value", "below the root");
    bad_rule(&to("timeouts = { response = 60 }"), "missing-unit", "a duration needs a unit");
}

#[test]
fn no_two_rules_take_the_same() {
    let two = |first: &str, second: &str| {
        format!(
            "protocol = 'http'\n[[route.rule]]\n{first}\nanswer = 200\n[[route.rule]]\n{second}\nanswer = 201"
        )
    };
    let (first, second) = ("path = ['/a', '/b']\nmethod = 'GET'", "method = 'GET'\npath = ['/b', '/a']");
    refused(&two(first, second), "duplicate-route", "first taken here");
    assert!(route(&two("path = '/a'", "path = ['/a', '/b']")).is_ok(), "the first one decides");
    assert!(route(&two("", "path = '/a'")).is_ok(), "the more specific one goes first");
    assert!(route(&two("path = '/a'", "")).is_ok());
    refused(
        "protocol = 'http'\nto = 'http://a.test'\n[[route.rule]]\nanswer = 200",
        "conflict",
        "so this is never reached",
    );
    refused(
        &two("name = 'a'\npath = '/a'", "name = 'a'\npath = '/b'"),
        "duplicate-name",
        "two rules of a route",
    );
}

#[test]
fn all_of_it_is_told_by_effective() {
    let config = route(
        "protocol = 'http'\nto = 'http://10.0.0.1'\n[[route.rule]]\nname = 'api'\npath = ['/api/*', '/v1']\n\
         header = { x-beta = '1' }\nto = 'https://10.0.0.2'\nrequest_headers = { set = { x-a = '{client}' }, add = { x-b = ['1', '2'] } }",
    )
    .unwrap();
    let of = |key: &str| {
        let found = config.effective.iter().find(|setting| setting.key == format!("route[r].{key}"));
        found.map(|setting| (setting.value.as_str(), setting.origin.is_some()))
    };
    assert_eq!(of("rule[api].path"), Some(("[\"/api/*\", \"/v1\"]", true)));
    assert_eq!(of("rule[api].header"), Some(("{ x-beta = \"1\" }", true)));
    assert_eq!(of("rule[api].to"), Some(("\"https://10.0.0.2:443\"", true)));
    assert_eq!(of("rule[api].backend_tls.alpn"), Some(("\"http/1.1\"", false)));
    assert_eq!(of("rule[api].request_headers.set"), Some(("{ x-a = \"{client}\" }", true)));
    assert_eq!(of("rule[api].request_headers.add"), Some(("{ x-b = [\"1\", \"2\"] }", true)));
    assert_eq!(of("rule[api].timeouts.response"), Some(("\"1m\"", false)));
    assert_eq!(of("to"), Some(("\"http://10.0.0.1:80\"", true)));
    assert_eq!(of("http.max_body"), Some(("\"off\"", false)));
    assert_eq!(of("trusted_proxies"), Some(("[]", false)));
}

#[test]
fn connections_to_backends_can_be_those_of_one_client() {
    let http = plain(
        "to = 'http://10.0.0.1'\nproxy_protocol = 'v2'\n\
         [[route.rule]]\nname = 'a'\npath = '/a'\ntransparent = true\nproxy_protocol = 'v1'\n\
         split = [{ name = 'x', to = 'http://10.0.0.2' }, { name = 'y', upstream = 'b' }]\n\
         [[route.rule]]\npath = '/b'\nupstream = 'b'\n[[upstream]]\nname = 'b'\nto = 'http://10.0.0.3'\n",
    );
    let said = |rule: usize| -> Vec<_> {
        let variants = &proxy(&http.rules[rule].action).variants;
        variants.iter().map(|one| (one.to.proxy_protocol, one.to.transparent.is_some())).collect()
    };
    assert_eq!(said(0), [(Some(crate::net::ProxyVersion::V1), true); 2]);
    assert_eq!(said(1), [(None, false)], "a rule has nothing of its route");
    assert_eq!(said(2), [(Some(crate::net::ProxyVersion::V2), false)]);
    for key in ["proxy_protocol = 'v2'", "transparent = true"] {
        bad_rule(&format!("answer = 200\n{key}"), "conflict", "said of requests that go to backends");
        refused(
            &format!("protocol = 'http'\n{key}\n[[route.rule]]\npath = '/a'\nanswer = 200"),
            "conflict",
            "requests that no rule takes",
        );
    }
    bad_rule(
        "to = 'http://unix:/run/a'\ntransparent = true",
        "conflict",
        "a Unix socket cannot be connected to",
    );
}

#[test]
fn authorities_may_ask_whoever_takes_http_in_clear() {
    let with = |route: &str| {
        let text = "listen = ':443'\nacme = { challenge = 'http-01' }\n\
                    [[route]]\nsni = 'a.test'\ntls = 'acme'\nto = '10.0.0.1:80'\n[[route]]\n";
        parse(&format!("{text}{route}\n"))
    };
    for good in [
        "protocol = 'http'\nredirect = 'https'",
        "protocol = 'http'\nto = 'http://10.0.0.1'",
        "protocol = 'any'\nanswer = 404",
    ] {
        assert!(with(good).is_ok(), "{good}: {}", with(good).unwrap_err());
    }
    for bad in [
        "protocol = 'http'\nto = '10.0.0.1:80'",
        "protocol = 'h2c'\nanswer = 404",
        "sni = 'b.test'\ntls = 'self-signed'\nanswer = 404",
    ] {
        let errors = with(bad).expect_err(bad);
        assert!(errors.to_string().contains("no route takes HTTP"), "{bad}: {errors}");
    }
}
