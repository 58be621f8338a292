//! The proxy between two networks of 1,500-byte packets: streams arrive exact whatever the pace of their ends,
//! and peers that vanish without a word cost no more than their limit.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use socket2::SockRef;

use crate::support::backend::Backend;
use crate::support::client::{End, Outcome, connect, outcome, read_to_end, read_while, timed};
use crate::support::hello::to;
use crate::support::netns::{Host, with_hosts};
use crate::support::pattern::{assert_end, receive, send};
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, in_parallel, until, wait_for};

const MIB: usize = 1024 * 1024;
/// What the proxy may work for a byte, in nanoseconds of processor time: several times what it takes unoptimised.
const NANOS_PER_BYTE: f64 = 6.0;
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
/// The proxy, as clients see it and as backends see it.
const FRONT: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const BACK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// A client, the proxy and a backend, each on a host of its own. The test holds the backend's connections
/// itself, hello read.
struct Network {
    client: Host,
    proxy_host: Host,
    backend_host: Host,
    proxy: Proxy,
    _backend: Backend,
    accepted: Mutex<Receiver<TcpStream>>,
    hello: Vec<u8>,
}

impl Network {
    fn new(settings: &str) -> Self {
        let [client, proxy_host, backend_host] = [(); 3].map(|()| Host::new());
        Host::join((&client, CLIENT), (&proxy_host, FRONT));
        Host::join((&proxy_host, BACK), (&backend_host, BACKEND));
        let hello = to("relay.test");
        let (sender, accepted) = channel();
        let len = hello.len();
        let backend = backend_host.run(|| {
            Backend::at(SocketAddr::from((BACKEND, 0)), move |mut stream| {
                stream.read_exact(&mut vec![0; len]).unwrap();
                // Fails at the end of the test, when nobody waits any more.
                let _ = sender.send(stream);
            })
        });
        let config = format!(
            "listen = '{FRONT}:0'\n{UNLIMITED}[[route]]\nsni = 'relay.test'\nto = '{backend}'\n{settings}\n"
        );
        let proxy = proxy_host.run(|| Proxy::start(&config).streaming());
        let accepted = Mutex::new(accepted);
        Self { client, proxy_host, backend_host, proxy, _backend: backend, accepted, hello }
    }

    /// Both ends of a connection, on which nothing waits longer than [`SOON`].
    fn open(&self) -> (TcpStream, TcpStream) {
        // One at a time: whatever the backend accepts meanwhile is the other end.
        let accepted = self.accepted.lock().unwrap();
        let mut client = self.client.run(|| connect(self.proxy.addr()));
        client.write_all(&self.hello).unwrap();
        let backend = accepted.recv_timeout(SOON).unwrap();
        for stream in [&client, &backend] {
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream.set_write_timeout(Some(SOON)).unwrap();
        }
        (client, backend)
    }

    /// Waits for the proxy to rest: so little processor time goes by that no byte can have passed.
    fn wait_for_rest(&self) {
        let mut cpu = self.proxy.process.cpu();
        until("the proxy to rest", SOON, || {
            let passed = self.cpu_of(Duration::from_millis(200), &mut cpu);
            (passed < Duration::from_millis(4)).then_some(())
        });
    }

    /// Processor time of the proxy in a window of time that begins now; `cpu` is what it had used before.
    fn cpu_of(&self, window: Duration, cpu: &mut Duration) -> Duration {
        // The window is what is measured; no condition could end it.
        std::thread::sleep(window);
        let before = std::mem::replace(cpu, self.proxy.process.cpu());
        *cpu - before
    }
}

/// How long the ends of a connection pause: senders every half MiB, readers every 128 KiB.
#[derive(Clone, Copy, Debug)]
struct Pauses {
    senders: Duration,
    client: Duration,
    backend: Duration,
}

impl Pauses {
    const fn new(senders: u64, client: u64, backend: u64) -> Self {
        let millis = Duration::from_millis;
        Self { senders: millis(senders), client: millis(client), backend: millis(backend) }
    }
}

/// Pauses whenever `step` more bytes have passed: long enough for the buffers on the way to run dry, or to fill up.
fn pacer(pause: Duration, step: usize) -> impl FnMut(usize) {
    let mut next = step;
    move |at| {
        if !pause.is_zero() && at >= next {
            next = at + step;
            std::thread::sleep(pause);
        }
    }
}

