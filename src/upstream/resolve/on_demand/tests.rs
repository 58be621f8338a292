use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::A;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::runtime::Runtime;

use super::*;
use crate::config::DnsFamily;
use crate::net::{Reactor, Timers};
use crate::upstream::Resolver;

/// A nameserver that knows `*.good.test` and answers when it has slept.
struct Nameserver {
    socket: UdpSocket,
    queries: Arc<AtomicUsize>,
}

impl Nameserver {
    fn start(sleep: Duration) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (asked, queries) = (socket.try_clone().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&queries);
        std::thread::spawn(move || {
            let mut packet = [0; 1500];
            loop {
                let (len, from) = asked.recv_from(&mut packet).unwrap();
                if len == 0 {
                    return;
                }
                let mut message = Message::from_vec(&packet[..len]).unwrap().into_response();
                let query = message.queries[0].clone();
                if query.query_type() == RecordType::A {
                    counted.fetch_add(1, Ordering::SeqCst);
                    // A nameserver that takes its time.
                    std::thread::sleep(sleep);
                }
                match (query.name().to_ascii().ends_with("good.test."), query.query_type()) {
                    (true, RecordType::A) => {
                        let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 7)));
                        message.add_answer(Record::from_rdata(query.name().clone(), 0, data));
                    }
                    (true, _) => {}
                    (false, _) => message.metadata.response_code = ResponseCode::NXDomain,
                }
                asked.send_to(&message.to_vec().unwrap(), from).unwrap();
            }
        });
        Self { socket, queries }
    }

    fn addr(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    fn queries(&self) -> usize {
        self.queries.load(Ordering::SeqCst)
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        // An empty packet ends its thread.
        self.socket.send_to(&[], self.addr()).unwrap();
    }
}

fn config(server: SocketAddr) -> DnsConfig {
    DnsConfig {
        servers: vec![server],
        timeout: Duration::from_millis(300),
        family: DnsFamily::Both,
        min_ttl: Duration::from_secs(60),
        max_ttl: Duration::from_secs(300),
        negative_ttl: Duration::from_secs(60),
        stale_max: None,
    }
}

/// Look-ups that ask `server`, and the runtime that they are made on.
fn started(server: SocketAddr) -> (Runtime, OnDemand) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let on_demand = OnDemand::new(&config(server), &Registry::new().unwrap());
    on_demand.start(runtime.handle()).unwrap();
    (runtime, on_demand)
}

/// Runs `work` on a thread of the data plane, which has no runtime.
fn on_a_worker<T: Send>(work: impl AsyncFnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let (reactor, timers) = (Reactor::new().unwrap(), Timers::new());
            let mut timer = timers.timer();
            let late = timer.now() + Duration::from_secs(10);
            let output = reactor.run(&timers, timer.timeout_at(late, Box::pin(work()))).unwrap();
            output.expect("an end within ten seconds")
        });
        thread.join().unwrap()
    })
}

#[test]
fn threads_without_a_runtime_find_names_and_ask_once() {
    let server = Nameserver::start(Duration::from_millis(50));
    let (_runtime, on_demand) = started(server.addr());
    let expected: [IpAddr; 1] = [Ipv4Addr::new(192, 0, 2, 7).into()];
    std::thread::scope(|scope| {
        for name in ["a.good.test", "A.good.test", "a.good.test."].iter().cycle().take(6) {
            let on_demand = &on_demand;
            scope.spawn(move || {
                let found = on_a_worker(async || on_demand.find(name).await);
                assert_eq!(*found.unwrap(), expected);
            });
        }
    });
    assert_eq!(server.queries(), 1);
    // A TTL of 0 is no reason to ask again at once: what was found is what is connected to.
    assert_eq!(*on_a_worker(async || on_demand.find("a.good.test").await).unwrap(), expected);
    assert_eq!(server.queries(), 1);
    let gone = on_a_worker(async || on_demand.find("bad.test").await);
    assert!(matches!(gone, Err(LookupError::NoName { .. })), "{gone:?}");
}

#[test]
fn literal_addresses_and_what_is_no_name_cost_no_query() {
    let server = Nameserver::start(Duration::ZERO);
    let (_runtime, on_demand) = started(server.addr());
    let found = on_a_worker(async || on_demand.find("2001:db8::1").await);
    assert_eq!(found.unwrap()[0].to_string(), "2001:db8::1");
    for bad in ["a..test", &"a".repeat(64), &"a.".repeat(200), "\u{0}\u{e9}"] {
        let error = on_a_worker(async || on_demand.find(bad).await);
        assert!(matches!(error, Err(LookupError::Failed(_))), "{bad}: {error:?}");
    }
    assert_eq!(server.queries(), 0);
}

#[test]
fn many_names_at_once_are_refused_and_those_under_way_end_in_time() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (_runtime, on_demand) = started(silent.local_addr().unwrap());
    let errors = on_a_worker(async || {
        let mut busy = 0;
        for index in 0..200 {
            match on_demand.begin(&format!("{index}.test")) {
                Known::Outcome(Err(LookupError::Busy)) => busy += 1,
                Known::Outcome(other) => panic!("{other:?}"),
                Known::UnderWay(_) => {}
            }
        }
        (busy, on_demand.find("0.test").await, on_demand.find("200.test").await)
    });
    assert_eq!(errors.0, 200 - MAX_UNDER_WAY);
    assert!(matches!(errors.1, Err(LookupError::Timeout)), "{:?}", errors.1);
    // The others ended about then, so there is room for this one, or there will be.
    assert!(matches!(errors.2, Err(LookupError::Timeout | LookupError::Busy)), "{:?}", errors.2);
}

#[test]
fn without_a_runtime_there_is_an_error_and_no_wait() {
    let server = Nameserver::start(Duration::ZERO);
    let on_demand = OnDemand::new(&config(server.addr()), &Registry::new().unwrap());
    let before = on_a_worker(async || on_demand.find("a.good.test").await);
    assert!(matches!(before, Err(LookupError::Ended)), "{before:?}");
    let (runtime, on_demand) = started(server.addr());
    runtime.shutdown_background();
    let after = on_a_worker(async || on_demand.find("a.good.test").await);
    assert!(matches!(after, Err(LookupError::Ended)), "{after:?}");
}

#[test]
fn what_is_known_outlives_a_reload() {
    let server = Nameserver::start(Duration::ZERO);
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (runtime, registry) = (Runtime::new().unwrap(), Registry::new().unwrap());
    let generation = |at: SocketAddr, before: Option<&Resolver>| {
        let mut resolver = Resolver::new(&config(at), &registry);
        let on_demand = resolver.on_demand();
        if let Some(before) = before {
            resolver.begin_with(&before.answers());
        }
        resolver.start(runtime.handle()).unwrap();
        (resolver, on_demand)
    };
    let (first, on_demand) = generation(server.addr(), None);
    on_a_worker(async || on_demand.find("a.good.test").await).unwrap();
    let (second, on_demand) = generation(silent.local_addr().unwrap(), Some(&first));
    drop(first);
    let found = on_a_worker(async || on_demand.find("a.good.test").await).unwrap();
    assert_eq!((found[0].to_string().as_str(), server.queries()), ("192.0.2.7", 1));
    drop(second);
}
