//! What tests of names have in common.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use super::client::{Outcome, probe, read_while};
use super::hello::to;
use super::proxy::Proxy;
use super::{SOON, UNLIMITED, until};

/// How long the proxy may take to follow an answer that is good for a second.
pub(crate) const FOLLOW: Duration = Duration::from_secs(15);

/// A proxy that asks the nameserver `at`, with one route for `a.test` to `backend`; `dns` are further settings of
/// that table.
pub(crate) fn proxy_asking(at: impl std::fmt::Display, dns: &str, backend: &str) -> Proxy {
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}dns = {{ servers = ['{at}'], {dns} }}\n\
         [[route]]\nsni = 'a.test'\nto = '{backend}'\n"
    ))
}

/// Waits until a connection for `a.test` ends as expected.
pub(crate) fn await_outcome(proxy: &Proxy, expected: &Outcome) {
    until(&format!("{expected:?}"), FOLLOW, || {
        (probe(proxy.addr(), &to("a.test")) == *expected).then_some(())
    });
}

/// Sends something on a connection to a tagged backend, which must come back.
pub(crate) fn assert_served(stream: &mut TcpStream) {
    const MARK: &[u8] = b"is anybody there?";
    stream.write_all(MARK).unwrap();
    let reply = read_while(stream, SOON, |bytes| !bytes.ends_with(MARK));
    assert!(reply.bytes.ends_with(MARK), "{reply:?}");
}
