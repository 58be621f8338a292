//! Templates filled in with what a request says.

use std::fmt::Write;
use std::net::IpAddr;

use http::Method;
use http::header::{COOKIE, HeaderMap, HeaderName, HeaderValue};
use regex::Captures;

use super::target::Scheme;
use crate::config::{HeaderChanges, Part, Template, Variable};

/// What variables stand for.
#[derive(Clone, Copy, Debug)]
pub struct Vars<'a> {
    /// `{scheme}`.
    pub scheme: Scheme,
    /// `{host}`.
    pub host: &'a str,
    /// `{authority}`.
    pub authority: &'a str,
    /// `{method}`.
    pub method: &'a Method,
    /// `{path}`, in its one spelling.
    pub path: &'a str,
    /// `{query}`, without its question mark; `None` without one.
    pub query: Option<&'a str>,
    /// `{client}`.
    pub client: IpAddr,
    /// `{route}`.
    pub route: &'a str,
    /// `{variant}`.
    pub variant: &'a str,
    /// `{id}`.
    pub id: &'a str,
    /// The fields of the request as it came, for `{header.NAME}` and `{cookie.NAME}`.
    pub headers: &'a HeaderMap,
    /// `{1}`; without them, and for groups that matched nothing, that is empty.
    pub groups: Option<&'a Captures<'a>>,
}

/// What becomes of a head, with everything filled in: that is done before anything changes, since variables look at the head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
}

/// `template` with its variables filled in; `None` when one has control characters, which would end the line that it is put
/// in, or is not text.
pub fn expand(template: &Template, vars: &Vars<'_>) -> Option<String> {
    let mut text = String::new();
    for part in template.parts() {
        match part {
            Part::Text(plain) => text.push_str(plain),
            Part::Variable(variable) => fill_in(&mut text, variable, vars)?,
        }
    }
    (!text.contains(char::is_control)).then_some(text)
}

fn fill_in(text: &mut String, variable: &Variable, vars: &Vars<'_>) -> Option<()> {
    let value = match variable {
        Variable::Scheme => vars.scheme.as_str(),
        Variable::Host => vars.host,
        Variable::Authority => vars.authority,
        Variable::Method => vars.method.as_str(),
        Variable::Path => vars.path,
        Variable::Query | Variable::Uri => {
            if matches!(variable, Variable::Uri) {
                text.push_str(vars.path);
            }
            match vars.query {
                Some(query) => {
                    text.push('?');
                    query
                }
                None => "",
            }
        }
        Variable::Client => return write!(text, "{}", vars.client.to_canonical()).ok(),
        Variable::Route => vars.route,
        Variable::Variant => vars.variant,
        Variable::Id => vars.id,
        Variable::Header(name) => match vars.headers.get(name) {
            Some(value) => std::str::from_utf8(value.as_bytes()).ok()?,
            None => "",
        },
        Variable::Cookie(name) => cookie(vars.headers, name)?,
        Variable::Group(number) => {
            let group = vars.groups.and_then(|groups| groups.get(*number));
            group.map_or("", |group| group.as_str())
        }
    };
    text.push_str(value);
    Some(())
}

/// The first cookie of this name (RFC 6265 §4.2.1), empty without one; `None` when the cookies are not text.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    for value in headers.get_all(COOKIE) {
        let text = std::str::from_utf8(value.as_bytes()).ok()?;
        let mut cookies = text.split(';').filter_map(|pair| pair.split_once('='));
        if let Some((_, value)) = cookies.find(|(key, _)| key.trim_matches([' ', '\t']) == name) {
            return Some(value.trim_matches([' ', '\t']));
        }
    }
    Some("")
}

impl Changes {
    /// Fills in `changes`; `None` when a value cannot be sent, see [`expand`].
    pub fn new(changes: &HeaderChanges, vars: &Vars<'_>) -> Option<Self> {
        let fill_in = |fields: &[(HeaderName, Template)]| {
            let field = |(name, template): &(HeaderName, Template)| {
                let value = HeaderValue::try_from(expand(template, vars)?).ok()?;
                Some((name.clone(), value))
            };
            fields.iter().map(field).collect::<Option<Vec<_>>>()
        };
        let (set, add) = (fill_in(&changes.set)?, fill_in(&changes.add)?);
        Some(Self { remove: changes.remove.clone(), set, add })
    }

