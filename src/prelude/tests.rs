//! Dialogues, message by message: each is read the same however it is cut.

use super::*;

pub(super) fn greeting() -> Greeting {
    Greeting { name: "mail.test".into(), mysql_version: "8.0.0".into() }
}

/// Reads one message byte by byte: nothing is made of it before its last byte.
pub(super) fn hear(prelude: &mut Prelude, bytes: &[u8]) -> Result<Heard, PreludeError> {
    for len in 0..bytes.len() {
        if let Some(early) = prelude.advance(&bytes[..len])? {
            assert!(bytes.len() > early.len, "{early:?} although {} is left", bytes[len..].escape_ascii());
            return prelude.advance(bytes).map(|_| early);
        }
    }
    let heard = prelude.advance(bytes)?.unwrap_or_else(|| panic!("more than {}", bytes.escape_ascii()));
    assert_eq!(heard.len, bytes.len());
    Ok(heard)
}

/// A prelude that has heard these messages.
fn after(protocol: Protocol, before: &[&[u8]]) -> Prelude {
    let mut prelude = Prelude::new(protocol, &greeting()).unwrap();
    for message in before {
        assert_eq!(hear(&mut prelude, message).map(|heard| heard.then), Ok(Then::GoOn));
    }
    prelude
}

/// Without the ids of streams, which are never the same.
fn without_id(reply: &[u8]) -> String {
    let reply = String::from_utf8_lossy(reply).into_owned();
    match reply.split_once(" id='") {
        None => reply,
        Some((before, rest)) => format!("{before} id='?'{}", rest.split_once('\'').unwrap().1),
    }
}

pub(super) fn hears_bytes(protocol: Protocol, opening: &[u8], messages: &[(&[u8], &[u8], Then)]) {
    let mut prelude = Prelude::new(protocol, &greeting()).unwrap();
    assert_eq!((prelude.protocol(), prelude.opening().as_slice()), (protocol, opening));
    let mut whole = Prelude::new(protocol, &greeting()).unwrap();
    for (message, reply, then) in messages {
        let heard = hear(&mut prelude, message).unwrap();
        assert_eq!(without_id(&heard.reply), without_id(reply), "{}", message.escape_ascii());
        assert_eq!(heard.then, *then, "{}", message.escape_ascii());
        let at_once = whole.advance(message).unwrap().unwrap();
        assert_eq!(without_id(&at_once.reply), without_id(reply));
        assert_eq!((at_once.len, at_once.then), (heard.len, heard.then));
    }
}

/// The server says `opening`, and to each message what is behind it.
pub(super) fn hears(protocol: Protocol, opening: &str, messages: &[(&str, &str, Then)]) {
    for (message, reply, then) in messages.split_last().into_iter().flat_map(|(_, before)| before) {
        assert_eq!(*then, Then::GoOn, "{message} {reply}");
    }
    let mut prelude = Prelude::new(protocol, &greeting()).unwrap();
    assert_eq!(String::from_utf8(prelude.opening()).unwrap(), opening);
    let mut whole = Prelude::new(protocol, &greeting()).unwrap();
    for (message, reply, then) in messages {
        let heard = hear(&mut prelude, message.as_bytes()).unwrap();
        assert_eq!((without_id(&heard.reply).as_str(), &heard.then), (*reply, then), "{message}");
        let at_once = whole.advance(message.as_bytes()).unwrap().unwrap();
        assert_eq!((without_id(&at_once.reply).as_str(), &at_once.then), (*reply, then), "{message}");
        assert_eq!((heard.len, at_once.len), (message.len(), message.len()), "{message}");
    }
}

/// Behind what is heard before, these bytes are an error, at once and byte by byte.
pub(super) fn fails(protocol: Protocol, before: &[&[u8]], bytes: &[u8], error: PreludeError) {
    let whole = after(protocol, before).advance(bytes);
    assert_eq!(whole, Err(error), "{}", bytes.escape_ascii());
    assert_eq!(hear(&mut after(protocol, before), bytes), Err(error), "{}", bytes.escape_ascii());
}

