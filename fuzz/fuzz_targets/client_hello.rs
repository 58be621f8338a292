//! A handshake message is read or refused, never more; what is read has a fingerprint that is one.
#![no_main]
libfuzzer_sys::fuzz_target!(|message: &[u8]| {
    if let Ok(hello) = portcullis::peek::ClientHello::parse_with_ja4(message) {
        assert!(hello.ja4.is_some_and(|ja4| portcullis::peek::Ja4::parse(ja4.as_str()) == Ok(*ja4)));
    }
});
