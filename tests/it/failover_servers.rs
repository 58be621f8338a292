//! PostgreSQL, MariaDB, Redis and OpenSSH behind one address: one of three is killed, cut off or stopped, under a steady load
//! of new connections.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::client::{connect, timed};
use crate::support::netns::{Host, with_hosts};
use crate::support::proxy::Proxy;
use crate::support::servers::{Mariadb, Postgres, Redis, Server, Sshd};
use crate::support::{SOON, UNLIMITED, in_parallel, wait_for};

/// New connections, and how many a second: each is a process of its own to PostgreSQL and OpenSSH.
const CONNECTIONS: usize = 360;
const RATE: f64 = 60.0;
/// What all attempts of a connection may take on a busy machine, with `timeouts.connect` of these proxies.
const LONGEST: Duration = Duration::from_millis(2500);

/// A further key of `timeouts`, where it is not about answers: on a busy machine they may come late.
const PATIENT: &str = ", answer = 'off'";

/// A kind of server, and how it is known by its first words.
struct Kind {
    start: fn() -> Server,
    ask: fn(&mut TcpStream) -> std::io::Result<bool>,
}

const POSTGRES: Kind = Kind {
    start: Postgres::start,
    // SSLRequest, which is answered by `S` or `N` (PostgreSQL manual, 55.2.10).
    ask: |stream| {
        stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        Ok(matches!(answer, [b'S' | b'N']))
    },
};

const MARIADB: Kind = Kind {
    start: Mariadb::start,
    // The greeting: length and number of the packet, and the version of the protocol, which is 10.
    ask: |stream| {
        let mut greeting = [0; 5];
        stream.read_exact(&mut greeting)?;
        Ok(greeting[4] == 10)
    },
};

const REDIS: Kind = Kind {
    start: Redis::start,
    ask: |stream| {
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer)?;
        Ok(&answer == b"+PONG\r\n")
    },
};

const OPENSSH: Kind = Kind {
    start: Sshd::start,
    // The identification string (RFC 4253 §4.2).
    ask: |stream| {
        let mut version = [0; 8];
        stream.read_exact(&mut version)?;
        Ok(&version == b"SSH-2.0-")
    },
};

