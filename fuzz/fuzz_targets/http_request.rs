//! Heads of requests: what is let through is read in one way, and its path has one spelling.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use libfuzzer_sys::fuzz_target;
use portcullis::http::h1::framing::Framing;
use portcullis::http::h1::head::check_request_head;
use portcullis::http::path::normalise;
use portcullis::http::target::{Spoken, Target};

fuzz_target!(|head: &[u8]| {
    if check_request_head(head).is_err() {
        return;
    }
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(read)) = request.parse(head) else { return };
    assert_eq!(read, head.len(), "all of it is the head");
    let mut headers = HeaderMap::new();
    for field in request.headers.iter() {
        let Ok(name) = HeaderName::from_bytes(field.name.as_bytes()) else { return };
        let Ok(value) = HeaderValue::from_bytes(field.value) else { return };
        headers.append(name, value);
    }
    let old = request.version == Some(0);
    let (version, spoken) =
        if old { (Version::HTTP_10, Spoken::Http10) } else { (Version::HTTP_11, Spoken::Http11) };
    // What the look at the bytes lets through has one length.
    let framing = Framing::of_request(version, &headers);
    assert!(framing.is_ok(), "{framing:?}");
    let (Some(method), Some(uri)) = (request.method, request.path) else { return };
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return };
    if let Ok(target) = Target::read(&method, uri, &headers, spoken)
        && &*target.path != "*"
    {
        assert!(target.path.starts_with('/') && target.path.is_ascii());
        assert_eq!(normalise(&target.path).as_deref(), Ok(&*target.path), "it is in its one spelling");
    }
});
