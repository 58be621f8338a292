//! Any text is a configuration or a list of errors that can be printed.
#![no_main]
libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(errors) = portcullis::config::Config::parse("fuzz.toml".as_ref(), text) {
        assert!(!errors.render(false).is_empty());
    }
});
