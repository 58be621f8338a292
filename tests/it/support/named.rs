//! A real nameserver: BIND.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use super::SOON;
use super::client::free_port;
use super::process::Process;
use super::programs::wait_port;
use super::until;

/// An authoritative nameserver for the zone `backend.test`, whose records live for a second unless they say more.
#[derive(Debug)]
pub(crate) struct Named {
    process: Process,
    dir: TempDir,
    addr: SocketAddr,
    serial: u32,
}

impl Named {
    /// Starts one with these `A` records.
    pub(crate) fn start(records: &[(&str, Ipv4Addr)]) -> Self {
        Self::with_zone(&addresses(records))
    }

    /// Starts one with these lines of a zone file (RFC 1035 §5).
    pub(crate) fn with_zone(records: &str) -> Self {
        Self::at((Ipv4Addr::LOCALHOST, free_port()).into(), records)
    }

    /// The same at an address of IPv4, where one may have been before.
    pub(crate) fn at(addr: SocketAddr, records: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let (ip, port) = (addr.ip(), addr.port());
        let config = format!(
            "options {{ directory \"{at}\"; listen-on port {port} {{ {ip}; }}; listen-on-v6 {{ none; }};\n\
             recursion no; pid-file \"{at}/pid\"; session-keyfile \"{at}/session.key\"; }};\n\
             controls {{}};\n\
             zone \"backend.test\" {{ type primary; file \"zone\"; notify no; }};\n"
        );
        std::fs::write(dir.path().join("named.conf"), config).unwrap();
        write_zone(&dir, 1, records);
        let mut command = Command::new("named");
        command.args(["-g", "-n", "1", "-c"]).arg(dir.path().join("named.conf"));
        let mut process = Process::start(&mut command, "bind9");
        wait_port(&mut process, addr);
        Self { process, dir, addr, serial: 1 }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Replaces all records.
    pub(crate) fn replace(&mut self, records: &[(&str, Ipv4Addr)]) {
        self.replace_zone(&addresses(records));
    }

    /// Replaces all lines of the zone.
    pub(crate) fn replace_zone(&mut self, records: &str) {
        self.serial += 1;
        write_zone(&self.dir, self.serial, records);
        self.process.signal(Signal::HUP);
        let loaded = format!("zone backend.test/IN: loaded serial {}", self.serial);
        until("the new zone", SOON, || self.process.stderr.contains(&loaded).then_some(()));
    }

    /// From now on it says nothing, though questions reach it.
    pub(crate) fn stand_still(&self) {
        self.process.signal(Signal::STOP);
    }

    /// It goes on, with what was asked meanwhile.
    pub(crate) fn go_on(&self) {
        self.process.signal(Signal::CONT);
    }
}

fn addresses(records: &[(&str, Ipv4Addr)]) -> String {
    records.iter().fold(String::new(), |mut zone, (name, ip)| {
        writeln!(zone, "{name} IN A {ip}").unwrap();
        zone
    })
}

fn write_zone(dir: &TempDir, serial: u32, records: &str) {
    let zone = format!(
        "$TTL 1\n@ IN SOA ns hostmaster ( {serial} 60 60 600 1 )\n@ IN NS ns\nns IN A 127.0.0.1\n{records}"
    );
    std::fs::write(dir.path().join("zone"), zone).unwrap();
}
