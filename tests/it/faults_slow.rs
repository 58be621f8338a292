//! Clients that never finish their hello (L1): closed at the deadline, cheap, and in nobody's way.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::backend::Backend;
use crate::support::client::{Outcome, probe, served, timed};
use crate::support::hello::to;
use crate::support::proxy::Proxy;
use crate::support::{UNLIMITED, wait_for};

const DEADLINE: Duration = Duration::from_secs(3);
const SILENT: usize = 500;
const SLOW: usize = 500;

/// Connects, sends a byte of `hello` every second (or none at all), and says after how long it was closed.
async fn hang(addr: SocketAddr, hello: Option<Vec<u8>>) -> Duration {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let start = Instant::now();
    let (mut reader, mut writer) = stream.split();
    let drip = async {
        for byte in hello.into_iter().flatten() {
            if writer.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        std::future::pending::<()>().await;
    };
    let closed = async {
        let mut bytes = Vec::new();
        // A reset is an end like another here.
        let _ = reader.read_to_end(&mut bytes).await;
        assert!(bytes.is_empty() || bytes.starts_with(&[21, 3]), "{bytes:?}");
    };
    tokio::select! { () = drip => {}, () = closed => {} }
    start.elapsed()
}

#[test]
fn a_thousand_slow_clients_are_closed_at_the_deadline() {
    let backend = Backend::tagged("canary");
    let mut proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\ntimeouts = {{ hello = '3s' }}\n{UNLIMITED}\
         [[route]]\nsni = 'canary.test'\nto = '{backend}'\n"
    ));
    let (addr, hello) = (proxy.addr(), to("canary.test"));
    assert_eq!(probe(addr, &hello), served("canary"), "warm up");
    wait_for("that one to be closed", || proxy.access_log().len() == 1);
    let (rss, sockets) = (proxy.process.rss(), proxy.process.sockets());
    let over = AtomicBool::new(false);
    let (closed, canary, grown) = std::thread::scope(|scope| {
        let canary = scope.spawn(|| canary(addr, &hello, &over));
        let memory = scope.spawn(|| {
            wait_for("all slow clients to be accepted", || {
                proxy.process.sockets() >= sockets + SILENT + SLOW
            });
            proxy.process.rss().saturating_sub(rss)
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let closed = runtime.block_on(async {
            let hello = &hello;
            let clients =
                (0..SILENT + SLOW).map(|n| tokio::spawn(hang(addr, (n >= SILENT).then(|| hello.clone()))));
            let clients: Vec<_> = clients.collect();
            let mut closed = Vec::new();
            for client in clients {
                closed.push(client.await.unwrap());
            }
            closed
        });
        over.store(true, Ordering::SeqCst);
        (closed, canary.join().unwrap(), memory.join().unwrap())
    });
    let (first, last) = (closed.iter().min().unwrap(), closed.iter().max().unwrap());
    println!(
        "closed after {first:?} to {last:?}; canary p99 {canary:?}; {} bytes each",
        grown / (SILENT + SLOW)
    );
    assert!(*first >= DEADLINE - Duration::from_secs(1) && *last <= DEADLINE + Duration::from_secs(1));
    assert!(canary <= Duration::from_millis(250), "p99 of the canary: {canary:?}");
    assert!(grown <= (SILENT + SLOW) * 4096 + 1024 * 1024, "{grown} bytes for {} clients", SILENT + SLOW);
    let line = proxy.access_line("a slow client", |line| line["reason"] == "hello_timeout");
    assert_eq!((&line["cause"], &line["stage"]), (&"client_timeout".into(), &"peek".into()));
    let refused = (SILENT + SLOW) as f64;
    proxy.wait_metric("portcullis_clienthello_errors_total", &[("reason", "hello_timeout")], refused);
    wait_for("sockets to be given back", || proxy.process.sockets() <= sockets + 4);
    proxy.assert_sound();
}

/// Connections with a whole hello, one after the other, until `over`; gives the 99th percentile.
fn canary(addr: SocketAddr, hello: &[u8], over: &AtomicBool) -> Duration {
    let mut times = Vec::new();
    while !over.load(Ordering::SeqCst) {
        let (took, outcome) = timed(|| probe(addr, hello));
        assert_eq!(outcome, served("canary"));
        assert!(took < Duration::from_secs(1), "the canary waited {took:?}");
        times.push(took);
        // A steady load of some hundred connections a second is no part of what is tested.
        std::thread::sleep(Duration::from_millis(10));
    }
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

#[test]
fn the_deadline_is_not_renewed_by_bytes_and_holds_at_every_place() {
    let backend = Backend::tagged("never");
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\ntimeouts = {{ hello = '1s' }}\n[[route]]\nsni = '*'\nto = '{backend}'\n"
    ));
    let hello = to("a.test");
    crate::support::in_parallel(8, 8, |index| {
        // After nothing, in the header, in the middle, before the last byte.
        let sent = [0, 1, 3, 5, 6, 9, hello.len() / 2, hello.len() - 1][index];
        let (took, outcome) = timed(|| probe(proxy.addr(), &hello[..sent]));
        assert!(!matches!(outcome, Outcome::Served(_) | Outcome::Open), "{sent} bytes: {outcome:?}");
        assert!(took > Duration::from_millis(800) && took < Duration::from_secs(2), "{sent} bytes: {took:?}");
    });
    assert_eq!(backend.hits(), 0);
}
