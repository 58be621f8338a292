//! Opening files beneath a folder, and nowhere else.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::FilesError;
use super::conditional::Stamp;

/// How files are opened. Without `NONBLOCK` a FIFO would keep the thread until somebody writes to it.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
/// How folders are opened that are only gone through: without the right to list them.
const THROUGH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// How often a file is opened again when something was renamed meanwhile (openat2(2): `EAGAIN`).
const TRIES: usize = 8;

/// What a path leads to.
#[derive(Debug)]
pub(super) enum Opened {
    /// A regular file.
    File(File, Stamp),
    /// A folder.
    Folder,
}

/// Opens the folder that files are served from. This is done for each request: whoever puts another folder in its place, or
/// turns a symbolic link, is followed at once.
pub(super) fn root(path: &Path) -> Result<OwnedFd, FilesError> {
    openat(CWD, path, THROUGH, Mode::empty()).map_err(|errno| FilesError::Root(errno.into()))
}

/// Opens what this path, relative to the root, leads to. Symbolic links are followed as long as they stay beneath it.
pub(super) fn beneath(root: BorrowedFd<'_>, path: &Path) -> Result<Opened, FilesError> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut opened = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        opened = openat2(root, path, READ, Mode::empty(), resolve);
        if !matches!(opened, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    // Kernels before 5.6 do not know the call, and some sandboxes forbid what they do not know.
    if let Err(Errno::NOSYS | Errno::PERM) = opened {
        opened = by_component(root, path);
    }
    look(opened.map_err(refused)?)
}

/// The same with no symbolic link anywhere, which is all that can be seen to without the kernel's help.
fn by_component(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let mut folder = None;
    let mut components = path.components().filter(|component| *component != Component::CurDir).peekable();
    while let Some(component) = components.next() {
        let Component::Normal(name) = component else { return Err(Errno::XDEV) };
        let flags = if components.peek().is_some() { THROUGH } else { READ };
        let at = folder.as_ref().map_or(root, AsFd::as_fd);
        folder = Some(openat(at, name, flags | OFlags::NOFOLLOW, Mode::empty())?);
    }
    folder.ok_or(Errno::NOENT)
}

fn look(opened: OwnedFd) -> Result<Opened, FilesError> {
    let file = File::from(opened);
    let metadata = file.metadata().map_err(FilesError::Read)?;
    if metadata.is_file() {
        Ok(Opened::File(file, Stamp::of(&metadata)))
    } else if metadata.is_dir() {
        Ok(Opened::Folder)
    } else {
        // FIFOs and devices; sockets cannot be opened at all.
        Err(FilesError::NotFound)
    }
}

/// What it means to a client that a file cannot be opened.
fn refused(errno: Errno) -> FilesError {
    match errno {
        Errno::ACCESS | Errno::PERM => FilesError::Forbidden(errno.into()),
        // No such name, or one that there cannot be; a link that leaves the root or leads nowhere; a socket or a device
        // without a driver.
        Errno::NOENT
        | Errno::NOTDIR
        | Errno::NAMETOOLONG
        | Errno::INVAL
        | Errno::ILSEQ
        | Errno::LOOP
        | Errno::XDEV
        | Errno::NXIO
        | Errno::NODEV => FilesError::NotFound,
        _ => FilesError::Read(io::Error::from(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn without_the_kernels_help_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/a/b")).unwrap();
        fs::write(dir.path().join("root/a/b/c.txt"), "c").unwrap();
        fs::write(dir.path().join("secret"), "s").unwrap();
        symlink("c.txt", dir.path().join("root/a/b/link")).unwrap();
        symlink("a", dir.path().join("root/folder")).unwrap();
        let root = root(&dir.path().join("root")).unwrap();
        let opened = |path: &str| by_component(root.as_fd(), Path::new(path)).map(|_| ());
        assert_eq!(opened("a/b/c.txt"), Ok(()));
        assert_eq!(opened("./a/b"), Ok(()));
        for path in [
            "a/b/link",
            "folder/b/c.txt",
            "../secret",
            "a/../../secret",
            "/etc/passwd",
            "no",
            "",
            "a/b/c.txt/x",
        ] {
            let errno = opened(path).unwrap_err();
            assert!(matches!(refused(errno), FilesError::NotFound), "{path}: {errno}");
        }
    }
    #[test]
    fn rights_names_and_faults_are_told_apart() {
        assert!(matches!(refused(Errno::ACCESS), FilesError::Forbidden(_)));
        assert!(matches!(refused(Errno::PERM), FilesError::Forbidden(_)));
        assert!(matches!(refused(Errno::XDEV), FilesError::NotFound));
        assert!(matches!(refused(Errno::NXIO), FilesError::NotFound));
        assert!(matches!(refused(Errno::IO), FilesError::Read(_)));
        assert!(matches!(refused(Errno::MFILE), FilesError::Read(_)));
    }
}
