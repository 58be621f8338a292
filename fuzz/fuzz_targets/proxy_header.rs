//! The verdict on a PROXY header is the same whether it comes whole or byte by byte, and its end is within it.
#![no_main]
use portcullis::net::ProxyHeader;
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let whole = ProxyHeader::read(bytes);
    let mut stepwise = (0..=bytes.len()).map(|end| ProxyHeader::read(&bytes[..end]));
    assert_eq!(stepwise.find(|step| *step != Ok(None)).unwrap_or(Ok(None)), whole);
    assert!(whole.ok().flatten().is_none_or(|header| header.len <= bytes.len().min(ProxyHeader::MAX)));
});
