//! Little memory and a great many clients (O8).

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Socket, Type};

use crate::support::backend::Backend;
use crate::support::client::{probe_from, served, timed};
use crate::support::hello::{Keys, padded, real, to};
use crate::support::netns::{Host, with_hosts};
use crate::support::proxy::Proxy;
use crate::support::{SOON, until};

/// What the proxy may take, the kernel's memory for its sockets included.
const LIMIT: usize = 128 << 20;
/// Of a hello that never ends.
const LARGE: usize = 8000;
/// How many there are to be.
const CLIENTS: usize = 20_000;

/// A control group with a limit of memory; removed when dropped, once its processes have ended.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new(limit: usize) -> Self {
        const WHY: &str = "this test limits the memory of a control group: run it as root, where /sys/fs/cgroup is \
                           writable and has the memory controller";
        let name = format!("portcullis-test-{}", std::process::id());
        // The first version of control groups has a folder for the controller, the second one has all in one.
        let old = PathBuf::from("/sys/fs/cgroup/memory");
        let (folder, file) = match old.is_dir() {
            true => (old.join(name), "memory.limit_in_bytes"),
            false => (PathBuf::from("/sys/fs/cgroup").join(name), "memory.max"),
        };
        std::fs::create_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}; {WHY}", folder.display()));
        let group = Self(folder);
        let set = std::fs::write(group.0.join(file), limit.to_string());
        set.unwrap_or_else(|error| panic!("{}/{file}: {error}; {WHY}", group.0.display()));
        group
    }

    /// The largest that it has been, in bytes.
    fn most(&self) -> usize {
        let read = |file| std::fs::read_to_string(self.0.join(file)).ok();
        let text = read("memory.max_usage_in_bytes").or_else(|| read("memory.peak"));
        text.and_then(|text| text.trim().parse().ok())
            .unwrap_or_else(|| panic!("no peak of {}", self.0.display()))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        until("the group to be empty", SOON, || std::fs::remove_dir(&self.0).ok());
    }
}

/// As many clients as descriptors allow, each with a part of its hello.
fn crowd(addr: SocketAddr, part: &[u8]) -> Vec<TcpStream> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let files = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20) as usize;
    // Some for the other tests of this process; the proxy has as many, and needs one for each.
    let clients = CLIENTS.min(files.saturating_sub(open + 6000));
    let begin = |n: usize| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 4 + (n % 4) as u8, 1), 0)).into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        // On loopback it is there at once, unless the queue is full.
        let _ = socket.connect(&addr.into());
        let mut stream = TcpStream::from(socket);
        until("room in the queue", SOON, || stream.write_all(part).ok());
        stream
    };
    (0..clients).map(begin).collect()
}

/// Whether somebody else is served meanwhile.
fn canary(addr: SocketAddr) {
    for _ in 0..20 {
        let (took, outcome) = timed(|| probe_from(Ipv4Addr::new(127, 0, 9, 9), addr, &to("a.test")));
        assert_eq!(outcome, served("a"));
        assert!(took < Duration::from_secs(1), "the canary waited {took:?}");
    }
}

/// On a host of its own, where the ports of so many clients are in no other test's way.
#[test]
fn a_crowd_in_little_memory_costs_neither_the_process_nor_the_service() {
    with_hosts(|| Host::new().run(serve_a_crowd));
}

/// First hellos of an ordinary size, then such as would take more than there is: who comes too late with one of those
/// is refused.
fn serve_a_crowd() {
    let backend = Backend::tagged("a");
    let group = MemoryGroup::new(LIMIT);
    let enter = format!("echo $$ >{}/cgroup.procs; exec \"$@\"", group.0.display());
    let config = format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\ntimeouts = {{ hello = '30s' }}\n\
         connection_limit = {{ per_ip = 'off', before_hello = 'off', total = {} }}\n\
         [[route]]\nsni = 'a.test'\nto = '{backend}'\n",
        // What waits for a backend has one descriptor, not two.
        CLIENTS + 100
    );
    let mut proxy = Proxy::start_by(&["sh", "-c", &enter, "sh"], "dash", &config);
    let addr = proxy.addr();
    canary(addr);
    let refused = |proxy: &Proxy| {
        let labels = [("reason", "hello_memory")];
        proxy.metrics().sum("portcullis_clienthello_errors_total", &labels) as usize
    };
    let ordinary = real(Some("a.test"), &[], Keys::PostQuantum);
    let large = padded(b"a.test", 2 * LARGE);
    for part in [&ordinary[..ordinary.len() / 2], &large[..LARGE]] {
        let (took, clients) = timed(|| crowd(addr, part));
        until("each of them to be held or refused", SOON, || {
            (proxy.process.sockets() + refused(&proxy) >= clients.len()).then_some(())
        });
        canary(addr);
        println!(
            "{} clients in {took:?}, {} refused, {} MiB resident, {} MiB of the group at most",
            clients.len(),
            refused(&proxy),
            proxy.process.rss() >> 20,
            group.most() >> 20
        );
        // All large ones together would fill the group.
        let all = clients.len() * part.len();
        assert_eq!(refused(&proxy) > 0, all > LIMIT / 2, "{all} bytes of hellos");
        assert_eq!(proxy.ask("/readyz").status, 200);
        drop(clients);
        until("them to be gone", 2 * SOON, || (proxy.process.sockets() < 50).then_some(()));
        canary(addr);
        proxy.assert_sound();
    }
    assert!(refused(&proxy) > 0);
}
