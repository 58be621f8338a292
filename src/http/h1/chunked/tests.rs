use proptest::prelude::*;

use super::*;

/// The data and the trailers of a body that comes in such pieces, and what is left behind it.
#[derive(Debug, PartialEq, Eq)]
struct Body {
    data: Vec<u8>,
    trailers: HeaderMap,
    rest: Vec<u8>,
}

/// `Ok(None)` when the body is not whole.
fn decode_by(limits: Limits, pieces: &[&[u8]]) -> Result<Option<Body>, ChunkError> {
    let mut decoder = Decoder::new(limits);
    let (mut bytes, mut data, mut end) = (BytesMut::new(), Vec::new(), None);
    for piece in pieces {
        bytes.extend_from_slice(piece);
        while end.is_none() {
            match decoder.decode(&mut bytes)? {
                Decoded::Data(some) => {
                    assert!(!some.is_empty());
                    data.extend_from_slice(&some);
                }
                Decoded::Trailers(trailers) => end = Some(trailers),
                Decoded::NeedMore => break,
            }
        }
    }
    assert_eq!(decoder.is_done(), end.is_some());
    Ok(end.map(|trailers| Body { data, trailers, rest: bytes.to_vec() }))
}

fn decode(body: &[u8]) -> Result<Option<Body>, ChunkError> {
    let whole = decode_by(Limits::DEFAULT, &[body]);
    let single: Vec<_> = body.chunks(1).collect();
    assert_eq!(decode_by(Limits::DEFAULT, &single), whole, "{}", body.escape_ascii());
    whole
}

#[test]
fn bodies_are_read_from_every_beginning() {
    let first = b"5\r\nhello\r\na;x=\"y;z\"\r\n, world...\r\n0;last\r\n".as_slice();
    let body = [first, b"X-Sum: 1\r\nx-sum:2\r\nContent-Digest: x\r\n\r\n"].concat();
    for len in 0..body.len() {
        assert_eq!(decode(&body[..len]), Ok(None), "after {len} bytes");
    }
    let whole = decode_by(Limits::DEFAULT, &[&body, b"GET /"]).unwrap().unwrap();
    assert_eq!((&*whole.data, &*whole.rest), (&b"hello, world..."[..], &b"GET /"[..]));
    assert_eq!(whole.trailers.len(), 3);
}

