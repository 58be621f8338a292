//! How values are written that are said of HTTP: patterns over requests, names, texts with variables.

use std::path::{Component, Path};

use http::{HeaderName, Method, StatusCode};
use regex::{Regex, RegexBuilder};
use serde_json::{Value, json};
use toml::de::DeValue;

use super::decode::{At, Decode, Decoder, Problem, Text, Whole, quote, word};
use super::error::{ConfigError, ErrorKind};
use super::path::normal;
use super::schema::words;
use super::source::Place;
use super::values::checked_name;
use super::{HostHeader, PathPattern, SplitKey, Template, TemplateError, ValuePattern};

/// A table whose keys are names, in the order of the file.
#[derive(Clone, Debug)]
pub(super) struct Named<K, V>(pub(super) Vec<(At<K>, At<V>)>);

/// The name of a header field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FieldName(pub(super) HeaderName);

/// The name of a header field that may be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChangedField(pub(super) HeaderName);

/// The name of a cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CookieName(pub(super) Box<str>);

/// The name of a parameter of a query, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QueryName(pub(super) Box<str>);

/// The name of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RuleName(pub(super) String);

/// The name of a variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VariantName(pub(super) String);

/// A method of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MethodName(pub(super) Method);

/// The beginning of paths, without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathPrefix(pub(super) Box<str>);

/// The name of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileName(pub(super) Box<str>);

/// A path below a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RelativePath(pub(super) Box<str>);

/// A regular expression that may match a part.
#[derive(Clone, Debug)]
pub(super) struct Expression(pub(super) Regex);

/// The type of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContentType(pub(super) Box<str>);

/// Where clients are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RedirectTo {
    /// To the same place of `https`.
    Https,
    Url(Template),
}

/// The status of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RedirectStatus(pub(super) StatusCode);

/// The status of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AnswerStatus(pub(super) StatusCode);

/// By what clients of a split are told apart, in a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SplitWord(pub(super) SplitKey);

/// Statuses that send a client elsewhere.
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

/// Fields of one connection, or of how a message is framed: whoever passes it on makes its own.
const FRAMING: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "host",
];

/// The size of a compiled expression, in bytes.
const REGEX_SIZE: usize = 1 << 20;

/// Compiles `text`, anchored at both ends where it must match as a whole.
fn compile(text: &str, whole: bool) -> Result<Regex, Problem> {
    // Compiled by itself first: `a)(b` must not become valid between the anchors.
    let alone = RegexBuilder::new(text).size_limit(REGEX_SIZE).build();
    let regex = alone.and_then(|regex| match whole {
        true => RegexBuilder::new(&format!("^(?:{text})$")).size_limit(REGEX_SIZE).build(),
        false => Ok(regex),
    });
    regex.map_err(|error| {
        // The error draws the expression over several lines; its last one says what is wrong.
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or("").trim_start_matches("error: ");
        Problem::new(ErrorKind::BadRegex, format!("{} does not compile: {reason}", quote(text)))
    })
}

fn bad(message: String) -> Problem {
    Problem::new(ErrorKind::BadValue, message)
}

/// Refuses what cannot stand in a line of a head.
fn without_controls(text: &str) -> Result<(), Problem> {
    if text.chars().any(char::is_control) {
        return Err(bad(format!("{} has control characters, which cannot be sent", quote(text))));
    }
    Ok(())
}

impl<K: Text, V: Decode> Decode for Named<K, V> {
    fn expected() -> String {
        "a table".to_owned()
    }

    fn schema() -> Value {
        json!({ "type": "object", "additionalProperties": V::schema() })
    }

