//! The log of the process itself: what it did and what went wrong, on standard error.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::TryInitError;

use super::queue::LineQueue;

/// Form of the process log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogStyle {
    /// For people: text, coloured on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error("bad log filter")]
    Filter(#[from] ParseError),
    /// A word that is neither a level nor `target=level`: taken for a target, it would silence all others.
    #[error("`{0}` is not a log level; the levels are error, warn, info, debug, trace and off")]
    Level(String),
    /// Its thread cannot be started.
    #[error("cannot start the log's thread")]
    Thread(#[from] io::Error),
    /// A log was set up before.
    #[error("the log is set up already")]
    Twice(#[from] TryInitError),
}

/// The running log.
#[derive(Debug)]
pub struct Log(LineQueue);

impl Log {
    /// Waits until what was told is written, at most a second.
    pub fn flush(&self) {
        self.0.flush();
    }
}

/// Starts the log. `filter` is a level or a list of `target=level`; without a style it is text on a terminal
/// and JSON elsewhere. Telling something never waits and never fails: a destination that is stuck or gone
/// costs lines, not service.
///
/// # Errors
/// When the filter is malformed, no thread can be started, or when called twice.
pub fn start(filter: &str, style: Option<LogStyle>) -> Result<Log, LogError> {
    use tracing_subscriber::util::SubscriberInitExt;
    let words = filter.split(',').map(str::trim).filter(|word| !word.is_empty() && !word.contains('='));
    for word in words {
        word.parse::<LevelFilter>().map_err(|_| LogError::Level(word.to_owned()))?;
    }
    let terminal = io::stderr().is_terminal();
    let style = style.unwrap_or(if terminal { LogStyle::Text } else { LogStyle::Json });
    let queue = LineQueue::start("log", Box::new(io::stderr()), |_| ())?;
    let builder = tracing_subscriber::fmt()
        .with_writer(Lines(queue.clone()))
        // It would complain on standard error about standard error, and panic over that.
        .log_internal_errors(false)
        .with_env_filter(EnvFilter::try_new(filter)?);
    match style {
        LogStyle::Text => {
            let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            builder.with_ansi(colour).with_target(false).finish().try_init()?;
        }
        LogStyle::Json => builder.json().flatten_event(true).finish().try_init()?,
    }
    Ok(Log(queue))
}

/// Makes a writer for each line.
struct Lines(LineQueue);

/// Collects a line and queues it when it is complete.
struct Line<'a> {
    queue: &'a LineQueue,
    bytes: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line { queue: &self.0, bytes: Vec::new() }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        // A full queue loses the line: that is what it is bounded for.
        let _: bool = self.queue.push(std::mem::take(&mut self.bytes));
    }
}
