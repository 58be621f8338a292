//! Files of networks, one a line.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;

use super::decode::Text;
use super::error::{ConfigError, ConfigErrors, ErrorKind};
use super::source::{self, Place};
use super::values::nat64;

/// Bad lines told of a file: the wrong file has nothing but.
const MAX_ERRORS: usize = 20;

/// A file of networks as it was read.
#[derive(Clone, Debug)]
pub struct ListFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it lists.
    pub networks: Arc<[IpNet]>,
    /// Its state when it was read.
    pub stamp: ListStamp,
}

/// What tells whether a file has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListStamp {
    /// Time of its last change, in seconds and nanoseconds.
    modified: (i64, i64),
    size: u64,
    device: u64,
    inode: u64,
}

impl ListStamp {
    /// The state of the file at `path`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn of(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|metadata| Self::from(&metadata))
    }
}

impl From<&Metadata> for ListStamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.size(),
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

impl ListFile {
    /// Reads the file: a network or an address a line, blank lines and what follows a `#` aside.
    ///
    /// # Errors
    /// That it cannot be read, or its first bad lines, each with its place.
    pub fn read(path: &Path) -> Result<Self, ConfigErrors> {
        // Before the text: what is written meanwhile will look like a change.
        let read = ListStamp::of(path).and_then(|stamp| Ok((stamp, source::read_file(path)?)));
        let (stamp, bytes) =
            read.map_err(|error| ConfigErrors::one(source::unreadable(path, &error).in_file(path)))?;
        let mut errors = Vec::new();
        if bytes.len() > source::MAX_FILE {
            let message = format!("`{}` is larger than 16 MiB", path.display());
            let error = ConfigError::new(ErrorKind::TooLarge, message).in_file(path);
            return Err(ConfigErrors::one(error.hint("split it into several files")));
        }
        // Behind all files of the configuration, in whose order errors are told.
        let (source, utf8) = source::decode_text(path, usize::MAX >> 1, bytes, &mut errors);
        let mut networks = Vec::new();
        let mut start = 0;
        for line in source.text().split_inclusive('\n').take_while(|_| utf8) {
            let text = line.split('#').next().unwrap_or("");
            let word = text.trim();
            let at = start + (text.len() - text.trim_start().len());
            start += line.len();
            if word.is_empty() {
                continue;
            }
            match <IpNet as Text>::parse(word).and_then(nat64) {
                Ok(network) => networks.push(network),
                Err(problem) => errors.push(problem.at(&Place::new(&source, at..at + word.len()))),
            }
            if errors.len() == MAX_ERRORS {
                break;
            }
        }
        match ConfigErrors::of(errors) {
            Some(errors) => Err(errors),
            None => Ok(Self { path: path.to_owned(), networks: networks.into(), stamp }),
        }
    }

    /// Whether these errors of [`ListFile::read`] say that the file could not be read, and so nothing about what is
    /// in it.
    pub fn is_unread(errors: &ConfigErrors) -> bool {
        errors.iter().any(|error| error.kind() == ErrorKind::Io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<ListFile, ConfigErrors> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        ListFile::read(file.path())
    }

    #[test]
    fn a_network_a_line() {
        let list = read(b"# bad ones\n\n192.0.2.0/24\t# all of it\r\n  2001:db8::/32\n198.51.100.7").unwrap();
        let networks: Vec<_> = list.networks.iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["192.0.2.0/24", "2001:db8::/32", "198.51.100.7/32"]);
        assert!(read(b"").unwrap().networks.is_empty());
    }

    #[test]
    fn bad_lines_are_told_with_their_place() {
        let told = |text: &[u8]| -> Vec<String> {
            let errors = read(text).unwrap_err();
            let line = |error: &ConfigError| {
                let origin = error.origin().unwrap();
                format!("{}:{}: {}", origin.line, origin.column, error.message())
            };
            errors.iter().map(line).collect()
        };
        assert_eq!(
            told(
                b"10.0.0.0/8\n  example.com # a name\n10.0.0.1/8\n::ffff:10.0.0.0/104\n64:ff9b::a00:0/104\n"
            ),
            [
                "2:3: `example.com` is not a network",
                "3:1: `10.0.0.1/8` has bits set behind its prefix",
                "4:1: `::ffff:10.0.0.0/104` is a network of IPv4 addresses in IPv6 form",
                "5:1: `64:ff9b::a00:0/104` is a network of IPv4 addresses behind NAT64",
            ]
        );
        assert_eq!(told(b"10.0.0.0/8\n\xff\n"), ["2:1: the file is not UTF-8 here"]);
        assert_eq!(told("x\n".repeat(1000).as_bytes()).len(), MAX_ERRORS);
    }

    #[test]
    fn a_file_that_is_not_there_or_is_no_file() {
        for path in ["/nonexistent/list.txt", "/"] {
            let errors = ListFile::read(Path::new(path)).unwrap_err();
            assert_eq!(errors.iter().next().unwrap().kind(), ErrorKind::Io, "{path}");
        }
    }
}
