//! Paths that are other ones at the backend, and answers that are mapped back.
//!
//! A path has one spelling behind the rewriting as before it. `Location`, `Content-Location`, `Refresh` and cookies that
//! mean the backend are changed to what the client sees.

use std::borrow::Cow;

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::path::{self, PathError};
use super::target::{Authority, Scheme};
use super::template::{Vars, expand};
use crate::config::PathRewrite;

/// Fields that tell what a backend is made of, and are of no use to clients.
const TELLTALE: [HeaderName; 8] = [
    header::SERVER,
    header::VIA,
    HeaderName::from_static("x-powered-by"),
    HeaderName::from_static("x-aspnet-version"),
    HeaderName::from_static("x-aspnetmvc-version"),
    HeaderName::from_static("x-runtime"),
    HeaderName::from_static("x-generator"),
    HeaderName::from_static("x-backend-server"),
];

/// A path as the backend is asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// The path, in its one spelling.
    pub path: Box<str>,
    /// What was done to it, as far as that can be undone.
    pub done: Done,
}

/// What was done to a path, as far as that can be undone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Its beginning was taken off.
    pub stripped: bool,
    /// It became another one: paths in answers cannot be mapped back, and stay.
    pub replaced: bool,
}

/// Why a path cannot be rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// What is filled in has control characters, or is not text.
    #[error("what is filled in cannot stand in a path")]
    Value,
    /// What came out is no path.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// What an answer is mapped back by.
#[derive(Clone, Copy, Debug)]
pub struct Back<'a> {
    /// How the path was rewritten.
    pub rewrite: &'a PathRewrite,
    /// What came of that.
    pub done: Done,
    /// What the client asked for.
    pub client: Site<'a>,
    /// Where the request went.
    pub backend: Site<'a>,
    /// The host that the backend was asked for, with its port if one was written.
    pub asked: &'a str,
}

/// A scheme, and a host with its port if one is written.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The scheme.
    pub scheme: Scheme,
    /// The host, and its port.
    pub authority: &'a str,
}

impl RewriteError {
    /// All that [`RewriteError::reason`] says, but for those of [`PathError::REASONS`].
    pub const REASONS: [&'static str; 1] = ["rewrite_value"];

    /// What the client is answered.
    pub fn status(self) -> StatusCode {
        StatusCode::BAD_REQUEST
    }

    /// A word for logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Value => "rewrite_value",
            Self::Path(error) => error.reason(),
        }
    }
}

/// Rewrites `path`, which is in its one spelling: first something is taken off, then the whole is replaced, then something
/// is put before it. What the whole server is asked (`*`) stays.
///
/// `/api` is taken off `/api` and `/api/x`, not off `/apix`; parameters of segments (`/api;v=1/x`) do not matter there, and
/// go with it.
///
/// # Errors
/// When what comes out is no path, or has no one spelling.
pub fn rewrite(rewrite: &PathRewrite, path: &str, vars: &Vars<'_>) -> Result<Rewritten, RewriteError> {
    let (mut path, mut done) = (Cow::Borrowed(path), Done::default());
    if *path == *"*" {
        return Ok(Rewritten { path: path.into(), done });
    }
    if let Some(rest) = rewrite.strip.as_deref().and_then(|prefix| below(&path, prefix)) {
        path = Cow::Owned(format!("/{rest}"));
        done.stripped = true;
    }
    if let Some((regex, template)) = &rewrite.replace
        && let Some(groups) = regex.captures(&path)
    {
        let replaced =
            expand(template, &Vars { groups: Some(&groups), ..*vars }).ok_or(RewriteError::Value)?;
        path = Cow::Owned(replaced);
        done.replaced = true;
    }
    if let Some(prefix) = &rewrite.add {
        // What `replace` made may lack its slash, which must not go unseen behind the prefix.
        if !path.starts_with('/') {
            return Err(PathError::Form.into());
        }
        path = Cow::Owned(format!("{}{path}", prefix.trim_end_matches('/')));
    }
    Ok(Rewritten { path: path::normalise(&path)?.into(), done })
}

/// What of `path` is behind the segments of `prefix` and a slash; `None` when it does not begin with them. Segments of nothing
/// but parameters are none, as for rules.
fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let mut rest = path.strip_prefix('/')?;
    let mut wanted = prefix.split('/').filter(|segment| !segment.is_empty()).peekable();
    while let Some(name) = wanted.peek() {
        let (segment, behind) = rest.split_once('/').unwrap_or((rest, ""));
        match path::name_of(segment) {
            "" if !segment.is_empty() => {}
            found if found == *name => _ = wanted.next(),
            _ => return None,
        }
        rest = behind;
    }
    Some(rest)
}

/// Takes out what tells what a backend is made of. `Via` goes as well: it names hosts behind this one (RFC 9110 §7.6.3
/// has gateways leave those out), and a gateway need not add to it in answers.
pub fn hide(headers: &mut HeaderMap) {
    for name in &TELLTALE {
        headers.remove(name);
    }
}

