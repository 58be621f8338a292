//! Whether the files of a configuration have changed since they were looked at.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::source;

/// The files of a configuration, as they were at the last looks. They are looked at by their paths: what a symbolic
/// link leads to may be swapped as a whole, as mounted volumes do, and editors put a new file in the place of the
/// old one.
#[derive(Debug)]
pub struct Watch {
    main: PathBuf,
    /// The patterns of `include`, and the stamp of the main file that they were read from.
    includes: (Option<Stamp>, Vec<String>),
    /// What was found last.
    last: Vec<(PathBuf, Option<Stamp>)>,
    /// What was told of last, or was there at the start.
    told: Vec<(PathBuf, Option<Stamp>)>,
}

/// What tells one state of a file from another: device, inode, size, and time of change in nanoseconds.
type Stamp = (u64, u64, u64, i128);

impl Watch {
    /// Begins with what is there now.
    pub fn new(main: &Path) -> Self {
        let mut watch =
            Self { main: main.to_owned(), includes: (None, Vec::new()), last: Vec::new(), told: Vec::new() };
        watch.last = watch.look();
        watch.told.clone_from(&watch.last);
        watch
    }

    /// Looks again. Tells once of each change, when the files have stood still from one look to the next: whoever
    /// changes several does that one by one.
    pub fn changed(&mut self) -> bool {
        let now = self.look();
        let still = now == self.last;
        let changed = still && now != self.told;
        if changed {
            self.told.clone_from(&now);
        }
        self.last = now;
        changed
    }

    fn look(&mut self) -> Vec<(PathBuf, Option<Stamp>)> {
        let main = stamp(&self.main);
        if main != self.includes.0 {
            self.includes = (main, source::includes(&self.main));
        }
        let included = self.includes.1.iter().flat_map(|pattern| source::expand(&self.main, pattern));
        let files = included.map(|path| (stamp(&path), path)).map(|(stamp, path)| (path, stamp));
        std::iter::once((self.main.clone(), main)).chain(files).collect()
    }
}

/// `None` when there is no such file.
fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    let changed = i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec());
    Some((found.dev(), found.ino(), found.size(), changed))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn each_change_is_told_once_when_it_has_settled() {
        let dir = tempfile::tempdir().unwrap();
        let (main, conf) = (dir.path().join("portcullis.toml"), dir.path().join("conf.d"));
        fs::create_dir(&conf).unwrap();
        fs::write(&main, "include = 'conf.d/*.toml'\n").unwrap();
        let mut watch = Watch::new(&main);
        let mut told = |what: &str| {
            let looks = [watch.changed(), watch.changed(), watch.changed()];
            assert!(!looks[0] && !looks[2], "{what}: {looks:?}");
            looks[1]
        };
        assert!(!told("nothing"));
        fs::write(conf.join("a.toml"), "x").unwrap();
        assert!(told("a new file"));
        fs::write(conf.join("a.toml"), "longer").unwrap();
        assert!(told("a changed one"));
        fs::write(conf.join("readme.txt"), "x").unwrap();
        assert!(!told("none of ours"));
        fs::remove_file(conf.join("a.toml")).unwrap();
        assert!(told("one that is gone"));
        fs::write(&main, "include = 'other.toml'\nbroken").unwrap();
        assert!(told("the main file"));
        fs::write(dir.path().join("other.toml"), "x").unwrap();
        assert!(told("what it includes now, whatever else is wrong with it"));
        fs::remove_file(&main).unwrap();
        assert!(told("no main file"));
    }

    /// As volumes of Kubernetes do it: `..data` leads to a folder, and is swapped.
    #[test]
    fn a_swapped_link_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("portcullis.toml"), "same").unwrap();
        }
        symlink("one", dir.path().join("..data")).unwrap();
        symlink("..data/portcullis.toml", dir.path().join("portcullis.toml")).unwrap();
        let mut watch = Watch::new(&dir.path().join("portcullis.toml"));
        assert!(!watch.changed() && !watch.changed());
        symlink("two", dir.path().join("..new")).unwrap();
        fs::rename(dir.path().join("..new"), dir.path().join("..data")).unwrap();
        assert!(!watch.changed() && watch.changed());
    }
}
