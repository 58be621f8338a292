//! `portcullis upstream`: backends at run time.

use std::fmt::Write;
use std::thread;
use std::time::{Duration, Instant};

use clap::Subcommand;
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::ask::ProcessArg;
use super::{Exit, complain, print};
use crate::config::{MAX_TIER, MAX_WEIGHT, parse_duration};

/// How often it is asked whether a backend has connections yet.
const LOOK: Duration = Duration::from_millis(250);

/// Arguments of `upstream`.
#[derive(Debug, clap::Args)]
pub(super) struct Upstream {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the addresses of backends, with their state, weight and connections.
    List(List),
    /// Let a backend get connections that the configuration does not have, or that was removed.
    Add(Add),
    /// Let a backend get no connections any more; those that it has go on.
    Remove(Which),
    /// Set the weight of a backend; with 0 it gets no new connections.
    Weight(Weight),
    /// Let a backend, or one address of a name, get no new connections; those that it has go on.
    Drain(Drain),
    /// Let it get new connections again.
    Undrain(Which),
}

/// Arguments of `upstream list`.
#[derive(Debug, clap::Args)]
struct List {
    /// Only this upstream: its name, or that of the route whose `to` it is.
    upstream: Option<String>,
    /// As the admin server tells it, in JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    process: ProcessArg,
}

/// Which backend.
#[derive(Debug, clap::Args)]
struct Which {
    /// The upstream: its name, or that of the route whose `to` it is.
    upstream: String,
    /// The backend, as it is written in the configuration.
    backend: String,
    #[command(flatten)]
    process: ProcessArg,
}

/// Arguments of `upstream add`.
#[derive(Debug, clap::Args)]
struct Add {
    #[command(flatten)]
    which: Which,
    /// Its share beside the others.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_WEIGHT)))]
    weight: Option<u32>,
    /// It gets connections only while no backend of a lower tier is available.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_TIER)))]
    tier: Option<u32>,
    /// The zone that it stands in.
    #[arg(long)]
    zone: Option<String>,
    /// The most connections that it has at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: Option<u32>,
}

/// Arguments of `upstream weight`.
#[derive(Debug, clap::Args)]
struct Weight {
    #[command(flatten)]
    which: Which,
    /// The weight; 1 is that of a backend without one.
    #[arg(value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_WEIGHT)))]
    weight: u32,
}

/// Arguments of `upstream drain`.
#[derive(Debug, clap::Args)]
struct Drain {
    #[command(flatten)]
    which: Which,
    /// Wait until it has no connections any more, for so long at most.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,
}

/// What the process answers to a change.
#[derive(Debug, Deserialize)]
struct Changed {
    connections: u64,
    warning: Option<String>,
}

/// What it tells of all.
#[derive(Debug, Deserialize)]
struct All {
    upstreams: Vec<Pool>,
}

#[derive(Debug, Deserialize)]
struct Pool {
    upstream: String,
    backends: Vec<Backend>,
}

#[derive(Debug, Deserialize)]
struct Backend {
    backend: String,
    added: bool,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    address: String,
    state: String,
    since_s: u64,
    weight: u32,
    connections: u64,
    error: Option<String>,
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    parse_duration(text).ok_or("not a duration; write 30s, 10m or 1h30m")
}

impl Upstream {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        match self.verb {
            Verb::List(list) => list.run(),
            Verb::Add(add) => add.run(),
            Verb::Remove(which) => {
                let Changed { connections, .. } = which.ask("remove", json!({}))?;
                which.done(&format!("is removed; {}", going_on(connections)))
            }
            Verb::Weight(Weight { which, weight }) => {
                which.ask("weight", json!({ "weight": weight }))?;
                which.done(&format!("has the weight {weight}"))
            }
            Verb::Drain(drain) => drain.run(),
            Verb::Undrain(which) => {
                which.ask("undrain", json!({}))?;
                which.done("is no longer drained")
            }
        }
    }
}

impl List {
    fn run(self) -> anyhow::Result<Exit> {
        let answer = self.process.ask(Method::GET, "/api/v1/upstreams", None)?.done()?;
        let mut all: Value = answer.json()?;
        if let Some(name) = &self.upstream {
            let pools = all.get_mut("upstreams").and_then(Value::as_array_mut);
            let found = pools.is_some_and(|pools| {
                pools.retain(|pool| pool.get("upstream").and_then(Value::as_str) == Some(name));
                !pools.is_empty()
            });
            if !found {
                anyhow::bail!("there is no upstream `{name}`; `portcullis upstream list` tells all of them");
            }
        }
        if self.json {
            return print(&format!("{all:#}\n"));
        }
        let all: All = serde_json::from_value(all)?;
        print(&table(&all))
    }
}

