//! OpenVPN over TCP: the length and the opcode of a client's first packet (its "Wire Protocol", and `ssl_pkt.h`).

use super::cursor::Cursor;
use super::detect::Step;
use super::dns;

/// Opcode, session, an empty list of acknowledgements and a number; and the key of a client that tls-crypt-v2 adds, with up
/// to 679 bytes of metadata in it. More would have to be told from SOCKS 4, whose first byte is 4.
const LEN: std::ops::RangeInclusive<u16> = 14..=1023;
/// P_CONTROL_HARD_RESET_CLIENT_V2 and _V3 in the upper five bits; the key that a session begins with is 0.
const HARD_RESET: [u8; 2] = [7 << 3, 10 << 3];

pub(super) fn step(bytes: &[u8]) -> Step {
    match Step::of(look(bytes)) {
        // An opcode may be the first byte of the number of a query to a nameserver, which says more of itself.
        Step::Is => match dns::step(bytes) {
            Step::Is => Step::No,
            Step::NeedMore => Step::NeedMore,
            Step::No => Step::Is,
        },
        step @ (Step::NeedMore | Step::No) => step,
    }
}

fn look(bytes: &[u8]) -> Option<bool> {
    let mut cursor = Cursor::new(bytes);
    let high = cursor.u8()?;
    if high > LEN.end().to_be_bytes()[0] {
        return Some(false);
    }
    let len = u16::from_be_bytes([high, cursor.u8()?]);
    Some(LEN.contains(&len) && HARD_RESET.contains(&cursor.u8()?))
}
