//! Parts of a file (RFC 9110 §14).

use http::HeaderMap;
use http::header::RANGE;

/// Ranges that are looked at; a request for more of them gets the whole file.
const MAX_RANGES: usize = 8;
/// What lies between two parts is sent with them when it is shorter than the head of a part, which has about so many bytes.
const GAP: u64 = 128;

/// The ranges that a request asks for, of a file of any size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<Range>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Range {
    From(u64),
    Between(u64, u64),
    /// The last bytes.
    Last(u64),
}

/// What is sent of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// All of it.
    Whole,
    /// These parts, none of which is empty or has bytes of another; one at least.
    Parts(Vec<Part>),
    /// No byte that is asked for is there (416).
    Unsatisfiable,
}

/// A part of a file: from one byte to another, both of which are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Part {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Ranges {
    /// Those of a request; none when what it says is not clear, or is more than is looked at: it is then as if nothing was
    /// said (§14.2).
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut fields = headers.get_all(RANGE).iter();
        match (fields.next(), fields.next()) {
            (Some(field), None) => field.to_str().ok().and_then(Self::parse).unwrap_or_default(),
            _ => Self::default(),
        }
    }

    fn parse(value: &str) -> Option<Self> {
        let (unit, set) = value.split_once('=')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let mut ranges = Vec::new();
        for spec in set.split(',') {
            let spec = spec.trim_matches([' ', '\t']);
            if spec.is_empty() {
                continue;
            }
            if ranges.len() == MAX_RANGES {
                return None;
            }
            ranges.push(Range::parse(spec)?);
        }
        Some(Self(ranges))
    }

    /// What is sent of a file of so many bytes.
    pub(super) fn select(&self, size: u64) -> Selection {
        // Of an empty file there is no part; a client that always asks for one is served nonetheless.
        if self.0.is_empty() || size == 0 {
            return Selection::Whole;
        }
        let parts: Vec<Part> = self.0.iter().filter_map(|range| range.part(size)).collect();
        if parts.is_empty() {
            return Selection::Unsatisfiable;
        }
        let sum = parts.iter().fold(0_u64, |sum, part| sum.saturating_add(part.len()));
        if sum > size { Selection::Whole } else { Selection::Parts(coalesced(parts)) }
    }
}