impl Back<'_> {
    /// Changes what in the head of an answer means the backend.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in headers.iter_mut() {
            let Ok(text) = value.to_str() else { continue };
            let mapped = match *name {
                header::LOCATION | header::CONTENT_LOCATION => self.url(text),
                header::REFRESH => self.refresh(text),
                header::SET_COOKIE => self.cookie(text),
                _ => None,
            };
            if let Some(mapped) = mapped.and_then(|text| HeaderValue::try_from(text).ok()) {
                *value = mapped;
            }
        }
    }

    /// A URL as the client sees it; `None` when that is the same.
    ///
    /// Mapped are URLs at the backend, by its address or the host that it was asked for, and paths. A URL at the client's own
    /// host keeps its scheme: a backend may mean to change it.
    pub fn url(&self, url: &str) -> Option<String> {
        if url.starts_with('/') && !url.starts_with("//") {
            return self.path_and_more(url);
        }
        let (written, rest) = url.split_once("//")?;
        let scheme = match written.strip_suffix(':') {
            Some(scheme) => Scheme::parse(scheme)?,
            None if written.is_empty() => self.backend.scheme,
            None => return None,
        };
        let (authority, rest) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
        if self.is(scheme, authority, self.client.authority) {
            return Some(format!("{written}//{authority}{}", self.path_and_more(rest)?));
        }
        if !self.is(scheme, authority, self.backend.authority) && !self.is(scheme, authority, self.asked) {
            return None;
        }
        let scheme = if written.is_empty() { "" } else { self.client.scheme.as_str() };
        let colon = if written.is_empty() { "" } else { ":" };
        let rest = self.path_and_more(rest).map_or(Cow::Borrowed(rest), Cow::Owned);
        Some(format!("{scheme}{colon}//{}{rest}", self.client.authority))
    }

    /// `5; url=/x`, with whatever spaces and quotes.
    fn refresh(&self, text: &str) -> Option<String> {
        let (seconds, rest) = text.split_at(text.find([';', ','])?);
        let at = rest.find('=')?;
        let key = rest.get(1..at)?;
        let url = rest.get(at + 1..)?.trim_start();
        if !key.trim().eq_ignore_ascii_case("url") {
            return None;
        }
        let quote = url.chars().next().filter(|first| ['"', '\''].contains(first));
        let bare = match quote {
            Some(quote) => url.get(1..)?.split(quote).next()?,
            None => url.trim_end(),
        };
        let mapped = self.url(bare)?;
        let quote = quote.map(String::from).unwrap_or_default();
        Some(format!("{seconds}; url={quote}{mapped}{quote}"))
    }

    /// A cookie without a `Domain` that is the backend's, and with its `Path` mapped; `None` when it is the same.
    fn cookie(&self, text: &str) -> Option<String> {
        let mut parts = text.split(';');
        let pair = parts.next().unwrap_or_default();
        // Such a cookie is for the whole host, or is none (RFC 6265bis §4.1.3.2).
        let whole_host = pair.trim_start().get(..7).is_some_and(|name| name.eq_ignore_ascii_case("__Host-"));
        let (mut mapped, mut changed) = (pair.to_owned(), false);
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let (name, value) = (name.trim(), value.trim());
            if name.eq_ignore_ascii_case("domain") && self.is_backend_domain(value) {
                changed = true;
                continue;
            }
            mapped.push(';');
            let path = if name.eq_ignore_ascii_case("path") && !whole_host { self.path(value) } else { None };
            match path {
                Some(path) => {
                    changed = true;
                    // `/api/` is not `/api`, which is below the `/` that it stands for.
                    let path = if value == "/" { path.trim_end_matches('/') } else { &*path };
                    mapped.push_str(" Path=");
                    mapped.push_str(if path.is_empty() { "/" } else { path });
                }
                None => mapped.push_str(part),
            }
        }
        changed.then_some(mapped)
    }

    fn is_backend_domain(&self, domain: &str) -> bool {
        let Ok(domain) = Authority::parse(domain.strip_prefix('.').unwrap_or(domain)) else { return false };
        let is = |authority: &str| Authority::parse(authority).is_ok_and(|site| site.host == domain.host);
        !is(self.client.authority) && (is(self.backend.authority) || is(self.asked))
    }

    fn is(&self, scheme: Scheme, authority: &str, other: &str) -> bool {
        match (Authority::parse(authority), Authority::parse(other)) {
            (Ok(authority), Ok(other)) => authority.is(&other, Some(scheme)),
            _ => false,
        }
    }

    /// A path, which may have a query and a fragment behind it, as the client sees it; `None` when that is the same.
    fn path_and_more(&self, text: &str) -> Option<String> {
        let (path, more) = text.split_at(text.find(['?', '#']).unwrap_or(text.len()));
        self.path(path).map(|mapped| format!("{mapped}{more}"))
    }

    /// A path as the client sees it; `None` when that is the same, or not known.
    fn path(&self, path: &str) -> Option<String> {
        let add = self.rewrite.add.as_deref().unwrap_or_default().trim_end_matches('/');
        let strip = self.rewrite.strip.as_deref().filter(|_| self.done.stripped).unwrap_or_default();
        let strip = strip.trim_end_matches('/');
        if self.done.replaced || !path.starts_with('/') || (add.is_empty() && strip.is_empty()) {
            return None;
        }
        let rest = path.strip_prefix(add).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
        if rest.is_empty() && !strip.is_empty() {
            return Some(strip.to_owned());
        }
        // `/base//evil.test` must not become `//evil.test`, which is another host; browsers take `\` for a slash there.
        Some(format!("{strip}/{}", rest.trim_start_matches(['/', '\\', '\t'])))
    }
}

#[cfg(test)]
mod tests;
