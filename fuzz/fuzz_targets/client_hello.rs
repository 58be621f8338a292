//! A handshake message is read or refused, never more.
#![no_main]
libfuzzer_sys::fuzz_target!(|message: &[u8]| {
    let _ = portcullis::peek::ClientHello::parse(message);
});