/// Sends `len` bytes each way and compares all of them.
fn exchange(client: &TcpStream, backend: &TcpStream, id: usize, len: usize, pauses: Pauses) {
    let (up, down) = (2 * id, 2 * id + 1);
    std::thread::scope(|scope| {
        for (stream, id) in [(client, up), (backend, down)] {
            scope.spawn(move || {
                send(stream, id, 0..len, pacer(pauses.senders, MIB / 2)).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            });
        }
        for (stream, id, pause) in [(client, down, pauses.client), (backend, up, pauses.backend)] {
            if !pause.is_zero() {
                // A reader with little room: what it does not read soon holds up all others on the way.
                SockRef::from(stream).set_recv_buffer_size(65_536).unwrap();
            }
            scope.spawn(move || {
                receive(stream, id, 0..len, pacer(pause, 128 * 1024)).unwrap();
                assert_end(stream);
            });
        }
    });
}

#[test]
fn two_hundred_streams_of_every_pace_arrive_exact_and_spliced() {
    const STREAMS: usize = 200;
    const LEN: usize = 2 * MIB;
    /// Brisk, pausing, and slow at either end.
    const PAUSES: [Pauses; 4] =
        [Pauses::new(0, 0, 0), Pauses::new(20, 0, 0), Pauses::new(0, 10, 0), Pauses::new(0, 0, 10)];
    with_hosts(|| {
        let mut net = Network::new("");
        let before = net.proxy.process.cpu();
        let (took, ()) = timed(|| {
            in_parallel(32, STREAMS, |id| {
                let (client, backend) = net.open();
                exchange(&client, &backend, id, LEN, PAUSES[id % 4]);
            });
        });
        let spent = net.proxy.process.cpu() - before;
        wait_for("all to be logged", || net.proxy.access_log().len() == STREAMS);
        let lines = net.proxy.access_log();
        for line in &lines {
            assert_eq!((&line["cause"], &line["bytes_out"]), (&"done".into(), &LEN.into()), "{line}");
            assert_eq!(line["bytes_in"], LEN + net.hello.len(), "{line}");
        }
        let spliced: Vec<u64> = lines.iter().map(|line| line["bytes_spliced"].as_u64().unwrap()).collect();
        let (bytes, total) = (2 * LEN * STREAMS, spliced.iter().sum::<u64>());
        let nanos = spent.as_nanos() as f64 / bytes as f64;
        let streams = spliced.iter().filter(|bytes| **bytes > 0).count();
        println!(
            "{took:?}; {nanos:.2} ns a byte; {total} of {bytes} bytes spliced, in {streams} of {STREAMS}"
        );
        assert!(nanos < NANOS_PER_BYTE, "{spent:?} for {bytes} bytes");
        assert!(streams > STREAMS / 2 && total > bytes as u64 / 10, "{total} of {bytes} bytes in {streams}");
        net.proxy.assert_sound();
    });
}

#[test]
fn slow_readers_take_no_time_of_the_proxy_but_for_their_bytes() {
    const STREAMS: usize = 16;
    const LEN: usize = 4 * MIB;
    with_hosts(|| {
        let mut net = Network::new("");
        let before = net.proxy.process.cpu();
        let (took, ()) = timed(|| {
            in_parallel(STREAMS, STREAMS, |id| {
                let (client, backend) = net.open();
                exchange(&client, &backend, id, LEN, Pauses::new(0, 40, 40));
            });
        });
        let spent = net.proxy.process.cpu() - before;
        let nanos = spent.as_nanos() as f64 / (2 * LEN * STREAMS) as f64;
        println!("{took:?}, of which the proxy worked {spent:?}: {nanos:.2} ns a byte");
        assert!(nanos < NANOS_PER_BYTE, "{spent:?} for {} bytes", 2 * LEN * STREAMS);
        net.proxy.assert_sound();
    });
}

/// Which ends hold still in the middle of their streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Still {
    Senders,
    Readers,
}

/// Holds up whoever passes until it is opened.
#[derive(Debug, Default)]
struct Gate {
    waiting: AtomicUsize,
    open: AtomicBool,
}

/// Opens a gate when dropped, also when the test fails: nobody is held up then.
struct Opening<'a>(&'a Gate);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.open.store(true, Ordering::SeqCst);
    }
}

impl Gate {
    fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        until("the gate to open", 3 * SOON, || self.open.load(Ordering::SeqCst).then_some(()));
    }
}