#[test]
fn bodies_have_one_reading() {
    let table: &[(&[u8], &[u8])] = &[
        (b"0\r\n\r\n", b""),
        (b"000\r\n\r\n", b""),
        (b"1\r\na\r\n0\r\n\r\n", b"a"),
        (b"0000000000000001\r\na\r\n0\r\n\r\n", b"a"),
        (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
        (b"1;\r\na\r\n0;\r\n\r\n", b"a"),
        (b"1;a=b;c=\"d e\\\"\"\t\r\na\r\n0\r\n\r\n", b"a"),
        (b"1;\xff\r\na\r\n0\r\n\r\n", b"a"),
    ];
    for (body, data) in table {
        let read = decode(body).unwrap().unwrap();
        assert_eq!(
            read,
            Body { data: data.to_vec(), trailers: HeaderMap::new(), rest: vec![] },
            "{}",
            body.escape_ascii()
        );
    }
}

#[test]
fn bodies_with_two_readings_are_refused() {
    let table: &[(&[u8], ChunkError)] = &[
        (b"\r\n", ChunkError::Size),
        (b"\n", ChunkError::Size),
        (b";x\r\n", ChunkError::Size),
        (b" 1\r\n", ChunkError::Size),
        (b"1 \r\n", ChunkError::Size),
        (b"1 ;x\r\n", ChunkError::Size),
        (b"1\t\r\n", ChunkError::Size),
        (b"+1\r\n", ChunkError::Size),
        (b"-1\r\n", ChunkError::Size),
        (b"0x1\r\n", ChunkError::Size),
        (b"1_0\r\n", ChunkError::Size),
        (b"g\r\n", ChunkError::Size),
        (b"\xd9\xa1\r\n", ChunkError::Size),
        (b"1,1\r\n", ChunkError::Size),
        (b"1\0\r\n", ChunkError::Size),
        (b"10000000000000000\r\n", ChunkError::Size),
        (b"00000000000000001\r\n", ChunkError::Size),
        (b"fffffffffffffffff\r\n", ChunkError::Size),
        (b"1\na\r\n", ChunkError::Size),
        (b"1\ra\r\n", ChunkError::LineEnd),
        (b"1\r\r\n", ChunkError::LineEnd),
        (b"1;x\na\r\n", ChunkError::LineEnd),
        (b"1;x\ra\r\n", ChunkError::LineEnd),
        (b"1;\0\r\n", ChunkError::Extension),
        (b"1;\x7f\r\n", ChunkError::Extension),
        (b"1\r\nab\r\n", ChunkError::LineEnd),
        (b"1\r\na\n0\r\n\r\n", ChunkError::LineEnd),
        (b"1\r\na\r0\r\n\r\n", ChunkError::LineEnd),
        (b"1\r\na0\r\n\r\n", ChunkError::LineEnd),
        (b"1\r\na\r\r\n", ChunkError::LineEnd),
        (b"0\n\n", ChunkError::Size),
        (b"0\r\n\n", ChunkError::LineEnd),
        (b"0\r\n\rX", ChunkError::LineEnd),
        (b"0\r\nA: b\n\r\n", ChunkError::LineEnd),
        (b"0\r\nA: b\rC: d\r\n\r\n", ChunkError::LineEnd),
        (b"0\r\nGET / HTTP/1.1\r\n", ChunkError::Trailer),
        (b"0\r\nA : b\r\n", ChunkError::Trailer),
        (b"0\r\n A: b\r\n", ChunkError::Trailer),
        (b"0\r\nA: b\r\n c\r\n", ChunkError::Trailer),
        (b"0\r\n: b\r\n", ChunkError::Trailer),
        (b"0\r\nA: \0\r\n", ChunkError::Trailer),
    ];
    for (body, error) in table {
        assert_eq!(decode(body), Err(*error), "{}", body.escape_ascii());
        assert!(ChunkError::REASONS.contains(&error.reason()));
    }
}

#[test]
fn the_largest_size_is_no_overflow() {
    let mut decoder = Decoder::new(Limits::DEFAULT);
    let mut bytes = BytesMut::from(&b"ffffffffffffffff\r\nab"[..]);
    assert_eq!(decoder.decode(&mut bytes), Ok(Decoded::Data(Bytes::from_static(b"ab"))));
    assert_eq!(decoder.decode(&mut bytes), Ok(Decoded::NeedMore));
    assert_eq!(decoder.state, State::Data { left: u64::MAX - 2 });
}

#[test]
fn what_is_beside_the_data_is_bounded() {
    let limits = Limits { extensions: 8, trailers: 20, fields: 2 };
    let decode = |body: &[u8]| decode_by(limits, &[body]).map(|body| body.is_some());
    // Of all chunks together.
    assert_eq!(decode(b"1;abc\r\na\r\n1;abc\r\na\r\n0\r\n\r\n"), Ok(true));
    assert_eq!(decode(b"1;abc\r\na\r\n1;abcd\r\na\r\n0\r\n\r\n"), Err(ChunkError::Extensions));
    assert_eq!(decode(b"1;abcdefgh"), Err(ChunkError::Extensions));
    assert_eq!(decode(b"0\r\nA: 1234567\r\nB: 1234567\r\n\r\n"), Ok(true));
    assert_eq!(decode(b"0\r\nA: 1234567\r\nB: 12345678\r\n\r\n"), Err(ChunkError::Trailers));
    assert_eq!(decode(b"0\r\nA: 1234567890123456789"), Err(ChunkError::Trailers));
    assert_eq!(decode(b"0\r\nA: 1\r\nB: 1\r\nC: 1\r\n\r\n"), Err(ChunkError::Trailers));
    // Those that are dropped count as well.
    assert_eq!(decode(b"0\r\nHost: 1\r\nHost: 2\r\nHost: 3\r\n\r\n"), Err(ChunkError::Trailers));
}

#[test]
fn lists_of_trailers_are_sorted() {
    assert!(NO_TRAILERS.is_sorted());
}

#[test]
fn what_decides_is_no_trailer() {
    let never = "Content-Length Transfer-Encoding Host Authorization Cookie Set-Cookie Content-Type Content-Encoding \
                 Content-Range Trailer TE Connection Upgrade Cache-Control Expect Range If-Match Max-Forwards \
                 Proxy-Authorization WWW-Authenticate Location Vary Age X-Forwarded-For Forwarded X-Real-IP Via X_Sum \
                 Access-Control-Allow-Origin Sec-WebSocket-Key X-Original-URL";
    let names = never.split(' ').chain(["X-Sum", "grpc-status", "Content-Digest", "Server-Timing"]);
    let lines: String = names.map(|name| format!("{name}: 1\r\n")).collect();
    let limits = Limits { fields: 100, ..Limits::DEFAULT };
    let body = decode_by(limits, &[format!("0\r\n{lines}\r\n").as_bytes()]).unwrap().unwrap();
    let mut left: Vec<_> = body.trailers.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["content-digest", "grpc-status", "server-timing", "x-sum"]);
}

