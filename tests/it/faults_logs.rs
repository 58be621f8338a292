//! Logs under attack: nobody reads them (O5), or what clients say would forge them (O6).

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::OFlags;
use rustix::process::Signal;

use crate::support::backend::Backend;
use crate::support::client::{Outcome, exchange, probe, served, timed};
use crate::support::hello::{alpn, built, sni, to};
use crate::support::process::finish;
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, in_parallel, wait_for};

/// Both ends of a named pipe that takes nothing more.
fn full_pipe(path: &Path) -> std::fs::File {
    assert_eq!(finish(Command::new("mkfifo").arg(path), "coreutils", "").code, Some(0));
    // Opened for both, it does not wait for the other end.
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
    let mut pipe = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open(path).unwrap();
    // In single bytes at last: a page that is not full takes what fits.
    for len in [4096, 1] {
        let filled = loop {
            if let Err(error) = pipe.write_all(&vec![b'.'; len]) {
                break error.kind();
            }
        };
        assert_eq!(filled, ErrorKind::WouldBlock);
    }
    pipe
}

#[test]
fn a_standard_output_that_nobody_reads_costs_lines_which_are_counted() {
    // More than wait in the queue.
    const CONNECTIONS: usize = 9000;
    let backend = Backend::tagged("a");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    let mut pipe = full_pipe(&path);
    let into_pipe = format!("exec \"$@\" 1<>{}", path.display());
    let config = format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nunknown_sni = 'close'\n{UNLIMITED}\
         [[route]]\nsni = 'a.test'\nto = '{backend}'\n"
    );
    let mut proxy = Proxy::start_by(&["sh", "-c", &into_pipe, "sh"], "dash", &config);
    let (addr, refused) = (proxy.addr(), to("b.test"));
    let (took, outcome) = timed(|| probe(addr, &to("a.test")));
    assert_eq!(outcome, served("a"));
    assert!(took < SOON / 10, "the first line took {took:?}");
    in_parallel(8, CONNECTIONS, |_| assert_eq!(probe(addr, &refused), Outcome::Closed));
    assert_eq!(probe(addr, &to("a.test")), served("a"));
    let dropped = || proxy.metrics().sum("portcullis_accesslog_dropped_total", &[]);
    wait_for("dropped lines to be counted", || dropped() >= 1.0);
    let most = (CONNECTIONS + 2) as f64;
    assert!(dropped() < most, "some wait to be written");
    assert!(proxy.process.rss() < 256 << 20, "{} bytes", proxy.process.rss());
    proxy.assert_sound();
    // A drain does not wait for a reader either, and whoever comes to read finds whole lines.
    proxy.process.signal(Signal::TERM);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    let mut rest = Vec::new();
    let ended = pipe.read_to_end(&mut rest).unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::WouldBlock);
    assert!(rest.iter().all(|byte| *byte == b'.'), "{} bytes", rest.len());
}

/// What clients may say is told in one line of printable characters, whatever it is.
#[test]
fn control_characters_of_clients_never_reach_a_log() {
    const FORGED: &[u8] = b"\x1b[31m\r\n{\"cause\":\"forged\"} cause=forged \"\x00\x7f\xff";
    let backend = Backend::tagged("a");
    for format in ["json", "logfmt"] {
        let config = format!(
            "listen = '127.0.0.1:0'\naccess_log = {{ to = 'stdout', format = '{format}' }}\n{UNLIMITED}\
             [[route]]\nsni = 'a.test'\nto = '{backend}'\n"
        );
        let mut proxy = Proxy::start_by(&["env", "PORTCULLIS_LOG=trace"], "coreutils", &config);
        let told = exchange(proxy.addr(), &[&built(&[sni(b"a.test"), alpn(&[FORGED, b"h2"])])]);
        assert!(told.bytes.starts_with(b"tag:a\n"), "{format}: {told:?}");
        let forged = [b"a.test".as_slice(), FORGED].concat();
        for name in [b"a\x1b[2Jb.test".as_slice(), b"a.test\r\nb.test", &forged] {
            assert_eq!(probe(proxy.addr(), &built(&[sni(name)])), Outcome::Alert(47), "{format}: {name:?}");
        }
        let request = [b"GET / HTTP/1.1\r\nUser-Agent: ".as_slice(), FORGED, b"\r\n\r\n"].concat();
        assert!(matches!(probe(proxy.addr(), &request), Outcome::Other(_)), "HTTP 400");
        wait_for("five lines", || proxy.process.stdout.all().len() >= 5);
        proxy.process.signal(Signal::TERM);
        proxy.process.wait(SOON);
        let lines = proxy.process.stdout.all();
        assert_eq!(lines.len(), 5, "{format}: {lines:#?}");
        for line in lines.iter().chain(&proxy.process.stderr.all()) {
            assert!(line.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{format}: {line:?}");
        }
        let first = lines.iter().find(|line| line.contains("passthrough")).unwrap();
        match format {
            "json" => {
                let line: serde_json::Value = serde_json::from_str(first).unwrap();
                assert_eq!((&line["cause"], &line["alpn"][1]), (&"done".into(), &"h2".into()));
                let name = line["alpn"][0].as_str().unwrap();
                assert!(name.starts_with("\\x1b[31m\\r\\n"), "{name}");
            }
            _ => {
                let unquoted: String = first.replace("\\\"", "").split('"').step_by(2).collect();
                assert_eq!(unquoted.matches("cause=").count(), 1, "{first}");
                assert!(unquoted.contains("cause=done"), "{first}");
            }
        }
    }
}
