//! DNS over TCP: the length of a message (RFC 1035 §4.2.2) and the header of a query (§4.1.1).

use super::cursor::Cursor;
use super::detect::Step;

/// A header and the question for the root; and what a query may have over UDP without saying so (§4.2.1), which is more
/// than any needs.
const LEN: std::ops::RangeInclusive<u16> = 17..=512;
/// Bits of the flags that a standard query does not have: QR, the opcode, AA and TC; RA, Z and the response code. RD, and
/// AD and CD (RFC 4035 §3.2.2, RFC 6840 §5.7), are the client's choice.
const NOT_OF_QUERIES: [u8; 2] = [0b1111_1110, 0b1100_1111];
/// OPT (RFC 6891) and a signature (RFC 8945).
const MAX_ADDITIONAL: u16 = 2;
/// Longest label (§2.3.4).
const MAX_LABEL: u8 = 63;

pub(super) fn step(bytes: &[u8]) -> Step {
    Step::of(look(bytes))
}

fn look(bytes: &[u8]) -> Option<bool> {
    let mut cursor = Cursor::new(bytes);
    let high = cursor.u8()?;
    if high > LEN.end().to_be_bytes()[0] {
        return Some(false);
    }
    if !LEN.contains(&u16::from_be_bytes([high, cursor.u8()?])) {
        return Some(false);
    }
    cursor.take(2)?;
    for wrong in NOT_OF_QUERIES {
        if cursor.u8()? & wrong != 0 {
            return Some(false);
        }
    }
    // One question, no answer, no authority.
    for count in [0, 1, 0, 0, 0, 0, 0] {
        if cursor.u8()? != count {
            return Some(false);
        }
    }
    Some(u16::from(cursor.u8()?) <= MAX_ADDITIONAL && cursor.u8()? <= MAX_LABEL)
}