impl Kind {
    fn three(&self) -> Vec<Server> {
        std::thread::scope(|scope| {
            let starting: Vec<_> = (0..3).map(|_| scope.spawn(self.start)).collect();
            starting.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Whether a client was served, and how long that took.
    fn served(&self, addr: SocketAddr) -> (Duration, bool) {
        timed(|| {
            let mut stream = connect(addr);
            stream.set_read_timeout(Some(SOON)).unwrap();
            (self.ask)(&mut stream).unwrap_or(false)
        })
    }

    /// Opens connections at a steady rate, and does `change` after a third of them: all are served in time. Where it says so,
    /// those are lost that were under way meanwhile, and no others.
    fn serves_all_the_same(&self, addr: SocketAddr, change: impl Fn() -> bool + Sync) {
        let (start, seen, changed) = (Instant::now(), Mutex::new(Vec::new()), OnceLock::new());
        in_parallel(24, CONNECTIONS, |number| {
            let at = start + Duration::from_secs_f64(number as f64 / RATE);
            // The pace is the load.
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if number == CONNECTIONS / 3 {
                let began = Instant::now();
                let loses = change();
                changed.set((began, Instant::now(), loses)).unwrap();
            }
            let began = Instant::now();
            let (took, served) = self.served(addr);
            seen.lock().unwrap().push((began, took, served));
        });
        let (from, until, loses) = *changed.get().unwrap();
        let under_way = |began: Instant, took: Duration| loses && began <= until && began + took >= from;
        let seen = seen.into_inner().unwrap();
        let failed = seen.iter().filter(|(began, took, served)| !served && !under_way(*began, *took));
        let failed: Vec<_> = failed.map(|(began, took, _)| (*began - start, *took)).collect();
        let longest = seen.iter().map(|(_, took, _)| *took).max().unwrap();
        assert!(failed.len() * 1000 <= seen.len(), "of {} these failed, at and after {failed:?}", seen.len());
        assert!(longest < LONGEST, "{longest:?}");
    }

    fn one_is_killed(&self) {
        let servers = self.three();
        let proxy = proxy_to(&servers, PATIENT, "");
        self.serves_all_the_same(proxy.addr(), || {
            servers[1].signal(Signal::KILL);
            // Until then the kernel accepts for it, and what it has accepted is lost.
            wait_for("its port to be closed", || TcpStream::connect(servers[1].addr()).is_err());
            true
        });
        assert!(ejections(&proxy) >= 1.0);
    }

    fn one_is_cut_off(&self) {
        with_hosts(|| {
            let host = Host::new();
            host.run(|| {
                let servers = self.three();
                let proxy = proxy_to(&servers, PATIENT, "");
                let cut = servers[1].addr().port();
                self.serves_all_the_same(proxy.addr(), || {
                    host.filter(&format!(
                        "table inet cut {{ chain in {{ type filter hook input priority 0;\n\
                         tcp dport {cut} tcp flags & (syn | ack) == syn drop; }}\n}}\n"
                    ));
                    false
                });
                assert!(ejections(&proxy) >= 1.0);
            });
        });
    }

    /// Where the server speaks first, clients that it has not spoken to move on by themselves.
    fn one_is_stopped(&self) {
        let servers = self.three();
        // On a busy machine the others may be late too, and use up what there is of retries.
        let proxy = proxy_to(&servers, "", "retry_budget = 'off'");
        self.serves_all_the_same(proxy.addr(), || {
            servers[1].signal(Signal::STOP);
            false
        });
        assert!(ejections(&proxy) >= 1.0);
        let labels = [("reason", "unanswered"), ("backend", &*servers[1].addr().to_string())];
        assert!(proxy.metrics().sum("portcullis_upstream_connect_failures_total", &labels) >= 5.0);
    }

    /// Where the client speaks first, and not by TLS, its request may have been acted upon, and cannot be sent elsewhere: those
    /// that come before a health check has found the server wait for it. All after that are served.
    fn one_is_stopped_and_found(&self, check: &str) {
        let servers = self.three();
        let health =
            format!("health = {{ check = '{check}', interval = '500ms', timeout = '400ms', fall = 2 }}");
        let proxy = proxy_to(&servers, "", &health);
        let stopped = servers[1].addr().to_string();
        let labels = [("upstream", "u"), ("backend", stopped.as_str())];
        proxy.wait_metric("portcullis_upstream_healthy", &labels, 1.0);
        servers[1].signal(Signal::STOP);
        proxy.wait_metric("portcullis_upstream_healthy", &labels, 0.0);
        self.serves_all_the_same(proxy.addr(), || false);
    }
}

fn proxy_to(servers: &[Server], timeouts: &str, keys: &str) -> Proxy {
    let servers: Vec<_> = servers.iter().map(|server| format!("'{}'", server.addr())).collect();
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nsilent_after = '20ms'\n{UNLIMITED}timeouts = {{ connect = '500ms'{timeouts} }}\n\
         [[upstream]]\nname = 'u'\nto = [{}]\n{keys}\n\
         [[route]]\nprotocol = 'any'\nupstream = 'u'\n[[route]]\nprotocol = 'silent'\nupstream = 'u'\n",
        servers.join(", ")
    ))
}

fn ejections(proxy: &Proxy) -> f64 {
    proxy.metrics().sum("portcullis_upstream_ejections_total", &[("upstream", "u")])
}

#[test]
fn postgres_killed() {
    POSTGRES.one_is_killed();
}

#[test]
fn postgres_cut_off() {
    POSTGRES.one_is_cut_off();
}

#[test]
fn postgres_stopped() {
    POSTGRES.one_is_stopped_and_found("postgres");
}

#[test]
fn mariadb_killed() {
    MARIADB.one_is_killed();
}

#[test]
fn mariadb_cut_off() {
    MARIADB.one_is_cut_off();
}

#[test]
fn mariadb_stopped() {
    MARIADB.one_is_stopped();
}

#[test]
fn redis_killed() {
    REDIS.one_is_killed();
}

#[test]
fn redis_cut_off() {
    REDIS.one_is_cut_off();
}

#[test]
fn redis_stopped() {
    REDIS.one_is_stopped_and_found("redis");
}

#[test]
fn openssh_killed() {
    OPENSSH.one_is_killed();
}

#[test]
fn openssh_cut_off() {
    OPENSSH.one_is_cut_off();
}

#[test]
fn openssh_stopped() {
    OPENSSH.one_is_stopped();
}
