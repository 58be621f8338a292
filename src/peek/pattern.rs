//! Patterns over the first bytes of what is no known protocol.
//!
//! A pattern is a DFA, so that after each byte it is known whether it matches, never will, or may still: a search over all
//! bytes again and again would find the same matches, but never that there will be none.

use std::fmt;
use std::sync::Arc;

use regex_automata::Anchored;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson::{self, NFA, WhichCaptures};
use regex_automata::util::primitives::StateID;
use regex_automata::util::{start, syntax};

use super::detect::Step;

/// Bytes of a connection that are looked at.
const MAX_BYTES: usize = 256;
/// Memory of one pattern, compiled and while it is: a hundred times what patterns for a magic number take.
const MAX_SIZE: usize = 1 << 20;
/// How deep groups may stand in one another, which parsing takes stack for.
const MAX_NESTING: u32 = 64;

/// A regular expression that bytes may begin with, compared by how it is written.
#[derive(Clone)]
pub struct Pattern(Arc<Compiled>);

struct Compiled {
    /// As it is written, without the `^`, which is implied.
    text: Box<str>,
    dfa: dense::DFA<Vec<u32>>,
    start: StateID,
}

/// Why a pattern is none.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    /// It is no regular expression.
    #[error("it does not compile")]
    Syntax(#[source] Box<thompson::BuildError>),
    /// It is too large.
    #[error("it takes more than 1 MiB when compiled")]
    Size,
    /// It looks around: then a match would depend on bytes that may not be there yet.
    #[error(
        "`$`, `\\b`, and `^` elsewhere than at the very beginning, have no meaning for bytes that come one by one"
    )]
    Look,
    /// It matches no bytes at all, and so whatever comes.
    #[error("it matches everything")]
    Everything,
    /// It matches nothing, or nothing within the bytes that are looked at.
    #[error("nothing matches it within {MAX_BYTES} bytes")]
    Nothing,
}

/// Which pattern of several it is, by its place among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatternId(usize);

/// The patterns that a connection may match: some of a list, whose order decides between those that match.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patterns<'t> {
    list: &'t [Pattern],
    /// A bit for each.
    open: u64,
}

impl Pattern {
    /// Compiles `text`, which is anchored at the first byte whether it says so or not. It is of bytes: `\xff` is one, `.`
    /// is any of them, line feeds included, and letters have cases only in ASCII.
    ///
    /// # Errors
    /// When `text` is not a regular expression of the `regex` crate, too large when compiled, or of no use.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let text = text.strip_prefix('^').unwrap_or(text);
        let syntax = syntax::Config::new()
            .unicode(false)
            .utf8(false)
            .dot_matches_new_line(true)
            .nest_limit(MAX_NESTING);
        let config = thompson::Config::new()
            .utf8(false)
            .nfa_size_limit(Some(MAX_SIZE))
            .which_captures(WhichCaptures::None);
        let nfa = thompson::Compiler::new().syntax(syntax).configure(config).build(text);
        let nfa = nfa.map_err(|error| match error.size_limit() {
            Some(_) => PatternError::Size,
            None => PatternError::Syntax(Box::new(error)),
        })?;
        if !nfa.look_set_any().is_empty() {
            return Err(PatternError::Look);
        }
        // It has just been parsed.
        let shortest = syntax::parse_with(text, &syntax).ok().and_then(|hir| hir.properties().minimum_len());
        match shortest {
            Some(0) => return Err(PatternError::Everything),
            Some(1..=MAX_BYTES) => {}
            Some(_) | None => return Err(PatternError::Nothing),
        }
        let (dfa, start) = determinize(&nfa).ok_or(PatternError::Size)?;
        Ok(Self(Arc::new(Compiled { text: text.into(), dfa, start })))
    }

    /// What the first `bytes` of a connection are to it.
    pub(super) fn step(&self, bytes: &[u8]) -> Step {
        let Compiled { dfa, start, .. } = &*self.0;
        let mut state = *start;
        for byte in bytes.iter().take(MAX_BYTES) {
            state = dfa.next_state(state, *byte);
            // States say of the byte before that a match ended there.
            if dfa.is_match_state(state) {
                return Step::Is;
            }
            if dfa.is_dead_state(state) {
                return Step::No;
            }
        }
        if dfa.is_match_state(dfa.next_eoi_state(state)) {
            Step::Is
        } else if dfa.is_dead_state(state) || bytes.len() >= MAX_BYTES {
            Step::No
        } else {
            Step::NeedMore
        }
    }
}

