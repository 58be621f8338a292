//! When a user's share of pipe memory is used up (pipe(7)), relays do with a small pipe or none: every byte
//! arrives, and nobody is told of an error.

use std::net::TcpStream;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};
use rustix::process::{Uid, geteuid};
use rustix::thread::set_thread_res_uid;

use crate::support::backend::Backend;
use crate::support::client::connect;
use crate::support::hello::to;
use crate::support::pattern::{exchange, serve};
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, in_parallel, own_pipe_memory, wait_for};

const STREAMS: usize = 32;
const LEN: usize = 4 * 1024 * 1024;
/// What a pipe has that is made within the share, and what one has beyond it, in bytes (pipe(7)).
const ORDINARY: usize = 16 * 4096;
const MEAGRE: usize = 2 * 4096;

/// A pipe that a user holds.
type Held = (OwnedFd, OwnedFd);

/// A user without privileges: the test's own, or for root one that nobody else is, as far as can be known. These
/// numbers are free for use at run time on Debian (61184 to 65519).
fn plain_user() -> Option<Uid> {
    geteuid().is_root().then(|| Uid::from_raw(61_184 + std::process::id() % 4000))
}

/// Makes a pipe of an ordinary size, and then takes all the pipe memory that the user may have besides.
fn use_up(user: Option<Uid>) -> (Held, Vec<Held>) {
    let taken = std::thread::spawn(move || {
        if let Some(user) = user {
            // Of this thread alone, which loses its capabilities with it and ends here.
            set_thread_res_uid(user, user, user).unwrap();
        }
        let new = || pipe_with(PipeFlags::CLOEXEC).unwrap();
        let spare = new();
        assert_eq!(fcntl_getpipe_size(&spare.1).unwrap(), ORDINARY, "the share is used up by others");
        let mut held = Vec::new();
        loop {
            let pipe = new();
            let grown =
                [1024, 512, 256, 128].iter().any(|kib| fcntl_setpipe_size(&pipe.1, kib * 1024).is_ok());
            if !grown && fcntl_getpipe_size(&pipe.1).unwrap() <= MEAGRE {
                return (spare, held);
            }
            held.push(pipe);
            assert!(held.len() < 400, "fs.pipe-user-pages-soft sets no limit, or a very high one");
        }
    });
    taken.join().unwrap()
}

/// The proxy as a user without privileges, which still reads the files of the test's user.
fn unprivileged_proxy(user: Option<Uid>, backend: &Backend) -> Proxy {
    let config =
        format!("listen = '127.0.0.1:0'\n{UNLIMITED}[[route]]\nsni = 'relay.test'\nto = '{backend}'\n");
    let Some(user) = user else { return Proxy::start(&config) };
    let user = user.as_raw();
    let words = format!(
        "setpriv --reuid={user} --regid={user} --clear-groups --inh-caps=-all,+dac_read_search \
         --ambient-caps=-all,+dac_read_search"
    );
    Proxy::start_under(&words.split_whitespace().collect::<Vec<_>>(), &config)
}

/// Exchanges streams and gives how many bytes of all were spliced.
fn spliced(proxy: &Proxy, hello: &[u8], parallel: usize) -> u64 {
    let logged = proxy.access_log().len();
    in_parallel(parallel, STREAMS, |id| {
        let stream: TcpStream = connect(proxy.addr());
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        exchange(&stream, hello, id, LEN, |_| ());
    });
    wait_for("all to be logged", || proxy.access_log().len() == logged + STREAMS);
    let lines = proxy.access_log().split_off(logged);
    for line in &lines {
        assert_eq!(line["cause"], "done", "{line}");
    }
    lines.iter().map(|line| line["bytes_spliced"].as_u64().unwrap()).sum()
}

#[test]
fn relays_do_without_pipes_where_the_users_share_is_used_up() {
    let hello = to("relay.test");
    let hello_len = hello.len();
    let backend = Backend::new(move |stream| serve(stream, hello_len));
    let user = plain_user();
    // A user of its own has nobody to share with.
    let _alone = user.is_none().then(own_pipe_memory);
    let (spare, held) = use_up(user);
    let mut proxy = unprivileged_proxy(user, &backend);
    let none = spliced(&proxy, &hello, 16);
    // Room for a pipe of an ordinary size, which cannot be grown.
    drop(spare);
    let small = spliced(&proxy, &hello, 16);
    // Whatever else the test's own user runs may give pipes back meanwhile, and take others.
    let alone = user.is_some();
    assert!(none == 0 || !alone, "{none} bytes spliced without a pipe");
    assert!(small > LEN as u64 || !alone, "{small} bytes through small pipes");
    drop(held);
    let all = spliced(&proxy, &hello, 16);
    println!("spliced: {none} without a share, {small} through a small pipe, {all} with the whole share");
    assert!(all > none && all > small, "{all} bytes with the whole share, {small} with next to none of it");
    let complaints: Vec<_> = proxy.process.stderr.all();
    assert!(
        !complaints.iter().any(|line| line.contains("ERROR") || line.contains("WARN")),
        "{complaints:#?}"
    );
    proxy.assert_sound();
}