    fn decode(value: &DeValue<'_>, place: &Place, cx: &mut Decoder<'_>) -> Option<Self> {
        let Some(table) = value.as_table() else {
            return cx.wrong_type("a table", value, place);
        };
        let (mut all, mut good) = (Vec::new(), true);
        for (key, value) in table {
            let place = cx.place(key);
            let name = K::parse(key.get_ref()).map_err(|problem| cx.report(problem.at(&place))).ok();
            match (name, cx.value(value)) {
                (Some(name), Some(value)) => all.push((At { value: name, place }, value)),
                _ => good = false,
            }
        }
        all.sort_by_key(|(name, _)| name.place.start());
        good.then_some(Self(all))
    }
}

fn field_name(text: &str) -> Result<HeaderName, Problem> {
    HeaderName::try_from(text).map_err(|_| {
        Problem::new(ErrorKind::BadName, format!("{} is not the name of a header field", quote(text)))
            .hint("a name is letters, digits and `-`, as in `x-request-id`")
    })
}

impl Text for FieldName {
    const EXPECTED: &'static str = "the name of a header field";

    fn parse(text: &str) -> Result<Self, Problem> {
        let name = field_name(text)?;
        if name == http::header::HOST {
            let problem = Problem::new(ErrorKind::BadName, "the host is not a header field in HTTP/2");
            return Err(problem.hint("write `host = \"app.example.com\"`"));
        }
        Ok(Self(name))
    }
}

impl Text for ChangedField {
    const EXPECTED: &'static str = "the name of a header field";

    fn parse(text: &str) -> Result<Self, Problem> {
        let name = field_name(text)?;
        if !FRAMING.contains(&name.as_str()) {
            return Ok(Self(name));
        }
        let problem = Problem::new(ErrorKind::BadName, format!("`{name}` cannot be changed by hand"));
        Err(problem.hint(if name == http::header::HOST {
            "use `host_header`"
        } else {
            "it belongs to the connection or to how the message is framed, and is made anew on each side"
        }))
    }
}

impl Text for CookieName {
    const EXPECTED: &'static str = "the name of a cookie";

    fn parse(text: &str) -> Result<Self, Problem> {
        checked_name(text, "cookie", "-_.").map(|name| Self(name.into()))
    }
}

impl Text for QueryName {
    const EXPECTED: &'static str = "the name of a parameter";

    fn parse(text: &str) -> Result<Self, Problem> {
        without_controls(text)?;
        if text.is_empty() {
            return Err(Problem::new(ErrorKind::BadName, "a parameter has a name"));
        }
        Ok(Self(text.into()))
    }
}

impl Text for RuleName {
    const EXPECTED: &'static str = "the name of a rule";

    fn constraints() -> Value {
        json!({ "pattern": "^[A-Za-z0-9_.-]+$" })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        checked_name(text, "rule", "-_.").map(Self)
    }
}

impl Text for VariantName {
    const EXPECTED: &'static str = "the name of a variant";

    fn constraints() -> Value {
        json!({ "pattern": "^[A-Za-z0-9_.-]+$" })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        checked_name(text, "variant", "-_.").map(Self)
    }
}

impl Text for MethodName {
    const EXPECTED: &'static str = "a method such as \"GET\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        if text.bytes().any(|byte| byte.is_ascii_lowercase()) {
            let upper = text.to_ascii_uppercase();
            return Err(bad(format!("{} is no method", quote(text)))
                .hint(format!("methods are told from each other by capitals: write `\"{upper}\"`")));
        }
        let method =
            Method::from_bytes(text.as_bytes()).map_err(|_| bad(format!("{} is no method", quote(text))));
        method.map(Self)
    }
}

