//! Running under a supervisor: what it is told, what its unit allows, and whose rights are kept.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::backend::{Backend, UnixBackend};
use crate::support::client::{exchange, held, loopback, probe, served};
use crate::support::hello::to;
use crate::support::process::{Process, finish};
use crate::support::proxy::Proxy;
use crate::support::{SOON, until, wait_for};

/// What the unit may cost in the judgement of systemd, of 10.
const EXPOSURE: f64 = 2.0;

fn unit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd/portcullis.service")
}

/// A supervisor: the socket that services notify.
struct Supervisor {
    dir: TempDir,
    socket: UnixDatagram,
}

impl Supervisor {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        Self { dir, socket }
    }

    /// Starts a proxy to `backend` below it; `watchdog` as in WATCHDOG_USEC.
    fn start(&self, backend: &Backend, watchdog: Option<Duration>) -> Proxy {
        let mut wrapper =
            vec!["env".to_owned(), format!("NOTIFY_SOCKET={}/notify", self.dir.path().display())];
        wrapper.extend(watchdog.map(|allowed| format!("WATCHDOG_USEC={}", allowed.as_micros())));
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        let config = format!("listen = '127.0.0.1:0'\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n");
        Proxy::start_by(&wrapper, "coreutils", &config)
    }

    /// The next thing it is told, if that comes within `limit`.
    fn told(&self, limit: Duration) -> Option<Vec<String>> {
        let mut bytes = [0; 1024];
        self.socket.set_read_timeout(Some(limit)).unwrap();
        let len = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..len]).lines().map(str::to_owned).collect())
    }
}

#[test]
fn a_supervisor_is_told_of_readiness_and_of_the_end() {
    let backend = Backend::tagged("a");
    let supervisor = Supervisor::new();
    let mut proxy = supervisor.start(&backend, None);
    let ready = supervisor.told(SOON).expect("that it is ready");
    assert_eq!(ready, ["READY=1", "STATUS=serving with 2 workers"]);
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    wait_for("that one to end", || proxy.access_log().len() == 1);
    let open = held(loopback(1), proxy.addr(), &to("a.test"));
    proxy.process.signal(Signal::TERM);
    let stopping = supervisor.told(SOON).expect("that it stops");
    assert_eq!(stopping, ["STOPPING=1", "STATUS=draining 1 connections"]);
    assert_eq!(proxy.process.exit(), None, "it waits for the connection");
    drop(open);
    assert!(proxy.process.wait(SOON).success());
    assert_eq!(supervisor.told(Duration::from_millis(1)), None, "without a watchdog there are no pings");
}

/// The id of a thread of the proxy.
pub(crate) fn thread(proxy: &Proxy, name: &str) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", proxy.process.id())).unwrap();
    let mut tasks = tasks.map(|task| task.unwrap().path());
    let found = tasks.find(|task| std::fs::read_to_string(task.join("comm")).unwrap().trim() == name);
    found.unwrap_or_else(|| panic!("no thread {name}")).file_name().unwrap().to_str().unwrap().to_owned()
}

/// The service goes on as another process: it is never said to stop.
#[test]
fn a_supervisor_is_told_of_an_upgrade() {
    let backend = Backend::tagged("a");
    let supervisor = Supervisor::new();
    let mut proxy = supervisor.start(&backend, None);
    let ready = ["READY=1", "STATUS=serving with 2 workers"];
    assert_eq!(supervisor.told(SOON).expect("that it is ready"), ready);
    proxy.upgrade();
    assert_eq!(supervisor.told(SOON).expect("that the new one is ready"), ready);
    let pid = proxy.logged("the new process serves")[0]["pid"].to_string();
    let told = supervisor.told(SOON).expect("whose the service is");
    assert_eq!(told, [format!("MAINPID={pid}"), "STATUS=serving after an upgrade".to_owned()]);
    assert!(proxy.process.wait(SOON).success());
    assert_eq!(supervisor.told(Duration::from_millis(1)), None);
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
}

#[test]
fn the_watchdog_is_pinged_until_an_event_loop_is_stuck() {
    const ALLOWED: Duration = Duration::from_millis(900);
    let backend = Backend::tagged("a");
    let supervisor = Supervisor::new();
    let proxy = supervisor.start(&backend, Some(ALLOWED));
    wait_for("readiness", || supervisor.told(SOON).is_some_and(|told| told[0] == "READY=1"));
    // Idle event loops turn, too.
    for _ in 0..4 {
        assert_eq!(supervisor.told(SOON).expect("a ping"), ["WATCHDOG=1"]);
    }
    // strace holds one worker up in each of its waits, for longer than the test takes.
    let worker = thread(&proxy, "worker-1");
    let mut hold = Command::new("strace");
    hold.args(["-p", &worker, "-e", "trace=/^epoll_p?wait", "-e", "inject=/^epoll_p?wait:delay_exit=60s"]);
    let hold = Process::start(&mut hold, "strace");
    const WARNING: &str = "event loops that do not turn: the supervisor is no longer told that all is well";
    wait_for("a warning of that worker", || {
        proxy.logged(WARNING).iter().any(|line| line["workers"].as_str() == Some("[1]"))
    });
    until("silence", SOON, || supervisor.told(ALLOWED).is_none().then_some(()));
    drop(hold);
    assert_eq!(supervisor.told(SOON).expect("a ping once it goes on"), ["WATCHDOG=1"]);
}

