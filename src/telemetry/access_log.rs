//! The access log: one line for each connection that has ended.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use metrics::Counter;
use tracing::warn;

use super::queue::LineQueue;
use super::registry::{Family, Registry};
use crate::config::{AccessLogConfig, LogFormat, LogTarget};

const DROPPED: Family = Family {
    name: "portcullis_accesslog_dropped_total",
    help: "Access log lines thrown away because the destination was slow or failed.",
    labels: &[],
};

/// Where finished connections are told of.
#[derive(Debug)]
pub struct AccessLog {
    queue: Option<LineQueue>,
    format: LogFormat,
    dropped: Counter,
}

impl AccessLog {
    /// Opens the destination and starts its writer.
    ///
    /// # Errors
    /// When a file cannot be opened for appending, or no thread can be started.
    pub fn open(config: &AccessLogConfig, registry: &Registry) -> io::Result<Self> {
        let dropped = registry.counter(&DROPPED, &[]);
        let output: Box<dyn Write + Send> = match &config.to {
            LogTarget::Off => return Ok(Self { queue: None, format: config.format, dropped }),
            LogTarget::Stdout => Box::new(io::stdout()),
            LogTarget::Stderr => Box::new(io::stderr()),
            LogTarget::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
        };
        let (failed, warned) = (dropped.clone(), AtomicBool::new(false));
        let lost = move |error: &io::Error| {
            failed.increment(1);
            if !warned.swap(true, Ordering::Relaxed) {
                warn!(%error, "cannot write the access log; lost lines are only counted from here on");
            }
        };
        let queue = LineQueue::start("access-log", output, lost)?;
        Ok(Self { queue: Some(queue), format: config.format, dropped })
    }

    /// The form of a line, or `None` when lines are not wanted.
    pub fn format(&self) -> Option<LogFormat> {
        self.queue.as_ref().map(|_| self.format)
    }

    /// Queues a line without its end, or counts it as dropped; never waits.
    pub fn write(&self, mut line: String) {
        line.push('\n');
        if self.queue.as_ref().is_some_and(|queue| !queue.push(line.into_bytes())) {
            self.dropped.increment(1);
        }
    }

    /// Waits until what is queued is written, at most a second.
    pub fn flush(&self) {
        if let Some(queue) = &self.queue {
            queue.flush();
        }
    }
}
