//! Which file a path names, and which ones none names.

use super::*;

#[test]
fn folders_are_answered_by_their_index() {
    let site = Site::new();
    site.write("index.htm", "root");
    site.write("a/index.html", "first");
    site.write("a/index.htm", "second");
    site.write("b/other.html", "other");
    fs::create_dir_all(site.path("c/index.html")).unwrap();
    site.write("c/index.htm", "second");
    for (path, expected) in [("/", "root"), ("/a/", "first"), ("/c/", "second")] {
        let got = site.get(path);
        assert_eq!(
            (got.status, got.text(), got.header("content-type")),
            (200, expected, "text/html; charset=utf-8")
        );
    }
    for path in ["/b/", "/none/", "/a/index.html/", "/a//", "//"] {
        assert_eq!(site.status(path), 404, "{path}");
    }
}

#[test]
fn folders_without_their_slash_are_redirected() {
    let mut site = Site::new();
    site.write("a/b/index.html", "x");
    site.write("ä:b/index.html", "x");
    for (target, expected) in [
        ("/a", "./a/"),
        ("/a/b", "./b/"),
        ("/a/b?x=1&y=//evil.test", "./b/?x=1&y=//evil.test"),
        ("/%c3%a4%3Ab", "./%C3%A4%3Ab/"),
    ] {
        let got = site.get(target);
        assert_eq!((got.status, got.header("location"), got.body.len()), (308, expected, 0), "{target}");
    }
    for target in ["//a", "//evil.test/..", "/\\a"] {
        assert_eq!(site.status(target), 404, "{target}");
    }
    site.config.strip = Some("/static".into());
    for (target, expected) in [("/static", "./static/"), ("/static/a", "./a/")] {
        assert_eq!(site.get(target).header("location"), expected);
    }
    for target in ["/a", "/staticx", "/", "/other/static/a"] {
        assert_eq!(site.status(target), 404, "{target}");
    }
    assert_eq!(site.get("/static/a/b/").text(), "x");
}

#[test]
fn the_fallback_answers_for_pages() {
    let mut site = Site::new();
    site.config.fallback = Some("app/index.html".into());
    site.config.precompressed = true;
    site.write("app/index.html", "app");
    site.write("app/index.html.gz", "gzipped");
    site.write("there.txt", "there");
    fs::create_dir(site.path("bare")).unwrap();
    for path in ["/", "/users/7", "/users/", "/bare/", "/v1.2/about"] {
        let got = site.get_with(path, &[("accept", "text/html,*/*;q=0.1")]);
        assert_eq!((got.status, got.text()), (200, "app"), "{path}");
        assert_eq!(got.header("content-type"), "text/html; charset=utf-8");
        assert_eq!(got.all("vary"), ["accept-encoding", "accept"]);
    }
    let etag = site.get("/users").header("etag").to_owned();
    assert_eq!(site.get_with("/users", &[("if-none-match", &etag)]).status, 304);
    assert_eq!(site.get_with("/users", &[("accept-encoding", "gzip")]).text(), "gzipped");
    assert_eq!(Got::from(site.ask(Method::HEAD, "/users", &[])).status, 200);
    assert_eq!(site.get("/there.txt").all("vary"), ["accept-encoding"]);
    for path in ["/none.js", "/users/x.png", "/.git/config", "/.env", "/.well-known/security", "/a//b"] {
        assert_eq!(site.status(path), 404, "{path}");
    }
    assert_eq!(site.get_with("/users", &[("accept", "application/json")]).status, 404);
    assert_eq!(Got::from(site.ask(Method::POST, "/users", &[])).status, 405);
    for fallback in ["none.html", "app", "../outside.html", "/etc/hostname"] {
        fs::write(site.dir.path().join("outside.html"), "outside").unwrap();
        site.config.fallback = Some(fallback.into());
        assert_eq!(site.status("/users"), 404, "{fallback}");
    }
}

#[test]
fn hidden_files_are_not_there() {
    let mut site = Site::new();
    for name in [".env", ".git/config", "a/.hidden/x", ".well-known/x", ".well-known/.y", "a/.well-known/x"] {
        site.write(name, "x");
    }
    let table = [
        ("/.env", 404, 200),
        ("/%2eenv", 404, 200),
        ("/.git/config", 404, 200),
        ("/.git", 404, 308),
        ("/a/.hidden/x", 404, 200),
        ("/a/.well-known/x", 404, 200),
        ("/.well-known/.y", 404, 200),
        ("/.well-known/x", 200, 200),
        ("/.well-known", 308, 308),
    ];
    for (path, hidden, _) in table {
        assert_eq!(site.status(path), hidden, "{path}");
    }
    site.config.dotfiles = true;
    for (path, _, shown) in table {
        assert_eq!(site.status(path), shown, "{path}");
    }
}

