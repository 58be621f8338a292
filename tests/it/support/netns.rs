//! Hosts in network namespaces, joined by virtual Ethernet: for what loopback does not show.
//!
//! A namespace here has no name. It lives as long as a descriptor of it, or a process or socket in it, and its
//! interfaces live with it: nothing is left behind, however a test ends, and no two tests collide.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::process::{Process, finish};
use super::wait_for;

/// How long a test may take that runs again in a user namespace.
const AGAIN: Duration = Duration::from_secs(120);

/// A host: a network namespace.
#[derive(Debug)]
pub(crate) struct Host {
    namespace: File,
}

impl Host {
    /// A host with nothing but its loopback.
    pub(crate) fn new() -> Self {
        let mut command = Command::new("unshare");
        // Ends with its standard input, so also with a test that is killed.
        command.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("unshare of util-linux starts");
        holder.stdin.as_mut().unwrap().write_all(b"!").unwrap();
        // What comes back says that the namespace is there.
        holder.stdout.as_mut().unwrap().read_exact(&mut [0]).expect("a network namespace");
        let namespace = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        holder.kill().unwrap();
        holder.wait().unwrap();
        let host = Self { namespace };
        host.execute("ip link set lo up", "");
        host
    }

    /// Does `work` there: on a thread whose sockets, threads and processes are all of this host.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs a program there, which must succeed, with `input`; gives what it printed.
    pub(crate) fn execute(&self, line: &str, input: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Where Debian has these programs, which is not on the path of other users than root.
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env("PATH", path);
        let finished = self.run(|| finish(&mut command, "iproute2 nftables ethtool", input));
        assert_eq!(finished.code, Some(0), "{line}: {}\n{input}", finished.stderr);
        finished.stdout
    }

    /// Adds rules to its packet filter.
    pub(crate) fn filter(&self, rules: &str) {
        self.execute("nft --file -", rules);
    }

    /// Packets that a counter of its packet filter has seen, by its name in table `inet watch`.
    pub(crate) fn counted(&self, counter: &str) -> u64 {
        let text = self.execute(&format!("nft list counter inet watch {counter}"), "");
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count: {text}"))
    }

    /// From now on nothing gets in or out, as if its cable had been cut.
    pub(crate) fn vanish(&self) {
        self.filter(
            "table inet cut {\n\
             chain in { type filter hook input priority 0; policy drop; }\n\
             chain out { type filter hook output priority 0; policy drop; }\n}\n",
        );
    }

    /// Hands packets on between its networks.
    pub(crate) fn forward(&self) {
        self.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).expect("a writable /proc/sys/net");
    }

    /// Lets no socket's buffer grow beyond `bytes`, so that many stalled connections do not take the memory that the
    /// kernel has for all.
    pub(crate) fn limit_buffers(&self, bytes: usize) {
        for (name, initial) in [("tcp_rmem", 131_072), ("tcp_wmem", 16_384)] {
            let limits = format!("4096 {initial} {bytes}");
            let set = self.run(|| std::fs::write(format!("/proc/sys/net/ipv4/{name}"), limits));
            set.expect("a writable /proc/sys/net");
        }
    }

    /// The way to everything that is not beside it.
    pub(crate) fn route_by(&self, router: Ipv4Addr) {
        self.execute(&format!("ip route add default via {router}"), "");
    }

    /// A network of two hosts. Packets are Ethernet's 1,500 bytes, as on a wire: no offload makes larger ones.
    pub(crate) fn join(one: (&Self, Ipv4Addr), other: (&Self, Ipv4Addr)) {
        // A name of at most 15 bytes, the same at both ends: 10.0.7.x is `net7`.
        let name = format!("net{}", one.1.octets()[2]);
        let there = format!("/proc/{}/fd/{}", std::process::id(), other.0.namespace.as_raw_fd());
        one.0.execute(&format!("ip link add {name} mtu 1500 type veth peer name {name} netns {there}"), "");
        for (host, addr) in [one, other] {
            host.execute(&format!("ethtool -K {name} gro off gso off tso off"), "");
            host.execute(&format!("ip address add {addr}/24 dev {name}"), "");
            host.execute(&format!("ip link set {name} mtu 1500 up"), "");
        }
    }
}

/// Runs `scenario`, which makes hosts: here where that is allowed, else by running the test again as the root
/// of a user namespace. `scenario` must be a closure in the body of its test: its type tells the test's name.
pub(crate) fn with_hosts<F: FnOnce()>(scenario: F) {
    let allowed =
        |words: &[&str]| finish(Command::new("unshare").args(words), "util-linux", "").code == Some(0);
    if allowed(&["--net", "true"]) {
        return scenario();
    }
    let root = ["--user", "--map-root-user"];
    assert!(
        allowed(&[root[0], root[1], "--net", "true"]),
        "this test makes network namespaces: run it as root with CAP_SYS_ADMIN and CAP_NET_ADMIN, \
         or allow user namespaces (kernel.unprivileged_userns_clone, user.max_user_namespaces)"
    );
    let path = std::any::type_name::<F>();
    let name = path.trim_end_matches("::{{closure}}").split_once("::").map_or(path, |(_, name)| name);
    let mut command = Command::new("unshare");
    command.args(root).arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
    let mut again = Process::start(&mut command, "util-linux");
    let status = again.wait(AGAIN);
    // Its last lines may still be on their way from the pipe.
    wait_for("the test's result", || again.stdout.contains("test result:"));
    let passed = status.success() && again.stdout.contains("1 passed");
    assert!(passed, "{name}: {status}\n{:#?}\n{:#?}", again.stdout.all(), again.stderr.all());
}
