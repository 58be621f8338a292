//! Durations, sizes and rates as they are written: always with a unit.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::decode::{Problem, Text, quote};
use super::error::ErrorKind;

/// Units of durations, from the largest, in milliseconds.
const TIME: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Units of sizes, in bytes.
const SIZE: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
];

/// So many in so much time, written `"50/s"`, `"600/m"` or `"5/10s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many; at least 1.
    pub count: u32,
    /// In how much time; never zero.
    pub period: Duration,
}

/// Bytes a second, written `"10MiB/s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Bandwidth(pub(super) u64);

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ByteSize(pub(super) u64);

impl Rate {
    /// Time between two at this rate; never zero.
    pub fn interval(&self) -> Duration {
        (self.period / self.count).max(Duration::from_nanos(1))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let period = duration_text(self.period);
        // One of a unit is written without the number: `50/s`, not `50/1s`.
        match period.strip_prefix('1') {
            Some(unit) if TIME.iter().any(|(name, _)| *name == unit) => write!(f, "{}/{unit}", self.count),
            _ => write!(f, "{}/{period}", self.count),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, bytes) = match self.0 {
            0 => ("B", 1),
            size => *SIZE.iter().find(|(_, bytes)| size % bytes == 0).unwrap_or(&("B", 1)),
        };
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", ByteSize(self.0))
    }
}

