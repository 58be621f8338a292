//! Files that answer requests.
//!
//! The way of a request: [`Files::answer`] reads from its head what is asked for (`wanted`, `accept`, `conditional`,
//! `range`) and hands that to a thread of the [`Disk`], which opens the file beneath the root (`open`) and makes the
//! answer (`reply`), with the body if that is short. What is longer is read while it is sent (`stream`).
//!
//! What is asked for twice is looked up twice: nothing is kept between requests, so that a file is served as it is.

use std::ffi::OsStr;
use std::fs::File;
use std::hash::RandomState;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, ALLOW, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use rustix::io::Errno;

use super::disk::{Disk, DiskError};
use crate::config::FilesConfig;

mod accept;
mod conditional;
mod open;
mod range;
mod reply;
mod stream;
mod wanted;

#[cfg(test)]
mod tests;

pub use stream::FileStream;

use accept::Coding;
use conditional::Stamp;
use open::Opened;
use reply::{Representation, Wishes};
use wanted::Wanted;

/// What is served from a folder. All copies are one.
#[derive(Clone, Debug)]
pub struct Files(Arc<Folder>);

/// A request for a file.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path, normalised and still percent-encoded.
    pub path: &'a str,
    /// Its query without the question mark, which a redirect to a folder keeps.
    pub query: Option<&'a str>,
    /// The fields of its head.
    pub headers: &'a HeaderMap,
}

/// An answer. Those of status 200 and 206 have a content, the others (304, 308, 405, 412, 416) tell the client what to do.
#[derive(Debug)]
pub struct FileAnswer {
    /// Its status.
    pub status: StatusCode,
    /// The fields of its head. `Content-Length` is among them for 200 and 206, those to HEAD too, and only for them.
    pub headers: HeaderMap,
    /// What follows.
    pub body: Body,
}

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// None is sent.
    None,
    /// These bytes; there may be none of them.
    Bytes(Bytes),
    /// What is read while it is sent.
    Stream(FileStream),
}

