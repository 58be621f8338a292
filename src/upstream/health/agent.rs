//! The agent of a host: one line that says what it thinks of itself.

use super::error::Excerpt;

/// Longest line of an agent.
pub(super) const LINE: usize = 256;

/// What an agent says; what it does not say stays as it was said before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentReport {
    /// Whether the endpoint is to be used.
    pub state: Option<AgentState>,
    /// The share of its weight that it wants, in percent.
    pub weight: Option<u8>,
}

/// What an agent says of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentState {
    /// Use it.
    Up,
    /// Give it no new connections.
    Drain,
    /// It does not serve.
    Down,
}

impl AgentReport {
    /// Reads a line: words, between which there may be blanks and commas, as HAProxy's agents write them. Some of what was
    /// said when there is none that is known.
    pub(super) fn parse(said: &[u8]) -> Result<Self, Excerpt> {
        let line = said.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
        let text = str::from_utf8(line).map_err(|_| Excerpt::of(line))?;
        let mut report = Self::default();
        for word in text.split([' ', '\t', ',']).filter(|word| !word.is_empty()) {
            match word.to_ascii_lowercase().as_str() {
                "up" | "ready" => report.state = Some(AgentState::Up),
                "drain" | "maint" => report.state = Some(AgentState::Drain),
                "down" | "fail" | "failed" | "stopped" => report.state = Some(AgentState::Down),
                other => report.weight = Some(percent(other).ok_or_else(|| Excerpt::of(line))?),
            }
        }
        if report == Self::default() { Err(Excerpt::of(line)) } else { Ok(report) }
    }

    /// Takes over what `newer` says.
    pub(super) fn update(&mut self, newer: Self) {
        self.state = newer.state.or(self.state);
        self.weight = newer.weight.or(self.weight);
    }
}

/// `75%`.
fn percent(word: &str) -> Option<u8> {
    let digits = word.strip_suffix('%')?;
    let all = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|share| all && *share <= 100)
}
