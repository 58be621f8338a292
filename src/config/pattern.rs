//! Patterns over server names, as routes write them.

use std::fmt;

use regex::Regex;

use crate::peek::ServerName;

/// What a route's `sni` matches, from the most to the least specific.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePattern {
    /// `app.example.com`: this name.
    Exact(ServerName),
    /// `*.example.com`: one or more labels before this suffix, never the suffix itself.
    Suffix(ServerName),
    /// `~app[0-9]+\.example\.com`: names that the regular expression matches as a whole.
    Regex(NameRegex),
    /// `*`: every name.
    Any,
}

/// A regular expression over whole server names, compared by how it is written.
#[derive(Clone, Debug)]
pub struct NameRegex {
    regex: Regex,
    text: Box<str>,
}

impl NameRegex {
    /// Compiles `text`; it is anchored at both ends, so it never matches inside a longer name.
    ///
    /// # Errors
    /// When `text` is not a regular expression of the `regex` crate, or too large when compiled.
    pub fn new(text: &str) -> Result<Self, regex::Error> {
        // Compiled by itself first: `a)(b` must not become valid between the anchors.
        Regex::new(text)?;
        let regex = regex::RegexBuilder::new(&format!("^(?:{text})$")).size_limit(1 << 20).build()?;
        Ok(Self { regex, text: text.into() })
    }

    /// Whether it matches the whole of `name`.
    pub fn is_match(&self, name: &str) -> bool {
        self.regex.is_match(name)
    }
}

impl PartialEq for NameRegex {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for NameRegex {}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Suffix(suffix) => write!(f, "*.{suffix}"),
            Self::Regex(regex) => write!(f, "~{}", regex.text),
            Self::Any => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regexes_match_whole_names_only() {
        let regex = NameRegex::new("app[0-9]+|db").unwrap();
        assert!(regex.is_match("app12"));
        assert!(regex.is_match("db"));
        assert!(!regex.is_match("xapp12"));
        assert!(!regex.is_match("db.evil"));
        assert!(NameRegex::new("a)(b").is_err());
    }
}