/// How `duration` is written: `1m30s`; parts below a millisecond are left out.
pub(super) fn duration_text(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, millis) in TIME {
        let count = rest / millis;
        rest %= millis;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

impl Text for Duration {
    const EXPECTED: &'static str = "a duration such as \"5s\"";

    fn constraints() -> Value {
        json!({ "pattern": "^(?=.)([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$", "examples": ["5s", "1m30s"] })
    }

    fn bare_number(number: &str) -> Option<Problem> {
        let problem = Problem::new(ErrorKind::MissingUnit, "a duration needs a unit");
        Some(problem.hint(format!("write `\"{number}s\"` for seconds, or `\"{number}ms\"` for milliseconds")))
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if let Some(problem) = bare::<Self>(text) {
            return Err(problem);
        }
        parse_duration(text).map(Self::from_millis).ok_or_else(|| {
            Problem::new(ErrorKind::BadValue, format!("{} is not a duration", quote(text)))
                .hint("write whole numbers with `d`, `h`, `m`, `s` or `ms`, as in `\"5s\"` or `\"1m30s\"`")
        })
    }
}

impl Text for ByteSize {
    const EXPECTED: &'static str = "a size such as \"16KiB\"";

    fn constraints() -> Value {
        json!({ "pattern": "^[0-9]+(B|kB|MB|GB|KiB|MiB|GiB)$", "examples": ["16KiB"] })
    }

    fn bare_number(number: &str) -> Option<Problem> {
        let problem = Problem::new(ErrorKind::MissingUnit, "a size needs a unit");
        Some(problem.hint(format!("write `\"{number}B\"` for bytes, or `\"{number}KiB\"`")))
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if let Some(problem) = bare::<Self>(text) {
            return Err(problem);
        }
        let (number, unit) = split_number(text);
        let bytes = SIZE.iter().find(|(name, _)| *name == unit).map(|(_, bytes)| bytes);
        let size = bytes.and_then(|bytes| number.parse::<u64>().ok()?.checked_mul(*bytes));
        size.map(Self).ok_or_else(|| {
            Problem::new(ErrorKind::BadValue, format!("{} is not a size", quote(text))).hint(
                "write a whole number with `B`, `KiB`, `MiB`, `GiB`, `kB`, `MB` or `GB`, as in `\"16KiB\"`",
            )
        })
    }
}

impl Text for Bandwidth {
    const EXPECTED: &'static str = "a bandwidth such as \"10MiB/s\"";

    fn constraints() -> Value {
        json!({ "pattern": "^[0-9]+(B|kB|MB|GB|KiB|MiB|GiB)/s$", "examples": ["10MiB/s"] })
    }

    fn bare_number(number: &str) -> Option<Problem> {
        let problem = Problem::new(ErrorKind::MissingUnit, "a bandwidth needs a unit");
        Some(problem.hint(format!("write `\"{number}B/s\"` for bytes a second, or `\"{number}MiB/s\"`")))
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if let Some(problem) = bare::<Self>(text) {
            return Err(problem);
        }
        let size = text.strip_suffix("/s").and_then(|size| ByteSize::parse(size).ok());
        size.map(|size| Self(size.0)).ok_or_else(|| {
            Problem::new(ErrorKind::BadValue, format!("{} is not a bandwidth", quote(text)))
                .hint("write a size and `/s`, as in `\"10MiB/s\"`; bits are not counted")
        })
    }
}

impl Text for Rate {
    const EXPECTED: &'static str = "a rate such as \"50/s\"";

    fn constraints() -> Value {
        json!({ "pattern": "^[0-9]+/([0-9]*(d|h|m|s|ms))+$", "examples": ["50/s", "600/m", "5/10s"] })
    }

    fn bare_number(number: &str) -> Option<Problem> {
        let problem = Problem::new(ErrorKind::MissingUnit, "a rate needs a unit of time");
        Some(problem.hint(format!("write `\"{number}/s\"` for so many a second, or `\"{number}/m\"`")))
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if let Some(problem) = bare::<Self>(text) {
            return Err(problem);
        }
        let bad = || {
            Problem::new(ErrorKind::BadValue, format!("{} is not a rate", quote(text)))
                .hint("write so many in so much time, as in `\"50/s\"`, `\"600/m\"` or `\"5/10s\"`")
        };
        let (count, period) = text.split_once('/').ok_or_else(bad)?;
        if !count.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        let count = count.parse().map_err(|_| bad())?;
        let unit = TIME.iter().find(|(unit, _)| *unit == period).map(|(_, millis)| *millis);
        let millis = unit.or_else(|| parse_duration(period)).ok_or_else(bad)?;
        if count == 0 || millis == 0 {
            return Err(Problem::new(ErrorKind::OutOfRange, "a rate cannot be zero")
                .hint("to let nobody in use `deny`; to have no limit leave the key out"));
        }
        Ok(Self { count, period: Duration::from_millis(millis) })
    }
}

/// The error for `"5"`, a number in a string.
fn bare<T: Text>(text: &str) -> Option<Problem> {
    let digits = !text.is_empty() && text.len() <= 20 && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { T::bare_number(text) } else { None }
}

/// The digits that `text` starts with, and the rest up to the next digit or the end.
fn split_number(text: &str) -> (&str, &str) {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(digits)
}

/// Milliseconds; each unit at most once, from the largest to the smallest.
fn parse_duration(text: &str) -> Option<u64> {
    let (mut rest, mut total, mut units) = (text, 0u64, TIME.iter());
    loop {
        let (number, tail) = split_number(rest);
        let len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(len);
        let (_, millis) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(*millis)?)?;
        if tail.is_empty() {
            return Some(total);
        }
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn duration(text: &str) -> Option<u128> {
        Duration::parse(text).ok().map(|duration| duration.as_millis())
    }

    #[test]
    fn durations() {
        assert_eq!(duration("250ms"), Some(250));
        assert_eq!(duration("5s"), Some(5000));
        assert_eq!(duration("1m30s"), Some(90_000));
        assert_eq!(duration("7d"), Some(7 * 86_400_000));
        assert_eq!(duration("1d2h3m4s5ms"), Some(93_784_005));
        for bad in [
            "",
            "s",
            "5",
            "5 s",
            "1.5s",
            "-1s",
            "1s1m",
            "1s1s",
            "5sec",
            "99999999999999999999s",
            "5s ",
            "+5s",
        ] {
            assert_eq!(duration(bad), None, "{bad}");
        }
        assert_eq!(duration("18446744073709551615d"), None);
        for text in ["250ms", "5s", "1m30s", "1h", "7d", "1d2h3m4s5ms", "0s"] {
            assert_eq!(duration_text(Duration::from_millis(parse_duration(text).unwrap())), text);
        }
    }

    #[test]
    fn sizes() {
        let size = |text| ByteSize::parse(text).ok().map(|size| size.0);
        assert_eq!(size("512B"), Some(512));
        assert_eq!(size("16KiB"), Some(16 << 10));
        assert_eq!(size("1MiB"), Some(1 << 20));
        assert_eq!(size("1GB"), Some(1_000_000_000));
        for bad in ["", "KiB", "16", "16 KiB", "16K", "1.5MiB", "-1B", "99999999999GiB"] {
            assert_eq!(size(bad), None, "{bad}");
        }
        for text in ["0B", "512B", "16KiB", "1MiB", "5kB", "3GB"] {
            assert_eq!(ByteSize::parse(text).ok().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bandwidths() {
        let bandwidth = |text| Bandwidth::parse(text).ok().map(|bandwidth| bandwidth.0);
        assert_eq!(bandwidth("10MiB/s"), Some(10 << 20));
        assert_eq!(bandwidth("500kB/s"), Some(500_000));
        for bad in ["", "10", "10MiB", "/s", "10MiB/m", "10Mbit/s", "10 MiB/s", "-1B/s"] {
            assert_eq!(bandwidth(bad), None, "{bad}");
        }
        assert_eq!(Bandwidth(10 << 20).to_string(), "10MiB/s");
    }

    #[test]
    fn rates() {
        let rate = |text| Rate::parse(text).ok().map(|rate| (rate.count, rate.period.as_millis()));
        assert_eq!(rate("50/s"), Some((50, 1000)));
        assert_eq!(rate("600/m"), Some((600, 60_000)));
        assert_eq!(rate("5/10s"), Some((5, 10_000)));
        for bad in ["50", "/s", "50/", "0/s", "5/0s", "50/sec", "-1/s", "50 / s", "+5/s"] {
            assert_eq!(rate(bad), None, "{bad}");
        }
        for text in ["50/s", "600/m", "1/h", "5/10s", "5/500ms", "1/1m30s", "2/d", "3/11s"] {
            assert_eq!(Rate::parse(text).ok().unwrap().to_string(), text);
        }
    }
}
