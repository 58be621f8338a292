//! MQTT: CONNECT, which comes first (MQTT 5.0 and 3.1.1 §3.1).

use super::cursor::Cursor;
use super::detect::{Step, begins_with};

/// The type of the packet, its flags all 0.
const CONNECT: u8 = 0x10;
/// Lengths have seven bits a byte, in four bytes at most (§1.5.5, §2.2.3).
const MAX_LEN_BYTES: usize = 4;
/// Name, level, flags, keep-alive and an empty client identifier.
const MIN_LEN: u32 = 12;
/// The name of the protocol behind its length; the second is that of version 3.1. Which level it has is between the
/// client and its server, which must answer one that it does not know (§3.1.2.2).
const NAMES: [&[u8]; 2] = [b"\0\x04MQTT", b"\0\x06MQIsdp"];

pub(super) fn step(bytes: &[u8]) -> Step {
    look(bytes).unwrap_or(Step::NeedMore)
}

fn look(bytes: &[u8]) -> Option<Step> {
    let mut cursor = Cursor::new(bytes);
    if cursor.u8()? != CONNECT {
        return Some(Step::No);
    }
    let mut len = 0;
    for place in 0..MAX_LEN_BYTES {
        let byte = cursor.u8()?;
        len |= u32::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(if len < MIN_LEN { Step::No } else { begins_with(cursor.rest(), &NAMES) });
        }
    }
    Some(Step::No)
}
