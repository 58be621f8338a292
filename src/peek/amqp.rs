//! AMQP: the protocol header (0-9-1 §4.2.2; 1.0 part 2 §2.2).

use super::detect::{Step, begins_with};

/// With the id of the protocol: 0 is AMQP itself, 1 was that of 0-8 and 0-9, 2 is TLS and 3 SASL in 1.0.
const HEADERS: [&[u8]; 4] = [b"AMQP\0", b"AMQP\x01", b"AMQP\x02", b"AMQP\x03"];

pub(super) fn step(bytes: &[u8]) -> Step {
    begins_with(bytes, &HEADERS)
}
