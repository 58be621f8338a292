//! PostgreSQL: the first message of a connection, which has no type (its manual, "Message Formats": SSLRequest,
//! GSSENCRequest, CancelRequest, StartupMessage).

use super::cursor::Cursor;
use super::detect::Step;

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSSENC: u32 = 80_877_104;
/// The major version of all clients since 2003, in the upper half of the code.
const MAJOR: u32 = 3;
/// What servers take at most (`MAX_STARTUP_PACKET_LENGTH`).
const MAX_LEN: u32 = 10_000;
/// CancelRequest in version 3.0, and with the longest key of version 3.2.
const CANCEL_LEN: [u32; 2] = [16, 12 + 256];

pub(super) fn step(bytes: &[u8]) -> Step {
    Step::of(look(bytes))
}

fn look(bytes: &[u8]) -> Option<bool> {
    let mut cursor = Cursor::new(bytes);
    if cursor.u8()? != 0 || cursor.u8()? != 0 {
        return Some(false);
    }
    let len = u32::from(cursor.u16()?);
    if !(8..=MAX_LEN).contains(&len) {
        return Some(false);
    }
    let first = cursor.u8()?;
    // Two beginnings, so that what is neither is known at once: 0x0003.... and 0x04d2....
    if u32::from(first) != MAJOR >> 8 && first != SSL.to_be_bytes()[0] {
        return Some(false);
    }
    let code = u32::from_be_bytes([first, cursor.u8()?, cursor.u8()?, cursor.u8()?]);
    let [shortest, longest] = CANCEL_LEN;
    Some(match code {
        SSL | GSSENC => len == 8,
        CANCEL => (shortest..=longest).contains(&len),
        // At least a byte that ends the list of parameters.
        _ => code >> 16 == MAJOR && len > 8,
    })
}