#[test]
fn names_are_decoded_once() {
    let site = Site::new();
    let long = "n".repeat(300);
    for (name, path) in [
        ("100%.txt", "/100%25.txt"),
        ("%2e%2e", "/%252e%252e"),
        ("a b+c", "/a%20b+c"),
        ("grün/日本.txt", "/gr%C3%BCn/%e6%97%a5%e6%9c%ac.txt"),
        ("grün/x", "/grün/x"),
        ("a\\b", "/a\\b"),
        ("q?x#y", "/q%3Fx%23y"),
        ("new\nline", "/new%0Aline"),
    ] {
        site.write(name, name);
        let got = site.get(path);
        assert_eq!((got.status, got.text()), (200, name), "{path}");
    }
    let bytes = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff.bin");
    fs::write(site.config.root.join::<&OsStr>(bytes), "x").unwrap();
    assert_eq!(site.status("/%ff.bin"), 200);
    for path in ["/%00", "/a%2fb", "/..", "/%2e%2e/x", "/x/../../x", "x", "", "*", &format!("/{long}")] {
        assert_eq!(site.status(path), 404, "{path}");
    }
    assert_eq!(site.status(&"/a".repeat(5000)), 404);
}

#[test]
fn links_are_followed_inside_the_root_alone() {
    let site = Site::new();
    fs::create_dir(site.dir.path().join("outside")).unwrap();
    fs::write(site.dir.path().join("outside/secret"), "secret").unwrap();
    site.write("a/real.txt", "real");
    symlink("a/real.txt", site.path("inside")).unwrap();
    symlink("../a", site.path("a/around")).unwrap();
    symlink("../outside/secret", site.path("out")).unwrap();
    symlink("../outside", site.path("out-folder")).unwrap();
    symlink("a/../../outside/secret", site.path("out-around")).unwrap();
    symlink("/etc/passwd", site.path("absolute")).unwrap();
    symlink("/proc/self/root/etc/passwd", site.path("magic")).unwrap();
    symlink("loop", site.path("loop")).unwrap();
    symlink("nowhere", site.path("dangling")).unwrap();
    for path in ["/inside", "/a/around/real.txt"] {
        assert_eq!(site.get(path).text(), "real", "{path}");
    }
    for path in [
        "/out",
        "/out-folder",
        "/out-folder/",
        "/out-folder/secret",
        "/out-around",
        "/absolute",
        "/magic",
        "/loop",
        "/dangling",
    ] {
        assert_eq!(site.status(path), 404, "{path}");
    }
}

#[test]
fn an_encoded_form_that_lies_outside_is_not_there() {
    let mut site = Site::new();
    site.config.precompressed = true;
    site.write("a.js", "original");
    fs::write(site.dir.path().join("secret"), "secret").unwrap();
    symlink("../secret", site.path("a.js.gz")).unwrap();
    assert_eq!(site.get_with("/a.js", &[("accept-encoding", "gzip")]).text(), "original");
}

#[test]
fn the_root_may_be_a_link_that_is_turned() {
    let mut site = Site::new();
    site.write("a.txt", "old");
    let new = site.dir.path().join("new");
    fs::create_dir(&new).unwrap();
    fs::write(new.join("a.txt"), "new").unwrap();
    let current = site.dir.path().join("current");
    symlink("root", &current).unwrap();
    site.config.root.clone_from(&current);
    let files = Files::new(&site.config);
    let headers = HeaderMap::new();
    let asked = Asked { method: &Method::GET, path: "/a.txt", query: None, headers: &headers };
    let body = || Got::from(block_on(files.answer(&site.disk, &asked)));
    assert_eq!(body().text(), "old");
    fs::remove_file(&current).unwrap();
    assert_eq!(body().status, 500);
    symlink("new", &current).unwrap();
    assert_eq!(body().text(), "new");
}

