//! What is known of names that were looked up on demand, within bounds. No clock and no network: time is an argument.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::ask::{Answer, LookupError};
use super::super::course::Bounds;

/// Names that are remembered: at 16 addresses each less than 2 MB.
const MAX_NAMES: usize = 4096;
/// How long the last addresses are used before the nameserver is asked again that did not answer (RFC 8767 §5).
const STALE_FOR: Duration = Duration::from_secs(5);
/// How long a failure is remembered of a name that never had addresses: a client that tries again at once costs no
/// query (RFC 2308 §7 allows five minutes).
const FAILED_FOR: Duration = Duration::from_secs(1);
/// The last addresses are used no longer than this, whatever `stale_max` says: nobody watches over these names
/// (RFC 8767 §5 means one to three days).
const STALE_MAX: Duration = Duration::from_secs(86_400);

/// What a look-up came to.
pub(super) type Outcome = Result<Arc<[IpAddr]>, LookupError>;

/// The table. Questions are told by a `W`, which all who wait for one share.
pub(super) struct Cache<W> {
    bounds: Bounds,
    max_under_way: usize,
    names: HashMap<Box<str>, Entry>,
    under_way: HashMap<Box<str>, W>,
}

/// What is known of a name.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    outcome: Outcome,
    /// Until when it is given without another question.
    fresh_until: Instant,
    /// Until when it may be given at all.
    used_until: Instant,
    last_use: Instant,
}

/// What somebody who wants a name is told.
#[derive(Clone, Debug)]
pub(super) enum Known<W> {
    Outcome(Outcome),
    /// There is a question.
    UnderWay(W),
}

impl<W: Clone> Cache<W> {
    pub(super) fn new(bounds: Bounds, max_under_way: usize) -> Self {
        Self { bounds, max_under_way, names: HashMap::new(), under_way: HashMap::new() }
    }

    /// What is known of `host` at `now`. `begin` is called if there is to be a question, which counts as under way from
    /// now on, and makes what all wait by who want the name.
    pub(super) fn find(&mut self, host: &str, now: Instant, begin: impl FnOnce() -> W) -> Known<W> {
        let last = self.names.get_mut(host).filter(|entry| now < entry.used_until);
        if let Some(entry) = last {
            entry.last_use = now;
            if now < entry.fresh_until {
                return Known::Outcome(entry.outcome.clone());
            }
        }
        if let Some(question) = self.under_way.get(host) {
            return Known::UnderWay(question.clone());
        }
        if self.under_way.len() >= self.max_under_way {
            let last = self.names.get(host).filter(|entry| now < entry.used_until && entry.outcome.is_ok());
            let outcome = last.map_or(Err(LookupError::Busy), |entry| entry.outcome.clone());
            return Known::Outcome(outcome);
        }
        let question = begin();
        self.under_way.insert(host.into(), question.clone());
        Known::UnderWay(question)
    }

    /// The last addresses of `host` that may still be used at `now`.
    pub(super) fn last(&self, host: &str, now: Instant) -> Vec<IpAddr> {
        let last = self.names.get(host).filter(|entry| now < entry.used_until);
        let last = last.and_then(|entry| entry.outcome.as_ref().ok());
        last.map_or_else(Vec::new, |addresses| addresses.to_vec())
    }

    /// Keeps the answer for `host` that came at `now`, and gives what those who wait are told.
    pub(super) fn answered(
        &mut self,
        host: &str,
        answer: Result<Answer<IpAddr>, LookupError>,
        now: Instant,
    ) -> Outcome {
        let stale = self.bounds.stale_max.map_or(STALE_MAX, |most| most.min(STALE_MAX));
        let last = self.names.get(host).filter(|entry| now < entry.used_until && entry.outcome.is_ok());
        let (outcome, fresh, used_until) = match answer {
            Ok(answer) => {
                let ttl = self.bounds.clamp(answer.ttl);
                (Ok(answer.records.into()), ttl, now + ttl + stale)
            }
            Err(error) if error.is_negative() => {
                let ttl = self.bounds.clamp_negative(error.ttl().unwrap_or_default());
                (Err(error), ttl, now + ttl)
            }
            Err(error) => match last {
                Some(last) => (last.outcome.clone(), STALE_FOR, last.used_until),
                None => (Err(error), FAILED_FOR, now + FAILED_FOR),
            },
        };
        let fresh_until = (now + fresh).min(used_until);
        let entry = Entry { outcome: outcome.clone(), fresh_until, used_until, last_use: now };
        self.under_way.remove(host);
        self.insert(host, entry);
        outcome
    }

