use http::Method;
use proptest::prelude::*;
use regex::Regex;

use super::*;
use crate::config::Template;

fn rule(strip: &str, replace: Option<(&str, &str)>, add: &str) -> PathRewrite {
    let some = |text: &str| (!text.is_empty()).then(|| text.into());
    let replace = replace.map(|(regex, to)| (Regex::new(regex).unwrap(), Template::parse(to).unwrap()));
    PathRewrite { strip: some(strip), replace, add: some(add) }
}

fn all_of(rule: &PathRewrite, path: &str) -> Result<Rewritten, RewriteError> {
    let headers: HeaderMap = [
        ("x-up".parse().unwrap(), HeaderValue::from_static("/../../x")),
        ("x-tab".parse().unwrap(), HeaderValue::from_static("a\tb")),
    ]
    .into_iter()
    .collect();
    let vars = Vars {
        scheme: Scheme::Https,
        host: "a.test",
        authority: "a.test",
        method: &Method::GET,
        path,
        query: Some("q"),
        client: "192.0.2.1".parse().unwrap(),
        route: "web",
        variant: "",
        id: "",
        headers: &headers,
        groups: None,
    };
    rewrite(rule, path, &vars)
}

fn rewritten(rule: &PathRewrite, path: &str) -> Result<String, RewriteError> {
    all_of(rule, path).map(|rewritten| rewritten.path.into())
}

#[test]
fn paths_become_others() {
    let users = Some(("^/users/([^/]+)/(.*)$", "/u/{2}/{1}"));
    for (strip, replace, add, path, expected) in [
        ("", None, "", "/x", "/x"),
        ("/api", None, "", "/api/x", "/x"),
        ("/api", None, "", "/api/", "/"),
        ("/api", None, "", "/api", "/"),
        ("/api/", None, "", "/api/x", "/x"),
        ("/api", None, "", "/apix/y", "/apix/y"),
        ("/api", None, "", "/x/api", "/x/api"),
        ("/a/b", None, "", "/a/b/c", "/c"),
        ("/a/b", None, "", "/a/bc", "/a/bc"),
        ("/api", None, "", "/api;v=1/x;y", "/x;y"),
        ("/api", None, "", "/api%3Bv/x", "/x"),
        ("/a/b", None, "", "/;x/a/;y/b/c", "/c"),
        ("/api", None, "", "/;x", "/;x"),
        ("", None, "/base", "/x", "/base/x"),
        ("", None, "/base/", "/", "/base/"),
        ("/api", None, "/v2", "/api/x/", "/v2/x/"),
        ("", users, "", "/users/7/edit", "/u/edit/7"),
        ("", users, "", "/other", "/other"),
        ("/app", users, "/base", "/app/users/7/a/b", "/base/u/a/b/7"),
        ("", Some(("/old", "/new{path}")), "", "/x/old", "/new/x/old"),
        ("", Some(("^/(.*)$", "/{1}/../y")), "", "/a/b", "/a/y"),
        ("", Some(("^/(.*)$", "/a b/{1}")), "", "/%C3%A4", "/a%20b/%C3%A4"),
        ("/api", None, "/v2", "*", "*"),
    ] {
        assert_eq!(
            rewritten(&rule(strip, replace, add), path).as_deref(),
            Ok(expected),
            "{strip} {add} {path}"
        );
    }
}

#[test]
fn what_comes_out_is_a_path() {
    for (to, add, error) in [
        ("{header.x-up}", "", RewriteError::Path(PathError::Climb)),
        ("/x{header.x-up}", "", RewriteError::Path(PathError::Climb)),
        ("x", "", RewriteError::Path(PathError::Form)),
        ("", "", RewriteError::Path(PathError::Form)),
        ("@evil.test/", "/base", RewriteError::Path(PathError::Form)),
        ("/x{query}", "", RewriteError::Path(PathError::Form)),
        ("/x%2f", "", RewriteError::Path(PathError::Slash)),
        ("/x#y", "", RewriteError::Path(PathError::Fragment)),
        ("/{header.x-tab}", "", RewriteError::Value),
    ] {
        let result = rewritten(&rule("", Some(("^", to)), add), "/y");
        assert_eq!(result, Err(error), "{to}");
        assert!(
            RewriteError::REASONS.contains(&error.reason()) || PathError::REASONS.contains(&error.reason())
        );
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
    }
}

