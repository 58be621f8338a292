//! The verdict on a stream is the same whether it comes whole or byte by byte.
#![no_main]
use portcullis::peek::Detector;
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut steps = Detector::new(16384);
    let stepwise = (0..=bytes.len()).map(|end| steps.advance(&bytes[..end])).find(|step| *step != Ok(None));
    assert_eq!(stepwise.unwrap_or(Ok(None)), Detector::new(16384).advance(bytes));
});
