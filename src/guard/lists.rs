//! The lists that decide before any limit, and the files that some of them come from.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use metrics::Counter;
use tracing::{error, info};

use super::acl::Acl;
use crate::config::{Limits, ListFile, ListStamp};
use crate::telemetry::{Family, Registry};

const RELOADS: Family = Family {
    name: "portcullis_list_reloads_total",
    help: "Files of networks that were read again because they changed; failed: the networks known before stay.",
    labels: &["result"],
};

/// Who may connect, and whom no limit concerns.
#[derive(Debug)]
pub(super) struct Lists {
    acl: ArcSwap<Acl>,
    /// `None` when nobody is exempt.
    exempt: Option<Acl>,
    files: Mutex<Files>,
    read: Counter,
    failed: Counter,
}

/// What the list is built from.
#[derive(Debug)]
struct Files {
    limits: Limits,
    /// The state in which each file was read last, good or bad; first those of `allow_files`. `None` of one that could
    /// not be read, which has been told: it is tried again at each look, since nothing of the file need change for
    /// it to be readable.
    seen: Vec<Option<ListStamp>>,
}

impl Lists {
    pub(super) fn new(limits: &Limits, registry: &Registry) -> Self {
        let files = limits.allow_files.iter().chain(&limits.deny_files);
        let seen = files.map(|file| Some(file.stamp)).collect();
        let exempt = (!limits.exempt.is_empty()).then(|| Acl::new(&limits.exempt, &[]));
        Self {
            acl: ArcSwap::from_pointee(Acl::of(limits)),
            exempt,
            files: Mutex::new(Files { limits: limits.clone(), seen }),
            read: registry.counter(&RELOADS, &["ok"]),
            failed: registry.counter(&RELOADS, &["failed"]),
        }
    }

    pub(super) fn allows(&self, client: IpAddr) -> bool {
        self.acl.load().allows(client)
    }

    pub(super) fn exempts(&self, client: IpAddr) -> bool {
        self.exempt.as_ref().is_some_and(|exempt| exempt.allows(client))
    }

    /// Looks at the files and reads those that have changed. One that has become bad or has gone keeps its
    /// networks, which is told once.
    pub(super) fn refresh(&self) {
        // Nothing is left half done: a list is replaced as a whole.
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let Files { limits, seen } = &mut *files;
        let mut changed = false;
        let lists = limits.allow_files.iter_mut().chain(&mut limits.deny_files);
        for (file, seen) in lists.zip(seen) {
            let stamp = ListStamp::of(&file.path).ok();
            if stamp.is_some() && stamp == *seen {
                continue;
            }
            let path = file.path.display().to_string();
            match ListFile::read(&file.path) {
                Ok(read) => {
                    info!(file = path, networks = read.networks.len(), "list read again");
                    *seen = Some(read.stamp);
                    *file = read;
                    changed = true;
                    self.read.increment(1);
                }
                Err(errors) => {
                    let stamp = stamp.filter(|_| !ListFile::is_unread(&errors));
                    if stamp.is_none() && seen.is_none() {
                        continue;
                    }
                    *seen = stamp;
                    let first = errors.iter().next().map(ToString::to_string);
                    error!(file = path, error = first, "list not read again; the networks known before stay");
                    self.failed.increment(1);
                }
            }
        }
        if changed {
            self.acl.store(Arc::new(Acl::of(limits)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn lists(deny: &Path, registry: &Registry) -> Lists {
        let limits = Limits {
            allow: vec![],
            deny: vec![],
            allow_files: vec![],
            deny_files: vec![ListFile::read(deny).unwrap()],
            exempt: vec!["10.0.0.0/8".parse().unwrap()],
            by_source: vec![],
            ban: None,
            total: None,
        };
        Lists::new(&limits, registry)
    }

    #[test]
    fn a_changed_file_counts_and_a_bad_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deny.txt");
        let write = |text: &str| {
            // By renaming, as whoever replaces a list does: the inode tells, however fast it goes.
            let new = folder.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, &path).unwrap();
        };
        let (one, two) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        write("192.0.2.1\n");
        let registry = Registry::new().unwrap();
        let lists = lists(&path, &registry);
        let failed = |times| {
            let line = format!("portcullis_list_reloads_total{{result=\"failed\"}} {times}\n");
            assert!(registry.render().contains(&line), "not {times}: {}", registry.render());
        };
        let allowed = || (lists.allows(one), lists.allows(two));
        assert_eq!(allowed(), (false, true));
        write("# another\n192.0.2.2 # one\n\n");
        assert_eq!(allowed(), (false, true), "not before it is looked at");
        lists.refresh();
        assert_eq!(allowed(), (true, false));
        write("192.0.2.1\nnonsense\n");
        (0..3).for_each(|_| lists.refresh());
        assert_eq!(allowed(), (true, false));
        failed(1);
        fs::remove_file(&path).unwrap();
        (0..3).for_each(|_| lists.refresh());
        assert_eq!(allowed(), (true, false));
        failed(2);
        // It is there and still cannot be read: what was told is told.
        fs::create_dir(&path).unwrap();
        lists.refresh();
        failed(2);
        fs::remove_dir(&path).unwrap();
        write("192.0.2.1");
        lists.refresh();
        assert_eq!(allowed(), (false, true));
        fs::remove_file(&path).unwrap();
        lists.refresh();
        failed(3);
        write("");
        lists.refresh();
        assert_eq!(allowed(), (true, true));
        assert!(lists.exempts("10.1.2.3".parse().unwrap()) && !lists.exempts(one));
    }
}
