//! As much of XML as XMPP has (RFC 6120 §11.1): elements, text and five entities. Comments, processing instructions, document
//! types, sections of characters, and other references are errors.

use super::{PreludeError, ReplayError};

/// How many attributes a tag may have, and how many elements may be open at a time.
const MAX_ATTRIBUTES: usize = 16;
const MAX_DEPTH: usize = 16;
const ENTITIES: [(&str, char); 5] = [("amp", '&'), ("lt", '<'), ("gt", '>'), ("quot", '"'), ("apos", '\'')];

/// Bytes that are not that much of XML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotXml;

impl From<NotXml> for PreludeError {
    fn from(NotXml: NotXml) -> Self {
        Self::Syntax
    }
}

impl From<NotXml> for ReplayError {
    fn from(NotXml: NotXml) -> Self {
        Self::Syntax
    }
}

/// What is between `<` and `>`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tag<'a> {
    pub(super) kind: Kind,
    /// The name with its prefix.
    pub(super) name: &'a str,
    attributes: Vec<(&'a str, String)>,
}

/// What a tag does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `<?xml ...?>`.
    Declaration,
    /// Begins an element.
    Start,
    /// Ends one.
    End,
    /// Both.
    Empty,
}

impl Tag<'_> {
    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }
}

/// The tag that `bytes` begin with, behind white space, and how many bytes both take.
pub(super) fn tag(bytes: &[u8]) -> Result<Option<(Tag<'_>, usize)>, NotXml> {
    let rest = bytes.trim_ascii_start();
    let Some(len) = length(rest)? else { return Ok(None) };
    let text = rest.get(..len).and_then(|tag| std::str::from_utf8(tag).ok()).ok_or(NotXml)?;
    let tag = parse(text).ok_or(NotXml)?;
    Ok(Some((tag, bytes.len() - rest.len() + len)))
}

/// How long the tag is that `bytes` begin with.
fn length(bytes: &[u8]) -> Result<Option<usize>, NotXml> {
    match bytes {
        [] | [b'<'] => return Ok(None),
        [b'<', second, ..] if second.is_ascii_alphabetic() || matches!(second, b'_' | b'/' | b'?') => {}
        _ => return Err(NotXml),
    }
    let mut quote = None;
    for (index, byte) in bytes.iter().enumerate().skip(1) {
        match (quote, byte) {
            (None, b'\t' | b'\n' | b'\r') => {}
            // White space in values would have to be normalised (XML 1.0 §3.3.3); nobody sends it.
            (_, b'<' | 0..0x20) => return Err(NotXml),
            (Some(open), byte) if open == *byte => quote = None,
            (None, b'\'' | b'"') => quote = Some(*byte),
            (None, b'>') => return Ok(Some(index + 1)),
            (Some(_) | None, _) => {}
        }
    }
    Ok(None)
}

fn parse(tag: &str) -> Option<Tag<'_>> {
    let inner = tag.strip_prefix('<')?.strip_suffix('>')?;
    let (kind, inner) = if let Some(inner) = inner.strip_prefix('?') {
        (Kind::Declaration, inner.strip_suffix('?')?)
    } else if let Some(inner) = inner.strip_prefix('/') {
        (Kind::End, inner)
    } else if let Some(inner) = inner.strip_suffix('/') {
        (Kind::Empty, inner)
    } else {
        (Kind::Start, inner)
    };
    let (name, mut rest) = inner.split_at(inner.find(is_space).unwrap_or(inner.len()));
    let mut attributes: Vec<(&str, String)> = Vec::new();
    loop {
        let next = rest.trim_start_matches(is_space);
        if next.is_empty() {
            break;
        }
        // White space is before each (XML 1.0 §3.1, production 40).
        if next.len() == rest.len() || attributes.len() == MAX_ATTRIBUTES {
            return None;
        }
        let (name, value) = next.split_once('=')?;
        let name = name.trim_end_matches(is_space);
        let value = value.trim_start_matches(is_space);
        let quote = value.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (value, behind) = value.strip_prefix(quote)?.split_once(quote)?;
        if !is_name(name) || attributes.iter().any(|(known, _)| *known == name) {
            return None;
        }
        attributes.push((name, unescape(value)?));
        rest = behind;
    }
    let fits = match kind {
        Kind::Declaration => name == "xml",
        Kind::End => attributes.is_empty(),
        Kind::Start | Kind::Empty => true,
    };
    (fits && is_name(name)).then_some(Tag { kind, name, attributes })
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// Names of XMPP are ASCII.
fn is_name(name: &str) -> bool {
    let mut letters = name.chars();
    letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && letters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':'))
}

fn unescape(value: &str) -> Option<String> {
    let mut parts = value.split('&');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let (entity, rest) = part.split_once(';')?;
        plain.push(ENTITIES.iter().find(|(name, _)| *name == entity)?.1);
        plain.push_str(rest);
    }
    Some(plain)
}

