//! Redis: a command as an array of bulk strings (RESP, "Sending commands to a Redis server"). Commands as bare lines
//! ("inline") are words like those of any other protocol of lines, and are not looked for.

use super::cursor::Cursor;
use super::detect::Step;

/// Digits of the largest number of arguments that servers take, 1,048,576.
const MAX_DIGITS: usize = 7;

pub(super) fn step(bytes: &[u8]) -> Step {
    Step::of(look(bytes))
}

fn look(bytes: &[u8]) -> Option<bool> {
    let mut cursor = Cursor::new(bytes);
    if cursor.u8()? != b'*' || !matches!(cursor.u8()?, b'1'..=b'9') {
        return Some(false);
    }
    for _ in 0..MAX_DIGITS {
        match cursor.u8()? {
            b'0'..=b'9' => {}
            b'\r' => return Some(cursor.u8()? == b'\n' && cursor.u8()? == b'$'),
            _ => return Some(false),
        }
    }
    Some(false)
}
