//! The memory that unfinished hellos take, of all connections together.
//!
//! A hello that comes whole is never counted: what is bounded is what clients make the proxy keep while they
//! take their time.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How much of it there may be, and how much there is.
#[derive(Debug)]
pub struct HelloBytes {
    most: AtomicUsize,
    in_use: AtomicUsize,
}

/// What one connection has of it; dropping it gives that back.
#[derive(Debug)]
pub(super) struct Held<'a> {
    all: &'a HelloBytes,
    bytes: usize,
}

impl HelloBytes {
    /// Up to `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { most: AtomicUsize::new(most), in_use: AtomicUsize::new(0) }
    }

    /// From now on up to `most` bytes; what is held above that stays until its connections go on or end.
    pub fn resize(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Bytes held now.
    pub fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    /// The share of a connection that holds nothing yet.
    pub(super) fn hold(&self) -> Held<'_> {
        Held { all: self, bytes: 0 }
    }
}

impl Held<'_> {
    /// Makes it `bytes` in all; whether there is room for that. Without it nothing changes. What shrinks always has
    /// room.
    pub(super) fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 {
            let most = self.all.most.load(Ordering::Relaxed);
            let below = |held: usize| held.checked_add(more).filter(|held| *held <= most);
            if self.all.in_use.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).is_err() {
                return false;
            }
            self.bytes = bytes;
        }
        true
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Nearly all connections have nothing, and touch nothing that others share.
        if self.bytes > 0 {
            self.all.in_use.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_grow_beyond_the_bound_is_refused_and_keeps_what_it_has() {
        let all = HelloBytes::new(100);
        let (mut one, mut two) = (all.hold(), all.hold());
        assert!(one.grow_to(60) && two.grow_to(40));
        assert_eq!(all.in_use(), 100);
        assert!(!two.grow_to(41) && all.in_use() == 100);
        assert!(two.grow_to(40), "it has that already");
        drop(one);
        assert!(two.grow_to(100));
        assert!(!two.grow_to(usize::MAX));
        drop(two);
        assert_eq!(all.in_use(), 0);
    }

    #[test]
    fn a_smaller_bound_takes_nothing_away() {
        let all = HelloBytes::new(100);
        let mut one = all.hold();
        assert!(one.grow_to(80));
        all.resize(50);
        assert!(!one.grow_to(81) && one.grow_to(80));
        assert!(!all.hold().grow_to(1));
        drop(one);
        assert!(all.hold().grow_to(50));
    }
}