#[test]
fn the_unit_is_as_closed_as_it_says() {
    let mut command = Command::new("systemd-analyze");
    let judged =
        finish(command.args(["security", "--offline=true", "--no-pager"]).arg(unit()), "systemd", "");
    let line = judged.stdout.lines().find(|line| line.contains("Overall exposure level"));
    let line = line.unwrap_or_else(|| panic!("no verdict: {judged:?}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    let level: f64 = words.iter().find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line}"));
    assert!(level <= EXPOSURE, "{line}\n{}", judged.stdout);
    // What it says of its own binary and manual is about a machine that has them.
    let mut command = Command::new("systemd-analyze");
    let socket = unit().with_extension("socket");
    let verified = finish(command.args(["verify", "--man=no"]).arg(unit()).arg(socket), "systemd", "");
    let complaints = verified.stderr.lines().filter(|line| !line.contains("/usr/bin/portcullis"));
    assert_eq!(complaints.collect::<Vec<_>>(), Vec::<&str>::new());
}

/// The system calls of a set of systemd's, and of the sets in it.
fn filter(set: &str) -> BTreeSet<String> {
    let mut command = Command::new("systemd-analyze");
    let listed = finish(command.args(["syscall-filter", "--no-pager", set]), "systemd", "");
    assert_eq!(listed.code, Some(0), "{listed:?}");
    let names = listed.stdout.lines().skip(1).map(str::trim).filter(|line| !line.is_empty());
    let names = names.filter(|line| !line.starts_with('#'));
    let one = |name: &str| match name.strip_prefix('@') {
        Some(_) => filter(name),
        None => BTreeSet::from([name.to_owned()]),
    };
    names.flat_map(one).collect()
}

/// What the unit's lines of `SystemCallFilter` allow, one after the other.
fn allowed() -> BTreeSet<String> {
    let text = std::fs::read_to_string(unit()).unwrap();
    let mut allowed = filter("@default");
    for line in text.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (deny, words) = line.strip_prefix('~').map_or((false, line), |words| (true, words));
        for word in words.split_whitespace() {
            let calls = if word.starts_with('@') { filter(word) } else { BTreeSet::from([word.to_owned()]) };
            if deny {
                allowed.retain(|call| !calls.contains(call));
            } else {
                allowed.extend(calls);
            }
        }
    }
    assert!(allowed.len() > 200, "{allowed:?}");
    allowed
}

#[test]
fn the_unit_allows_every_system_call_that_serving_takes() {
    let backend = Backend::tagged("a");
    let stream = Backend::new(|mut stream| {
        stream.write_all(&vec![7; 8 << 20]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        // What is left unread would reset the connection.
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    });
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let strace = ["strace", "-D", "-f", "-qq", "-o", trace.to_str().unwrap()];
    let config = format!(
        "listen = '127.0.0.1:0'\nadmin = 'unix:{0}/admin.sock'\naccess_log = '{0}/access.log'\n\
         [[route]]\nsni = 'a.test'\nto = '{backend}'\n[[route]]\nsni = 'b.test'\nto = 'localhost:{1}'\n\
         [[route]]\nsni = 'c.test'\nto = '{stream}'\n",
        dir.path().display(),
        backend.addr().port()
    );
    let mut proxy = Proxy::start_by(&strace, "strace", &config).streaming();
    for name in ["a.test", "b.test"] {
        assert_eq!(probe(proxy.addr(), &to(name)), served("a"));
    }
    assert_eq!(exchange(proxy.addr(), &[&to("c.test")]).bytes.len(), 8 << 20);
    proxy.process.signal(Signal::TERM);
    assert!(proxy.process.wait(SOON).success());
    let text = until("the end of the trace", SOON, || {
        std::fs::read_to_string(&trace).ok().filter(|text| text.contains("exit_group"))
    });
    // "4711 epoll_wait(…" or "4711 <... epoll_wait resumed>…"; the first of all starts the program.
    let call = regex::Regex::new(r"(?m)^\d+\s+(\w+)\(").unwrap();
    let made: BTreeSet<String> = call.captures_iter(&text).map(|found| found[1].to_owned()).collect();
    for call in ["accept4", "epoll_ctl", "splice"] {
        assert!(made.contains(call), "{call} in {made:?}");
    }
    let allowed = allowed();
    let refused: Vec<_> = made.difference(&allowed).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

/// The fields of `/proc/PID/task/*/status`, of all threads.
fn status(proxy: &Proxy, field: &str) -> BTreeSet<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", proxy.process.id())).unwrap();
    let texts = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let line = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix(field)).map(str::trim).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no {field} in {text}"))
    };
    texts.map(line).collect()
}