/// Why no file answers a request.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// There is none, or none that may be served.
    #[error("there is no such file")]
    NotFound,
    /// The process has no right to read it.
    #[error("the file may not be read")]
    Forbidden(#[source] io::Error),
    /// The folder that files are served from cannot be opened.
    #[error("the folder of the files cannot be opened")]
    Root(#[source] io::Error),
    /// The file cannot be read, or was made shorter at that moment.
    #[error("the file cannot be read")]
    Read(#[source] io::Error),
    /// Nobody looked for it.
    #[error("nothing came from the disk")]
    Disk(#[source] DiskError),
}

#[derive(Debug)]
struct Folder {
    config: FilesConfig,
    /// For what must not be foreseen.
    seed: RandomState,
}

/// A request as it is handed to another thread.
#[derive(Debug)]
struct Task {
    folder: Arc<Folder>,
    disk: Disk,
    wanted: Wanted,
    wishes: Wishes,
    /// The forms that are preferred to the file as it is, the best first.
    codings: Vec<Coding>,
    /// Whether the fallback answers, where no file does.
    fallback: bool,
    query: Option<String>,
}

/// What is there.
enum Found {
    /// A file, under this path.
    File(PathBuf, File, Stamp),
    /// A folder, which was not asked for as one.
    Folder,
}

impl Files {
    /// What is served by this configuration. Nothing is opened yet.
    pub fn new(config: &FilesConfig) -> Self {
        Self(Arc::new(Folder { config: config.clone(), seed: RandomState::new() }))
    }

    /// Answers a request. It is handed to the disk at once, and not looked at again when the future is dropped; this is
    /// cancel safe.
    ///
    /// # Errors
    /// The future's, when no file answers; [`FilesError::status`] is what the client is told then.
    pub fn answer(
        &self,
        disk: &Disk,
        asked: &Asked<'_>,
    ) -> impl Future<Output = Result<FileAnswer, FilesError>> + Send + use<> {
        let head = asked.method == Method::HEAD;
        let allowed = head || asked.method == Method::GET;
        let task = if allowed { self.task(disk, asked, head) } else { None };
        let running = task.map(|task| disk.run(move || task.run()));
        async move {
            match running {
                Some(running) => running.await.unwrap_or_else(|error| Err(FilesError::Disk(error))),
                None if allowed => Err(FilesError::NotFound),
                None => {
                    let allow = HeaderMap::from_iter([(ALLOW, HeaderValue::from_static("GET, HEAD"))]);
                    Ok(FileAnswer::bare(StatusCode::METHOD_NOT_ALLOWED, allow))
                }
            }
        }
    }

    /// What another thread has to do; nothing where no file can have such a path.
    fn task(&self, disk: &Disk, asked: &Asked<'_>, head: bool) -> Option<Task> {
        let config = &self.0.config;
        let wanted = Wanted::parse(asked.path, config.strip.as_deref(), config.dotfiles)?;
        let fallback = config.fallback.is_some() && wanted.may_be_page() && accept::takes_html(asked.headers);
        Some(Task {
            folder: Arc::clone(&self.0),
            disk: disk.clone(),
            wanted,
            wishes: Wishes::of(head, asked.headers),
            codings: if config.precompressed { accept::codings(asked.headers) } else { Vec::new() },
            fallback,
            query: asked.query.map(str::to_owned),
        })
    }
}

impl FileAnswer {
    fn bare(status: StatusCode, headers: HeaderMap) -> Self {
        Self { status, headers, body: Body::None }
    }
}

impl Body {
    /// Bytes that are still to come.
    pub fn len(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Stream(stream) => stream.len(),
        }
    }

    /// Whether nothing more comes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FilesError {
    /// What a client is told.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Disk(DiskError::Full | DiskError::NoThread) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Disk(DiskError::Panicked) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Root(error) | Self::Read(error) => match Errno::from_io_error(error) {
                // No descriptor or memory is left for now.
                Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }
}

impl Task {
    /// It blocks on the disk.
    fn run(self) -> Result<FileAnswer, FilesError> {
        let root = open::root(&self.folder.config.root)?;
        let root = root.as_fd();
        match self.find(root) {
            Ok(Found::File(path, file, stamp)) => self.send(root, &path, file, stamp, false),
            Ok(Found::Folder) => Ok(self.redirect()),
            Err(FilesError::NotFound) => {
                let fallback = self.folder.config.fallback.as_deref().filter(|_| self.fallback);
                let path = fallback.ok_or(FilesError::NotFound)?;
                match open::beneath(root, path)? {
                    Opened::File(file, stamp) => self.send(root, path, file, stamp, true),
                    Opened::Folder => Err(FilesError::NotFound),
                }
            }
            Err(error) => Err(error),
        }
    }

    fn find(&self, root: BorrowedFd<'_>) -> Result<Found, FilesError> {
        let path = self.wanted.path();
        if !self.wanted.is_folder() {
            if path.as_os_str().is_empty() {
                return Ok(Found::Folder);
            }
            return Ok(match open::beneath(root, path)? {
                Opened::File(file, stamp) => Found::File(path.to_owned(), file, stamp),
                Opened::Folder => Found::Folder,
            });
        }
        for name in &self.folder.config.index {
            let path = path.join(&**name);
            match open::beneath(root, &path) {
                Ok(Opened::File(file, stamp)) => return Ok(Found::File(path, file, stamp)),
                Ok(Opened::Folder) | Err(FilesError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Err(FilesError::NotFound)
    }

    fn redirect(&self) -> FileAnswer {
        let to = self.wanted.with_slash();
        let with_query =
            self.query.as_deref().and_then(|query| HeaderValue::try_from(format!("{to}?{query}")).ok());
        // Its last name is percent-encoded.
        let location = with_query.or_else(|| HeaderValue::try_from(to).ok());
        let headers = location.map(|location| (LOCATION, location)).into_iter().collect();
        FileAnswer::bare(StatusCode::PERMANENT_REDIRECT, headers)
    }

    /// Sends a file, or the form of it that is preferred.
    fn send(
        &self,
        root: BorrowedFd<'_>,
        path: &Path,
        file: File,
        stamp: Stamp,
        fallback: bool,
    ) -> Result<FileAnswer, FilesError> {
        let encoded = self.codings.iter().find_map(|coding| encoded(root, path, *coding, stamp));
        let (coding, file, stamp) = match encoded {
            Some((coding, file, stamp)) => (Some(coding), file, stamp),
            None => (None, file, stamp),
        };
        let mut vary = Vec::new();
        if self.folder.config.precompressed {
            vary.push(ACCEPT_ENCODING);
        }
        if fallback {
            vary.push(ACCEPT);
        }
        let representation = Representation { file, stamp, coding, content_type: content_type(path), vary };
        representation.answer(&self.wishes, &self.disk, &self.folder.seed)
    }
}

/// The encoded form of a file, where there is one that is not of an older version. One that cannot be opened is not there.
fn encoded(
    root: BorrowedFd<'_>,
    path: &Path,
    coding: Coding,
    original: Stamp,
) -> Option<(Coding, File, Stamp)> {
    match open::beneath(root, &wanted::beside(path, coding.suffix())) {
        Ok(Opened::File(_, stamp)) if stamp.is_older_than(original) => None,
        Ok(Opened::File(file, stamp)) => Some((coding, file, stamp)),
        Ok(Opened::Folder) | Err(_) => None,
    }
}

/// By the extension. All text is taken to be UTF-8; formats that tell it themselves (XML, JSON) are not text in this sense.
fn content_type(path: &Path) -> String {
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    match mime_guess::from_ext(extension).first_raw() {
        // RFC 9239 §6: the other name is a thing of the past.
        Some("application/javascript") => "text/javascript; charset=utf-8".to_owned(),
        Some(text) if text.starts_with("text/") => format!("{text}; charset=utf-8"),
        Some(other) => other.to_owned(),
        None => "application/octet-stream".to_owned(),
    }
}
