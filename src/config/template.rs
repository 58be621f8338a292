//! Text with variables, as in `https://{host}{uri}`.

use std::fmt;

use http::HeaderName;

/// Text with variables. It has no control characters of its own; whoever fills it in sees to it that none get in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Box<[Part]>);

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// As it is.
    Text(Box<str>),
    /// What stands for something of the request.
    Variable(Variable),
}

/// Something of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Variable {
    /// `{scheme}`: `http` or `https`.
    Scheme,
    /// `{host}`: the host that is asked for, without a port.
    Host,
    /// `{authority}`: the same with the port that was written.
    Authority,
    /// `{method}`.
    Method,
    /// `{path}`: the path as it was asked for, percent-encoded.
    Path,
    /// `{query}`: the query with its question mark; empty without one.
    Query,
    /// `{uri}`: path and query.
    Uri,
    /// `{client}`: the client's address.
    Client,
    /// `{route}`: the route's name.
    Route,
    /// `{variant}`: the variant of a split.
    Variant,
    /// `{id}`: what the request is called in the log.
    Id,
    /// `{header.NAME}`: the first field of this name; empty without one.
    Header(HeaderName),
    /// `{cookie.NAME}`: the first cookie of this name; empty without one.
    Cookie(Box<str>),
    /// `{1}`: what a group of the regular expression matched, of the `path` of the rule or of `replace`.
    Group(usize),
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Nothing is called so.
    #[error("`{{{0}}}` is no variable")]
    Unknown(Box<str>),
    /// A brace without its other half.
    #[error("a brace is not closed")]
    Open,
    /// No header field has such a name, no line of a head such a character.
    #[error("control characters cannot be sent")]
    Control,
}

impl Template {
    /// The names of variables, as they are written, for messages.
    pub const VARIABLES: &'static str = "{scheme}, {host}, {authority}, {method}, {path}, {query}, {uri}, {client}, {route}, {variant}, {id}, \
         {header.NAME}, {cookie.NAME}, {1} to {9}";

    /// Reads a text; `{{` stands for a brace.
    ///
    /// # Errors
    /// When a brace is open, a variable unknown, or there are control characters.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.chars().any(char::is_control) {
            return Err(TemplateError::Control);
        }
        let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some((before, after)) = rest.split_once('{') {
            plain.push_str(before);
            if let Some(after) = after.strip_prefix('{') {
                plain.push('{');
                rest = after;
                continue;
            }
            let (name, after) = after.split_once('}').ok_or(TemplateError::Open)?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain).into()));
            }
            parts.push(Part::Variable(Variable::parse(name)?));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain.into()));
        }
        Ok(Self(parts.into()))
    }

    /// Its parts.
    pub fn parts(&self) -> &[Part] {
        &self.0
    }
}

impl Variable {
    fn parse(name: &str) -> Result<Self, TemplateError> {
        let unknown = || TemplateError::Unknown(name.into());
        Ok(match name {
            "scheme" => Self::Scheme,
            "host" => Self::Host,
            "authority" => Self::Authority,
            "method" => Self::Method,
            "path" => Self::Path,
            "query" => Self::Query,
            "uri" => Self::Uri,
            "client" => Self::Client,
            "route" => Self::Route,
            "variant" => Self::Variant,
            "id" => Self::Id,
            _ => match (name.split_once('.'), name.as_bytes()) {
                (Some(("header", name)), _) => {
                    Self::Header(HeaderName::try_from(name).map_err(|_| unknown())?)
                }
                (Some(("cookie", name)), _) if !name.is_empty() => Self::Cookie(name.into()),
                (None, [digit @ b'1'..=b'9']) => Self::Group(usize::from(digit - b'0')),
                _ => return Err(unknown()),
            },
        })
    }
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        match self {
            Self::Scheme => f.write_str("scheme")?,
            Self::Host => f.write_str("host")?,
            Self::Authority => f.write_str("authority")?,
            Self::Method => f.write_str("method")?,
            Self::Path => f.write_str("path")?,
            Self::Query => f.write_str("query")?,
            Self::Uri => f.write_str("uri")?,
            Self::Client => f.write_str("client")?,
            Self::Route => f.write_str("route")?,
            Self::Variant => f.write_str("variant")?,
            Self::Id => f.write_str("id")?,
            Self::Header(name) => write!(f, "header.{name}")?,
            Self::Cookie(name) => write!(f, "cookie.{name}")?,
            Self::Group(number) => write!(f, "{number}")?,
        }
        f.write_str("}")
    }
}

/// As it is written.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(&text.replace('{', "{{")),
            Part::Variable(variable) => variable.fmt(f),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["https://{host}{uri}", "a {{b} c", "{header.user-agent}|{cookie.sid}|{1}", ""] {
            assert_eq!(Template::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_filled_in_is_refused() {
        assert_eq!(Template::parse("{hots}"), Err(TemplateError::Unknown("hots".into())));
        assert_eq!(Template::parse("{host"), Err(TemplateError::Open));
        assert_eq!(Template::parse("a\r\nb"), Err(TemplateError::Control));
        assert_eq!(Template::parse("{header.a b}"), Err(TemplateError::Unknown("header.a b".into())));
    }
}
