//! What processes use, as `/proc` tells it (proc(5)).

use std::collections::BTreeMap;
use std::fs;

/// A proxy: the process that was started and all that it started.
#[derive(Debug)]
pub(crate) struct Tree {
    processes: Vec<u32>,
}

/// Time of threads, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    /// On a core.
    pub(crate) running: u64,
    /// Ready to run, and not let: by another thread of the same core, its own or a stranger.
    pub(crate) waiting: u64,
}

/// Time of all cores, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) busy: u64,
    /// Taken by the hypervisor for other machines.
    pub(crate) stolen: u64,
}

impl Tree {
    /// The tree as it is now. Workers are long there when a proxy serves, so once is enough.
    pub(crate) fn of(root: u32) -> Self {
        let parents: BTreeMap<u32, u32> =
            numbers_in("/proc").filter_map(|process| Some((process, parent(process)?))).collect();
        let below = |process: u32| {
            let mut at = Some(process);
            while let Some(now) = at
                && now != root
            {
                at = parents.get(&now).copied();
            }
            at == Some(root)
        };
        Self { processes: parents.keys().copied().filter(|process| below(*process)).collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// A thread's figure may be one scheduler tick old (1 to 10 ms): little in a window of a second.
    pub(crate) fn cpu(&self) -> Cpu {
        let mut all = Cpu::default();
        for process in &self.processes {
            for thread in numbers_in(&format!("/proc/{process}/task")) {
                let cpu = schedstat(&format!("/proc/{process}/task/{thread}/schedstat"));
                all.running += cpu.running;
                all.waiting += cpu.waiting;
            }
        }
        all
    }

    /// Bytes of anonymous and shared memory, what is shared within the tree counted once. Pages of files are
    /// left out: another process that maps the same program would make them cheaper.
    pub(crate) fn memory(&self) -> u64 {
        let of = |process: &u32| {
            let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
            kibibytes(&text, "Pss_Anon:") + kibibytes(&text, "Pss_Shmem:")
        };
        self.processes.iter().map(of).sum::<u64>() * 1024
    }
}

/// The time of this process, which has one thread while it measures.
pub(crate) fn own_cpu() -> Cpu {
    schedstat("/proc/self/schedstat")
}

pub(crate) fn machine() -> Machine {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<u64> = fields.map(|field| field.parse().unwrap_or(0)).collect();
    let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
    let time = |column: usize| ticks.get(column).copied().unwrap_or(0) * tick;
    // user, nice, system, (idle, iowait,) irq, softirq, steal
    Machine { busy: [0, 1, 2, 5, 6].map(time).iter().sum(), stolen: time(7) }
}

fn schedstat(path: &str) -> Cpu {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut fields = text.split_whitespace().map(|field| field.parse().unwrap_or(0));
    Cpu { running: fields.next().unwrap_or(0), waiting: fields.next().unwrap_or(0) }
}

fn parent(process: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name stands in parentheses and may hold any; after it: state, parent.
    text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn numbers_in(folder: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn kibibytes(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_tree_has_the_children_and_their_memory() {
        // The shell waits for its child, which waits for the end of its input.
        let script = "cat; true";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let tree = loop {
            let tree = Tree::of(shell.id());
            if tree.processes.len() == 2 && tree.cpu().running > 0 {
                break tree;
            }
            assert!(std::time::Instant::now() < deadline, "only {tree:?}");
            std::thread::yield_now();
        };
        assert!(tree.memory() > 10_000, "{}", tree.memory());
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert!(Tree::of(shell.id()).is_empty());
    }

    #[test]
    fn listings_are_read_by_their_keys() {
        let text = "Pss:            300 kB\nPss_Anon:        12 kB\nPss_Shmem:        4 kB\n";
        assert_eq!(
            (kibibytes(text, "Pss_Anon:"), kibibytes(text, "Pss_Shmem:"), kibibytes(text, "Rss:")),
            (12, 4, 0)
        );
    }
}
