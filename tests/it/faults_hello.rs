//! Hellos of every size (L2) and records that interrupt a hello (L3): routed rightly or refused, never
//! routed elsewhere.

use crate::support::UNLIMITED;
use crate::support::backend::Backend;
use crate::support::client::{End, Outcome, exchange, probe, served};
use crate::support::hello::{Keys, built, extension, in_records, padded, real, record, sni, vec16};
use crate::support::proxy::Proxy;

/// What follows does not belong there (RFC 8446 §6.2).
const UNEXPECTED_MESSAGE: Outcome = Outcome::Alert(10);
const DECODE_ERROR: Outcome = Outcome::Alert(50);
const ILLEGAL_PARAMETER: Outcome = Outcome::Alert(47);

/// Bytes of an alert in a record of its own.
const ALERT_RECORD: u64 = 7;

struct Setup {
    right: Backend,
    catch_all: Backend,
    proxy: Proxy,
}

impl Setup {
    fn new(extra: &str) -> Self {
        let (right, catch_all) = (Backend::tagged("right"), Backend::tagged("catch-all"));
        let proxy = Proxy::start(&format!(
            "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}{extra}\n\
             [[route]]\nsni = 'size.test'\nto = '{right}'\n\
             [[route]]\nsni = '*'\nto = '{catch_all}'\n\
             [[route]]\nsni = 'none'\nto = '{catch_all}'\n"
        ));
        Self { right, catch_all, proxy }
    }
}

#[test]
fn hellos_up_to_the_limit_are_routed_and_larger_ones_get_an_alert() {
    let mut setup = Setup::new("");
    let addr = setup.proxy.addr();
    for size in [512, 1536, 2048, 8192, 16_281, 16_384] {
        assert_eq!(probe(addr, &padded(b"size.test", size)), served("right"), "{size} bytes");
    }
    for size in [16_385, 16_486, 20_000, 65_536] {
        assert_eq!(probe(addr, &padded(b"size.test", size)), ILLEGAL_PARAMETER, "{size} bytes");
    }
    setup.proxy.wait_metric("portcullis_clienthello_errors_total", &[("reason", "too_large")], 4.0);
    let line = setup.proxy.access_line("too large", |line| line["reason"] == "too_large");
    assert_eq!((&line["cause"], &line["stage"]), (&"client".into(), &"peek".into()));
    assert_eq!((&line["protocol"], &line["bytes_out"]), (&"tls".into(), &ALERT_RECORD.into()));
    assert!(line["bytes_in"].as_u64() > Some(0), "{line}");
    assert_eq!((setup.right.hits(), setup.catch_all.hits()), (6, 0));
    setup.proxy.assert_sound();
}

#[test]
fn many_key_shares_are_no_reason_to_refuse() {
    let setup = Setup::new("");
    let share = |group: u16| [group.to_be_bytes().as_slice(), &vec16(&[9; 1184])].concat();
    let shares: Vec<u8> = (0x2000..0x200c).flat_map(share).collect();
    let hello = built(&[extension(51, &vec16(&shares)), sni(b"size.test")]);
    assert!(hello.len() > 14_000);
    assert_eq!(probe(setup.proxy.addr(), &hello), served("right"));
}

#[test]
fn the_limit_can_be_set_and_counts_record_headers() {
    let setup = Setup::new("max_hello_size = '4KiB'");
    let addr = setup.proxy.addr();
    assert_eq!(probe(addr, &padded(b"size.test", 4096)), served("right"));
    assert_eq!(probe(addr, &padded(b"size.test", 4097)), ILLEGAL_PARAMETER);
    let small = real(Some("size.test"), &[], Keys::PostQuantum);
    assert_eq!(probe(addr, &in_records(&small, 1)), ILLEGAL_PARAMETER, "six bytes on the wire for each");
    assert_eq!(probe(addr, &in_records(&small, 10)), served("right"));
}

#[test]
fn a_message_that_only_claims_to_be_large_is_refused_at_once() {
    let setup = Setup::new("");
    let claim = record(&[&[1, 0xff, 0xff, 0xff], [0; 100].as_slice()].concat());
    let (took, outcome) = crate::support::client::timed(|| probe(setup.proxy.addr(), &claim));
    assert_eq!(outcome, ILLEGAL_PARAMETER);
    assert!(took.as_secs() < 2, "{took:?}");
}

#[test]
fn records_that_interrupt_a_hello_are_refused() {
    let mut setup = Setup::new("");
    let hello = real(Some("size.test"), &["h2"], Keys::Classic);
    let message = &hello[5..];
    let intruders: [(&str, &[u8]); 7] = [
        ("an empty record", &[22, 3, 3, 0, 0]),
        ("a warning alert", &[21, 3, 3, 0, 2, 1, 0]),
        ("a fatal alert", &[21, 3, 3, 0, 2, 2, 40]),
        ("ChangeCipherSpec", &[20, 3, 3, 0, 1, 1]),
        ("application data", &[23, 3, 3, 0, 1, 1]),
        ("a record of SSL 2", &[0x80, 0x2e, 1, 0, 2]),
        ("a heartbeat", &[24, 3, 3, 0, 3, 1, 0, 0]),
    ];
    for (what, intruder) in intruders {
        for cut in [1, 3, 4, 40, message.len() - 1] {
            let (first, second) = message.split_at(cut);
            let bytes = [&record(first), intruder, &record(second)].concat();
            let expected = if intruder[0] == 22 { DECODE_ERROR } else { UNEXPECTED_MESSAGE };
            assert_eq!(probe(setup.proxy.addr(), &bytes), expected, "{what} after {cut} bytes");
        }
    }
    assert_eq!((setup.right.hits(), setup.catch_all.hits()), (0, 0));
    let errors = setup.proxy.metrics().sum("portcullis_clienthello_errors_total", &[]);
    assert!((errors - 35.0).abs() < 0.5, "{errors}");
    setup.proxy.assert_sound();
}

#[test]
fn a_hello_that_ends_early_reaches_no_backend() {
    let mut setup = Setup::new("");
    let hello = real(Some("size.test"), &["h2"], Keys::Classic);
    crate::support::in_parallel(16, hello.len(), |len| {
        let reply = exchange(setup.proxy.addr(), &[&hello[..len]]);
        assert_ne!(reply.end, End::Open, "{len} bytes");
        assert!(reply.bytes.is_empty() || reply.bytes.starts_with(&[21, 3]), "{len} bytes: {reply:?}");
    });
    assert_eq!((setup.right.hits(), setup.catch_all.hits()), (0, 0));
    let line = setup.proxy.access_line("an early end", |line| line["stage"] == "peek");
    assert_eq!(line["cause"], "client");
    setup.proxy.assert_sound();
}
