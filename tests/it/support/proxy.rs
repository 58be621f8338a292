//! The proxy as a user runs it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::metrics::Metrics;
use super::process::{Finished, Process, finish};
use super::{SOON, share_pipe_memory, until};

const BINARY: &str = env!("CARGO_BIN_EXE_portcullis");
/// Threads of the data plane: two show what one hides, and the figures do not depend on the machine.
const WORKERS: &str = "2";

/// A running `portcullis run` with a configuration of its own.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) process: Process,
    /// Where the configuration is, for as long as the process lives.
    dir: TempDir,
    /// Processes that took over, the last one last; ended with this.
    successors: Vec<Pid>,
    /// That the user's pipe memory is there, for as long as the process lives.
    _pipes: Option<File>,
}

/// An answer of the admin server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    /// Reads it to the end of the stream.
    pub(crate) fn read(stream: &mut impl Read) -> std::io::Result<Self> {
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        Ok(Self { status, body: body.to_owned() })
    }
}

impl Proxy {
    /// Starts with `config` and waits until it is ready.
    pub(crate) fn start(config: &str) -> Self {
        Self::start_under(&[], config)
    }

    /// The same, behind a command that ends in an exec of its arguments, such as `prlimit`.
    pub(crate) fn start_under(wrapper: &[&str], config: &str) -> Self {
        Self::start_by(wrapper, "util-linux", config)
    }

    /// The same, where the command is of this Debian package.
    pub(crate) fn start_by(wrapper: &[&str], package: &str, config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("portcullis.toml");
        std::fs::write(&file, config).unwrap();
        let words: Vec<&str> = wrapper.iter().copied().chain([BINARY, "run", "--workers", WORKERS]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("--config").arg(&file);
        Self::start_command(&mut command, package, dir)
    }

    /// Starts a binary of the test's own, a copy or a link, so that another may be put in its place.
    pub(crate) fn start_binary(binary: &Path, config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("portcullis.toml");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new(binary);
        command.args(["run", "--workers", WORKERS, "--config"]).arg(&file);
        Self::start_command(&mut command, "portcullis", dir)
    }

    fn start_command(command: &mut Command, package: &str, dir: TempDir) -> Self {
        let mut proxy =
            Self { process: Process::start(command, package), dir, successors: Vec::new(), _pipes: None };
        until("ready", SOON, || {
            if let Some(status) = proxy.process.exit() {
                panic!("ended at start with {status}: {:#?}", proxy.process.stderr.all());
            }
            proxy.logged("ready").pop()
        });
        proxy
    }

    /// The file of its configuration.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("portcullis.toml")
    }

    /// Writes another configuration for it to read, as editors do: beside the old one, then over it.
    pub(crate) fn write(&self, config: &str) {
        let new = self.dir.path().join("portcullis.toml.new");
        std::fs::write(&new, config).unwrap();
        std::fs::rename(&new, self.file()).unwrap();
    }

    /// Lets it read its configuration again.
    pub(crate) fn reload(&self) -> Finished {
        on_file("reload", &self.file(), &["--admin", &self.admin().to_string()])
    }

    /// Gives it another configuration, which it must take.
    pub(crate) fn reconfigure(&self, config: &str) -> Finished {
        self.write(config);
        let done = self.reload();
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        done
    }

    /// Lets a new process take over, and waits until it serves; the old one drains.
    pub(crate) fn upgrade(&mut self) {
        let served = self.logged("the new process serves").len();
        let running = self.successors.last().copied();
        match running {
            Some(pid) => kill_process(pid, Signal::USR2).unwrap(),
            None => self.process.signal(Signal::USR2),
        }
        let line =
            until("a new process", SOON, || self.logged("the new process serves").get(served).cloned());
        let pid = line["pid"].as_i64().unwrap();
        self.successors.push(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap());
    }

    /// For tests in which it splices: see [`share_pipe_memory`].
    pub(crate) fn streaming(mut self) -> Self {
        self._pipes = Some(share_pipe_memory());
        self
    }

    /// The lines of the process log with this message.
    pub(crate) fn logged(&self, message: &str) -> Vec<Value> {
        let lines = self.process.stderr.all();
        let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"] == message).collect()
    }

    /// The first address that it listens on.
    pub(crate) fn addr(&self) -> SocketAddr {
        address(&self.logged("listening")[0])
    }

    /// The first address of the listener called `name`.
    pub(crate) fn listener(&self, name: &str) -> SocketAddr {
        let lines = self.logged("listening");
        address(
            lines.iter().find(|line| line["listener"] == name).unwrap_or_else(|| panic!("{name}: {lines:?}")),
        )
    }

