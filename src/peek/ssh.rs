//! SSH: the identification string of a client (RFC 4253 §4.2), which it may send before the server's.

use super::detect::{Step, begins_with};

pub(super) fn step(bytes: &[u8]) -> Step {
    begins_with(bytes, &[b"SSH-"])
}
