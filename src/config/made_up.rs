//! Made-up connections.

use std::net::IpAddr;

use super::decode::{Either, OneOrMany, shape};
use super::first::FirstBytes;
use super::protocols::{TestProtocol, WithinWord};
use super::values::{AlpnName, ListenerName, RouteName};
use super::{ExpectedAction, RejectWith};
use crate::net::UpstreamAddr;
use crate::peek::{Ja4, ServerName};

shape! {
    /// A made-up connection and what must become of it.
    struct Test {
        /// A name for the report.
        name: String,
        /// The ClientHello that the client sends.
        hello: Hello,
        /// The protocol that the client speaks instead of TLS.
        protocol: TestProtocol,
        /// With `protocol = "postgres"`: the database that it asks for; that of the user's name if left out.
        database: String,
        /// With `protocol = "postgres"`: the user that it is; `postgres` if left out.
        user: String,
        /// The first bytes that the client sends, before it pauses; `\xNN`, `\r`, `\n`, `\t`, `\0` and `\\` stand for bytes.
        first: FirstBytes,
        /// The client's address.
        from: IpAddr,
        /// The listener it comes in on; by default the first.
        listener: ListenerName,
        /// What must become of it; a string is `action`.
        expect: Either<ExpectedAction, Expect> = required,
    }
}

shape! {
    /// A ClientHello.
    struct Hello {
        /// Its server name; without it the hello names none.
        sni: ServerName,
        /// Its ALPN offers, in order.
        alpn: OneOrMany<AlpnName>,
        /// Its fingerprint; without one no route matches by that.
        ja4: Ja4,
        /// The protocol within which TLS is begun; by none if left out.
        within: WithinWord,
    }
}

shape! {
    /// What must become of a made-up connection; every key given must hold.
    struct Expect {
        /// `passthrough`, `terminate`, `http`, `redirect` or `reject`.
        action: ExpectedAction,
        /// The name of the route that takes it.
        route: RouteName,
        /// Backends that the route must have.
        to: OneOrMany<UpstreamAddr>,
        /// How it is refused.
        reject: RejectWith,
    }
}
