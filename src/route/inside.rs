//! What is spoken inside TLS: which hellos a route for it takes.
//!
//! A server of one protocol that is reached by a client of another may do harm: what a browser is made to send to a mail server
//! can be taken for commands (ALPACA, CVE-2021-3618). Who offers protocols by ALPN and not the one that is spoken behind a
//! route is not led there.

use crate::config::Conditions;
use crate::peek::{ClientHello, Protocol};

/// The ALPN offer of servers that prove to an authority that a name is theirs (RFC 8737). It is for the server of that name,
/// whatever is spoken there, and nothing else is ever said after it.
const ACME: &[u8] = b"acme-tls/1";

/// Why a hello is not for a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mismatch {
    /// TLS begins within a protocol that is not the route's, or in the way that it does not want.
    Begin,
    /// The client offers other protocols only.
    Alpn,
}

/// Whether the hello may be for a route with these conditions.
pub(super) fn check(conditions: &Conditions, hello: &ClientHello) -> Result<(), Mismatch> {
    let inside = conditions.inside.as_deref().unwrap_or_default();
    let begun = match hello.within {
        Some(within) => inside.contains(&within) && conditions.starttls != Some(false),
        None => conditions.starttls != Some(true) && conditions.may_be_tls_at_once(),
    };
    if !begun {
        return Err(Mismatch::Begin);
    }
    let told = conditions.alpn.is_some() || inside.is_empty() || hello.alpn.is_empty();
    let offered = |protocol: &Protocol| hello.alpn.iter().any(|offer| protocol.alpn_names().contains(&offer));
    if told || inside.iter().any(offered) || hello.alpn.iter().any(|offer| offer == ACME) {
        return Ok(());
    }
    Err(Mismatch::Alpn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peek::Alpn;

    fn hello(within: Option<Protocol>, alpn: &[&str]) -> ClientHello {
        let alpn = Alpn::from_names(alpn.iter().map(|name| name.as_bytes()));
        ClientHello { within, alpn, ..ClientHello::default() }
    }

    fn conditions(inside: &[Protocol], starttls: Option<bool>) -> Conditions {
        let inside = (!inside.is_empty()).then(|| inside.to_vec());
        Conditions { inside, starttls, ..Conditions::default() }
    }

    #[test]
    fn tls_within_a_protocol_is_for_routes_of_it_alone() {
        use Protocol::{Imap, Mysql, Postgres, Smtp};
        type Row = (&'static [Protocol], Option<bool>, Option<Protocol>, bool);
        let table: [Row; 13] = [
            (&[], None, None, true),
            (&[], None, Some(Smtp), false),
            (&[Smtp], None, Some(Smtp), true),
            (&[Smtp], None, None, true),
            (&[Smtp], None, Some(Imap), false),
            (&[Imap, Smtp], None, Some(Smtp), true),
            (&[Smtp], Some(true), Some(Smtp), true),
            (&[Smtp], Some(true), None, false),
            (&[Smtp], Some(false), Some(Smtp), false),
            (&[Smtp], Some(false), None, true),
            (&[Postgres], None, Some(Postgres), true),
            (&[Mysql], None, Some(Mysql), true),
            (&[Mysql], None, None, false),
        ];
        for (inside, starttls, within, holds) in table {
            let expected = if holds { Ok(()) } else { Err(Mismatch::Begin) };
            assert_eq!(
                check(&conditions(inside, starttls), &hello(within, &[])),
                expected,
                "{inside:?} {starttls:?} {within:?}"
            );
        }
    }

    #[test]
    fn offers_of_other_protocols_alone_are_not_let_through() {
        use Protocol::{Http, Imap, Mqtt, Postgres, Redis, Smtp};
        let table: [(Protocol, &[&str], bool); 12] = [
            (Smtp, &[], true),
            (Smtp, &["h2", "http/1.1"], false),
            (Smtp, &["http/1.1", "smtp"], true),
            (Redis, &["h2"], false),
            (Imap, &["http/1.1"], false),
            (Postgres, &["postgresql"], true),
            (Postgres, &["h2", "http/1.1"], false),
            (Postgres, &["acme-tls/1"], true),
            (Mqtt, &["mqtt"], true),
            (Http, &["h2"], true),
            (Http, &["imap"], false),
            (Smtp, &["something-else"], false),
        ];
        for (protocol, offers, holds) in table {
            let expected = if holds { Ok(()) } else { Err(Mismatch::Alpn) };
            let hello = hello(None, offers);
            assert_eq!(check(&conditions(&[protocol], None), &hello), expected, "{protocol} {offers:?}");
            assert_eq!(check(&conditions(&[], None), &hello), Ok(()), "a route that says nothing of it");
        }
        let own = Conditions { alpn: Some(vec![b"h2"[..].into()]), ..conditions(&[Smtp], None) };
        assert_eq!(check(&own, &hello(None, &["h2"])), Ok(()), "what is written down goes");
    }
}