/// `None` when it takes too much memory.
fn determinize(nfa: &NFA) -> Option<(dense::DFA<Vec<u32>>, StateID)> {
    let config = dense::Config::new()
        .start_kind(StartKind::Anchored)
        .accelerate(false)
        .dfa_size_limit(Some(MAX_SIZE))
        .determinize_size_limit(Some(MAX_SIZE));
    let dfa = dense::Builder::new().configure(config).build_from_nfa(nfa).ok()?;
    let start = dfa.start_state(&start::Config::new().anchored(Anchored::Yes)).ok()?;
    Some((dfa, start))
}

impl PatternId {
    /// Its place.
    pub fn index(self) -> usize {
        self.0
    }
}

impl<'t> Patterns<'t> {
    /// The most that a list may have: each is walked for a connection that is nothing else.
    pub const MAX: usize = 64;

    /// Those of `list` of which `open` says so; of a list that is longer than it may be, none of the rest.
    pub fn of(list: &'t [Pattern], mut open: impl FnMut(PatternId) -> bool) -> Self {
        let places = (0..list.len().min(Self::MAX)).filter(|index| open(PatternId(*index)));
        let open = places.fold(0, |bits, index| bits | 1 << index);
        Self { list, open }
    }

    /// The first of them that `bytes` begin with. `Err` when one before it, or the last one, needs more.
    pub(super) fn first(&self, bytes: &[u8]) -> Result<Option<PatternId>, NeedMore> {
        self.find(bytes, Err(NeedMore))
    }

    /// The first of them that `bytes` begin with, whatever may still come of others.
    pub(super) fn settle(&self, bytes: &[u8]) -> Option<PatternId> {
        self.find(bytes, Ok(())).ok().flatten()
    }

    fn find(&self, bytes: &[u8], undecided: Result<(), NeedMore>) -> Result<Option<PatternId>, NeedMore> {
        let open = self.list.iter().enumerate().filter(|(index, _)| self.open >> index & 1 == 1);
        for (index, pattern) in open {
            match pattern.step(bytes) {
                Step::Is => return Ok(Some(PatternId(index))),
                Step::NeedMore => undecided?,
                Step::No => {}
            }
        }
        Ok(None)
    }
}