#[test]
fn root_is_given_up_once_the_ports_are_bound() {
    use std::os::unix::fs::{MetadataExt, chown};
    assert!(rustix::process::geteuid().is_root(), "this test starts the proxy as root: run it as root");
    crate::support::netns::with_hosts(|| {
        let host = crate::support::netns::Host::new();
        host.run(|| {
            let backend = Backend::tagged("a");
            let dir = tempfile::tempdir().unwrap();
            chown(dir.path(), Some(65534), Some(65534)).unwrap();
            let (log, admin) = (dir.path().join("access.log"), dir.path().join("admin.sock"));
            let proxy = Proxy::start(&format!(
                "listen = '127.0.0.1:443'\nuser = 'nobody'\ngroup = 'nogroup'\nadmin = 'unix:{}'\n\
                 access_log = '{}'\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n",
                admin.display(),
                log.display()
            ));
            let four = |id: &str| BTreeSet::from([[id; 4].join("\t")]);
            assert_eq!(status(&proxy, "Uid:"), four("65534"), "every thread");
            assert_eq!(status(&proxy, "Gid:"), four("65534"));
            assert_eq!(status(&proxy, "Groups:"), BTreeSet::from([String::new()]));
            for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
                assert_eq!(status(&proxy, set), BTreeSet::from(["0".repeat(16)]), "{set}");
            }
            assert_eq!(proxy.addr().port(), 443);
            assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
            exchange(proxy.addr(), &[&to("a.test")]);
            wait_for("two lines in the log", || {
                std::fs::read_to_string(&log).is_ok_and(|text| text.lines().count() == 2)
            });
            for file in [&log, &admin] {
                assert_eq!(std::fs::metadata(file).unwrap().uid(), 65534, "{}", file.display());
            }
            let mut command = Command::new("curl");
            command.args(["--silent", "--unix-socket", admin.to_str().unwrap(), "http://admin.test/readyz"]);
            assert_eq!(finish(&mut command, "curl", "").stdout, "ready\n");
        });
    });
}

#[test]
fn in_the_sandbox_all_that_is_configured_works() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Backend::tagged("a"));
    let file = |name: &str| dir.path().join(name).display().to_string();
    let local = UnixBackend::tagged(&dir.path().join("backend.sock"), "local");
    let config = format!(
        "listen = '127.0.0.1:0'\nsandbox = 'landlock'\nadmin = 'unix:{}'\naccess_log = '{}'\n\
         [[route]]\nsni = 'a.test'\nto = 'localhost:{}'\n[[route]]\nsni = 'b.test'\nto = '{}'\n",
        file("admin.sock"),
        file("access.log"),
        backend.addr().port(),
        local.to()
    );
    let mut proxy = Proxy::start(&config);
    assert_eq!(proxy.logged("in the sandbox (Landlock)").len(), 1, "{:?}", proxy.process.stderr.all());
    // Its threads can gain no rights any more, which the sandbox takes; those of the process log and of the allocator
    // were there before.
    let tasks = std::fs::read_dir(format!("/proc/{}/task", proxy.process.id())).unwrap();
    let before = tasks.map(|task| task.unwrap().path()).filter(|task| {
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        assert!(status.contains("NoNewPrivs:"), "{status}");
        status.contains("NoNewPrivs:\t0")
    });
    let before: BTreeSet<String> =
        before.map(|task| std::fs::read_to_string(task.join("comm")).unwrap().trim().to_owned()).collect();
    let known = BTreeSet::from(["log".to_owned(), "jemalloc_bg_thd".to_owned()]);
    assert!(before.contains("log") && before.is_subset(&known), "{before:?}");
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    assert_eq!(probe(proxy.addr(), &to("b.test")), served("local"));
    let ask = |path: &str| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--unix-socket", &file("admin.sock"), &format!("http://admin.test{path}")]);
        finish(&mut command, "curl", "").stdout
    };
    assert_eq!(ask("/readyz"), "ready\n");
    for figure in ["process_open_fds ", "process_resident_memory_bytes ", "process_cpu_seconds_total "] {
        assert!(ask("/metrics").contains(figure), "{figure}");
    }
    wait_for("two lines in the log", || {
        std::fs::read_to_string(file("access.log")).is_ok_and(|text| text.lines().count() == 2)
    });
    proxy.process.signal(Signal::TERM);
    assert!(proxy.process.wait(SOON).success());
    assert!(!Path::new(&file("admin.sock")).exists(), "removed at the end");
}

#[test]
fn root_without_a_user_serves_and_warns() {
    const WARNING: &str = "runs as root: `user` names whom to become once the ports are bound";
    assert!(rustix::process::geteuid().is_root(), "this test starts the proxy as root: run it as root");
    let backend = Backend::tagged("a");
    for (user, warnings) in [("", 1), ("user = 'off'\n", 0), ("user = 'root'\n", 0)] {
        let proxy = Proxy::start(&format!(
            "{user}listen = '127.0.0.1:0'\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n"
        ));
        assert_eq!(proxy.logged(WARNING).len(), warnings, "{user}");
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    }
}