impl Range {
    fn parse(spec: &str) -> Option<Self> {
        match spec.split_once('-')? {
            ("", last) => Some(Self::Last(number(last)?)),
            (first, "") => Some(Self::From(number(first)?)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// What there is of it in a file of so many bytes.
    fn part(self, size: u64) -> Option<Part> {
        let end = size.checked_sub(1)?;
        let (first, last) = match self {
            Self::From(first) => (first, end),
            Self::Between(first, last) => (first, last.min(end)),
            Self::Last(count) => (size.saturating_sub(count), end),
        };
        (first <= last).then_some(Part { first, last })
    }
}

impl Part {
    /// In bytes.
    pub(super) fn len(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }
}

/// In the order that is asked for; in that of the file when some of them lie so near to each other that they become one.
fn coalesced(parts: Vec<Part>) -> Vec<Part> {
    let mut sorted = parts.clone();
    sorted.sort_unstable();
    let mut merged: Vec<Part> = Vec::with_capacity(sorted.len());
    for part in sorted {
        match merged.last_mut() {
            Some(before) if part.first <= before.last.saturating_add(GAP) => {
                before.last = before.last.max(part.last)
            }
            _ => merged.push(part),
        }
    }
    if merged.len() == parts.len() { parts } else { merged }
}

/// What is too large for any file is the end of each.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;
    const END: u64 = SIZE - 1;

    fn selected(value: &str, size: u64) -> Selection {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, value.parse().unwrap());
        Ranges::of(&headers).select(size)
    }

    fn parts(parts: &[(u64, u64)]) -> Selection {
        Selection::Parts(parts.iter().map(|(first, last)| Part { first: *first, last: *last }).collect())
    }

    #[test]
    fn one_range_of_a_megabyte() {
        let table = [
            ("bytes=0-0", parts(&[(0, 0)])),
            ("bytes=0-", parts(&[(0, END)])),
            ("bytes=0-1048575", parts(&[(0, END)])),
            ("bytes=5-9", parts(&[(5, 9)])),
            ("Bytes=5-9", parts(&[(5, 9)])),
            ("bytes=1048575-", parts(&[(END, END)])),
            ("bytes=1048570-9999999999", parts(&[(1048570, END)])),
            ("bytes=5-99999999999999999999999999", parts(&[(5, END)])),
            ("bytes=-1", parts(&[(END, END)])),
            ("bytes=-1048576", parts(&[(0, END)])),
            ("bytes=-99999999999999999999999999", parts(&[(0, END)])),
            ("bytes=1048576-", Selection::Unsatisfiable),
            ("bytes=1048576-1048577", Selection::Unsatisfiable),
            ("bytes=99999999999999999999999999-", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            ("bytes=-0,1048576-,9999999-9999999", Selection::Unsatisfiable),
            ("bytes=-0,1-1", parts(&[(1, 1)])),
            // What is not clear is not there.
            ("bytes=9-5", Selection::Whole),
            ("bytes=0-0,9-5", Selection::Whole),
            ("bytes=", Selection::Whole),
            ("bytes=-", Selection::Whole),
            ("bytes=,", Selection::Whole),
            ("bytes=a-b", Selection::Whole),
            ("bytes=+1-2", Selection::Whole),
            ("bytes=1--2", Selection::Whole),
            ("bytes=--2", Selection::Whole),
            ("bytes= 1 - 2", Selection::Whole),
            ("bytes =1-2", Selection::Whole),
            ("bytes=0x1-2", Selection::Whole),
            ("lines=1-2", Selection::Whole),
            ("1-2", Selection::Whole),
        ];
        for (value, expected) in table {
            assert_eq!(selected(value, SIZE), expected, "{value}");
        }
    }

    #[test]
    fn several_ranges_of_a_megabyte() {
        let table = [
            ("bytes=0-99, 1000-1099", parts(&[(0, 99), (1000, 1099)])),
            ("bytes=,0-99 ,\t1000-1099,", parts(&[(0, 99), (1000, 1099)])),
            ("bytes=1000-1099,0-99", parts(&[(1000, 1099), (0, 99)])),
            ("bytes=0-99,-100", parts(&[(0, 99), (1048476, END)])),
            ("bytes=0-99,2000000-,1000-1099", parts(&[(0, 99), (1000, 1099)])),
            // Those that overlap, touch, or are nearly one.
            ("bytes=0-99,50-149", parts(&[(0, 149)])),
            ("bytes=0-99,0-99", parts(&[(0, 99)])),
            ("bytes=100-199,0-99", parts(&[(0, 199)])),
            ("bytes=0-0,2-2,4-4", parts(&[(0, 4)])),
            ("bytes=5000-5001,0-99,50-149", parts(&[(0, 149), (5000, 5001)])),
            ("bytes=0-1000,2-3", parts(&[(0, 1000)])),
            // More than the file has, and more than is looked at.
            ("bytes=0-,0-", Selection::Whole),
            ("bytes=0-,-1", Selection::Whole),
            (
                "bytes=0-0,1000-1000,2000-2000,3000-3000,4000-4000,5000-5000,6000-6000,7000-7000,8000-8000",
                Selection::Whole,
            ),
        ];
        for (value, expected) in table {
            assert_eq!(selected(value, SIZE), expected, "{value}");
        }
        let Selection::Parts(eight) =
            selected("bytes=0-0,1000-1000,2000-2000,3000-3000,4000-4000,5000-5000,6000-6000,-1", SIZE)
        else {
            panic!("eight are sent")
        };
        assert_eq!(eight.len(), 8);
    }

    #[test]
    fn sizes_at_the_ends() {
        for value in ["bytes=0-", "bytes=0-0", "bytes=-1", "bytes=5-"] {
            assert_eq!(selected(value, 0), Selection::Whole, "{value}");
        }
        const LARGEST: u64 = i64::MAX as u64;
        assert_eq!(selected("bytes=0-", LARGEST), parts(&[(0, LARGEST - 1)]));
        assert_eq!(selected("bytes=-1", LARGEST), parts(&[(LARGEST - 1, LARGEST - 1)]));
        assert_eq!(selected("bytes=0-,0-,0-", LARGEST), Selection::Whole);
    }

    #[test]
    fn two_fields_are_as_none() {
        let mut headers = HeaderMap::new();
        headers.append(RANGE, "bytes=0-0".parse().unwrap());
        headers.append(RANGE, "bytes=1-1".parse().unwrap());
        assert_eq!(Ranges::of(&headers).select(10), Selection::Whole);
        assert_eq!(Ranges::of(&HeaderMap::new()).select(10), Selection::Whole);
    }
}