#[test]
fn the_proxy_rests_while_its_peers_do_and_goes_on_with_them() {
    const STREAMS: usize = 4;
    const LEN: usize = 16 * MIB;
    with_hosts(|| {
        let mut net = Network::new("");
        for still in [Still::Senders, Still::Readers] {
            let gate = Gate::default();
            let ends: Vec<_> = (0..STREAMS).map(|_| net.open()).collect();
            let spent = std::thread::scope(|scope| {
                let _opening = Opening(&gate);
                for (id, (client, backend)) in ends.iter().enumerate() {
                    for (id, from, to) in [(2 * id, client, backend), (2 * id + 1, backend, client)] {
                        let gate = &gate;
                        // A reader with little room: what it does not read soon holds up all others on the way.
                        SockRef::from(to).set_recv_buffer_size(131_072).unwrap();
                        scope.spawn(move || {
                            held_sender(from, id, LEN, (still == Still::Senders).then_some(gate))
                        });
                        scope.spawn(move || {
                            held_reader(to, id, LEN, (still == Still::Readers).then_some(gate))
                        });
                    }
                }
                wait_for("all to be in the middle", || gate.waiting.load(Ordering::SeqCst) == 2 * STREAMS);
                net.wait_for_rest();
                net.cpu_of(Duration::from_secs(1), &mut net.proxy.process.cpu())
            });
            println!("{still:?} hold still: {spent:?} of processor time in a second");
            assert!(
                spent < Duration::from_millis(20),
                "{still:?} hold still, and the proxy worked {spent:?}"
            );
        }
        wait_for("all to be logged", || net.proxy.access_log().len() == 2 * STREAMS);
        for line in net.proxy.access_log() {
            assert!(line["bytes_spliced"].as_u64().unwrap() > LEN as u64 / 10, "{line}");
        }
        net.proxy.assert_sound();
    });
}

fn held_sender(stream: &TcpStream, id: usize, len: usize, gate: Option<&Gate>) {
    send(stream, id, 0..len / 2, |_| ()).unwrap();
    gate.inspect(|gate| gate.pass());
    send(stream, id, len / 2..len, |_| ()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
}

fn held_reader(stream: &TcpStream, id: usize, len: usize, gate: Option<&Gate>) {
    receive(stream, id, 0..len / 2, |_| ()).unwrap();
    gate.inspect(|gate| gate.pass());
    receive(stream, id, len / 2..len, |_| ()).unwrap();
    assert_end(stream);
}

/// One of the proxy's peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Client,
    Backend,
}

impl Network {
    fn host(&self, peer: Peer) -> &Host {
        match peer {
            Peer::Client => &self.client,
            Peer::Backend => &self.backend_host,
        }
    }

    /// Waits until both sockets of the only connection are given back, `limit` after now at the latest; gives
    /// the reason, cause and stage that are logged.
    fn wait_for_end(&self, sockets: usize, limit: Duration) -> (String, String, String) {
        until("both sockets to be given back", limit, || {
            (self.proxy.process.sockets() <= sockets).then_some(())
        });
        let line = self.proxy.access_line("the connection", |_| true);
        let word = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        (word("reason"), word("cause"), word("stage"))
    }
}

/// Short enough for a test, long enough to tell it from an end at once.
const IDLE: &str = "timeouts = { idle = '2s', half_closed = '2s' }";
const IDLE_LIMIT: Duration = Duration::from_secs(2);
/// The limit, and what a busy machine may add.
const REAPED: Duration = Duration::from_secs(5);

