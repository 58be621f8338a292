//! What a server answers with is read, whatever it is; what says nothing changes nothing of what follows it.
#![no_main]
use portcullis::peek::Answer;
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let followed = || Answer::read(&[bytes, &[21, 3, 3, 0, 2, 2, 40]].concat());
    let answer = Answer::read(bytes);
    assert_eq!(Answer::read(&[&[20, 3, 3, 0, 1, 1], bytes].concat()), answer);
    assert!(answer.is_some() || followed() == Some(Answer::Refused(40)));
});
