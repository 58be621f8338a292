//! Listening sockets that were open before this process began: its predecessor's, or systemd's.
//!
//! A process that is to be replaced starts its successor with one end of a socket as its standard input, and sends
//! it the listening sockets themselves (SCM_RIGHTS, unix(7)): what waits in their queues is never lost. The
//! successor says when it serves; until then the old process goes on, and if that does not come it goes on for
//! good.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
    sockopt,
};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::config::AdminAddr;
use crate::net::ListenAddr;

/// Tells a successor that its standard input is where its sockets come from.
const VARIABLE: &str = "PORTCULLIS_HANDOVER";
/// How long a successor may take until it serves: it reads its configuration, and asks for its names.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// How long a successor waits for a message: its predecessor has sent them already.
const RECEIVE_DEADLINE: Duration = Duration::from_secs(10);
/// Descriptors in a message, far below what the kernel allows (SCM_MAX_FD, 253).
const DESCRIPTORS: usize = 64;
/// Longest message in bytes: an address, or the path of a Unix socket.
const MESSAGE: usize = 1024;
/// What a successor says when it serves.
const READY: &[u8] = b"ready";

/// An address of a configuration: with port 0 the same may stand there several times, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The address as it is written.
    pub address: ListenAddr,
    /// Which of those that are written alike.
    pub nth: usize,
}

/// What was open before this process began.
#[derive(Debug, Default)]
pub struct Inherited {
    listening: HashMap<Slot, Vec<TcpListener>>,
    admin: Option<(AdminAddr, OwnedFd)>,
    predecessor: Option<OwnedFd>,
}

/// What a message brings, beside descriptors.
#[derive(Debug, Serialize, Deserialize)]
enum Parcel {
    Listening { address: String, nth: usize },
    Admin { bind: String },
    End,
}

/// The process that is to take over.
#[derive(Debug)]
pub struct Successor {
    child: Child,
    socket: Arc<OwnedFd>,
    serves: bool,
}

/// How the program that runs is started again.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

/// Why nobody took over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// It could not be started, or its sockets could not be sent.
    #[error("the new process could not be started")]
    Start(#[source] io::Error),
    /// It ended.
    #[error("the new process ended ({0}) before it served")]
    Ended(ExitStatus),
    /// It took too long.
    #[error("the new process did not serve within {} s", READY_DEADLINE.as_secs())]
    Late,
}

