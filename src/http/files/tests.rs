use std::fs;
use std::future::poll_fn;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::pin::pin;
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::HeaderName;
use rustix::fs::{CWD, Mode, mkfifoat};
use tempfile::TempDir;

use super::*;

mod names;

/// When files are changed, unless a test says otherwise.
const CHANGED: u64 = 1_700_000_000;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Without any runtime: all that is needed is a waker.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}

/// A folder with a root in it, and what is served of that.
struct Site {
    dir: TempDir,
    config: FilesConfig,
    disk: Disk,
}

/// An answer with its body.
struct Got {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    streamed: bool,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let index = vec!["index.html".into(), "index.htm".into()];
        let config =
            FilesConfig { root, index, fallback: None, strip: None, dotfiles: false, precompressed: false };
        Self { dir, config, disk: Disk::new(1) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.config.root.join(name)
    }

    /// Writes a file, so many seconds after the usual time.
    fn write_at(&self, name: &str, bytes: impl AsRef<[u8]>, seconds: u64) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(CHANGED + seconds);
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        self.write_at(name, bytes, 0);
    }

    fn ask(
        &self,
        method: Method,
        target: &str,
        fields: &[(&'static str, &str)],
    ) -> Result<FileAnswer, FilesError> {
        let fields =
            fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let headers = HeaderMap::from_iter(fields);
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let asked = Asked { method: &method, path, query, headers: &headers };
        block_on(Files::new(&self.config).answer(&self.disk, &asked))
    }

    fn get_with(&self, target: &str, fields: &[(&'static str, &str)]) -> Got {
        Got::from(self.ask(Method::GET, target, fields))
    }

    fn get(&self, target: &str) -> Got {
        self.get_with(target, &[])
    }

    fn status(&self, target: &str) -> u16 {
        self.get(target).status
    }
}

impl Got {
    fn from(answer: Result<FileAnswer, FilesError>) -> Self {
        let (status, headers, mut body) = match answer {
            Ok(FileAnswer { status, headers, body }) => (status, headers, body),
            Err(error) => (error.status(), HeaderMap::new(), Body::None),
        };
        let promised = body.len();
        let mut bytes = Vec::new();
        match &mut body {
            Body::None => {}
            Body::Bytes(all) => bytes.extend_from_slice(all),
            Body::Stream(stream) => {
                while let Some(piece) = block_on(poll_fn(|cx| stream.poll_chunk(cx))) {
                    bytes.extend_from_slice(&piece.unwrap());
                }
            }
        }
        assert_eq!(bytes.len() as u64, promised);
        let streamed = matches!(body, Body::Stream(_));
        let got = Self { status: status.as_u16(), headers, body: bytes, streamed };
        if let (200 | 206, false) = (got.status, matches!(body, Body::None)) {
            assert_eq!(got.header("content-length"), promised.to_string());
        }
        got
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn all(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| u8::try_from(index % 251).unwrap()).collect()
}

#[test]
fn a_file_is_sent_with_what_is_known_of_it() {
    let site = Site::new();
    site.write("a.txt", "hello");
    let got = site.get("/a.txt");
    assert_eq!((got.status, got.text(), got.streamed), (200, "hello", false));
    let mut fields: Vec<_> =
        got.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    fields.sort_unstable();
    let expected = [
        ("accept-ranges", "bytes"),
        ("content-length", "5"),
        ("content-type", "text/plain; charset=utf-8"),
        ("etag", "\"5-6553f100.0\""),
        ("last-modified", "Tue, 14 Nov 2023 22:13:20 GMT"),
        ("x-content-type-options", "nosniff"),
    ];
    assert_eq!(fields, expected);
    site.write("empty", "");
    assert_eq!((site.get("/empty").status, site.get("/empty").body.len()), (200, 0));
}

#[test]
fn long_files_are_read_while_they_are_sent() {
    let site = Site::new();
    for (len, streamed) in [(65_535, false), (65_536, false), (65_537, true), (1_000_000, true)] {
        let bytes = pattern(len);
        site.write("f.bin", &bytes);
        let got = site.get("/f.bin");
        assert_eq!((got.status, got.streamed), (200, streamed), "{len}");
        assert!(got.body == bytes, "{len}");
    }
}

#[test]
fn head_is_get_without_the_body() {
    let site = Site::new();
    site.write("a.txt", "hello");
    site.write("long", pattern(100_000));
    site.write("d/index.html", "index");
    let etag = site.get("/a.txt").header("etag").to_owned();
    let table: &[(&str, &[(&'static str, &str)])] = &[
        ("/a.txt", &[]),
        ("/long", &[]),
        ("/d/", &[]),
        ("/d", &[]),
        ("/none", &[]),
        ("/a.txt", &[("if-none-match", &etag)]),
        ("/a.txt", &[("if-match", "\"x\"")]),
    ];
    for (target, fields) in table {
        let get = site.get_with(target, fields);
        let head = Got::from(site.ask(Method::HEAD, target, fields));
        assert_eq!((head.status, &head.headers), (get.status, &get.headers), "{target}");
        assert!(head.body.is_empty());
    }
    let ranged = Got::from(site.ask(Method::HEAD, "/a.txt", &[("range", "bytes=0-0")]));
    assert_eq!((ranged.status, ranged.header("content-length")), (200, "5"), "parts are for GET");
}

#[test]
fn other_methods_are_told_which_there_are() {
    let site = Site::new();
    site.write("a.txt", "hello");
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::TRACE, Method::CONNECT]
    {
        let got = Got::from(site.ask(method, "/a.txt", &[]));
        assert_eq!((got.status, got.header("allow")), (405, "GET, HEAD"));
    }
}

#[test]
fn conditions_of_requests_hold() {
    let site = Site::new();
    site.write("a.txt", "hello");
    let etag = site.get("/a.txt").header("etag").to_owned();
    let at = "Tue, 14 Nov 2023 22:13:20 GMT";
    let before = "Tue, 14 Nov 2023 22:13:19 GMT";
    let table: &[(&[(&'static str, &str)], u16)] = &[
        (&[("if-none-match", &etag)], 304),
        (&[("if-none-match", "\"x\"")], 200),
        (&[("if-modified-since", at)], 304),
        (&[("if-modified-since", before)], 200),
        (&[("if-match", &etag)], 200),
        (&[("if-match", "\"x\"")], 412),
        (&[("if-unmodified-since", before)], 412),
        (&[("if-none-match", &etag), ("range", "bytes=9-")], 304),
        (&[("if-match", "\"x\""), ("range", "bytes=9-")], 412),
    ];
    for (fields, expected) in table {
        let got = site.get_with("/a.txt", fields);
        assert_eq!(got.status, *expected, "{fields:?}");
        if got.status == 304 {
            assert_eq!((got.header("etag"), got.header("last-modified")), (&*etag, at));
            assert!(!got.headers.contains_key("content-length"));
        }
        assert_eq!(got.body.is_empty(), got.status != 200);
    }
    // Nothing holds of a file that there is not.
    assert_eq!(site.get_with("/none", &[("if-none-match", "*")]).status, 404);
}

#[test]
fn other_versions_have_other_tags() {
    let site = Site::new();
    let mut tags = Vec::new();
    for (bytes, seconds) in [("hello", 0), ("hello", 1), ("hell", 1)] {
        site.write_at("a.txt", bytes, seconds);
        tags.push(site.get("/a.txt").header("etag").to_owned());
    }
    tags.dedup();
    assert_eq!(tags.len(), 3, "{tags:?}");
    File::options().write(true).open(site.path("a.txt")).unwrap().set_modified(UNIX_EPOCH).unwrap();
    let got = site.get("/a.txt");
    assert_eq!((got.status, got.header("etag"), got.header("last-modified")), (200, "", ""));
    let early = UNIX_EPOCH - Duration::from_secs(5);
    File::options().write(true).open(site.path("a.txt")).unwrap().set_modified(early).unwrap();
    assert_eq!((site.status("/a.txt"), site.get("/a.txt").header("etag")), (200, ""));
    let late = SystemTime::now() + Duration::from_secs(1 << 33);
    File::options().write(true).open(site.path("a.txt")).unwrap().set_modified(late).unwrap();
    let told = httpdate::parse_http_date(site.get("/a.txt").header("last-modified")).unwrap();
    assert!(told <= SystemTime::now());
}

#[test]
fn one_part_is_sent() {
    let site = Site::new();
    let bytes = pattern(200_000);
    site.write("f.txt", &bytes);
    let etag = site.get("/f.txt").header("etag").to_owned();
    for (range, first, last) in [
        ("bytes=0-0", 0, 0),
        ("bytes=-1", 199_999, 199_999),
        ("bytes=100-149999", 100, 149_999),
        ("bytes=0-", 0, 199_999),
        ("bytes=10-20,15-40", 10, 40),
    ] {
        let got = site.get_with("/f.txt", &[("range", range), ("if-range", &etag)]);
        assert_eq!(
            (got.status, got.header("content-range")),
            (206, &*format!("bytes {first}-{last}/200000"))
        );
        assert_eq!(got.header("content-type"), "text/plain; charset=utf-8");
        assert_eq!(got.header("etag"), etag);
        assert!(got.body == bytes[first..=last], "{range}");
    }
    for fields in [
        [("range", "bytes=0-0"), ("if-range", "\"x\"")],
        [("range", "bytes=0-,0-"), ("if-range", &etag)],
        [("range", "bytes=9-5"), ("if-range", &etag)],
    ] {
        let got = site.get_with("/f.txt", &fields);
        assert_eq!(
            (got.status, got.body.len(), got.header("content-range")),
            (200, 200_000, ""),
            "{fields:?}"
        );
    }
    let got = site.get_with("/f.txt", &[("range", "bytes=200000-")]);
    assert_eq!((got.status, got.header("content-range"), got.body.len()), (416, "bytes */200000", 0));
    site.write("empty", "");
    assert_eq!(site.get_with("/empty", &[("range", "bytes=0-")]).status, 200);
}

/// The parts of a body, each with the value of its `Content-Range`.
fn parts_of<'a>(body: &'a [u8], boundary: &str) -> Vec<(String, &'a [u8])> {
    let find =
        |bytes: &[u8], what: &str| bytes.windows(what.len()).position(|window| window == what.as_bytes());
    let mut rest = body;
    let mut parts = Vec::new();
    let first = format!("--{boundary}\r\n");
    assert_eq!(find(rest, &first), Some(0));
    rest = &rest[first.len()..];
    loop {
        let head = find(rest, "\r\n\r\n").unwrap();
        let text = std::str::from_utf8(&rest[..head]).unwrap();
        let range = text.strip_prefix("Content-Type: application/octet-stream\r\nContent-Range: ").unwrap();
        rest = &rest[head + 4..];
        let end = find(rest, &format!("\r\n--{boundary}")).unwrap();
        parts.push((range.to_owned(), &rest[..end]));
        rest = &rest[end + 4 + boundary.len()..];
        if rest == b"--\r\n" {
            return parts;
        }
        rest = rest.strip_prefix(b"\r\n").unwrap();
    }
}

#[test]
fn several_parts_are_sent_in_one_body() {
    let site = Site::new();
    let bytes = pattern(1 << 20);
    site.write("f.bin", &bytes);
    for (range, expected, streamed) in [
        ("bytes=0-9,1000-1009", &[(0, 9), (1000, 1009)][..], false),
        ("bytes=-10,0-9,500-600", &[(1_048_566, 1_048_575), (0, 9), (500, 600)], false),
        (
            "bytes=5-199999,300000-500000,1048575-",
            &[(5, 199_999), (300_000, 500_000), (1_048_575, 1_048_575)],
            true,
        ),
    ] {
        let got = site.get_with("/f.bin", &[("range", range)]);
        assert_eq!((got.status, got.streamed, got.header("content-range")), (206, streamed, ""));
        let boundary = got.header("content-type").strip_prefix("multipart/byteranges; boundary=").unwrap();
        let parts = parts_of(&got.body, boundary);
        assert_eq!(parts.len(), expected.len());
        for ((told, part), (first, last)) in parts.into_iter().zip(expected) {
            assert_eq!(told, format!("bytes {first}-{last}/1048576"));
            assert!(part == &bytes[*first..=*last], "{range}");
        }
        let again = site.get_with("/f.bin", &[("range", range)]);
        assert_ne!(got.header("content-type"), again.header("content-type"), "boundaries cannot be foreseen");
    }
    // Never more than the file itself.
    site.write("small.bin", pattern(400));
    let got = site.get_with("/small.bin", &[("range", "bytes=0-100,300-399")]);
    assert_eq!((got.status, got.body.len()), (200, 400));
}

#[test]
fn the_form_that_is_preferred_is_sent() {
    let mut site = Site::new();
    site.config.precompressed = true;
    site.write("a.js", "original");
    site.write_at("a.js.br", "brotli", 1);
    site.write("a.js.gz", "gzipped");
    site.write_at("old.css", "original", 9);
    site.write_at("old.css.gz", "gzipped", 8);
    site.write("d/index.html", "original");
    site.write("d/index.html.gz", "gzipped");
    fs::create_dir(site.path("d/index.html.br")).unwrap();
    let table = [
        ("/a.js", "", "original", ""),
        ("/a.js", "gzip, deflate, br, zstd", "brotli", "br"),
        ("/a.js", "zstd, gzip;q=0.5", "gzipped", "gzip"),
        ("/a.js", "br;q=0.2, gzip;q=0.3", "gzipped", "gzip"),
        ("/a.js", "identity, br;q=0.9", "original", ""),
        ("/a.js", "identity;q=0, gzip", "gzipped", "gzip"),
        ("/a.js", "identity;q=0, deflate", "original", ""),
        ("/a.js", "*", "brotli", "br"),
        ("/old.css", "gzip", "original", ""),
        ("/d/", "br, gzip", "gzipped", "gzip"),
    ];
    for (path, accept, body, coding) in table {
        let got = site.get_with(path, &[("accept-encoding", accept)]);
        assert_eq!((got.text(), got.header("content-encoding")), (body, coding), "{path} {accept}");
        assert_eq!(got.all("vary"), ["accept-encoding"]);
        assert!(got.header("content-type").starts_with("text/"), "{:?}", got.header("content-type"));
    }
    let tag = |accept: &str| site.get_with("/a.js", &[("accept-encoding", accept)]).header("etag").to_owned();
    let (plain, br, gz) = (tag(""), tag("br"), tag("gzip"));
    assert_eq!((&*plain, &*br, &*gz), ("\"8-6553f100.0\"", "\"6-6553f101.0-br\"", "\"7-6553f100.0-gzip\""));
    let known = site.get_with("/a.js", &[("accept-encoding", "br"), ("if-none-match", &br)]);
    assert_eq!((known.status, known.all("vary")), (304, vec!["accept-encoding"]));
    assert_eq!(site.get_with("/a.js", &[("accept-encoding", "br"), ("if-none-match", &plain)]).status, 200);
    let part =
        site.get_with("/a.js", &[("accept-encoding", "br"), ("range", "bytes=0-1"), ("if-range", &br)]);
    assert_eq!((part.status, part.text(), part.header("content-range")), (206, "br", "bytes 0-1/6"));
    let mixed =
        site.get_with("/a.js", &[("accept-encoding", "br"), ("range", "bytes=0-1"), ("if-range", &gz)]);
    assert_eq!((mixed.status, mixed.text()), (200, "brotli"));

    site.config.precompressed = false;
    let got = site.get_with("/a.js", &[("accept-encoding", "br")]);
    assert_eq!((got.text(), got.header("vary")), ("original", ""));
}

#[test]
fn types_are_told_by_extensions() {
    let site = Site::new();
    for (name, expected) in [
        ("a.html", "text/html; charset=utf-8"),
        ("a.HTM", "text/html; charset=utf-8"),
        ("a.css", "text/css; charset=utf-8"),
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.mjs", "text/javascript; charset=utf-8"),
        ("a.json", "application/json"),
        ("a.svg", "image/svg+xml"),
        ("a.png", "image/png"),
        ("a.woff2", "font/woff2"),
        ("a.wasm", "application/wasm"),
        ("a.unheard-of", "application/octet-stream"),
        ("html", "application/octet-stream"),
    ] {
        site.write(name, "x");
        let got = site.get(&format!("/{name}"));
        assert_eq!(
            (got.header("content-type"), got.header("x-content-type-options")),
            (expected, "nosniff"),
            "{name}"
        );
    }
}
