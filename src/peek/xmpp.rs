//! XMPP: the XML declaration, which clients may leave out, and the root of the stream (RFC 6120 §4.2, §11.5).

use super::detect::{Step, begins_with};

pub(super) fn step(bytes: &[u8]) -> Step {
    begins_with(bytes, &[b"<?xml ", b"<stream:stream"])
}
