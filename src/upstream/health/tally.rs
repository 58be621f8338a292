//! From single results to whether an endpoint is up.

/// Counts results: one that differs from those before changes nothing, several in a row do.
#[derive(Clone, Debug)]
pub struct Tally {
    rise: u32,
    fall: u32,
    /// `None` until the first result.
    up: Option<bool>,
    /// Results in a row that say otherwise.
    against: u32,
}

/// What a result makes of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It stays what it is.
    None,
    /// It is up from now on.
    Up,
    /// It is down from now on.
    Down,
}

impl Tally {
    /// Begins with what is known. Without that the first result decides by itself, so that nobody waits for `fall` checks
    /// of an endpoint that was never there.
    pub fn new(rise: u32, fall: u32, up: Option<bool>) -> Self {
        Self { rise, fall, up, against: 0 }
    }

    /// Whether it is up; `None` before the first result.
    pub fn up(&self) -> Option<bool> {
        self.up
    }

    /// Takes a result.
    pub fn note(&mut self, passed: bool) -> Change {
        if self.up == Some(passed) {
            self.against = 0;
            return Change::None;
        }
        self.against = self.against.saturating_add(1);
        let needed = match self.up {
            None => 1,
            Some(true) => self.fall,
            Some(false) => self.rise,
        };
        if self.against < needed {
            return Change::None;
        }
        self.against = 0;
        self.up = Some(passed);
        if passed { Change::Up } else { Change::Down }
    }
}
