//! Running as a service: whose rights are kept.

use std::collections::BTreeSet;
use std::process::Command;

use crate::support::backend::Backend;
use crate::support::client::{exchange, probe, served};
use crate::support::hello::to;
use crate::support::process::finish;
use crate::support::proxy::Proxy;
use crate::support::wait_for;

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