impl Which {
    /// Asks for something to be done to it; says what it should not have been, if anything.
    fn ask(&self, verb: &str, mut body: Value) -> anyhow::Result<Changed> {
        if let Some(fields) = body.as_object_mut() {
            fields.insert("upstream".to_owned(), self.upstream.as_str().into());
            fields.insert("backend".to_owned(), self.backend.as_str().into());
        }
        let path = format!("/api/v1/upstreams/{verb}");
        let changed: Changed = self.process.ask(Method::POST, &path, Some(&body))?.done()?.json()?;
        if let Some(warning) = &changed.warning {
            complain(&format!("warning: {}: {warning}", self.upstream));
        }
        Ok(changed)
    }

    fn done(&self, what: &str) -> anyhow::Result<Exit> {
        print(&format!("{} {} {what}\n", self.upstream, self.backend))
    }

    /// How many connections it has.
    fn connections(&self) -> anyhow::Result<u64> {
        let all: All = self.process.ask(Method::GET, "/api/v1/upstreams", None)?.done()?.json()?;
        let pools = all.upstreams.iter().filter(|pool| pool.upstream == self.upstream);
        let backends = pools.flat_map(|pool| &pool.backends);
        let endpoints = backends.flat_map(|backend| {
            let whole = backend.backend == self.backend;
            backend.endpoints.iter().filter(move |endpoint| whole || endpoint.address == self.backend)
        });
        Ok(endpoints.map(|endpoint| endpoint.connections).sum())
    }
}

impl Add {
    fn run(self) -> anyhow::Result<Exit> {
        let mut body = json!({});
        if let Some(fields) = body.as_object_mut() {
            let said = [
                ("weight", self.weight.map(Value::from)),
                ("tier", self.tier.map(Value::from)),
                ("zone", self.zone.as_deref().map(Value::from)),
                ("max_connections", self.max_connections.map(Value::from)),
            ];
            fields.extend(said.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        }
        self.which.ask("add", body)?;
        self.which.done("is added")
    }
}

impl Drain {
    fn run(self) -> anyhow::Result<Exit> {
        let start = Instant::now();
        let Changed { mut connections, .. } = self.which.ask("drain", json!({}))?;
        let Some(limit) = self.wait else {
            return self.which.done(&format!("is drained; {}", going_on(connections)));
        };
        while connections > 0 && start.elapsed() < limit {
            // Nothing tells of the end of a connection but asking again.
            thread::sleep(LOOK.min(limit.saturating_sub(start.elapsed())));
            connections = self.which.connections()?;
        }
        self.which.done(&format!("is drained; {}", going_on(connections)))?;
        Ok(if connections == 0 { Exit::Done } else { Exit::Failure })
    }
}

fn going_on(connections: u64) -> String {
    match connections {
        0 => "it has no connections".to_owned(),
        1 => "1 connection goes on".to_owned(),
        all => format!("{all} connections go on"),
    }
}

/// A line for each address, in columns.
fn table(all: &All) -> String {
    let head = ["UPSTREAM", "BACKEND", "ADDRESS", "STATE", "SINCE", "WEIGHT", "CONNECTIONS", "ERROR"];
    let mut rows = vec![head.map(str::to_owned)];
    for pool in &all.upstreams {
        for backend in &pool.backends {
            let name =
                if backend.added { format!("{} (added)", backend.backend) } else { backend.backend.clone() };
            let row = |address: &str, rest: [String; 5]| {
                let [state, since, weight, connections, error] = rest;
                [
                    pool.upstream.clone(),
                    name.clone(),
                    address.to_owned(),
                    state,
                    since,
                    weight,
                    connections,
                    error,
                ]
            };
            if backend.endpoints.is_empty() {
                rows.push(row("-", ["no address", "-", "-", "-", "-"].map(str::to_owned)));
            }
            rows.extend(backend.endpoints.iter().map(|one| {
                let error = one.error.clone().unwrap_or_else(|| "-".to_owned());
                let figures = [since(one.since_s), one.weight.to_string(), one.connections.to_string()];
                let [since, weight, connections] = figures;
                row(&one.address, [one.state.clone(), since, weight, connections, error])
            }));
        }
    }
    in_columns(&rows)
}

fn in_columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{}", Vec::from_iter(cells).join("  ").trim_end());
    }
    out
}

/// A time in its two largest units.
fn since(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_two_units() {
        let told: Vec<_> = [0, 59, 60, 3599, 3600, 86_399, 86_400, 200_000].map(since).into();
        assert_eq!(told, ["0s", "59s", "1m0s", "59m59s", "1h0m", "23h59m", "1d0h", "2d7h"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["A", "LONG"], ["über", "b"]].map(|row| row.map(str::to_owned));
        assert_eq!(in_columns(&rows), "A     LONG\nüber  b\n");
    }
}
