//! Whoever speaks before TLS, client or backend, is read alike whole or byte by byte, and reading ends: each message takes bytes of
//! its own and no others. The first byte chooses the protocol and the side.
#![no_main]
use portcullis::peek::Protocol;
use portcullis::prelude::{Greeting, Prelude, Then, Why, refusal};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let protocols = Protocol::ALL;
    let protocol = protocols[usize::from(choice >> 1) % protocols.len()];
    for why in Why::ALL {
        refusal(protocol, why, bytes);
    }
    let greeting = Greeting { name: "mail.test".into(), mysql_version: "8.0.0".into() };
    let new = || Prelude::new(protocol, &greeting);
    let Some((mut steps, mut whole)) = new().zip(new()) else { return };
    if choice & 1 == 0 {
        hear(&mut steps, &mut whole, bytes);
    } else {
        told(&steps, &whole, bytes);
    }
});

fn hear(steps: &mut Prelude, whole: &mut Prelude, mut bytes: &[u8]) {
    loop {
        let stepwise =
            (0..=bytes.len()).map(|end| steps.advance(&bytes[..end])).find(|step| *step != Ok(None));
        let at_once = whole.advance(bytes);
        let stepwise = stepwise.unwrap_or(Ok(None));
        let Ok(Some(heard)) = stepwise else { return assert_eq!(at_once, stepwise) };
        assert!(heard.len <= bytes.len());
        // Bytes behind a message may be refused; else it is the same, but for ids.
        let Ok(Some(same)) = at_once else { return assert!(at_once.is_err() && bytes.len() > heard.len) };
        assert_eq!((same.len, &same.then, same.reply.len()), (heard.len, &heard.then, heard.reply.len()));
        if heard.then != Then::GoOn {
            return;
        }
        assert_ne!(heard.len, 0);
        bytes = &bytes[heard.len..];
    }
}

fn told(steps: &Prelude, whole: &Prelude, mut bytes: &[u8]) {
    let (mut steps, mut whole) = (steps.replay(), whole.replay());
    loop {
        let stepwise =
            (0..=bytes.len()).map(|end| steps.advance(&bytes[..end])).find(|step| *step != Ok(None));
        let at_once = whole.advance(bytes);
        let stepwise = stepwise.unwrap_or(Ok(None));
        let Ok(Some(told)) = stepwise else { return assert_eq!(at_once, stepwise) };
        assert!((1..=bytes.len()).contains(&told.len));
        if told.ready {
            return assert_eq!(at_once.is_err(), bytes.len() > told.len);
        }
        let len = told.len;
        assert_eq!(at_once, Ok(Some(told)));
        bytes = &bytes[len..];
    }
}
