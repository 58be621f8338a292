//! The admin server: `/metrics`, `/healthz`, `/readyz` and `/api`, on an address of its own that no route leads
//! to.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Sender;
use tracing::{debug, warn};

use crate::config::{AdminAddr, AdminConfig, SecretSource};
use crate::conn::Shared;
use crate::control::{self, Generation};
use crate::drain::Readiness;
use crate::guard::Acl;
use crate::telemetry::Registry;

mod api;

/// Connections served at once: a scraper, a health checker, and a few people.
const CONNECTIONS: usize = 64;
/// Deadline for the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Deadline for a whole connection, longer than `portcullis reload` waits; scrapes reconnect without harm.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(150);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The admin server's socket.
#[derive(Debug)]
pub struct Admin {
    bind: AdminAddr,
    socket: Socket,
    keep: Arc<AtomicBool>,
    acl: Acl,
    access: Access,
}

/// Who may ask for `/api`, of those who may connect.
#[derive(Clone, Debug)]
enum Access {
    /// Everybody: the kernel has looked at the file's rights, or they are on this machine.
    All,
    /// Whoever knows this.
    Token(Arc<[u8]>),
    /// Nobody: they come from elsewhere, and there is no token.
    Nobody,
}

#[derive(Debug)]
enum Socket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener, SocketFile),
}

/// The file of a Unix socket, removed with it unless somebody else has the socket.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    keep: Arc<AtomicBool>,
}

/// The admin server's socket for a successor.
#[derive(Debug)]
pub struct AdminSocket {
    /// Where it is bound, as it is written.
    pub bind: AdminAddr,
    /// The socket.
    pub descriptor: OwnedFd,
    keep: Arc<AtomicBool>,
}

/// What requests are answered from.
#[derive(Debug)]
pub struct State {
    /// Where metrics are.
    pub registry: Arc<Registry>,
    /// Whether traffic is wanted.
    pub readiness: Arc<Readiness>,
    /// The configuration that serves.
    pub serving: Arc<ArcSwap<Generation>>,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Where requests go that others answer.
    pub requests: Sender<control::Request>,
}

impl Admin {
    /// Binds the address, unless its socket is `inherited`. A Unix socket is readable and writable for its owner
    /// and group.
    ///
    /// # Errors
    /// What the kernel says, `AddrInUse` also for a Unix socket that another process answers on; or that the token
    /// cannot be read.
    pub fn bind(config: &AdminConfig, inherited: Option<OwnedFd>) -> io::Result<Self> {
        // The file of an inherited one is the predecessor's until this process serves.
        let keep = Arc::new(AtomicBool::new(inherited.is_some()));
        let socket = match (&config.bind, inherited) {
            (AdminAddr::Tcp(_), Some(socket)) => Socket::Tcp(socket.into()),
            (AdminAddr::Tcp(addr), None) => Socket::Tcp(std::net::TcpListener::bind(addr)?),
            (AdminAddr::Unix(path), inherited) => {
                let listener = match inherited {
                    Some(socket) => socket.into(),
                    None => bind_unix(path, config.by_default)?,
                };
                Socket::Unix(listener, SocketFile { path: path.clone(), keep: Arc::clone(&keep) })
            }
        };
        match &socket {
            Socket::Tcp(listener) => listener.set_nonblocking(true)?,
            Socket::Unix(listener, _) => listener.set_nonblocking(true)?,
        }
        let acl = Acl::new(&config.allow, &[]);
        let token = config.token.as_ref().map(SecretSource::read).transpose()?;
        let access = match (&config.bind, token) {
            (AdminAddr::Unix(_), _) => Access::All,
            (AdminAddr::Tcp(_), Some(token)) => Access::Token(token.into()),
            (AdminAddr::Tcp(addr), None) if addr.ip().is_loopback() => Access::All,
            (AdminAddr::Tcp(_), None) => Access::Nobody,
        };
        Ok(Self { bind: config.bind.clone(), socket, keep, acl, access })
    }