/// The value as it stands between quotes of either kind.
pub(super) fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        match ENTITIES.iter().find(|(_, entity)| *entity == c) {
            Some((name, _)) => {
                escaped.push('&');
                escaped.push_str(name);
                escaped.push(';');
            }
            None => escaped.push(c),
        }
    }
    escaped
}

/// An element from its beginning to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Element<'a> {
    pub(super) tag: Tag<'a>,
    /// The elements in it that are in no other; what is in those is passed over, as text is.
    pub(super) children: Vec<Tag<'a>>,
    /// How many bytes it takes, with white space before it.
    pub(super) len: usize,
}

/// The first element of `bytes`.
pub(super) fn element(bytes: &[u8]) -> Result<Option<Element<'_>>, NotXml> {
    let Some((first, mut len)) = tag(bytes)? else { return Ok(None) };
    let mut open = match first.kind {
        Kind::Start => vec![first.name],
        Kind::Empty => Vec::new(),
        Kind::End | Kind::Declaration => return Err(NotXml),
    };
    let mut children = Vec::new();
    // Bounded by the bytes there are, which the caller bounds.
    while let Some(name) = open.last().copied() {
        let rest = bytes.get(len..).unwrap_or_default();
        let Some(text) = rest.iter().position(|byte| *byte == b'<') else { return Ok(None) };
        let Some((next, taken)) = tag(rest.get(text..).unwrap_or_default())? else { return Ok(None) };
        len += text + taken;
        match next.kind {
            Kind::Declaration => return Err(NotXml),
            Kind::End if next.name == name => drop(open.pop()),
            Kind::End => return Err(NotXml),
            Kind::Start | Kind::Empty => {
                let (depth, starts, name) = (open.len(), next.kind == Kind::Start, next.name);
                if depth == MAX_DEPTH {
                    return Err(NotXml);
                }
                if depth == 1 {
                    children.push(next);
                }
                if starts {
                    open.push(name);
                }
            }
        }
    }
    Ok(Some(Element { tag: first, children, len }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_have_attributes_in_either_quote() {
        let text = b" \r\n<a:b c = \"d'>e\"\n\tf='&lt;&amp;&quot;&apos;&gt;/' />x";
        for len in 0..text.len() - 1 {
            assert_eq!(tag(&text[..len]), Ok(None), "{len}");
        }
        let (tag, len) = tag(text).unwrap().unwrap();
        assert_eq!((tag.kind, tag.name, len), (Kind::Empty, "a:b", text.len() - 1));
        assert_eq!(tag.attribute("c"), Some("d'>e"));
        assert_eq!(tag.attribute("f"), Some("<&\"'>/"));
        assert_eq!(tag.attribute("g"), None);
        assert_eq!(unescape(&escape("<&\"'>/ä")), Some("<&\"'>/ä".to_owned()));
    }

    #[test]
    fn what_xmpp_forbids_is_an_error() {
        for bad in [
            &b"<!-- x -->"[..],
            b"<!DOCTYPE x>",
            b"<![CDATA[x]]>",
            b"<?php x='1'?>",
            b"<?xml version='1.0'>",
            b"<a b='&#65;'>",
            b"<a b='&nbsp;'>",
            b"<a b='&amp'>",
            b"<a b='1' b='2'>",
            b"<a b='1'c='2'>",
            b"<a b=1>",
            b"<a b>",
            b"<a b='<'>",
            b"<a b='\n'>",
            b"<a\0>",
            b"<a b='\xff'>",
            b"</a b='c'>",
            b"< a>",
            b"<1>",
            b"text",
            b"<a/ >",
            b"<\xc3\xa4>",
        ] {
            assert_eq!(tag(bad), Err(NotXml), "{}", bad.escape_ascii());
        }
        let many: String = (0..=MAX_ATTRIBUTES).map(|n| format!(" a{n}=''")).collect();
        assert_eq!(tag(format!("<a{many}>").as_bytes()), Err(NotXml));
    }

    #[test]
    fn an_element_ends_where_it_ends() {
        let text = b"<a><b>t</b> <c x='1'><c/><a></a></c><d/></a>x";
        for len in 0..text.len() - 1 {
            assert_eq!(element(&text[..len]), Ok(None), "{len}");
        }
        let whole = element(text).unwrap().unwrap();
        let names: Vec<_> = whole.children.iter().map(|child| child.name).collect();
        assert_eq!((names, whole.len), (vec!["b", "c", "d"], text.len() - 1));
        let deep = [b"<a>".repeat(MAX_DEPTH), b"</a>".repeat(MAX_DEPTH)].concat();
        assert_eq!(element(&deep).unwrap().unwrap().len, deep.len());
        for bad in [&b"<a></b>"[..], b"</a>", b"<a><?xml version='1.0'?></a>", &b"<a>".repeat(MAX_DEPTH + 1)]
        {
            assert_eq!(element(bad), Err(NotXml), "{}", bad.escape_ascii());
        }
    }
}
