//! The log of the process itself: what it did and what went wrong, on standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::TryInitError;

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
    /// A log was set up before.
    #[error("the log is set up already")]
    Twice(#[from] TryInitError),
}

/// Starts the log. `filter` is a level or a list of `target=level`; without a style it is text on a terminal
/// and JSON elsewhere.
///
/// # Errors
/// When the filter is malformed, or when called twice.
pub fn start(filter: &str, style: Option<LogStyle>) -> Result<(), LogError> {
    use tracing_subscriber::util::SubscriberInitExt;
    let terminal = io::stderr().is_terminal();
    let style = style.unwrap_or(if terminal { LogStyle::Text } else { LogStyle::Json });
    let builder =
        tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(EnvFilter::try_new(filter)?);
    match style {
        LogStyle::Text => {
            let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            builder.with_ansi(colour).with_target(false).finish().try_init()?;
        }
        LogStyle::Json => builder.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}