/// Writes until the connection fails or takes no more for a while, which is told by `false`.
fn send_endlessly(mut stream: &TcpStream) -> bool {
    stream.set_write_timeout(Some(SOON)).unwrap();
    loop {
        match stream.write_all(&[7; 65_536]) {
            Ok(()) => {}
            Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }
}

#[test]
fn a_peer_that_vanishes_in_the_middle_of_a_transfer_is_given_up_at_the_idle_limit() {
    with_hosts(|| {
        let cases = [
            (Peer::Client, Peer::Backend, ("stalled", "client_timeout")),
            (Peer::Backend, Peer::Client, ("stalled", "upstream_timeout")),
            // Nothing is on its way to the peer that is gone: all that shows is that nobody says anything.
            (Peer::Client, Peer::Client, ("idle", "client_timeout")),
            (Peer::Backend, Peer::Backend, ("idle", "client_timeout")),
        ];
        in_parallel(cases.len(), cases.len(), |index| {
            let (vanishing, sending, expected) = cases[index];
            let mut net = Network::new(IDLE);
            let sockets = net.proxy.process.sockets();
            let (client, backend) = net.open();
            let (sender, mut reader) =
                if sending == Peer::Client { (client, backend) } else { (backend, client) };
            let sender = std::thread::spawn(move || send_endlessly(&sender));
            read_while(&mut reader, SOON, |bytes| bytes.len() < MIB);
            let reading = reader.try_clone().unwrap();
            let reading = std::thread::spawn(move || read_to_end(&mut { reading }, SOON).end);
            net.host(vanishing).vanish();
            let (took, (reason, cause, stage)) = timed(|| net.wait_for_end(sockets, REAPED));
            println!("{vanishing:?} vanished, {sending:?} was sending: {reason} after {took:?}");
            assert_eq!((reason.as_str(), cause.as_str()), expected, "{vanishing:?}, {sending:?} sends");
            assert_eq!(stage, "relay");
            assert!(took > IDLE_LIMIT / 2, "{took:?}");
            if reason == "stalled" {
                let left = net.proxy_host.execute("ss --no-header --numeric --tcp", "");
                assert_eq!(left, "", "the kernel still tries to deliver to {vanishing:?}");
            }
            // Who is still there learns that the stream is broken.
            if sending == vanishing {
                assert_ne!(reading.join().unwrap(), End::Open, "{vanishing:?} vanished");
            } else {
                assert!(sender.join().unwrap(), "{vanishing:?} vanished");
            }
            net.proxy.assert_sound();
        });
    });
}

#[test]
fn a_peer_that_vanishes_in_silence_is_given_up_at_the_idle_limit() {
    with_hosts(|| {
        in_parallel(2, 2, |index| {
            let vanishing = [Peer::Client, Peer::Backend][index];
            let mut net = Network::new(IDLE);
            let sockets = net.proxy.process.sockets();
            let (mut client, mut backend) = net.open();
            backend.write_all(b"hello").unwrap();
            client.read_exact(&mut [0; 5]).unwrap();
            let (took, (reason, _, stage)) = timed(|| {
                net.host(vanishing).vanish();
                // Were there no limit, the kernel would ask after a client that says nothing.
                let timers = net.proxy_host.execute("ss --no-header --numeric --tcp --options", "");
                let client = client.local_addr().unwrap().to_string();
                let line = timers.lines().find(|line| line.contains(&client)).unwrap_or_default();
                assert!(line.contains("timer:(keepalive,"), "{timers}");
                net.wait_for_end(sockets, REAPED)
            });
            assert_eq!((reason.as_str(), stage.as_str()), ("idle", "relay"));
            assert!(took > IDLE_LIMIT / 2, "{took:?}");
            let staying = if vanishing == Peer::Client { &mut backend } else { &mut client };
            assert_ne!(read_to_end(staying, SOON).end, End::Open, "{vanishing:?} vanished");
            net.proxy.assert_sound();
        });
    });
}

#[test]
fn a_download_after_the_clients_fin_arrives_whole() {
    const LEN: usize = 50 * 1000 * 1000;
    with_hosts(|| {
        let mut net = Network::new("");
        let (client, mut backend) = net.open();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut backend, SOON).end, End::Eof);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                backend.set_write_timeout(Some(SOON)).unwrap();
                send(&backend, 1, 0..LEN, |_| ()).unwrap();
            });
            // With pauses, so that it is the client that is waited for: the backend's bytes are then always there.
            receive(&client, 1, 0..LEN, pacer(Duration::from_millis(4), MIB)).unwrap();
            assert_end(&client);
        });
        let line = net.proxy.access_line_of(client.local_addr().unwrap());
        assert_eq!((&line["cause"], &line["bytes_out"]), (&"done".into(), &LEN.into()), "{line}");
        assert!(line["bytes_spliced"].as_u64().unwrap() > LEN as u64 / 2, "{line}");
        net.proxy.assert_sound();
    });
}

#[test]
fn a_peer_that_vanishes_half_closed_is_given_up_at_the_half_closed_limit() {
    with_hosts(|| {
        in_parallel(2, 2, |index| {
            let ending = [Peer::Client, Peer::Backend][index];
            let mut net = Network::new("timeouts = { idle = '1h', half_closed = '2s' }");
            let sockets = net.proxy.process.sockets();
            let (mut client, mut backend) = net.open();
            let (ender, waiter, expected) = match ending {
                Peer::Client => (&client, &mut backend, "upstream_timeout"),
                Peer::Backend => (&backend, &mut client, "client_timeout"),
            };
            ender.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(waiter, SOON).end, End::Eof);
            // Both fall silent: the one that has ended waits, the other is no more.
            net.host(if ending == Peer::Client { Peer::Backend } else { Peer::Client }).vanish();
            let (took, (reason, cause, stage)) = timed(|| net.wait_for_end(sockets, REAPED));
            assert_eq!((reason.as_str(), cause.as_str(), stage.as_str()), ("half_closed", expected, "relay"));
            assert!(took > IDLE_LIMIT / 2, "{took:?}");
            net.proxy.assert_sound();
        });
    });
}

