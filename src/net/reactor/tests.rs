use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::*;
use crate::net::{Listener, Socket, bind};

/// Runs `test` on `reactor`; fails when that takes longer than anything here may.
fn run<F: Future>(reactor: &Reactor, timers: &Timers, test: F) -> F::Output {
    let mut timer = timers.timer();
    let late = timer.now() + Duration::from_secs(10);
    let output = reactor.run(timers, timer.timeout_at(late, test)).unwrap();
    output.expect("an end within ten seconds")
}

fn pair(reactor: &Rc<Reactor>) -> (UnixStream, Socket) {
    let (peer, socket) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    (peer, Socket::accepted(socket.into(), reactor))
}

#[test]
fn a_loop_that_waits_is_woken_by_other_threads() {
    let (reactor, timers) = (Reactor::new().unwrap(), Timers::new());
    for _ in 0..100 {
        let (tell, told) = oneshot::channel();
        let turns = reactor.turns();
        let thread = std::thread::spawn(move || tell.send(7).unwrap());
        assert_eq!(run(&reactor, &timers, told).unwrap(), 7);
        thread.join().unwrap();
        // Woken at most twice: by the value, and by a write that came when the loop had already noticed.
        assert!(reactor.turns() - turns <= 3);
    }
}

#[test]
fn a_task_that_wakes_itself_runs_on_without_a_wait() {
    let (reactor, timers) = (Reactor::new().unwrap(), Timers::new());
    run(&reactor, &timers, async {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    });
    assert!(reactor.turns() <= 1001);
}

#[test]
fn deadlines_come_while_nothing_else_happens() {
    let (reactor, timers) = (Reactor::new().unwrap(), Timers::new());
    let mut timer = timers.timer();
    let start = std::time::Instant::now();
    let at = timer.now() + Duration::from_millis(120);
    run(&reactor, &timers, timer.timeout_at(at, std::future::pending::<()>()));
    assert!(start.elapsed() >= Duration::from_millis(120));
    // Neither awake all the time nor at every tick.
    assert!(reactor.turns() <= 3, "{} turns", reactor.turns());
}

#[test]
fn bytes_and_ends_pass_both_ways() {
    let (reactor, timers) = (Reactor::new().unwrap(), Timers::new());
    let (mut peer, mut socket) = pair(&reactor);
    let sent = vec![7; 4_000_000];
    let answer = sent.clone();
    // Reads slowly, so that writing has to wait; answers with the same when it has all.
    let thread = std::thread::spawn(move || {
        let mut got = Vec::new();
        let mut part = [0; 10_000];
        loop {
            match peer.read(&mut part).unwrap() {
                0 => break,
                n => got.extend_from_slice(part.get(..n).unwrap()),
            }
        }
        peer.write_all(&got).unwrap();
        got.len()
    });
    let got = run(&reactor, &timers, async {
        socket.write_all(&sent).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut got = Vec::new();
        socket.read_to_end(&mut got).await.unwrap();
        got
    });
    assert_eq!(thread.join().unwrap(), sent.len());
    assert!(got == answer, "{} of {} bytes", got.len(), answer.len());
}

#[test]
fn a_late_event_of_a_closed_socket_does_not_reach_the_next_one() {
    let reactor = Reactor::new().unwrap();
    let (_peer, socket) = pair(&reactor);
    let of = |(index, source): (usize, &Source)| (u64::from(source.generation) << 32) | index as u64;
    let key = reactor.sources.borrow().slab.iter().map(of).next().unwrap();
    drop(socket);
    let (_peer, _next) = pair(&reactor);
    reactor.dispatch(key, EventFlags::IN | EventFlags::HUP);
    let sources = reactor.sources.borrow();
    assert_eq!(
        sources.slab.iter().map(|(index, source)| (index, source.ready)).collect::<Vec<_>>(),
        [(0, Ready::WRITE)]
    );
}

#[test]
fn what_a_burst_took_is_given_back_though_some_remain() {
    let reactor = Reactor::new().unwrap();
    let remaining = pair(&reactor);
    let burst = (0..400).map(|_| pair(&reactor)).collect::<Vec<_>>();
    assert!(reactor.sources.borrow().slab.capacity() > 400);
    drop(burst);
    assert!(reactor.sources.borrow().slab.capacity() < 64);
    drop(remaining);
}

fn listen() -> (TcpListener, SocketAddr) {
    let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

#[test]
fn all_queued_connections_are_accepted_and_known_to_have_waited() {
    let (reactor, timers) = (Reactor::new().unwrap(), Timers::new());
    let (socket, addr) = listen();
    let clients = (0..100).map(|_| TcpStream::connect(addr).unwrap()).collect::<Vec<_>>();
    let listener = Listener::new(socket.into(), &reactor);
    let accepted = run(&reactor, &timers, async {
        let mut accepted = Vec::new();
        while accepted.len() < clients.len() {
            accepted.push(listener.accept().await.unwrap());
        }
        accepted
    });
    let waited = accepted.iter().filter(|accepted| accepted.waited).count();
    assert!(waited >= 98, "{waited} of 100");
    // In batches that grow: 1, 2, 4, …, 32.
    assert!(reactor.turns() <= 12, "{} turns", reactor.turns());
}

#[test]
fn a_listener_that_pauses_does_not_turn_the_loop() {
    let (reactor, timers) = (Reactor::new().unwrap(), Timers::new());
    let (socket, addr) = listen();
    let listener = Listener::new(socket.into(), &reactor);
    let _queued = TcpStream::connect(addr).unwrap();
    let mut timer = timers.timer();
    let turns = run(&reactor, &timers, async {
        let until = timer.now() + Duration::from_millis(150);
        listener.paused(timer.timeout_at(until, std::future::pending::<()>())).await;
        let turns = reactor.turns();
        listener.accept().await.unwrap();
        turns
    });
    assert!(turns <= 5, "{turns} turns");
}

#[test]
fn to_end_what_the_peer_has_reset_is_no_failure() {
    let (reactor, timers) = (Reactor::new().unwrap(), Timers::new());
    let (listener, addr) = listen();
    let mut near = TcpStream::connect(addr).unwrap();
    listener.set_nonblocking(false).unwrap();
    let (far, _) = listener.accept().unwrap();
    near.write_all(b"unread").unwrap();
    // Closed with bytes unread: a reset.
    drop(far);
    near.set_nonblocking(true).unwrap();
    let mut socket = Socket::accepted(near.into(), &reactor);
    run(&reactor, &timers, async {
        assert!(socket.read(&mut [0]).await.is_err());
        socket.shutdown().await.unwrap();
    });
}