/// The path, if it is written in the form in which paths are compared.
fn checked_path<'t>(text: &'t str, what: &str) -> Result<&'t str, Problem> {
    if !text.starts_with('/') {
        return Err(bad(format!("{} is no {what}: it does not begin with `/`", quote(text)))
            .hint("write it as in `\"/api\"`; the host is told by `host`"));
    }
    if let Some((path, _)) = text.split_once(['?', '#']) {
        return Err(bad(format!("{} is no {what}: it has more than a path", quote(text)))
            .hint(format!("write `{}`; parameters are told by `query`", quote(path).trim_matches('`'))));
    }
    match normal(text) {
        Some(form) if form == text => Ok(text),
        Some(form) => Err(bad(format!("{} is not how paths are compared", quote(text)))
            .hint(format!("write {}", quote(&form)))),
        None => Err(bad(format!("{} has a `%` without two digits behind it", quote(text)))
            .hint("write `%25` for the character itself")),
    }
}

impl Text for PathPattern {
    const EXPECTED: &'static str = "a path such as \"/api/*\"";

    fn constraints() -> Value {
        json!({ "pattern": "^[/~]", "examples": ["/api/*", "/login", "/img/**.png", "~/v[0-9]+/.*"] })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if let Some(regex) = text.strip_prefix('~') {
            return Ok(Self::Regex(compile(regex, true)?, regex.into()));
        }
        if matches!(text, "*" | "**") {
            let problem = bad(format!("{} is no pattern of paths: it does not begin with `/`", quote(text)));
            return Err(problem.hint("write `/*` for all paths, or leave `path` out"));
        }
        let text = checked_path(text, "pattern of paths")?;
        if !text.contains('*') {
            return Ok(Self::Exact(text.into()));
        }
        if let Some(prefix) = text.strip_suffix("/*").filter(|prefix| !prefix.contains('*')) {
            return Ok(Self::Prefix(prefix.into()));
        }
        let any: Vec<_> = text
            .split("**")
            .map(|part| part.split('*').map(regex::escape).collect::<Vec<_>>().join("[^/]*"))
            .collect();
        Ok(Self::Glob(compile(&any.join(".*"), true)?, text.into()))
    }
}

impl Text for ValuePattern {
    const EXPECTED: &'static str = "a value, `~regex`, or `*` for any";

    fn parse(text: &str) -> Result<Self, Problem> {
        without_controls(text)?;
        Ok(match (text, text.strip_prefix('~')) {
            ("*", _) => Self::Present,
            (_, Some(regex)) => Self::Regex(compile(regex, true)?),
            (text, None) => Self::Exact(text.into()),
        })
    }
}

impl Text for PathPrefix {
    const EXPECTED: &'static str = "a path such as \"/api\"";

    fn constraints() -> Value {
        json!({ "pattern": "^/.*[^/]$" })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let path = checked_path(text, "path")?;
        match path.strip_suffix('/') {
            None => Ok(Self(path.into())),
            Some("") => Err(bad("`/` changes nothing".to_owned()).hint("leave it out")),
            Some(without) => Err(bad(format!("{} has a slash at its end", quote(text)))
                .hint(format!("write {}: what follows begins with one", quote(without)))),
        }
    }
}

impl Text for Expression {
    const EXPECTED: &'static str = "a regular expression";

    fn parse(text: &str) -> Result<Self, Problem> {
        compile(text, false).map(Self)
    }
}

impl Text for Template {
    const EXPECTED: &'static str = "a text";

    fn parse(text: &str) -> Result<Self, Problem> {
        Self::parse(text).map_err(|error| {
            let problem = bad(format!("{} cannot be used: {error}", quote(text)));
            match error {
                TemplateError::Unknown(_) => problem.hint(format!("the variables are {}", Self::VARIABLES)),
                TemplateError::Open => problem.hint("a brace that stands for itself is written `{{`"),
                TemplateError::Control => problem,
            }
        })
    }
}

impl Text for HostHeader {
    const EXPECTED: &'static str = "\"keep\", \"backend\" or a host";

    fn parse(text: &str) -> Result<Self, Problem> {
        match text {
            "keep" => Ok(Self::Keep),
            "backend" => Ok(Self::Backend),
            text if text.is_empty() || text.contains([' ', '/']) => {
                Err(bad(format!("{} is no host", quote(text)))
                    .hint("write `\"keep\"`, `\"backend\"`, or a host as in `\"app.internal\"`"))
            }
            text => <Template as Text>::parse(text).map(Self::Set),
        }
    }
}

