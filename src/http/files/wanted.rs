//! Which file a path of a request stands for.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// What is written with `%` in a name: all but the unreserved characters (RFC 3986 §2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The folder whose files are served although its name begins with a dot (RFC 8615).
const WELL_KNOWN: &[u8] = b".well-known";

/// Which file a request is for.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Relative to the root, each of its names decoded and checked; empty for the root.
    path: PathBuf,
    /// Whether a folder is asked for.
    folder: bool,
    /// The last name of the path that the client wrote, from which a redirect goes on.
    last: Vec<u8>,
}

impl Wanted {
    /// `None` for what nothing is served by.
    pub(super) fn parse(path: &str, strip: Option<&str>, dotfiles: bool) -> Option<Self> {
        path.strip_prefix('/')?;
        let below = match strip {
            Some(strip) => path.strip_prefix(strip.trim_end_matches('/'))?,
            None => path,
        };
        let names = match below.strip_prefix('/') {
            Some(names) => Some(names),
            // The path is what is stripped, and nothing more.
            None if below.is_empty() => None,
            None => return None,
        };
        let folder = names.is_some_and(|names| names.is_empty() || names.ends_with('/'));
        let names = names.unwrap_or_default();
        // The root itself has no names; the slash of a folder does not begin another.
        let parts = (!names.is_empty()).then(|| names.strip_suffix('/').unwrap_or(names).split('/'));
        let mut wanted = OsString::new();
        for (index, name) in parts.into_iter().flatten().enumerate() {
            let name = decoded(name)?;
            let hidden = name.starts_with(b".") && !(index == 0 && name == WELL_KNOWN);
            if hidden && !dotfiles {
                return None;
            }
            if index > 0 {
                wanted.push("/");
            }
            wanted.push(OsStr::from_bytes(&name));
        }
        let last = path.rsplit('/').next().map(|name| percent_decode_str(name).collect()).unwrap_or_default();
        Some(Self { path: wanted.into(), folder, last })
    }

    /// Relative to the root; empty for the root itself.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a folder is asked for, by a slash at the end.
    pub(super) fn is_folder(&self) -> bool {
        self.folder
    }

    /// Whether this can be a page of an application: nothing that has an extension, nor what machines look for.
    pub(super) fn may_be_page(&self) -> bool {
        let bytes = self.path.as_os_str().as_bytes();
        let last = bytes.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        !last.contains(&b'.') && !bytes.starts_with(WELL_KNOWN)
    }

    /// Where a client is sent that asked for a folder without the slash at the end: relative to what it asked for, so that
    /// nothing need be known of how the path was written, and begun with a dot, so that no name becomes a host or a scheme.
    pub(super) fn with_slash(&self) -> String {
        format!("./{}/", percent_encode(&self.last, RESERVED))
    }
}

/// The name that a part of a path stands for, where it is one. It is looked at again, whatever was seen to before: this is
/// what the kernel is given.
fn decoded(name: &str) -> Option<Vec<u8>> {
    let name: Vec<u8> = percent_decode_str(name).collect();
    let none = name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0);
    (!none).then_some(name)
}

/// The path of what lies beside a file, under its name and this suffix.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut bytes = path.as_os_str().as_bytes().to_vec();
    bytes.extend_from_slice(suffix.as_bytes());
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stand_for_files() {
        let table = [
            ("/", None, "", true),
            ("/a.txt", None, "a.txt", false),
            ("/a/b/", None, "a/b", true),
            ("/a%20b/%c3%a4", None, "a b/ä", false),
            ("/100%25.txt", None, "100%.txt", false),
            ("/%252e%252e/x", None, "%2e%2e/x", false),
            ("/a\\b", None, "a\\b", false),
            ("/..a/b", Some(""), "..a/b", false),
            ("/static/a", Some("/static"), "a", false),
            ("/static/a", Some("/static/"), "a", false),
            ("/static/", Some("/static"), "", true),
            ("/static", Some("/static"), "", false),
            ("/a", Some("/"), "a", false),
        ];
        for (path, strip, expected, folder) in table {
            let wanted = Wanted::parse(path, strip, true).unwrap_or_else(|| panic!("{path}"));
            assert_eq!((wanted.path(), wanted.is_folder()), (Path::new(expected), folder), "{path}");
        }
    }

    #[test]
    fn what_is_no_name_stands_for_nothing() {
        for path in [
            "",
            "a",
            "*",
            "//",
            "//a",
            "/a//b",
            "/a//",
            "/.",
            "/..",
            "/a/../b",
            "/%2e%2e/a",
            "/a/%2e",
            "/a%2fb",
            "/a%00",
        ] {
            assert!(Wanted::parse(path, None, true).is_none(), "{path}");
        }
        for path in ["/", "/static2/a", "/staticx", "/Static/a", "/a/static"] {
            assert!(Wanted::parse(path, Some("/static"), true).is_none(), "{path}");
        }
    }

    #[test]
    fn dots_hide_names_but_the_well_known_one() {
        for path in [
            "/.env",
            "/.git/config",
            "/a/.b/c",
            "/a/.b/",
            "/%2egit/config",
            "/.well-known/.x",
            "/a/.well-known/x",
        ] {
            assert!(Wanted::parse(path, None, false).is_none(), "{path}");
            assert!(Wanted::parse(path, None, true).is_some(), "{path}");
        }
        for path in ["/.well-known/x", "/.well-known/", "/.well-known", "/a.b/c."] {
            assert!(Wanted::parse(path, None, false).is_some(), "{path}");
        }
        assert!(Wanted::parse("/s/.well-known/x", Some("/s"), false).is_some());
    }

    #[test]
    fn a_redirect_stays_beside_what_was_asked_for() {
        let table = [
            ("/a", None, "./a/"),
            ("/a/b", None, "./b/"),
            ("/a/x:y", None, "./x%3Ay/"),
            ("/a/%0d%0aX:%20%c3%a4", None, "./%0D%0AX%3A%20%C3%A4/"),
            ("/a/\\\\evil.test", None, "./%5C%5Cevil.test/"),
            ("/static", Some("/static"), "./static/"),
        ];
        for (path, strip, expected) in table {
            assert_eq!(Wanted::parse(path, strip, false).unwrap().with_slash(), expected, "{path}");
        }
    }

    #[test]
    fn pages_have_no_extension() {
        for (path, expected) in [
            ("/", true),
            ("/a/b", true),
            ("/a/b/", true),
            ("/a.b/c", true),
            ("/a.js", false),
            ("/.well-known/x", false),
        ] {
            assert_eq!(Wanted::parse(path, None, false).unwrap().may_be_page(), expected, "{path}");
        }
    }
}