fn back<'a>(rewrite: &'a PathRewrite, stripped: bool) -> Back<'a> {
    Back {
        rewrite,
        done: Done { stripped, replaced: rewrite.replace.is_some() },
        client: Site { scheme: Scheme::Https, authority: "a.test" },
        backend: Site { scheme: Scheme::Http, authority: "10.0.0.1:8080" },
        asked: "app.internal:8080",
    }
}

#[test]
fn urls_that_mean_the_backend_are_mapped() {
    let rewrite = rule("/api", None, "/base");
    let back = back(&rewrite, true);
    for (url, expected) in [
        ("http://10.0.0.1:8080/base/x?q#f", Some("https://a.test/api/x?q#f")),
        ("HTTP://APP.internal:8080/base", Some("https://a.test/api")),
        ("https://10.0.0.1:8080/base/x", Some("https://a.test/api/x")),
        ("//10.0.0.1:8080/base/x", Some("//a.test/api/x")),
        ("http://10.0.0.1:8080/other", Some("https://a.test/other")),
        ("http://10.0.0.1:8080", Some("https://a.test")),
        ("http://10.0.0.1:8080?q", Some("https://a.test?q")),
        ("/base/x", Some("/api/x")),
        ("/base", Some("/api")),
        ("/base/", Some("/api/")),
        ("/base?q=/base", Some("/api?q=/base")),
        ("/base#f", Some("/api#f")),
        ("/basement", None),
        ("/other", None),
        ("http://a.test/base/x", Some("http://a.test/api/x")),
        ("https://a.test/other", None),
        ("http://10.0.0.1/base/x", None),
        ("http://10.0.0.1:8080@evil.test/base", None),
        ("http://evil.test/base/x", None),
        ("//evil.test/base", None),
        ("x/y", None),
        ("?q", None),
        ("", None),
        ("mailto:x@10.0.0.1", None),
        ("ftp://10.0.0.1:8080/base", None),
        ("/x?to=http://10.0.0.1:8080/base", None),
        ("x?to=http://10.0.0.1:8080/base", None),
    ] {
        assert_eq!(back.url(url).as_deref(), expected, "{url}");
    }
}

#[test]
fn no_path_becomes_another_host() {
    let rewrite = rule("", None, "/base");
    let back = back(&rewrite, false);
    for url in [
        "/base//evil.test",
        "/base/\\evil.test",
        "/base///evil.test",
        "/base/\t/evil.test",
        "/base//\\/evil.test",
    ] {
        assert_eq!(back.url(url).as_deref(), Some("/evil.test"), "{url}");
    }
    assert_eq!(back.url("http://10.0.0.1:8080/base//evil.test").as_deref(), Some("https://a.test/evil.test"));
    assert_eq!(back.url("/base").as_deref(), Some("/"));
}

#[test]
fn what_was_not_done_is_not_undone() {
    let strip = rule("/api", None, "");
    assert_eq!(back(&strip, true).url("/x").as_deref(), Some("/api/x"));
    assert_eq!(back(&strip, true).url("/").as_deref(), Some("/api/"));
    assert_eq!(back(&strip, false).url("/x"), None);
    let replace = rule("/api", Some(("^", "/x")), "/base");
    assert_eq!(back(&replace, true).url("/base/x"), None);
    assert_eq!(
        back(&replace, true).url("http://10.0.0.1:8080/base/x").as_deref(),
        Some("https://a.test/base/x")
    );
    let none = rule("", None, "");
    assert_eq!(back(&none, false).url("http://app.internal:8080/x").as_deref(), Some("https://a.test/x"));
    // Where the host is passed on, it is the client's own.
    let kept = Back { asked: "a.test", ..back(&none, false) };
    assert_eq!(kept.url("http://a.test/x"), None);
}

fn applied(back: &Back<'_>, name: &str, values: &[&str]) -> Vec<String> {
    let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(name.clone(), HeaderValue::from_str(value).unwrap());
    }
    back.apply(&mut headers);
    headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
}