impl Text for RedirectTo {
    const EXPECTED: &'static str = "\"https\" or a URL";

    fn constraints() -> Value {
        json!({ "examples": ["https", "https://new.example.com{uri}"] })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if text == "https" {
            return Ok(Self::Https);
        }
        let good = ["http://", "https://", "/", "{"].iter().any(|start| text.starts_with(start));
        if !good || text.contains(' ') {
            return Err(bad(format!("{} is no URL", quote(text))).hint(
                "write `\"https\"` for the same place there, or a URL as in `\"https://new.example.com{uri}\"`",
            ));
        }
        <Template as Text>::parse(text).map(Self::Url)
    }
}

impl Text for ContentType {
    const EXPECTED: &'static str = "a type such as \"text/html\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let good = text.contains('/') && text.chars().all(|c| c == ' ' || c.is_ascii_graphic());
        if good {
            return Ok(Self(text.into()));
        }
        Err(bad(format!("{} is no type of a body", quote(text)))
            .hint("write it as in `\"text/html; charset=utf-8\"`"))
    }
}

impl Text for FileName {
    const EXPECTED: &'static str = "the name of a file";

    fn parse(text: &str) -> Result<Self, Problem> {
        if text.is_empty() || matches!(text, "." | "..") || text.contains(['/', '\0']) {
            return Err(
                bad(format!("{} is not the name of a file", quote(text))).hint("write it without a folder")
            );
        }
        Ok(Self(text.into()))
    }
}

impl Text for RelativePath {
    const EXPECTED: &'static str = "a path below the root";

    fn parse(text: &str) -> Result<Self, Problem> {
        let below = Path::new(text).components().all(|part| matches!(part, Component::Normal(_)));
        if text.is_empty() || !below || text.contains('\0') {
            return Err(bad(format!("{} is not a path below the root", quote(text)))
                .hint("write it as in `\"index.html\"`, without a slash before it"));
        }
        Ok(Self(text.into()))
    }
}

impl Text for SplitWord {
    const EXPECTED: &'static str = "\"source\" or a table";

    fn constraints() -> Value {
        words(["source"].into_iter())
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        word(text, &[("source", ())])
            .map(|()| Self(SplitKey::Source))
            .map_err(|problem| problem.hint("or `{ cookie = \"name\" }`, or `{ header = \"x-user\" }`"))
    }
}

impl Decode for RedirectStatus {
    fn expected() -> String {
        "a status".to_owned()
    }

    fn schema() -> Value {
        json!({ "enum": REDIRECTS })
    }

    fn decode(value: &DeValue<'_>, place: &Place, cx: &mut Decoder<'_>) -> Option<Self> {
        let Whole(number) = Whole::<0, { u32::MAX }>::decode(value, place, cx)?;
        let known = REDIRECTS.iter().find(|status| u32::from(**status) == number);
        if known.is_none() {
            let message = format!("`{number}` is no status that sends clients elsewhere");
            let error = ConfigError::new(ErrorKind::OutOfRange, message).at(place);
            cx.report(error.hint("write 301, 302, 303, 307 or 308; the last two keep the method"));
        }
        StatusCode::from_u16(*known?).ok().map(Self)
    }
}

impl Decode for AnswerStatus {
    fn expected() -> String {
        "a status".to_owned()
    }

    fn schema() -> Value {
        Whole::<200, 599>::schema()
    }

    fn decode(value: &DeValue<'_>, place: &Place, cx: &mut Decoder<'_>) -> Option<Self> {
        let Whole(number) = Whole::<200, 599>::decode(value, place, cx)?;
        u16::try_from(number).ok().and_then(|number| StatusCode::from_u16(number).ok()).map(Self)
    }
}
