use proptest::prelude::*;

use super::*;

const OK: Result<(), HeadError> = Ok(());
const LINE_END: Result<(), HeadError> = Err(HeadError::LineEnd);
const END: Result<(), HeadError> = Err(HeadError::End);
const REQUEST_LINE: Result<(), HeadError> = Err(HeadError::RequestLine);
const VERSION: Result<(), HeadError> = Err(HeadError::Version);
const FOLD: Result<(), HeadError> = Err(HeadError::Fold);
const NAME: Result<(), HeadError> = Err(HeadError::Name);
const VALUE: Result<(), HeadError> = Err(HeadError::Value);
const LENGTH: Result<(), HeadError> = Err(HeadError::ContentLength);
const ENCODING: Result<(), HeadError> = Err(HeadError::TransferEncoding);
const BOTH: Result<(), HeadError> = Err(HeadError::Both);

fn check(rows: &[(&[u8], Result<(), HeadError>)]) {
    for (head, expected) in rows {
        assert_eq!(check_request_head(head), *expected, "{}", head.escape_ascii());
        if let Err(error) = expected {
            assert!(
                HeadError::REASONS.contains(&error.reason()) && error.status().is_client_error()
                    || *expected == VERSION
            );
        }
    }
}

/// Whole heads: how lines end, and what the first one is.
const HEADS: &[(&[u8], Result<(), HeadError>)] = &[
    (b"GET / HTTP/1.1\r\n\r\n", OK),
    (b"GET / HTTP/1.0\r\n\r\n", OK),
    (b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", OK),
    (b"M-SEARCH * HTTP/1.1\r\nHost: a.test\r\n\r\n", OK),
    (b"GET /\xc3\xa4?\xff HTTP/1.1\r\n\r\n", OK),
    (b"", END),
    (b"\r\n", REQUEST_LINE),
    (b"\r\n\r\n", REQUEST_LINE),
    (b"\r\nGET / HTTP/1.1\r\n\r\n", REQUEST_LINE),
    (b"GET / HTTP/1.1", END),
    (b"GET / HTTP/1.1\r", END),
    (b"GET / HTTP/1.1\r\n", END),
    (b"GET / HTTP/1.1\r\nA: b\r\n", END),
    (b"GET / HTTP/1.1\r\nA: b\r\n\r", END),
    (b"GET / HTTP/1.1\r\n\r\n\r\n", END),
    (b"GET / HTTP/1.1\r\n\r\nX", END),
    (b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n", END),
    (b"GET / HTTP/1.1\n\n", LINE_END),
    (b"GET / HTTP/1.1\nA: b\r\n\r\n", LINE_END),
    (b"GET / HTTP/1.1\r\nA: b\n\r\n", LINE_END),
    (b"GET / HTTP/1.1\r\nA: b\r\n\n", LINE_END),
    (b"GET / HTTP/1.1\r\nA: b\rC: d\r\n\r\n", LINE_END),
    (b"GET / HTTP/1.1\r\nA: b\r\r\n\r\n", LINE_END),
    (b"GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n", LINE_END),
    (b"GET / HTTP/1.1\r\r\n\r\n", LINE_END),
    (b"GET / HTTP/1.1\r\nA\r: b\r\n\r\n", LINE_END),
    (b"GET /\rX HTTP/1.1\r\n\r\n", LINE_END),
    (b"GET  / HTTP/1.1\r\n\r\n", REQUEST_LINE),
    (b"GET /  HTTP/1.1\r\n\r\n", REQUEST_LINE),
    (b"GET / HTTP/1.1 \r\n\r\n", REQUEST_LINE),
    (b" GET / HTTP/1.1\r\n\r\n", REQUEST_LINE),
    (b"GET\t/ HTTP/1.1\r\n\r\n", REQUEST_LINE),
    (b"GET /a\tb HTTP/1.1\r\n\r\n", REQUEST_LINE),
    (b"GET /a b HTTP/1.1\r\n\r\n", REQUEST_LINE),
    (b"GET /\0 HTTP/1.1\r\n\r\n", REQUEST_LINE),
    (b"GET /\x7f HTTP/1.1\r\n\r\n", REQUEST_LINE),
    (b"GE(T / HTTP/1.1\r\n\r\n", REQUEST_LINE),
    (b"G\xc3\x89T / HTTP/1.1\r\n\r\n", REQUEST_LINE),
    (b"GET /\r\n\r\n", REQUEST_LINE),
    (b"GET\r\n\r\n", REQUEST_LINE),
    (b"/ HTTP/1.1\r\n\r\n", REQUEST_LINE),
    (b"GET / HTTP/1.2\r\n\r\n", VERSION),
    (b"GET / HTTP/2.0\r\n\r\n", VERSION),
    (b"GET / HTTP/0.9\r\n\r\n", VERSION),
    (b"GET / HTTP/1.10\r\n\r\n", VERSION),
    (b"GET / HTTP/1.1x\r\n\r\n", VERSION),
    (b"GET / http/1.1\r\n\r\n", VERSION),
    (b"GET / HTTP/01.1\r\n\r\n", VERSION),
    (b"GET / HTTP 1.1\r\n\r\n", REQUEST_LINE),
    (b"GET / XTTP/1.1\r\n\r\n", VERSION),
    (b"PRI * HTTP/2.0\r\n\r\n", VERSION),
];

#[test]
fn heads_are_of_lines() {
    check(HEADS);
}

/// The fields behind `POST / HTTP/1.1`.
const FIELDS: &[(&[u8], Result<(), HeadError>)] = &[
    (b"A:b", OK),
    (b"A:", OK),
    (b"A: \t b \t ", OK),
    (b"A: b\tc", OK),
    (b"A: \xe4\xff", OK),
    (b"A: b:c", OK),
    (b"!#$%&'*+-.^_`|~09aZ: b", OK),
    (b"A: b\r\n c", FOLD),
    (b"A: b\r\n\tc", FOLD),
    (b"A: b\r\n ", FOLD),
    (b" A: b", FOLD),
    (b"\tA: b", FOLD),
    (b" Content-Length: 5", FOLD),
    (b"A: b\r\n Transfer-Encoding: chunked", FOLD),
    (b"Transfer-Encoding:\r\n chunked", ENCODING),
    (b"Content-Length:\r\n 5", LENGTH),
    (b"A : b", NAME),
    (b"A\t: b", NAME),
    (b"A B: c", NAME),
    (b": b", NAME),
    (b"A", NAME),
    (b"A b", NAME),
    (b"\0A: b", NAME),
    (b"A\0: b", NAME),
    (b"\x0bA: b", NAME),
    (b"A\x0b: b", NAME),
    (b"A\x80: b", NAME),
    (b"\xef\xbb\xbfA: b", NAME),
    (b"A\"B: c", NAME),
    (b"A(B): c", NAME),
    (b"A;B: c", NAME),
    (b"A@B: c", NAME),
    (b"Content-Length : 5", NAME),
    (b"Transfer-Encoding : chunked", NAME),
    (b"Transfer-Encoding\t: chunked", NAME),
    (b"Transfer-Encoding\x0b: chunked", NAME),
    (b"Transfer-Encoding\xa0: chunked", NAME),
    (b"Transfer Encoding: chunked", NAME),
    (b"A: b\0c", VALUE),
    (b"A: \x01", VALUE),
    (b"A: \x0b", VALUE),
    (b"A: \x7f", VALUE),
    (b"A: b\x1bc", VALUE),
];

/// How long the body is, by the fields behind `POST / HTTP/1.1`.
const LENGTHS: &[(&[u8], Result<(), HeadError>)] = &[
    (b"Content-Length: 0", OK),
    (b"content-length:5", OK),
    (b"CONTENT-LENGTH: 005 ", OK),
    (b"Content-Length: 18446744073709551615", OK),
    (b"X-Content-Length: x", OK),
    (b"Content-Length: 18446744073709551616", LENGTH),
    (b"Content-Length: 99999999999999999999999999", LENGTH),
    (b"Content-Length: +5", LENGTH),
    (b"Content-Length: -5", LENGTH),
    (b"Content-Length: -0", LENGTH),
    (b"Content-Length: 5 5", LENGTH),
    (b"Content-Length: 5,5", LENGTH),
    (b"Content-Length: 5, 6", LENGTH),
    (b"Content-Length: ,5", LENGTH),
    (b"Content-Length: 5;x", LENGTH),
    (b"Content-Length: 0x5", LENGTH),
    (b"Content-Length: 5.0", LENGTH),
    (b"Content-Length: 1e1", LENGTH),
    (b"Content-Length: 5_0", LENGTH),
    (b"Content-Length: \"5\"", LENGTH),
    (b"Content-Length: ", LENGTH),
    (b"Content-Length: x", LENGTH),
    (b"Content-Length: \xd9\xa5", LENGTH),
    (b"Content-Length: 5\xa0", LENGTH),
    (b"Content-Length: 5\x0c", VALUE),
    (b"Content-Length: 5\0", VALUE),
    (b"Content-Length: 5\r\nContent-Length: 5", LENGTH),
    (b"Content-Length: 5\r\nContent-Length: 6", LENGTH),
    (b"Content-Length: 5\r\nA: b\r\ncontent-length: 5", LENGTH),
    (b"Content-Length: 0\r\nContent-Length:", LENGTH),
    (b"Transfer-Encoding: chunked", OK),
    (b"transfer-encoding:  CHUNKED\t", OK),
    (b"X-Transfer-Encoding: x", OK),
    (b"Transfer-Encoding: xchunked", ENCODING),
    (b"Transfer-Encoding: chunked x", ENCODING),
    (b"Transfer-Encoding: chunked;q=1", ENCODING),
    (b"Transfer-Encoding: \"chunked\"", ENCODING),
    (b"Transfer-Encoding: 'chunked'", ENCODING),
    (b"Transfer-Encoding: chunked,", ENCODING),
    (b"Transfer-Encoding: ,chunked", ENCODING),
    (b"Transfer-Encoding: chunked, chunked", ENCODING),
    (b"Transfer-Encoding: gzip, chunked", ENCODING),
    (b"Transfer-Encoding: chunked, gzip", ENCODING),
    (b"Transfer-Encoding: chunked, identity", ENCODING),
    (b"Transfer-Encoding: identity", ENCODING),
    (b"Transfer-Encoding: gzip", ENCODING),
    (b"Transfer-Encoding:", ENCODING),
    (b"Transfer-Encoding: \xefchunked", ENCODING),
    (b"Transfer-Encoding: chunked\xa0", ENCODING),
    (b"Transfer-Encoding: \x0bchunked", VALUE),
    (b"Transfer-Encoding: chunked\0", VALUE),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", ENCODING),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", ENCODING),
    (b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", ENCODING),
    (b"Transfer-Encoding: x\r\nA: b\r\ntransfer-encoding: chunked", ENCODING),
    (b"Content-Length: 5\r\nTransfer-Encoding: chunked", BOTH),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 5", BOTH),
    (b"Transfer-Encoding: chunked\r\nA: b\r\nContent-Length: 0", BOTH),
    (b"Content-Length: 5\r\nTransfer-Encoding: identity", ENCODING),
    (b"Transfer-Encoding: chunked\r\nContent-Length: x", LENGTH),
];

#[test]
fn fields_and_lengths_have_one_reading() {
    for (fields, expected) in FIELDS.iter().chain(LENGTHS) {
        let head = [b"POST / HTTP/1.1\r\nHost: a.test\r\n", *fields, b"\r\n\r\n"].concat();
        check(&[(&head, *expected)]);
        // What is refused is refused wherever it stands.
        let head = [b"POST / HTTP/1.1\r\n", *fields, b"\r\nHost: a.test\r\n\r\n"].concat();
        check(&[(&head, *expected)]);
    }
    assert!(HEADS.len() + FIELDS.len() + LENGTHS.len() >= 150);
}

#[test]
fn old_requests_have_no_chunks() {
    check(&[
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", ENCODING),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", ENCODING),
        (b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\n", OK),
        (b"POST / HTTP/1.0\r\n\r\n", OK),
    ]);
}

#[test]
fn no_beginning_of_a_head_is_one() {
    let head = b"POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nA: b\r\n\r\n";
    for len in 0..head.len() {
        assert!(check_request_head(&head[..len]).is_err(), "after {len} bytes");
    }
    assert_eq!(check_request_head(head), OK);
}

proptest! {
    #[test]
    fn nothing_panics(head in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = check_request_head(&head);
    }

    /// What is let through, a lenient reading by lines sees in the same way.
    #[test]
    fn what_is_let_through_has_one_reading(
        fields in "((Content-Length|Transfer-Encoding|A)[ \t]?:[ \t]?(5|chunked|x|\t)?[\r\n\0 ]{0,2}(\r\n|\n|\r)[ ]?){0,4}",
    ) {
        let head = format!("POST / HTTP/1.1\r\n{fields}\r\n");
        if check_request_head(head.as_bytes()).is_ok() {
            let lenient: Vec<_> = head.trim_end().split(['\r', '\n']).filter(|line| !line.is_empty()).collect();
            let strict: Vec<_> = head.trim_end_matches("\r\n").split("\r\n").collect();
            prop_assert_eq!(&lenient, &strict.iter().map(|line| line.trim_end()).collect::<Vec<_>>());
            let lengths = strict.iter().filter(|line| line.starts_with("Content-") || line.starts_with("Transfer-"));
            prop_assert!(lengths.count() <= 1);
        }
    }
}
