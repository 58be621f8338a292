//! What a client takes (RFC 9110 §12.5).

use http::HeaderMap;
use http::header::{ACCEPT, ACCEPT_ENCODING, HeaderName};

/// How a file is encoded that lies beside another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
    /// RFC 1952.
    Gzip,
}

/// How much something is wanted, in thousandths; 0: not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Weight(u16);

impl Coding {
    /// In the order that is best for what has no preference: the smallest first.
    const ALL: [Self; 3] = [Self::Brotli, Self::Zstd, Self::Gzip];

    /// As in `Content-Encoding`.
    pub(super) fn token(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    /// What is put behind the name of a file.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Brotli => ".br",
            Self::Zstd => ".zst",
            Self::Gzip => ".gz",
        }
    }

    fn is(self, token: &str) -> bool {
        // §8.4.1.3: the old name means the same.
        token.eq_ignore_ascii_case(self.token())
            || (self == Self::Gzip && token.eq_ignore_ascii_case("x-gzip"))
    }
}

impl Weight {
    const NONE: Self = Self(0);
    const FULL: Self = Self(1000);

    /// Of `0`, `0.5`, `1.000`; what is none of these is not wanted.
    fn parse(text: &str) -> Self {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return Self::NONE;
        }
        match whole {
            "1" => Self::FULL,
            "0" => Self(format!("{fraction:0<3}").parse().unwrap_or(0)),
            _ => Self::NONE,
        }
    }
}

/// The codings that a request prefers to the file as it is, the best first.
///
/// As it is the file is always sent where there is nothing else: a client that forbids that is better served than refused
/// (§12.5.3 leaves it open).
pub(super) fn codings(headers: &HeaderMap) -> Vec<Coding> {
    let asked: Vec<(&str, Weight)> = elements(headers, ACCEPT_ENCODING).map(weighted).collect();
    let weight = |is: &dyn Fn(&str) -> bool| {
        let named = asked.iter().find(|(token, _)| is(token));
        named.or_else(|| asked.iter().find(|(token, _)| *token == "*")).map(|(_, weight)| *weight)
    };
    // Where nothing is said of it, it is taken when nothing better is there.
    let identity = weight(&|token| token.eq_ignore_ascii_case("identity")).unwrap_or(Weight::NONE);
    let mut codings: Vec<(Coding, Weight)> = Coding::ALL
        .into_iter()
        .filter_map(|coding| Some((coding, weight(&|token| coding.is(token))?)))
        .filter(|(_, weight)| *weight > Weight::NONE && *weight >= identity)
        .collect();
    // It keeps the order of those that are wanted as much.
    codings.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight));
    codings.into_iter().map(|(coding, _)| coding).collect()
}

/// Whether a request takes pages: what it says of `text/html` goes before what it says of all texts, and that before what
/// it says of all types. Who says nothing takes all.
pub(super) fn takes_html(headers: &HeaderMap) -> bool {
    if !headers.contains_key(ACCEPT) {
        return true;
    }
    let asked: Vec<(&str, Weight)> = elements(headers, ACCEPT).map(weighted).collect();
    let said = |range: &str| asked.iter().find(|(name, _)| name.eq_ignore_ascii_case(range));
    let said = said("text/html").or_else(|| said("text/*")).or_else(|| said("*/*"));
    said.is_some_and(|(_, weight)| *weight > Weight::NONE)
}

/// The elements of the lists in all fields of a name. What is no text is not there.
fn elements(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let fields = headers.get_all(name).into_iter().filter_map(|field| field.to_str().ok());
    fields.flat_map(|field| field.split(',')).map(str::trim).filter(|element| !element.is_empty())
}

/// An element's name and weight.
fn weighted(element: &str) -> (&str, Weight) {
    let mut parts = element.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let weight = parts.find_map(|part| {
        let (key, value) = part.split_once('=')?;
        key.trim().eq_ignore_ascii_case("q").then(|| Weight::parse(value.trim()))
    });
    (name, weight.unwrap_or(Weight::FULL))
}

#[cfg(test)]
mod tests {
    use super::Coding::{Brotli, Gzip, Zstd};
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn codings_are_chosen_by_weight() {
        let table: &[(&str, &[Coding])] = &[
            ("", &[]),
            ("identity", &[]),
            ("gzip, deflate, br, zstd", &[Brotli, Zstd, Gzip]),
            ("gzip", &[Gzip]),
            ("X-GZIP", &[Gzip]),
            ("GZip;Q=0.1", &[Gzip]),
            ("br;q=0.5, gzip;q=0.8", &[Gzip, Brotli]),
            ("br;q=0.5,gzip;q=0.501,zstd;q=0.5", &[Gzip, Brotli, Zstd]),
            ("br;q=0, *", &[Zstd, Gzip]),
            ("*", &[Brotli, Zstd, Gzip]),
            ("*;q=0", &[]),
            ("gzip, *;q=0", &[Gzip]),
            ("gzip;q=0", &[]),
            ("gzip;q=0.000", &[]),
            ("gzip;q=0.001", &[Gzip]),
            ("gzip;q=0.0001", &[]),
            ("gzip;q=1.000", &[Gzip]),
            ("gzip;q=2", &[]),
            ("gzip;q=-1", &[]),
            ("gzip;q=", &[]),
            ("gzip;q=x", &[]),
            ("gzip ; q=0.5 , br", &[Brotli, Gzip]),
            ("identity;q=0, gzip;q=0.1", &[Gzip]),
            ("identity;q=1, gzip;q=0.5", &[]),
            ("identity;q=0.5, gzip;q=0.5, br;q=0.4", &[Gzip]),
            ("br;q=0.1, *;q=0.5", &[Zstd, Gzip]),
            ("deflate", &[]),
            (",,;q=1,", &[]),
        ];
        for (value, expected) in table {
            assert_eq!(codings(&headers(ACCEPT_ENCODING, value)), *expected, "{value}");
        }
        assert_eq!(codings(&HeaderMap::new()), []);
        let mut two = headers(ACCEPT_ENCODING, "gzip");
        two.append(ACCEPT_ENCODING, "br".parse().unwrap());
        assert_eq!(codings(&two), [Brotli, Gzip]);
    }

    #[test]
    fn pages_are_for_those_who_take_them() {
        for (value, expected) in [
            ("text/html,application/xhtml+xml,*/*;q=0.8", true),
            ("*/*", true),
            ("text/*;q=0.1", true),
            ("TEXT/HTML", true),
            ("text/html;level=1;q=0.3", true),
            ("text/html;q=0, */*", false),
            ("text/*;q=0, */*", false),
            ("text/*;q=0, text/html", true),
            ("application/json", false),
            ("image/avif,image/*", false),
            ("", false),
        ] {
            assert_eq!(takes_html(&headers(ACCEPT, value)), expected, "{value}");
        }
        assert!(takes_html(&HeaderMap::new()));
    }
}