/// A replay to a backend, of a prelude that has heard these messages, that has been told others, one byte after the other.
fn replay(protocol: Protocol, heard: &[&[u8]], told: &[&[u8]]) -> Replay {
    let mut replay = after(protocol, heard).replay();
    for message in told {
        for len in 0..message.len() {
            assert_eq!(replay.advance(&message[..len]), Ok(None), "{}", message[..len].escape_ascii());
        }
        let told = replay.advance(message).unwrap().unwrap();
        assert_eq!((told.len, told.ready), (message.len(), false), "{}", message.escape_ascii());
    }
    replay
}

pub(super) fn replays_bytes(
    protocol: Protocol,
    heard: &[&[u8]],
    opening: &[u8],
    messages: &[(&[u8], &[u8])],
    last: &[u8],
) {
    let told: Vec<&[u8]> = messages.iter().map(|(message, _)| *message).collect();
    assert_eq!(replay(protocol, heard, &[]).opening(), opening);
    for (index, (message, reply)) in messages.iter().enumerate() {
        let told = replay(protocol, heard, &told[..index]).advance(message);
        let expected = Told { len: message.len(), reply: reply.to_vec(), ready: false };
        assert_eq!(told, Ok(Some(expected)), "{}", message.escape_ascii());
    }
    for len in 0..last.len() {
        assert_eq!(replay(protocol, heard, &told).advance(&last[..len]), Ok(None));
    }
    let ready = Told { len: last.len(), reply: Vec::new(), ready: true };
    assert_eq!(replay(protocol, heard, &told).advance(last), Ok(Some(ready)), "{}", last.escape_ascii());
}

/// A backend is told `opening`, what stands behind each of its messages, and is ready with the last.
pub(super) fn replays(
    protocol: Protocol,
    heard: &[&[u8]],
    opening: &str,
    messages: &[(&str, &str)],
    last: &str,
) {
    let messages: Vec<_> = messages.iter().map(|(told, reply)| (told.as_bytes(), reply.as_bytes())).collect();
    replays_bytes(protocol, heard, opening.as_bytes(), &messages, last.as_bytes());
}

/// A backend that says this behind the others is given up, at once and byte by byte.
pub(super) fn refuses(
    protocol: Protocol,
    heard: &[&[u8]],
    before: &[&[u8]],
    bytes: &[u8],
    error: ReplayError,
) {
    assert_eq!(replay(protocol, heard, before).advance(bytes), Err(error), "{}", bytes.escape_ascii());
    let mut steps = replay(protocol, heard, before);
    let first = (0..=bytes.len()).map(|len| steps.advance(&bytes[..len])).find(|step| *step != Ok(None));
    match first {
        // What is too much comes behind what was ready before.
        Some(Ok(Some(told))) if told.ready => assert_eq!(error, ReplayError::Injection),
        other => assert_eq!(other, Some(Err(error)), "{}", bytes.escape_ascii()),
    }
}

#[test]
fn what_has_starttls_has_a_prelude() {
    for protocol in Protocol::ALL {
        let has = Prelude::new(protocol, &greeting()).is_some();
        assert_eq!(has, protocol.has_starttls(), "{protocol}");
    }
}

#[test]
fn no_more_is_read_than_a_client_may_say() {
    let mut prelude = after(Protocol::Imap, &[&b"a NOOP\r\n"[..]; MAX_MESSAGES]);
    assert_eq!(prelude.advance(b"a NOOP\r\n"), Err(PreludeError::TooMuch));
    let long = [b"<stream:stream b='".to_vec(), vec![b'x'; MAX_BYTES - 18]].concat();
    let mut prelude = after(Protocol::Xmpp, &[]);
    assert_eq!(prelude.advance(&long[..MAX_BYTES - 1]), Ok(None));
    assert_eq!(prelude.advance(&long), Err(PreludeError::TooMuch));
    assert_eq!(prelude.replay().advance(&long), Err(ReplayError::Syntax));
    let whole = [long, b"'>".to_vec()].concat();
    assert_eq!(prelude.advance(&whole), Err(PreludeError::TooMuch), "also at once");
    assert_eq!(prelude.replay().advance(&whole), Err(ReplayError::Syntax));
}