    /// Changes `headers`: first what is removed, then what is set, then what is added.
    pub fn apply(self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in self.set {
            headers.insert(name, value);
        }
        for (name, value) in self.add {
            headers.append(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    fn map(fields: &[(&str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    fn vars(headers: &HeaderMap) -> Vars<'_> {
        Vars {
            scheme: Scheme::Https,
            host: "a.test",
            authority: "a.test:8443",
            method: &Method::GET,
            path: "/x/y",
            query: Some("q=1"),
            client: "::ffff:192.0.2.1".parse().unwrap(),
            route: "web",
            variant: "blue",
            id: "01ab",
            headers,
            groups: None,
        }
    }

    fn filled(text: &str, vars: &Vars<'_>) -> Option<String> {
        expand(&Template::parse(text).unwrap(), vars)
    }

    #[test]
    fn every_variable_is_filled_in() {
        let headers = map(&[
            ("user-agent", b"curl"),
            ("user-agent", b"other"),
            ("cookie", b"a=1; sid=x=y ; b=2"),
            ("cookie", b"late=3; sid=no"),
        ]);
        let vars = vars(&headers);
        for (text, expected) in [
            ("https://{host}{uri}", "https://a.test/x/y?q=1"),
            ("{scheme}|{authority}|{method}", "https|a.test:8443|GET"),
            ("{path}|{query}|{client}", "/x/y|?q=1|192.0.2.1"),
            ("{route}|{variant}|{id}", "web|blue|01ab"),
            ("{header.user-agent}|{header.x}", "curl|"),
            ("{cookie.sid}|{cookie.late}|{cookie.none}|{cookie.b}", "x=y|3||2"),
            ("a{{b}{1}", "a{b}"),
            ("", ""),
        ] {
            assert_eq!(filled(text, &vars).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(filled("{uri}{query}", &Vars { query: None, ..vars }).as_deref(), Some("/x/y"));
        let groups = Regex::new("/(x)/(z)?(y)").unwrap().captures("/x/y");
        let with = Vars { groups: groups.as_ref(), ..vars };
        assert_eq!(filled("{3}{2}{1}{9}", &with).as_deref(), Some("yx"));
    }

    #[test]
    fn nothing_that_ends_a_line_is_put_in_one() {
        let headers = map(&[
            ("x-tab", b"a\tb"),
            ("x-latin", b"\xe4"),
            ("x-utf8", "ä".as_bytes()),
            ("cookie", b"a=\xff"),
        ]);
        let vars = vars(&headers);
        for path in ["/\r\nX: y", "/\n", "/\r", "/\0", "/\u{7f}", "/\u{85}"] {
            assert_eq!(filled("{path}", &Vars { path, ..vars }), None, "{path:?}");
            assert_eq!(filled("{uri}", &Vars { query: Some(path), ..vars }), None, "{path:?}");
            assert_eq!(filled("{host}", &Vars { host: path, ..vars }), None, "{path:?}");
            assert!(filled("{method}", &Vars { path, ..vars }).is_some(), "{path:?}");
        }
        for text in ["{header.x-tab}", "{header.x-latin}", "{cookie.a}"] {
            assert_eq!(filled(text, &vars), None, "{text}");
        }
        assert_eq!(filled("{header.x-utf8}", &vars).as_deref(), Some("ä"));
    }

    #[test]
    fn heads_change_in_order() {
        let template = |text| Template::parse(text).unwrap();
        let name = HeaderName::from_static;
        let changes = HeaderChanges {
            remove: vec![name("x-gone"), name("x-add")],
            set: vec![(name("x-set"), template("{header.x-gone}"))],
            add: vec![
                (name("x-add"), template("1")),
                (name("x-add"), template("{host}")),
                (name("x-old"), template("2")),
            ],
        };
        let mut headers =
            map(&[("x-gone", b"was"), ("x-add", b"0"), ("x-set", b"a"), ("x-set", b"b"), ("x-old", b"1")]);
        let filled = Changes::new(&changes, &vars(&headers)).unwrap();
        filled.apply(&mut headers);
        let all =
            |name| headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("x-set"), ["was"]);
        assert_eq!(all("x-add"), ["1", "a.test"]);
        assert_eq!(all("x-old"), ["1", "2"]);
        assert!(all("x-gone").is_empty());

        let headers = map(&[("x-gone", b"a\tb")]);
        assert_eq!(Changes::new(&changes, &vars(&headers)), None);
    }
}