/// Counts what comes in: ends of connections, and data, which alone is longer than the header of a
/// SYN with all its options (60 bytes).
const WATCH: &str = "table inet watch {\n\
     counter ends {}\ncounter data {}\n\
     chain in { type filter hook input priority 0;\n\
     tcp flags & (fin | rst) != 0 counter name ends\n\
     meta l4proto tcp meta length > 60 counter name data\n}\n}\n";

#[test]
fn nothing_of_a_dropped_connection_travels_beyond_the_first_router() {
    let router_front = Ipv4Addr::new(10, 0, 3, 1);
    let router_back = Ipv4Addr::new(10, 0, 1, 2);
    let far = Ipv4Addr::new(10, 0, 3, 2);
    with_hosts(|| {
        let [client, router, proxy_host] = [(); 3].map(|()| Host::new());
        Host::join((&client, far), (&router, router_front));
        Host::join((&router, router_back), (&proxy_host, FRONT));
        router.forward();
        client.route_by(router_front);
        proxy_host.route_by(router_back);
        client.filter(WATCH);
        let mut proxy = proxy_host.run(|| {
            Proxy::start(&format!(
                "listen = '{FRONT}:0'\n[[limit]]\nname = 'three'\nrate = '3/h'\naction = 'drop'\n\
                 [[route]]\nsni = 'drop.test'\nreject = 'drop'\n\
                 [[route]]\nsni = 'alert.test'\nreject = 'alert'\n\
                 [[route]]\nsni = 'reset.test'\nreject = 'reset'\n\
                 [[listener]]\nname = 'behind'\nbind = '{FRONT}:0'\nproxy_protocol = '{far}'\n"
            ))
        });
        let addr = proxy.addr();
        // The counters count: what these see arrives.
        assert_eq!(client.run(|| outcome(&mut connect(addr), &to("alert.test"), SOON)), Outcome::Alert(112));
        assert_eq!(client.run(|| outcome(&mut connect(addr), &to("reset.test"), SOON)), Outcome::Reset);
        let (ends, sockets) = (client.counted("ends"), proxy.process.sockets());
        assert!(ends >= 2, "{ends} FIN and RST counted");
        let data = client.counted("data");

        let mut open = Vec::new();
        // By whatever address a proxy names its client, the packets are for the proxy.
        let named = [b"PROXY TCP6 2001:db8::1 2001:db8::2 1025 443\r\n", to("drop.test").as_slice()].concat();
        for (addr, key, bytes) in
            [(addr, "client", to("drop.test")), (proxy.listener("behind"), "via", named)]
        {
            let mut stream = client.run(|| connect(addr));
            stream.write_all(&bytes).unwrap();
            let own = stream.local_addr().unwrap().to_string();
            let line = proxy.access_line("ours", |line| line[key] == own);
            assert_eq!((&line["reason"], &line["stage"]), (&"rejected".into(), &"route".into()));
            wait_for("the socket to be given back", || proxy.process.sockets() <= sockets);
            // As long as several retransmissions of a hello without an answer would take.
            let reply = read_to_end(&mut stream, Duration::from_secs(2));
            assert_eq!((reply.bytes.as_slice(), reply.end), (b"".as_slice(), End::Open));
            assert_eq!((client.counted("ends"), client.counted("data")), (ends, data));
            // Its FIN would be answered with a reset, as by any host that knows nothing of a connection.
            open.push(stream);
        }

        // The same for the fourth, which a limit drops before it has said anything.
        let mut fourth = client.run(|| connect(addr));
        let line = proxy.access_line_of(fourth.local_addr().unwrap());
        assert_eq!((&line["limit"], &line["stage"]), (&"three".into(), &"accept".into()));
        let reply = read_to_end(&mut fourth, Duration::from_secs(1));
        assert_eq!((reply.bytes.as_slice(), reply.end), (b"".as_slice(), End::Open));
        assert_eq!(client.counted("ends"), ends);
        proxy.assert_sound();
    });
}
