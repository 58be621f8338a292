//! A connection of the proxy's own to an endpoint: for checks, and for whoever else wants to know something of it.

use std::future::Future;
use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};
use tokio_util::either::Either;

use super::Target;
use super::error::{CheckError, Step};
use crate::net::ProxyVersion;

/// Headers of the PROXY protocol (§2.1 and §2.2) for what a proxy does for itself: UNKNOWN, and LOCAL without addresses.
const HEADER_V1: &[u8] = b"PROXY UNKNOWN\r\n";
const HEADER_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// Connects to `target` and sends the header that names no client, if there is to be one. Cancel safe: dropping it
/// closes the socket.
///
/// # Errors
/// Why there is no connection; [`CheckError::Resource`] says nothing about the endpoint.
pub async fn dial(
    target: &Target,
    header: Option<ProxyVersion>,
    until: Instant,
) -> Result<Either<TcpStream, UnixStream>, CheckError> {
    let mut stream = within(until, Step::Connection, connect(target)).await?;
    let header = match header {
        None => return Ok(stream),
        Some(ProxyVersion::V1) => HEADER_V1,
        Some(ProxyVersion::V2) => HEADER_V2,
    };
    within(until, Step::Answer, introduce(header, &mut stream)).await?;
    Ok(stream)
}

/// Does `work`, which is [`CheckError::Timeout`] at `step` when the time is over before its end.
///
/// # Errors
/// That, and those of `work`.
pub async fn within<T>(
    until: Instant,
    step: Step,
    work: impl Future<Output = Result<T, CheckError>>,
) -> Result<T, CheckError> {
    timeout_at(until, work).await.unwrap_or(Err(CheckError::Timeout(step)))
}

pub(super) async fn connect(target: &Target) -> Result<Either<TcpStream, UnixStream>, CheckError> {
    let of_connect = |error| CheckError::of_connect(error, target);
    match target {
        Target::Tcp(address) => {
            let stream = TcpStream::connect(address).await.map_err(of_connect)?;
            // Where nobody listens, a connection can meet itself (RFC 9293 §3.5, simultaneous open).
            if stream.local_addr().is_ok_and(|own| own == *address) {
                return Err(CheckError::Connect(io::ErrorKind::ConnectionRefused.into()));
            }
            Ok(Either::Left(stream))
        }
        Target::Unix(path) => UnixStream::connect(path).await.map(Either::Right).map_err(of_connect),
        // It is no one address, and is not checked.
        Target::ServerName(_) => Err(CheckError::Connect(io::ErrorKind::Unsupported.into())),
    }
}

async fn introduce<S>(header: &[u8], stream: &mut S) -> Result<(), CheckError>
where
    S: AsyncWrite + Unpin,
{
    stream.write_all(header).await.map_err(CheckError::Lost)
}