impl Inherited {
    /// What this process was given.
    ///
    /// # Errors
    /// When a predecessor's message is not understood or does not come.
    pub fn receive() -> io::Result<Self> {
        if std::env::var_os(VARIABLE).is_none() {
            return Ok(Self::activated());
        }
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(RECEIVE_DEADLINE))?;
        let mut inherited = Self::default();
        while let Some((parcel, descriptors)) = receive(&socket)? {
            match parcel {
                Parcel::Listening { address, nth } => {
                    let address = address.parse().map_err(io::Error::other)?;
                    let sockets = inherited.listening.entry(Slot { address, nth }).or_default();
                    sockets.extend(descriptors.into_iter().map(TcpListener::from));
                }
                Parcel::Admin { bind } => {
                    let bind = bind.parse().map_err(io::Error::other)?;
                    inherited.admin = descriptors.into_iter().next().map(|socket| (bind, socket));
                }
                Parcel::End => {
                    inherited.predecessor = Some(socket);
                    return Ok(inherited);
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the predecessor ended"))
    }

    /// What systemd opened (sd_listen_fds(3)); sockets of other kinds are closed.
    fn activated() -> Self {
        let mut given = listenfd::ListenFd::from_env();
        let mut inherited = Self::default();
        for index in 0..given.len() {
            if let Ok(Some(socket)) = given.take_tcp_listener(index) {
                if let Ok(address) = ListenAddr::of(&socket) {
                    inherited.listening.entry(Slot { address, nth: 1 }).or_default().push(socket);
                }
            } else if let Ok(Some(socket)) = given.take_unix_listener(index) {
                let path = socket.local_addr().ok().and_then(|addr| addr.as_pathname().map(PathBuf::from));
                inherited.admin = path.map(|path| (AdminAddr::Unix(path), OwnedFd::from(socket)));
            }
        }
        inherited
    }

    /// The sockets of an address.
    pub fn take(&mut self, slot: &Slot) -> Option<Vec<TcpListener>> {
        self.listening.remove(slot).filter(|sockets| !sockets.is_empty())
    }

    /// Whether there is a socket of this port.
    pub fn has_port(&self, port: u16) -> bool {
        let port_of = |socket: &TcpListener| socket.local_addr().ok().map(|address| address.port());
        self.listening.values().flatten().any(|socket| port_of(socket) == Some(port))
    }

    /// The socket of the admin server when it is this address's.
    pub fn take_admin(&mut self, bind: &AdminAddr) -> Option<OwnedFd> {
        self.admin.take_if(|(address, _)| address == bind).map(|(_, socket)| socket)
    }

    /// Closes the sockets that no listener has, and says so.
    pub fn close_others(&mut self) {
        for (Slot { address, .. }, _) in self.listening.drain() {
            warn!(%address, "a socket was handed over that no listener has; it is closed");
        }
    }

    /// Tells the predecessor, if there is one, that this process serves.
    ///
    /// # Errors
    /// When it has gone.
    pub fn tell_ready(&mut self) -> io::Result<()> {
        match self.predecessor.take() {
            Some(socket) => send(socket, READY, SendFlags::NOSIGNAL).map(drop).map_err(Into::into),
            None => Ok(()),
        }
    }
}

/// The next message; `None` at the end of the stream.
fn receive(socket: &OwnedFd) -> io::Result<Option<(Parcel, Vec<OwnedFd>)>> {
    let mut bytes = [0; MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if message.bytes == 0 {
        return Ok(None);
    }
    let parcel = serde_json::from_slice(bytes.get(..message.bytes).unwrap_or_default())?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(Some((parcel, rights.flatten().collect())))
}

fn send_parcel(socket: &OwnedFd, parcel: &Parcel, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(parcel)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for a message"));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

impl Program {
    /// The program that runs, by the name that it was started by: what stands there later is its successor.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn running() -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        let named = arguments.next().map(PathBuf::from).filter(|name| name.components().count() > 1);
        let path = match named {
            Some(name) => std::path::absolute(name)?,
            None => std::env::current_exe()?,
        };
        Ok(Self { path, arguments: arguments.collect() })
    }

    /// Starts it as a successor; gives this end of the socket, of which it has the other.
    fn start(&self) -> io::Result<(Child, OwnedFd)> {
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).env(VARIABLE, "stdin").stdin(Stdio::from(far));
        // It is for the new process to ping the supervisor (sd_watchdog_enabled(3)).
        command.env_remove("WATCHDOG_PID");
        Ok((command.spawn()?, near))
    }
}

impl Successor {
    /// Starts it and sends it the sockets; may wait until it reads.
    ///
    /// # Errors
    /// What kept it from being started.
    pub fn start<'s>(
        program: &Program,
        listening: impl Iterator<Item = (Slot, Vec<BorrowedFd<'s>>)>,
        admin: Option<(&AdminAddr, BorrowedFd<'s>)>,
    ) -> Result<Self, HandoverError> {
        let (child, socket) = program.start().map_err(HandoverError::Start)?;
        // From here on it is ended when anything fails.
        let mut child = Unfinished(Some(child));
        let send = || -> io::Result<_> {
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(RECEIVE_DEADLINE))?;
            for (Slot { address, nth }, sockets) in listening {
                for sockets in sockets.chunks(DESCRIPTORS) {
                    let parcel = Parcel::Listening { address: address.to_string(), nth };
                    send_parcel(&socket, &parcel, sockets)?;
                }
            }
            if let Some((bind, admin)) = admin {
                send_parcel(&socket, &Parcel::Admin { bind: bind.to_string() }, &[admin])?;
            }
            send_parcel(&socket, &Parcel::End, &[])?;
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(READY_DEADLINE))?;
            Ok(())
        };
        send().map_err(HandoverError::Start)?;
        match child.0.take() {
            Some(child) => Ok(Self { child, socket: Arc::new(socket), serves: false }),
            None => Err(HandoverError::Start(io::ErrorKind::NotFound.into())),
        }
    }

    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it serves, on a blocking thread of the runtime. Dropped before that, it ends the process.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn ready(mut self) -> Result<(), HandoverError> {
        let socket = Arc::clone(&self.socket);
        // Ends with the process at the latest: then nobody has the other end.
        let word = tokio::task::spawn_blocking(move || {
            let mut word = [0; READY.len()];
            let n = recv(&socket, &mut word, RecvFlags::empty())?.0;
            Ok::<_, Errno>(word.get(..n) == Some(READY))
        });
        match word.await {
            Ok(Ok(true)) => {
                self.serves = true;
                Ok(())
            }
            Ok(Err(Errno::AGAIN)) => Err(HandoverError::Late),
            _ => {
                // It has gone or is about to; should it hang, it is of no use either.
                let _ = self.child.kill();
                Err(self.child.wait().map_or_else(HandoverError::Start, HandoverError::Ended))
            }
        }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if !self.serves {
            end(&mut self.child);
        }
    }
}

/// A process that is ended unless it is taken out.
struct Unfinished(Option<Child>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

/// Ends a process that serves nobody yet.
fn end(child: &mut Child) {
    // It may have ended already.
    let _ = child.kill();
    let _ = child.wait();
}
