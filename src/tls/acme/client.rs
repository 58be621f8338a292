//! Requests to the authority's server: HTTP/1.1 over TLS, one at a time.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http_body_util::{BodyExt, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Request, Uri};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config::Roots;

/// Deadline of a request with its answer, the connection included: authorities under load take seconds.
const DEADLINE: Duration = Duration::from_secs(30);
/// So long a connection is kept for the next request: polling goes on well below.
const KEEP: Duration = Duration::from_secs(5);
/// The largest answer that is read: chains of certificates take some KiB.
const MOST: usize = 256 * 1024;
/// What this program calls itself, as RFC 8555 §6.1 asks for.
const AGENT: &str = concat!("portcullis/", env!("CARGO_PKG_VERSION"));

type Body = BodyWrapper<Bytes>;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Where it should go is no place for it.
    #[error("`{0}` is no https URL")]
    Url(Uri),
    /// There is no connection.
    #[error("cannot connect to {0}")]
    Connect(Authority, #[source] io::Error),
    /// It is not HTTP, or too much of it.
    #[error("no answer of {0}")]
    Http(Authority, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// It took too long.
    #[error("no answer within {} seconds", DEADLINE.as_secs())]
    Slow,
}

/// Asks an authority's server.
#[derive(Clone)]
pub(super) struct Client(Arc<Inner>);

struct Inner {
    tls: TlsConnector,
    kept: Mutex<Option<Kept>>,
    /// When the last answer that was a refusal says to come back.
    come_back: Mutex<Option<SystemTime>>,
}

/// A connection that is not in use.
struct Kept {
    to: Authority,
    sender: SendRequest<Body>,
    since: Instant,
}

impl Client {
    pub(super) fn new(roots: &Roots) -> Self {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.certificates.iter().cloned());
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has cipher suites of both versions")
            .with_root_certificates(store)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = TlsConnector::from(Arc::new(config));
        Self(Arc::new(Inner { tls, kept: Mutex::default(), come_back: Mutex::default() }))
    }

    /// When the server said last, refusing, that one may come back.
    pub(super) fn come_back(&self) -> Option<SystemTime> {
        *self.0.come_back.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<Body>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let answered = timeout(DEADLINE, Box::pin(inner.ask(request))).await;
            Ok(answered.unwrap_or(Err(ClientError::Slow))?)
        })
    }
}

impl Inner {
    async fn ask(&self, mut request: Request<Body>) -> Result<BytesResponse, ClientError> {
        let url = request.uri().clone();
        let https = url.scheme_str() == Some("https");
        let Some(to) = url.authority().cloned().filter(|_| https) else { return Err(ClientError::Url(url)) };
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().map_err(|_| ClientError::Url(url.clone()))?;
        let host = HeaderValue::from_str(to.as_str()).map_err(|_| ClientError::Url(url.clone()))?;
        request.headers_mut().insert(HOST, host);
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let mut sender = match self.kept(&to) {
            Some(sender) => sender,
            None => Box::pin(self.connect(&to)).await?,
        };
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| ClientError::Http(to.clone(), error);
        let response = sender.send_request(request).await.map_err(|error| failed(error.into()))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MOST).collect().await.map_err(failed)?.to_bytes();
        if parts.status.is_client_error() || parts.status.is_server_error() {
            let when = come_back(&parts.headers, SystemTime::now());
            *self.come_back.lock().unwrap_or_else(PoisonError::into_inner) = when;
        }
        let kept = Kept { to, sender, since: Instant::now() };
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Ok(BytesResponse { parts, body: Box::new(body) })
    }

    /// The connection of the last request, if it is still good for one to there.
    fn kept(&self, to: &Authority) -> Option<SendRequest<Body>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let good = kept.to == *to && kept.since.elapsed() < KEEP && kept.sender.is_ready();
        good.then_some(kept.sender)
    }

    async fn connect(&self, to: &Authority) -> Result<SendRequest<Body>, ClientError> {
        let failed = |error| ClientError::Connect(to.clone(), error);
        let host = to.host().trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        // By the system's resolver, and one address after the other.
        let stream = TcpStream::connect((host, to.port_u16().unwrap_or(443))).await.map_err(failed)?;
        let stream = self.tls.connect(name, stream).await.map_err(failed)?;
        let (sender, connection) = Box::pin(http1::handshake(TokioIo::new(stream)))
            .await
            .map_err(|error| ClientError::Http(to.clone(), error.into()))?;
        // It ends with the sender, and whoever waits for an answer hears why.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// When a server says that one may come back: in so many seconds, or at a date (RFC 9110 §10.2.3).
fn come_back(headers: &HeaderMap, now: SystemTime) -> Option<SystemTime> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return now.checked_add(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?;
    Some(SystemTime::from(date.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_say_in_two_ways_when_to_come_back() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let table = [
            ("120", Some(1_000_000_120)),
            (" 0 ", Some(1_000_000_000)),
            ("Sun, 09 Sep 2001 01:47:40 GMT", Some(1_000_000_060)),
            ("soon", None),
            ("-1", None),
        ];
        for (value, expected) in table {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(value))]);
            let told = come_back(&headers, now);
            let told = told.map(|at| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs());
            assert_eq!(told, expected, "{value}");
        }
        assert_eq!(come_back(&HeaderMap::new(), now), None);
    }
}
