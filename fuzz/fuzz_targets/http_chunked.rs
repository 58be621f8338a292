//! Bodies in chunks: what comes in pieces is what comes at once, and nothing panics.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use portcullis::http::h1::chunked::{Decoded, Decoder, Limits};

/// The data, and whether the end was reached, `None` for a body that is none; fed by so many bytes at a time.
fn decode(bytes: &[u8], at_a_time: usize) -> Option<(Vec<u8>, bool)> {
    let (mut decoder, mut buffer, mut data) = (Decoder::new(Limits::DEFAULT), BytesMut::new(), Vec::new());
    for piece in bytes.chunks(at_a_time) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer).ok()? {
                Decoded::Data(more) => data.extend_from_slice(&more),
                Decoded::Trailers(_) => return Some((data, true)),
                Decoded::NeedMore => break,
            }
        }
    }
    Some((data, false))
}

fuzz_target!(|input: &[u8]| {
    // The first byte says how many come at a time.
    let Some((at_a_time, bytes)) = input.split_first() else { return };
    let whole = decode(bytes, bytes.len().max(1));
    let pieces = decode(bytes, usize::from(*at_a_time).max(1));
    assert_eq!(whole.is_some(), pieces.is_some());
    assert_eq!(whole, pieces);
});