#[test]
fn heads_are_mapped_back() {
    let rewrite = rule("/api", None, "/base");
    let back = back(&rewrite, true);
    assert_eq!(applied(&back, "location", &["http://10.0.0.1:8080/base/x"]), ["https://a.test/api/x"]);
    assert_eq!(applied(&back, "content-location", &["/base/x"]), ["/api/x"]);
    assert_eq!(applied(&back, "x-location", &["/base/x"]), ["/base/x"]);
    for (refresh, expected) in [
        ("5; url=/base/x", "5; url=/api/x"),
        ("0;URL='http://10.0.0.1:8080/base/'", "0; url='https://a.test/api/'"),
        ("0, url = \"/base/x\" ", "0; url=\"/api/x\""),
        ("5", "5"),
        ("5; url=/other", "5; url=/other"),
        ("5; uri=/base/x", "5; uri=/base/x"),
        ("5; url=", "5; url="),
        (";", ";"),
    ] {
        assert_eq!(applied(&back, "refresh", &[refresh]), [expected], "{refresh}");
    }
}

#[test]
fn cookies_are_mapped_back() {
    let rewrite = rule("/api", None, "");
    let back = back(&rewrite, true);
    let cookies = [
        ("a=1", "a=1"),
        ("a=1; Path=/; HttpOnly", "a=1; Path=/api; HttpOnly"),
        ("a=1;path=/x/;Secure", "a=1; Path=/api/x/;Secure"),
        ("a=1; Domain=app.internal; Path=/x", "a=1; Path=/api/x"),
        ("a=1; domain=.APP.internal; Secure", "a=1; Secure"),
        ("a=1; Domain=10.0.0.1", "a=1"),
        ("a=1; Domain=a.test", "a=1; Domain=a.test"),
        ("a=1; Domain=internal", "a=1; Domain=internal"),
        ("a=1; Domain=", "a=1; Domain="),
        ("__Host-a=1; Path=/; Secure", "__Host-a=1; Path=/; Secure"),
        ("a=path=/x; Path", "a=path=/x; Path"),
        ("Domain=app.internal; b", "Domain=app.internal; b"),
    ];
    let (sent, expected): (Vec<_>, Vec<_>) = cookies.into_iter().unzip();
    assert_eq!(applied(&back, "set-cookie", &sent), expected);
    let add = rule("", None, "/base");
    let back = self::back(&add, false);
    assert_eq!(
        applied(&back, "set-cookie", &["a=1; Path=/base", "b=1; Path=/"]),
        ["a=1; Path=/", "b=1; Path=/"]
    );
}

#[test]
fn what_backends_are_made_of_is_hidden() {
    let names = [
        "server",
        "x-powered-by",
        "x-aspnet-version",
        "x-aspnetmvc-version",
        "x-runtime",
        "x-generator",
        "via",
    ];
    let mut headers: HeaderMap =
        names.iter().map(|name| (HeaderName::from_static(name), HeaderValue::from_static("x"))).collect();
    headers.insert("x-mine", HeaderValue::from_static("10.0.0.1"));
    hide(&mut headers);
    assert_eq!(headers.len(), 1);
}

proptest! {
    /// What is taken off and put before comes back the same.
    #[test]
    fn there_and_back(path in "/([b-z.;]{1,3}/){0,3}[a-z]{0,2}") {
        let rewrite = rule("/api", None, "/base");
        let Ok(path) = path::normalise(&format!("/api{path}")) else { return Ok(()) };
        let there = all_of(&rewrite, &path).unwrap();
        let back = Back { done: there.done, ..back(&rewrite, true) };
        prop_assert_eq!(back.url(&there.path).unwrap(), path);
    }

    #[test]
    fn nothing_panics(text in "\\PC*", url in "(5; url=)?(http:)?//?(10.0.0.1:8080)?/?[/\\\\a-z;=?#'\"]*") {
        let rewrite = rule("/api", None, "/base");
        let back = back(&rewrite, true);
        for text in [text, url] {
            let _ = (back.url(&text), back.refresh(&text), back.cookie(&text));
        }
    }
}
