//! RDP: the X.224 Connection Request of a client in a TPKT (MS-RDPBCGR §2.2.1.1; RFC 1006 §6; ITU-T X.224 §13.3).

use super::cursor::Cursor;
use super::detect::Step;

/// Version 3 and a reserved byte.
const TPKT: [u8; 2] = [3, 0];
/// What is before the length indicator's own count: the TPKT and the indicator.
const BEFORE: u16 = 5;
/// The fixed part of the request behind the indicator; and the most that the indicator can say, 255 being reserved.
const INDICATED: std::ops::RangeInclusive<u16> = 6..=254;
/// CR with an initial credit of 0, as in class 0.
const CONNECTION_REQUEST: u8 = 0xe0;

pub(super) fn step(bytes: &[u8]) -> Step {
    Step::of(look(bytes))
}

fn look(bytes: &[u8]) -> Option<bool> {
    let mut cursor = Cursor::new(bytes);
    for expected in TPKT {
        if cursor.u8()? != expected {
            return Some(false);
        }
    }
    let longest = INDICATED.end() + BEFORE;
    let high = cursor.u8()?;
    if high > longest.to_be_bytes()[0] {
        return Some(false);
    }
    let indicated = u16::from_be_bytes([high, cursor.u8()?]).checked_sub(BEFORE);
    let Some(indicated) = indicated.filter(|indicated| INDICATED.contains(indicated)) else {
        return Some(false);
    };
    Some(u16::from(cursor.u8()?) == indicated && cursor.u8()? == CONNECTION_REQUEST)
}