    /// The socket once more, for a successor.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn for_successor(&self) -> io::Result<AdminSocket> {
        let descriptor = match &self.socket {
            Socket::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Socket::Unix(listener, _) => listener.as_fd().try_clone_to_owned(),
        };
        Ok(AdminSocket { bind: self.bind.clone(), descriptor: descriptor?, keep: Arc::clone(&self.keep) })
    }

    /// The bound address.
    pub fn address(&self) -> String {
        match &self.socket {
            Socket::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| "?".to_owned(), |addr| addr.to_string())
            }
            Socket::Unix(_, file) => format!("unix:{}", file.path.display()),
        }
    }

    /// Answers requests until the runtime ends.
    pub async fn serve(self, state: State) {
        let state = Arc::new((state, self.access));
        let result = match self.socket {
            Socket::Tcp(listener) => serve_tcp(listener, self.acl, state).await,
            Socket::Unix(listener, file) => serve_unix(listener, file, state).await,
        };
        if let Err(error) = result {
            warn!(%error, "the admin server could not start");
        }
    }
}

impl AdminSocket {
    /// It is this process's from now on, with its file.
    pub fn take_over(&self) {
        self.keep.store(false, Ordering::Release);
    }

    /// Somebody else answers on it from now on: its file stays.
    pub fn hand_over(&self) {
        self.keep.store(true, Ordering::Release);
    }
}

fn bind_unix(path: &Path, make_folder: bool) -> io::Result<std::os::unix::net::UnixListener> {
    if let Some(folder) = path.parent().filter(|_| make_folder) {
        fs::create_dir_all(folder)?;
    }
    remove_stale(path)?;
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Removes a socket that a process left behind that did not end in order; nothing else is ever removed.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        return Ok(());
    }
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    // A process that is stopped, or has no room in its queue, must not hold this one up.
    socket.set_nonblocking(true)?;
    match socket.connect(&socket2::SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

async fn serve_tcp(listener: std::net::TcpListener, acl: Acl, state: Arc<(State, Access)>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) if acl.allows(peer.ip()) => {
                serve_one(stream, &peer.to_string(), &slots, &state)
            }
            Ok((_, peer)) => debug!(%peer, "not allowed to ask the admin server"),
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn serve_unix(
    listener: std::os::unix::net::UnixListener,
    _file: SocketFile,
    state: Arc<(State, Access)>,
) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // As it was when it connected (unix(7), SO_PEERCRED).
                let by = stream.peer_cred().map(|peer| format!("uid {}", peer.uid()));
                serve_one(stream, by.as_deref().unwrap_or("?"), &slots, &state);
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Serves the connection of `by` in a task of its own, or closes it when there are too many.
fn serve_one(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    by: &str,
    slots: &Arc<Semaphore>,
    state: &Arc<(State, Access)>,
) {
    let Ok(slot) = Arc::clone(slots).try_acquire_owned() else { return };
    let (state, by) = (Arc::clone(state), Arc::<str>::from(by));
    tokio::spawn(async move {
        let service = hyper::service::service_fn(move |request| {
            let (state, by) = (Arc::clone(&state), Arc::clone(&by));
            async move { Ok::<_, Infallible>(answer(request, &state.0, &state.1, &by).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
            debug!(%error, "an admin connection failed");
        }
        drop(slot);
    });
}

async fn answer(
    request: Request<Incoming>,
    state: &State,
    access: &Access,
    by: &Arc<str>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if path.starts_with("/api/") {
        return api::answer(request, state, access, by).await;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return only("GET, HEAD");
    }
    match path {
        "/metrics" => {
            let mut response = text(StatusCode::OK, state.registry.render());
            let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, format);
            response
        }
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match state.readiness.reason() {
            None => text(StatusCode::OK, "ready\n".to_owned()),
            Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "try /metrics, /healthz, /readyz or /api/v1/openapi.json\n".to_owned(),
        ),
    }
}

fn only(methods: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {methods}\n"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.keep.load(Ordering::Acquire) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
