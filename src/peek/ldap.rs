//! LDAP: an LDAPMessage (RFC 4511 §4.1.1, in BER as §5.1 narrows it) with a request.

use super::cursor::Cursor;
use super::detect::Step;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
/// Operations of clients, by the tag that the protocol gives them (§4.2 to §4.12): bind, unbind, search, modify, add,
/// delete, modify DN, compare, abandon, extended.
const REQUESTS: [u8; 10] = [0x60, 0x42, 0x63, 0x66, 0x68, 0x4a, 0x6c, 0x6e, 0x50, 0x77];
/// Bytes that a length, or a number of up to 2^31-1 (§4.1.1.1), takes at most.
const MAX_BYTES: u8 = 4;

pub(super) fn step(bytes: &[u8]) -> Step {
    Step::of(look(bytes))
}

fn look(bytes: &[u8]) -> Option<bool> {
    let mut cursor = Cursor::new(bytes);
    if cursor.u8()? != SEQUENCE {
        return Some(false);
    }
    let first = cursor.u8()?;
    if first & 0x80 != 0 {
        // The long form; an indefinite length (0) is not allowed.
        let count = first & 0x7f;
        if !(1..=MAX_BYTES).contains(&count) {
            return Some(false);
        }
        cursor.take(usize::from(count))?;
    }
    if cursor.u8()? != INTEGER {
        return Some(false);
    }
    let count = cursor.u8()?;
    if !(1..=MAX_BYTES).contains(&count) || cursor.u8()? & 0x80 != 0 {
        return Some(false);
    }
    cursor.take(usize::from(count - 1))?;
    Some(REQUESTS.contains(&cursor.u8()?))
}
