//! SOCKS: the request of version 4, and the methods that a client of version 5 offers (RFC 1928 §3).

use super::cursor::Cursor;
use super::detect::Step;

const V4: u8 = 4;
const V5: u8 = 5;
/// CONNECT and BIND, the commands of version 4.
const COMMANDS: [u8; 2] = [1, 2];
/// What a server answers that likes none of the methods, and no client offers.
const NO_METHOD: u8 = 0xff;

pub(super) fn step(bytes: &[u8]) -> Step {
    Step::of(look(bytes))
}

fn look(bytes: &[u8]) -> Option<bool> {
    let mut cursor = Cursor::new(bytes);
    match cursor.u8()? {
        V4 => Some(COMMANDS.contains(&cursor.u8()?)),
        V5 => {
            let count = cursor.u8()?;
            for _ in 0..count {
                if cursor.u8()? == NO_METHOD {
                    return Some(false);
                }
            }
            Some(count > 0)
        }
        _ => Some(false),
    }
}
