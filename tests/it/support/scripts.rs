//! Servers and clients that are written in Python or for Node, by their common libraries.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use super::process::{Finished, Process, finish};
use super::{SOON, until};

/// A server that has told its port.
#[derive(Debug)]
pub(crate) struct Script {
    _process: Process,
    addr: SocketAddr,
}

/// The packages of Debian that the scripts need.
const PYTHON: &str = "python3-aiohttp python3-grpcio python3-websockets";

impl Script {
    /// Bodies are given back at `/echo`, a page with its assets is at `/asset/page`, an echo of WebSocket at `/ws`.
    pub(crate) fn echo() -> Self {
        Self::python(include_str!("../../data/http/echo_server.py"))
    }

    /// Calls of gRPC, in clear.
    pub(crate) fn grpc() -> Self {
        Self::python(include_str!("../../data/http/grpc_server.py"))
    }

    /// An echo of WebSocket, which closes as it is asked to.
    pub(crate) fn websocket() -> Self {
        Self::python(include_str!("../../data/http/ws_server.py"))
    }

    /// Early hints at `/hints`, fields behind a body at `/trailers`; elsewhere it tells what it was asked.
    pub(crate) fn node() -> Self {
        let mut command = Command::new("node");
        Self::start(command.args(["-e", include_str!("../../data/http/server.js")]), "nodejs")
    }

    fn python(script: &str) -> Self {
        Self::start(Command::new("/usr/bin/python3").args(["-c", script]), PYTHON)
    }

    fn start(command: &mut Command, package: &str) -> Self {
        let mut process = Process::start(command, package);
        let port = until("the port of a script", SOON * 2, || {
            if let Some(status) = process.exit() {
                panic!("ended with {status}; needs {package}: {:#?}", process.stderr.all());
            }
            process.stdout.all().iter().find_map(|line| line.strip_prefix("port ")?.parse().ok())
        });
        Self { _process: process, addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) }
    }
}

impl std::fmt::Display for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.addr.fmt(f)
    }
}

/// Runs a client to its end, which must say `ok`.
pub(crate) fn assert_ok(script: &str, args: &[&str]) {
    let mut command = Command::new("/usr/bin/python3");
    let Finished { code, stdout, stderr } = finish(command.args(["-c", script]).args(args), PYTHON, "");
    assert!(code == Some(0) && stdout.trim_end() == "ok", "{args:?}: {stdout}\n{stderr}");
}
