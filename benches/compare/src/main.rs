//! `compare-load`: all loads against one proxy, and what they cost it. One `name value` a line comes out;
//! `run` beside this package starts the proxies and makes a table of several.

mod check;
mod hello;
mod load;
mod measure;
mod process;
mod stats;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Parser;

use crate::check::Path;
use crate::hello::{Kind, client_hello};
use crate::load::{Plan, Work};
use crate::measure::Bench;
use crate::process::Tree;

/// The name in every hello; the proxy must route it to the backend.
const NAME: &str = "a.test";

/// Measures what a TLS passthrough proxy costs. It must route a.test from --proxy to --backend, where this
/// program answers.
#[derive(Parser)]
struct Options {
    /// Where the proxy listens (loopback only)
    #[arg(long, value_name = "ADDRESS")]
    proxy: SocketAddr,
    /// Where the proxy finds its backend (loopback only)
    #[arg(long, value_name = "ADDRESS")]
    backend: SocketAddr,
    /// The proxy's process; its children are found
    #[arg(long)]
    pid: u32,
    /// Length of each measuring window, 0.1 to 60
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// How fast streams go, all together, in MB (10^6 bytes) a second: less than load and proxy can do, 1 to 100000
    #[arg(long, default_value_t = 1500, value_name = "MB")]
    rate: u64,
    /// Only these loads, with commas; all others are left out
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    /// Idle connections to hold; each takes two descriptors here and two of the proxy
    #[arg(long, default_value_t = 8000, value_name = "COUNT")]
    idle: usize,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(
        options.proxy.ip().is_loopback() && options.backend.ip().is_loopback(),
        "both addresses must be on loopback: these loads are not for networks"
    );
    ensure!((0.1..=60.0).contains(&options.seconds), "--seconds is 0.1 to 60");
    ensure!((1..=100_000).contains(&options.rate), "--rate is 1 to 100000");
    let tree = Tree::of(options.pid);
    if tree.is_empty() {
        bail!("there is no process {}", options.pid);
    }
    let listener = TcpListener::bind(options.backend).context("cannot listen as the backend")?;
    listener.set_nonblocking(true)?;
    let listener = OwnedFd::from(listener);
    let post_quantum = client_hello(Kind::PostQuantum, NAME);
    let path = Path { proxy: options.proxy, listener: &listener, hello: &post_quantum };
    path.wait().context("nothing came through the proxy")?;
    verdict("echo", path.echo())?;
    verdict("half_close", path.half_close())?;

    // Anew: a proxy may have started its workers only now.
    let tree = Tree::of(options.pid);
    let window = Duration::from_secs_f64(options.seconds);
    let bench = Bench { proxy: options.proxy, listener: &listener, tree, window };
    // First, while the proxy's memory is fresh: what an allocator kept from other loads would hide it.
    if options.idle > 0 {
        let work = Work::Hold { answer: 1000 };
        print(&bench.idle(Plan { hello: post_quantum.clone(), work, clients: options.idle })?)?;
    }
    for (name, kind, clients, work) in loads(options.rate) {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        print(&bench.window(name, Plan { hello: client_hello(kind, NAME), work, clients })?)?;
    }
    Ok(())
}

/// All loads with a window: name, hello, connections at once, what happens on each.
fn loads(rate: u64) -> [(&'static str, Kind, usize, Work); 7] {
    let connect = Work::Connect { answer: 3000 };
    let exchange = Work::Exchange { request: 200, answer: 1000 };
    let stream = |down, up| Work::Stream { down, up, rate };
    [
        ("connect_classic", Kind::Classic, 64, connect),
        ("connect_pq", Kind::PostQuantum, 64, connect),
        ("exchange_1", Kind::PostQuantum, 1, exchange),
        ("exchange_64", Kind::PostQuantum, 64, exchange),
        ("download", Kind::PostQuantum, 8, stream(true, false)),
        ("upload", Kind::PostQuantum, 8, stream(false, true)),
        ("both", Kind::PostQuantum, 8, stream(true, true)),
    ]
}

fn verdict(name: &str, result: io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) => writeln!(io::stdout(), "check.{name} ok"),
        Err(error) => writeln!(io::stdout(), "check.{name} {error}"),
    }
}

fn print(figures: &[(String, f64)]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    figures.iter().try_for_each(|(name, value)| writeln!(out, "{name} {value:.4}"))
}
