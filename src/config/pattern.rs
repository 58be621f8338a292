//! Patterns over server names and fingerprints, as routes write them.

use std::fmt;

use regex::Regex;

use crate::peek::{Ja4, Ja4Error, ServerName};

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

/// What a route's `ja4` matches: a whole fingerprint, or all that begin alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ja4Pattern {
    beginning: Box<str>,
    whole: bool,
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

impl Ja4Pattern {
    /// Reads a fingerprint, or the beginning of one with `*` behind it.
    ///
    /// # Errors
    /// When no client of TLS over TCP can have such a fingerprint.
    pub fn parse(text: &str) -> Result<Self, Ja4Error> {
        let whole = match text.strip_suffix('*') {
            Some(beginning) => {
                Ja4::check_prefix(beginning)?;
                match Ja4::parse(beginning) {
                    // It would match every hello, which leaving it out does.
                    Err(error @ Ja4Error::Short(0)) => return Err(error),
                    Err(_) => {}
                    // A whole one is written in one way only, so that two routes for it are seen to be.
                    Ok(_) => return Err(Ja4Error::Long),
                }
                return Ok(Self { beginning: beginning.into(), whole: false });
            }
            None => Ja4::parse(text)?,
        };
        Ok(Self { beginning: whole.as_str().into(), whole: true })
    }

    /// Whether it matches `ja4`.
    pub fn matches(&self, ja4: &Ja4) -> bool {
        if self.whole { *self.beginning == *ja4.as_str() } else { ja4.as_str().starts_with(&*self.beginning) }
    }

    /// How many characters it asks for: of two that match the same fingerprint, the longer is the more specific.
    pub fn specificity(&self) -> usize {
        self.beginning.len()
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

impl fmt::Display for Ja4Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.beginning, if self.whole { "" } else { "*" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_match_whole_or_from_their_beginning() {
        let ja4 = Ja4::parse("t13d1516h2_8daaf6152771_e5627efa2ab1").unwrap();
        let matches = |text: &str| {
            let pattern = Ja4Pattern::parse(text).unwrap();
            assert_eq!(pattern.to_string(), text);
            pattern.matches(&ja4)
        };
        assert!(matches("t13d1516h2_8daaf6152771_e5627efa2ab1"));
        assert!(matches("t13d1516h2_*") && matches("t13d1516h2_8daaf6152771_e5627efa2ab*") && matches("t*"));
        assert!(!matches("t13d1516h2_8daaf6152771_e5627efa2ab2"));
        assert!(!matches("t13d1517*") && !matches("t12*"));
        for (text, error) in [
            ("t13d1516h2", Ja4Error::Short(10)),
            ("q13*", Ja4Error::Transport),
            ("t13*d", Ja4Error::Character(4)),
            ("*", Ja4Error::Short(0)),
            ("t13d1516h2_8daaf6152771_e5627efa2ab1*", Ja4Error::Long),
        ] {
            assert_eq!(Ja4Pattern::parse(text), Err(error), "{text}");
        }
    }

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
