//! The access log's writer: lines go into a bounded queue that never makes a connection wait.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metrics::Counter;

use super::registry::{Family, Registry};
use crate::config::{AccessLogConfig, LogFormat, LogTarget};

/// Lines that may wait to be written: a second of a busy proxy, about 4 MiB.
const QUEUE: usize = 8192;
/// How long closing waits for a destination that blocks.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

const DROPPED: Family = Family {
    name: "portcullis_accesslog_dropped_total",
    help: "Access log lines thrown away because the destination was slow or failed.",
    labels: &[],
};

/// Where finished connections are told of.
#[derive(Debug)]
pub struct AccessLog {
    queue: Option<SyncSender<String>>,
    format: LogFormat,
    dropped: Counter,
}

/// The writer's side, to be closed when no more lines will come.
#[derive(Debug)]
pub struct AccessLogWriter(Option<JoinHandle<()>>);

impl AccessLog {
    /// Opens the destination and starts its writer.
    ///
    /// # Errors
    /// When a file cannot be opened for appending, or no thread can be started.
    pub fn open(config: &AccessLogConfig, registry: &Registry) -> io::Result<(Self, AccessLogWriter)> {
        let dropped = registry.counter(&DROPPED, &[]);
        let output: Box<dyn Write + Send> = match &config.to {
            LogTarget::Off => {
                let log = Self { queue: None, format: config.format, dropped };
                return Ok((log, AccessLogWriter(None)));
            }
            LogTarget::Stdout => Box::new(io::stdout()),
            LogTarget::Stderr => Box::new(io::stderr()),
            LogTarget::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
        };
        let (queue, lines) = sync_channel(QUEUE);
        let failed = dropped.clone();
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(&lines, BufWriter::new(output), &failed))?;
        Ok((Self { queue: Some(queue), format: config.format, dropped }, AccessLogWriter(Some(thread))))
    }

    /// The form of a line, or `None` when lines are not wanted.
    pub fn format(&self) -> Option<LogFormat> {
        self.queue.as_ref().map(|_| self.format)
    }

    /// Queues a line without its end, or counts it as dropped; never waits.
    pub fn write(&self, line: String) {
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = queue.try_send(line) {
            self.dropped.increment(1);
        }
    }
}

impl AccessLogWriter {
    /// Waits until every queued line is written; all [`AccessLog`]s must be gone. Gives up after a second on
    /// a destination that blocks.
    pub fn close(self) {
        let Some(thread) = self.0 else { return };
        let deadline = Instant::now() + CLOSE_DEADLINE;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// Writes lines until the queue is closed. What is written is flushed whenever the queue is empty.
fn write_lines(lines: &Receiver<String>, mut output: BufWriter<Box<dyn Write + Send>>, failed: &Counter) {
    loop {
        let line = match lines.recv_timeout(Duration::ZERO) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                let _ = output.flush();
                match lines.recv() {
                    Ok(line) => line,
                    Err(_) => return,
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                let _ = output.flush();
                return;
            }
        };
        if output.write_all(line.as_bytes()).and_then(|()| output.write_all(b"\n")).is_err() {
            failed.increment(1);
        }
    }
}