    /// The question for `host` has come to its end without an answer.
    pub(super) fn ended(&mut self, host: &str) {
        self.under_way.remove(host);
    }

    /// All that is known.
    pub(super) fn known(&self) -> Vec<(Box<str>, Entry)> {
        self.names.iter().map(|(host, entry)| (host.clone(), entry.clone())).collect()
    }

    /// Knows that as well.
    pub(super) fn adopt(&mut self, known: Vec<(Box<str>, Entry)>) {
        for (host, entry) in known {
            self.insert(&host, entry);
        }
    }

    fn insert(&mut self, host: &str, entry: Entry) {
        if self.names.len() >= MAX_NAMES && !self.names.contains_key(host) {
            // Names that do not exist go first, so that nobody who asks for such pushes others out.
            let worth = |entry: &Entry| (entry.outcome.is_ok(), entry.last_use);
            let least = self.names.iter().min_by_key(|(_, entry)| worth(entry)).map(|(host, _)| host.clone());
            least.map(|host| self.names.remove(&host));
        }
        self.names.insert(host.into(), entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn cache() -> Cache<u32> {
        let (max_ttl, negative_ttl) = (300 * SECOND, 30 * SECOND);
        Cache::new(Bounds { min_ttl: SECOND, max_ttl, negative_ttl, stale_max: Some(60 * SECOND) }, 3)
    }

    fn answer(last: u8, ttl: u32) -> Result<Answer<IpAddr>, LookupError> {
        Ok(Answer { records: vec![IpAddr::from([192, 0, 2, last])], ttl: ttl * SECOND })
    }

    fn gone(ttl: u32) -> Result<Answer<IpAddr>, LookupError> {
        Err(LookupError::NoName { ttl: Some(ttl * SECOND) })
    }

    fn failed() -> Result<Answer<IpAddr>, LookupError> {
        Err(LookupError::Timeout)
    }

    /// What is told of `host`, in a word: the last byte of its address, `?` and the question, or the error.
    fn told(cache: &mut Cache<u32>, host: &str, now: Instant, question: u32) -> String {
        match cache.find(host, now, || question) {
            Known::Outcome(Ok(addresses)) => addresses[0].to_string().rsplit_once('.').unwrap().1.to_owned(),
            Known::Outcome(Err(error)) => format!("{error:?}"),
            Known::UnderWay(question) => format!("?{question}"),
        }
    }

    #[test]
    fn an_answer_is_given_for_its_time_within_the_bounds() {
        let now = Instant::now();
        for (ttl, kept) in [(0, 1), (60, 60), (86_400, 300)] {
            let mut cache = cache();
            assert_eq!(told(&mut cache, "a", now, 1), "?1");
            assert!(cache.answered("a", answer(7, ttl), now).is_ok());
            assert_eq!(told(&mut cache, "a", now + kept * SECOND - SECOND / 2, 2), "7", "{ttl}");
            assert_eq!(told(&mut cache, "a", now + kept * SECOND, 3), "?3", "{ttl}");
        }
        let mut cache = cache();
        assert!(cache.answered("a", gone(3600), now).is_err());
        assert!(told(&mut cache, "a", now + 29 * SECOND, 4).starts_with("NoName"));
        assert_eq!(told(&mut cache, "a", now + 30 * SECOND, 5), "?5");
    }

    #[test]
    fn one_question_a_name_is_under_way_and_not_too_many_in_all() {
        let (mut cache, now) = (cache(), Instant::now());
        assert_eq!(told(&mut cache, "a", now, 1), "?1");
        assert_eq!(told(&mut cache, "a", now, 2), "?1");
        assert_eq!(told(&mut cache, "b", now, 3), "?3");
        assert_eq!(told(&mut cache, "c", now, 4), "?4");
        assert_eq!(told(&mut cache, "d", now, 5), "Busy");
        assert_eq!(told(&mut cache, "a", now, 6), "?1", "waiting costs nothing");
        cache.ended("b");
        assert_eq!(told(&mut cache, "d", now, 7), "?7");
        assert!(cache.answered("a", answer(7, 1), now).is_ok());
        assert_eq!(told(&mut cache, "e", now, 8), "?8");
        // What is past its time is still better than nothing.
        assert_eq!(told(&mut cache, "a", now + 2 * SECOND, 9), "7");
    }

    #[test]
    fn without_an_answer_the_last_addresses_are_given_for_as_long_as_they_may() {
        let (mut cache, start) = (cache(), Instant::now());
        assert!(cache.answered("a", answer(7, 10), start).is_ok());
        for seconds in [10, 15, 68] {
            let now = start + seconds * SECOND;
            assert_eq!(told(&mut cache, "a", now, 1), "?1", "{seconds}");
            assert_eq!(cache.last("a", now).len(), 1);
            assert!(cache.answered("a", failed(), now).is_ok(), "{seconds}");
            assert_eq!(
                told(&mut cache, "a", now + SECOND, 2),
                "7",
                "{seconds}: it is not asked for each time"
            );
        }
        let over = start + 70 * SECOND;
        assert_eq!(cache.last("a", over).len(), 0);
        assert_eq!(told(&mut cache, "a", over, 3), "?3");
        assert!(cache.answered("a", failed(), over).is_err());
        assert_eq!(told(&mut cache, "a", over + SECOND / 2, 4), "Timeout");
        assert_eq!(told(&mut cache, "a", over + SECOND, 5), "?5");
    }

    #[test]
    fn a_name_that_is_said_not_to_exist_has_no_addresses_any_more() {
        let (mut cache, now) = (cache(), Instant::now());
        assert!(cache.answered("a", answer(7, 1), now).is_ok());
        assert!(cache.answered("a", gone(2), now + SECOND).is_err());
        assert!(told(&mut cache, "a", now + 2 * SECOND, 1).starts_with("NoName"));
        assert!(cache.answered("a", failed(), now + 4 * SECOND).is_err(), "nor are they brought back");
    }

    #[test]
    fn names_that_do_not_exist_push_no_others_out() {
        let (mut cache, start) = (cache(), Instant::now());
        for index in 0..100 {
            assert!(cache.answered(&format!("good{index}"), answer(7, 300), start).is_ok());
        }
        for index in 0..10_000 {
            let now = start + index * Duration::from_millis(1);
            assert!(cache.answered(&format!("bad{index}"), gone(30), now).is_err());
        }
        assert_eq!(cache.names.len(), MAX_NAMES);
        let now = start + 11 * SECOND;
        assert!((0..100).all(|index| told(&mut cache, &format!("good{index}"), now, 1) == "7"));
        // Among those that do, what was wanted least lately goes first.
        for index in 0..MAX_NAMES {
            assert_eq!(told(&mut cache, "good0", now + 2 * SECOND, 1), "7");
            assert!(cache.answered(&format!("new{index}"), answer(8, 300), now + SECOND).is_ok());
        }
        let now = now + 2 * SECOND;
        assert_eq!((cache.names.len(), told(&mut cache, "good0", now, 1)), (MAX_NAMES, "7".to_owned()));
        assert_eq!(told(&mut cache, "good1", now, 2), "?2");
    }

    #[test]
    fn what_is_known_is_handed_on() {
        let (mut one, mut other, now) = (cache(), cache(), Instant::now());
        assert!(one.answered("a", answer(7, 60), now).is_ok());
        other.adopt(one.known());
        assert_eq!(told(&mut other, "a", now + SECOND, 1), "7");
        assert_eq!(told(&mut other, "a", now + 61 * SECOND, 2), "?2");
    }
}