#[test]
fn only_regular_files_are_sent() {
    let site = Site::new();
    mkfifoat(CWD, site.path("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
    let _listener = UnixListener::bind(site.path("socket")).unwrap();
    for path in ["/fifo", "/socket", "/fifo/", "/fifo/x"] {
        assert_eq!(site.status(path), 404, "{path}");
    }
    let devices = Site { config: FilesConfig { root: "/dev".into(), ..site.config.clone() }, ..Site::new() };
    assert_eq!(devices.status("/null"), 404);
}

#[test]
fn what_the_process_may_not_read_is_forbidden() {
    use std::os::unix::fs::PermissionsExt;
    let mut site = Site::new();
    site.config.fallback = Some("a.txt".into());
    site.write("a.txt", "hello");
    site.write("closed", "secret");
    site.write("folder/index.html", "secret");
    for name in ["closed", "folder"] {
        fs::set_permissions(site.path(name), fs::Permissions::from_mode(0o000)).unwrap();
    }
    // Whoever is root may read all.
    let expected = if rustix::process::geteuid().is_root() { 200 } else { 403 };
    for path in ["/closed", "/folder/", "/folder/index.html"] {
        assert_eq!(site.status(path), expected, "{path}");
    }
    fs::set_permissions(site.path("folder"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_file_that_changes_is_never_short_or_long() {
    let site = Site::new();
    site.write("f", pattern(300_000));
    let change = |len: u64| File::options().write(true).open(site.path("f")).unwrap().set_len(len).unwrap();
    let Body::Stream(mut stream) = site.ask(Method::GET, "/f", &[]).unwrap().body else {
        panic!("it is long")
    };
    change(400_000);
    let mut sent = 0;
    while let Some(piece) = block_on(poll_fn(|cx| stream.poll_chunk(cx))) {
        sent += piece.unwrap().len();
    }
    assert_eq!(sent, 300_000);
    let Body::Stream(mut stream) = site.ask(Method::GET, "/f", &[]).unwrap().body else {
        panic!("it is long")
    };
    change(10);
    let error = block_on(poll_fn(|cx| stream.poll_chunk(cx))).unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(block_on(poll_fn(|cx| stream.poll_chunk(cx))).is_none());
}

#[test]
fn a_disk_that_has_too_much_to_do_refuses_new_requests_and_goes_on_with_others() {
    let site = Site::new();
    site.write("f", pattern(300_000));
    let Body::Stream(mut stream) = site.ask(Method::GET, "/f", &[]).unwrap().body else {
        panic!("it is long")
    };
    let (hold, held) = channel::<()>();
    let running = site.disk.run(move || held.recv());
    let waiting: Vec<_> = (0..1000).map(|_| site.disk.run(|| ())).collect();
    let error = site.ask(Method::GET, "/f", &[]).unwrap_err();
    assert!(matches!(error, FilesError::Disk(DiskError::Full)), "{error:?}");
    assert_eq!(error.status(), 503);
    let noop = &mut Context::from_waker(Waker::noop());
    assert!(stream.poll_chunk(noop).is_pending());
    drop(hold);
    block_on(running).unwrap().unwrap_err();
    drop(waiting);
    let mut sent = 0;
    while let Some(piece) = block_on(poll_fn(|cx| stream.poll_chunk(cx))) {
        sent += piece.unwrap().len();
    }
    assert_eq!(sent, 300_000);
    assert_eq!(site.status("/f"), 200);
}

#[test]
fn each_error_has_its_status() {
    let io = |errno: Errno| io::Error::from(errno);
    for (error, expected) in [
        (FilesError::NotFound, 404),
        (FilesError::Forbidden(io(Errno::ACCESS)), 403),
        (FilesError::Root(io(Errno::NOENT)), 500),
        (FilesError::Root(io(Errno::MFILE)), 503),
        (FilesError::Read(io(Errno::IO)), 500),
        (FilesError::Read(io::ErrorKind::UnexpectedEof.into()), 500),
        (FilesError::Read(io(Errno::NFILE)), 503),
        (FilesError::Disk(DiskError::Full), 503),
        (FilesError::Disk(DiskError::NoThread), 503),
        (FilesError::Disk(DiskError::Panicked), 500),
    ] {
        assert_eq!(error.status(), expected, "{error:?}");
    }
}

const FIELDS: &[&str] = &[
    "range",
    "if-range",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "accept",
    "accept-encoding",
];
const STRANGE: &[&str] = &[
    "",
    " ",
    ",",
    ";",
    "=",
    "-",
    "\"",
    "W/",
    "W/\"",
    "*",
    "bytes=",
    "bytes=-",
    "bytes=,-,",
    "q=",
    ";q",
    ";q=;",
    "*;q=.",
    "br;q=0.",
    "bytes=18446744073709551615-18446744073709551616",
    "bytes=-18446744073709551615",
    "Fri, 31 Dec 9999 23:59:59 GMT",
    "Thu, 01 Jan 1970 00:00:00 GMT",
    "Sun, 31 Nov 9999 99:99:99 GMT",
    "Sunday, 00-Jan-00 00:00:00 GMT",
    "é",
    "\"é\"",
];

#[test]
fn no_request_panics() {
    let mut site = Site::new();
    site.config.precompressed = true;
    site.config.fallback = Some("a.txt".into());
    site.write("a.txt", pattern(70_000));
    for name in FIELDS {
        for value in STRANGE {
            let _ = site.get_with("/a.txt", &[(name, value), ("range", "bytes=0-0,500-600")]);
            let _ = site.get_with("/none", &[(name, value)]);
        }
    }
    for path in ["/%", "/%2", "/%zz", "/%%%", "/\u{0}", "/\u{7f}", "/ä?", "?", "/?", "/ /", "/~", "/;a=b"] {
        let _ = site.get(path);
    }
}