    /// The address of the admin server.
    pub(crate) fn admin(&self) -> SocketAddr {
        address(&self.logged("admin listening")[0])
    }

    /// The access log so far; every line must be JSON.
    pub(crate) fn access_log(&self) -> Vec<Value> {
        let lines = self.process.stdout.all();
        lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// Waits for an access-log line.
    pub(crate) fn access_line(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let lines = self.access_log();
            if let Some(line) = lines.iter().find(|line| wanted(line)) {
                return line.clone();
            }
            assert!(start.elapsed() < SOON, "no access-log line: {what}; there are {lines:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The access-log line of the connection that came from `client`.
    pub(crate) fn access_line_of(&self, client: SocketAddr) -> Value {
        self.access_line(&format!("client {client}"), |line| line["client"] == client.to_string())
    }

    /// Asks the admin server for `path`.
    pub(crate) fn ask(&self, path: &str) -> Answer {
        self.try_ask(path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) fn try_ask(&self, path: &str) -> std::io::Result<Answer> {
        let mut stream = TcpStream::connect_timeout(&self.admin(), SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        Answer::read(&mut stream)
    }

    /// Asks `/api/v1` for something; gives the status and what was answered.
    pub(crate) fn api(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let answer = self.api_with(method, path, "", body);
        let value = serde_json::from_str(&answer.body).unwrap_or_else(|_| Value::String(answer.body));
        (answer.status, value)
    }

    /// The same with further `headers`, each with its line end, and the answer as it came.
    pub(crate) fn api_with(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect_timeout(&self.admin(), SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let host = if headers.contains("Host:") { "" } else { "Host: localhost\r\n" };
        let length = body.len();
        write!(
            stream,
            "{method} /api/v1/{path} HTTP/1.0\r\n{host}{headers}Content-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        Answer::read(&mut stream).unwrap()
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let answer = self.ask("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.body);
        Metrics::parse(&answer.body)
    }

    /// Waits until a metric has a value.
    pub(crate) fn wait_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        let start = Instant::now();
        loop {
            let now = self.metrics().sum(name, labels);
            if (now - value).abs() < 0.5 {
                return;
            }
            assert!(start.elapsed() < SOON, "{name}{labels:?} is {now}, not {value}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The oracle of every test under attack: it lives, and nothing panicked.
    pub(crate) fn assert_sound(&mut self) {
        assert_eq!(self.process.exit(), None, "it ended: {:#?}", self.process.stderr.all());
        assert!(!self.process.stderr.contains("panicked"), "{:#?}", self.process.stderr.all());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for pid in &self.successors {
            // Those before the last have ended when they had drained.
            let _ = kill_process(*pid, Signal::KILL);
        }
        if std::thread::panicking() {
            let last = |lines: Vec<String>| lines[lines.len().saturating_sub(20)..].join("\n");
            println!("process log:\n{}", last(self.process.stderr.all()));
            println!("access log:\n{}", last(self.process.stdout.all()));
        } else {
            assert!(!self.process.stderr.contains("panicked"), "{:#?}", self.process.stderr.all());
        }
    }
}

fn address(line: &Value) -> SocketAddr {
    line["address"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("no address: {line}"))
}

/// Runs a verb of the binary to its end.
pub(crate) fn portcullis(args: &[&str]) -> Finished {
    finish(Command::new(BINARY).args(args), "portcullis", "")
}

/// The same behind a command that ends in an exec of its arguments, of util-linux.
pub(crate) fn portcullis_under(wrapper: &[&str], args: &[&str]) -> Finished {
    let words: Vec<&str> = wrapper.iter().copied().chain([BINARY]).chain(args.iter().copied()).collect();
    finish(Command::new(words[0]).args(&words[1..]), "util-linux", "")
}

/// A verb of the binary as a process that goes on.
pub(crate) fn start_portcullis(args: &[&str]) -> Process {
    Process::start(Command::new(BINARY).args(args), "portcullis")
}

/// Writes `config` into a folder of its own and runs a verb on it.
pub(crate) fn on_config(verb: &str, config: &str, args: &[&str]) -> Finished {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("portcullis.toml");
    std::fs::write(&file, config).unwrap();
    on_file(verb, &file, args)
}

/// Runs a verb on a configuration file.
pub(crate) fn on_file(verb: &str, file: &Path, args: &[&str]) -> Finished {
    let mut words = vec![verb, "--config", file.to_str().unwrap()];
    words.extend(args);
    portcullis(&words)
}