/// More bytes are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NeedMore;

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({self})")
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "^{}", self.0.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step(pattern: &str, bytes: &[u8]) -> Step {
        Pattern::new(pattern).unwrap().step(bytes)
    }

    #[test]
    fn each_byte_tells_whether_it_matches_may_or_never_will() {
        for (pattern, bytes, telling, last) in [
            (r"^\x00\xff[a-c]+z", b"\0\xffabz".as_slice(), 5, Step::Is),
            (r"\x00\xff[a-c]+z", b"\0\xffabzzz", 5, Step::Is),
            (r"^\x00\xff", b"\0\xfe", 2, Step::No),
            (r"^(?i)hello|bye", b"BYE", 3, Step::Is),
            (r"^a|ab", b"ab", 1, Step::Is),
            (r"^.{3}x", b"\n\0\xffx", 4, Step::Is),
            ("^\u{e9}", b"\xc3\xa9", 2, Step::Is),
            (r"^x*y", b"xxxz", 4, Step::No),
        ] {
            for len in 0..=bytes.len() {
                let expected = if len < telling { Step::NeedMore } else { last };
                assert_eq!(step(pattern, &bytes[..len]), expected, "{len} bytes, {pattern}");
            }
        }
    }

    #[test]
    fn no_more_than_the_first_bytes_are_looked_at() {
        let far = |n: usize| [vec![b'x'; n], b"y".to_vec()].concat();
        assert_eq!(step("^x*y", &far(MAX_BYTES - 1)), Step::Is);
        assert_eq!(step("^x*y", &far(MAX_BYTES)), Step::No);
        assert_eq!(step("^x*y", &far(MAX_BYTES)[..MAX_BYTES - 1]), Step::NeedMore);
        assert_eq!(step("^x*y", &far(MAX_BYTES)[..MAX_BYTES]), Step::No);
        assert_eq!(step("^.{256}", &far(MAX_BYTES)), Step::Is);
    }

    #[test]
    fn patterns_of_no_use_are_refused() {
        let error = |text: &str| Pattern::new(text).unwrap_err();
        for text in ["(", "a)(b", r"\xzz", "[z-a]", r"\p{L}"] {
            assert!(matches!(error(text), PatternError::Syntax(_)), "{text}");
        }
        for text in ["abc$", r"ab\b", r"(?m)^a", r"a\z", "a^b", "(^a|^b)"] {
            assert!(matches!(error(text), PatternError::Look), "{text}");
        }
        for text in ["", "^", "a*", "x?"] {
            assert!(matches!(error(text), PatternError::Everything), "{text}");
        }
        for text in [".{257}", r"[^\x00-\xff]", r"a[^\x00-\xff]"] {
            assert!(matches!(error(text), PatternError::Nothing), "{text}");
        }
        for text in ["[ab]*a[ab]{20}", "(?:[a-z]{100}){100}{100}"] {
            assert!(matches!(error(text), PatternError::Size), "{text}");
        }
    }

    #[test]
    fn the_order_decides_between_those_that_match() {
        let list = ["^abc", "^a", "^x"].map(|text| Pattern::new(text).unwrap());
        let all = Patterns::of(&list, |_| true);
        assert_eq!(all.first(b"a"), Err(NeedMore), "the first one may still match");
        assert_eq!(all.first(b"abc"), Ok(Some(PatternId(0))));
        assert_eq!(all.first(b"abd"), Ok(Some(PatternId(1))));
        assert_eq!(all.first(b"z"), Ok(None));
        assert_eq!(all.settle(b"a"), Some(PatternId(1)));
        assert_eq!(all.settle(b""), None);
        let some = Patterns::of(&list, |id| id.index() != 0);
        assert_eq!(
            some.first(b"a"),
            Ok(Some(PatternId(1))),
            "what cannot take the connection is not waited for"
        );
        assert_eq!(Patterns::default().first(b"a"), Ok(None));
    }

    const PARTS: [&str; 10] = ["a", "b", ".", "[ab]", "a*", "(?:a|bc)", "b+", "c?", "|", "(?:ab){2}"];

    proptest! {
        #[test]
        fn a_verdict_is_final_and_the_same_as_that_of_a_search(
            parts in prop::collection::vec(prop::sample::select(PARTS.to_vec()), 1..7),
            bytes in prop::collection::vec(prop::sample::select(b"abcd\n".to_vec()), 0..12),
        ) {
            let text = parts.concat();
            let Ok(pattern) = Pattern::new(&text) else { return Ok(()) };
            let anchored = format!("^(?:{})", text);
            let search = regex::bytes::RegexBuilder::new(&anchored).unicode(false).dot_matches_new_line(true).build();
            let search = search.unwrap();
            let mut before = Step::NeedMore;
            for len in 0..=bytes.len() {
                let now = pattern.step(&bytes[..len]);
                prop_assert!(before == Step::NeedMore || before == now);
                prop_assert_eq!(now == Step::Is, search.is_match(&bytes[..len]), "{} of {:?}", text, &bytes[..len]);
                before = now;
            }
        }
    }
}