#[test]
fn what_is_written_is_read() {
    for (len, expected) in
        [(1, "1\r\n"), (15, "f\r\n"), (16, "10\r\n"), (0xabc, "abc\r\n"), (u64::MAX, "ffffffffffffffff\r\n")]
    {
        let head = head(NonZeroU64::new(len).unwrap());
        assert_eq!(std::str::from_utf8(head.as_ref()).unwrap(), expected);
    }
    let mut trailers = HeaderMap::new();
    assert_eq!(&*last(&trailers), b"0\r\n\r\n");
    trailers.append("x-sum", HeaderValue::from_static("1"));
    trailers.append("x-sum", HeaderValue::from_static("2"));
    trailers.append("host", HeaderValue::from_static("evil.test"));
    assert_eq!(&*last(&trailers), b"0\r\nx-sum: 1\r\nx-sum: 2\r\n\r\n");
}

#[test]
fn what_says_who_a_client_is_comes_before_the_body_or_not_at_all() {
    let mut trailers = HeaderMap::new();
    for name in
        ["x-sum", "client-cert", "client-cert-chain", "x-portcullis-variant", "x-forwarded-for", "x-sum"]
    {
        trailers.append(name, HeaderValue::from_static("1"));
    }
    let left = trailing(trailers);
    let names: Vec<_> = left.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["x-sum", "x-sum"]);
    assert_eq!(trailing(left.clone()), left);
}

proptest! {
    /// However a body is cut into pieces, it is the same.
    #[test]
    fn pieces_do_not_matter(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut body = Vec::new();
        for chunk in &chunks {
            body.extend_from_slice(head(NonZeroU64::new(chunk.len() as u64).unwrap()).as_ref());
            body.extend_from_slice(chunk);
            body.extend_from_slice(b"\r\n");
        }
        let trailers: HeaderMap = [("x-sum".parse().unwrap(), HeaderValue::from_static("1"))].into_iter().collect();
        body.extend_from_slice(&last(&trailers));
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(body.len())).collect();
        cuts.extend([0, body.len()]);
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|ends| &body[ends[0]..ends[1]]).collect();
        let read = decode_by(Limits::DEFAULT, &pieces).unwrap().unwrap();
        prop_assert_eq!(read, Body { data: chunks.concat(), trailers, rest: vec![] });
    }

    /// Nor does it matter for what is none, whole bodies followed by others included.
    #[test]
    fn pieces_do_not_matter_for_what_is_none(
        body in "(([0-3a]|[0-3];x|A: b|[a-z]|\r|\n| )?(\r\n)?){0,12}",
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let body = body.as_bytes();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
        cuts.extend([0, body.len()]);
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|ends| &body[ends[0]..ends[1]]).collect();
        prop_assert_eq!(decode_by(Limits::DEFAULT, &pieces), decode_by(Limits::DEFAULT, &[body]));
    }

    #[test]
    fn nothing_panics(body in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = decode(&body);
    }
}
