//! A nameserver that says whatever a test wants: addresses and aliases, other ones at each question, for no time at all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A record of an answer. An alias is followed by the records of the name that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Address(IpAddr),
    Alias(String),
}

/// What the stub says of names: for each, the answers in turn, the last one again and again. Others do not exist.
pub(crate) type Zone = HashMap<String, Vec<Vec<Record>>>;

/// The stub; it ends when dropped.
#[derive(Debug)]
pub(crate) struct StubDns {
    addr: SocketAddr,
    asked: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

/// Records from words: addresses, and names as aliases.
pub(crate) fn records(words: &[&str]) -> Vec<Record> {
    let record =
        |word: &&str| word.parse().map_or_else(|_| Record::Alias((*word).to_owned()), Record::Address);
    words.iter().map(record).collect()
}

impl StubDns {
    /// Answers with a time to live of zero.
    pub(crate) fn start(zone: Zone) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let addr = socket.local_addr().unwrap();
        let (asked, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, ended) = (Arc::clone(&asked), Arc::clone(&over));
        std::thread::spawn(move || {
            // Both families are asked for: a turn is one of each.
            let turns = Mutex::new(HashMap::new());
            let mut question = [0; 1500];
            while !ended.load(Ordering::SeqCst) {
                let Ok((len, from)) = socket.recv_from(&mut question) else { continue };
                count.fetch_add(1, Ordering::SeqCst);
                let answer = answer(&question[..len], &zone, &mut turns.lock().unwrap());
                let _ = socket.send_to(&answer, from);
            }
        });
        Self { addr, asked, over }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many questions there were.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for StubDns {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// The answer to a question (RFC 1035 §4.1).
fn answer(question: &[u8], zone: &Zone, turns: &mut HashMap<(String, u8), usize>) -> Vec<u8> {
    let (mut name, mut at) = (Vec::new(), 12);
    while question[at] != 0 {
        let len = usize::from(question[at]);
        name.push(String::from_utf8(question[at + 1..=at + len].to_ascii_lowercase()).unwrap());
        at += len + 1;
    }
    let (name, kind) = (name.join("."), question[at + 2]);
    let turn = turns.entry((name.clone(), kind)).or_insert(0);
    let said = zone.get(&name).map(|answers| &answers[(*turn).min(answers.len() - 1)]);
    *turn += 1;
    let mut owner = name;
    let mut records = Vec::new();
    for record in said.into_iter().flatten() {
        let (of, data) = match record {
            Record::Address(IpAddr::V4(ip)) => (1, ip.octets().to_vec()),
            Record::Address(IpAddr::V6(ip)) => (28, ip.octets().to_vec()),
            Record::Alias(target) => (5, labels(target)),
        };
        if of == kind || of == 5 {
            let fixed = [0, of, 0, 1, 0, 0, 0, 0, 0, data.len() as u8];
            records.push([labels(&owner), fixed.to_vec(), data].concat());
        }
        if let Record::Alias(target) = record {
            owner.clone_from(target);
        }
    }
    // An answer with authority, recursion as it was asked for; NXDOMAIN where there is no such name.
    let head = [0x84 | question[2] & 1, if said.is_some() { 0x80 } else { 0x83 }];
    let counts = [0, 1, 0, records.len() as u8, 0, 0, 0, 0];
    [&question[..2], &head, &counts, &question[12..at + 5], &records.concat()].concat()
}

fn labels(name: &str) -> Vec<u8> {
    let label = |label: &str| [&[label.len() as u8], label.as_bytes()].concat();
    name.split('.').flat_map(label).chain([0]).collect()
}
