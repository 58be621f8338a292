//! A request of a check, and whether the answer is good.

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::error::CheckError;
use crate::config::HttpCheck;

/// What of a body is looked at, and the longest header section.
const MOST: usize = 64 * 1024;

/// Asks over `stream`, for `host`, and reads as much of the answer as is asked about. Cancel safe: dropping it ends the
/// connection.
pub(super) async fn ask<S>(check: &HttpCheck, host: HeaderValue, stream: S) -> Result<(), CheckError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = http1::Builder::new();
    let handshake = builder.max_buf_size(MOST).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(CheckError::of_http)?;
    let exchange = async {
        let response = sender.send_request(request(check, host)).await.map_err(CheckError::of_http)?;
        let status = response.status().as_u16();
        if !check.status.iter().any(|range| range.contains(&status)) {
            return Err(CheckError::Status(status));
        }
        match &check.body {
            Some(part) => look_for(part.as_bytes(), response.into_body()).await,
            None => Ok(()),
        }
    };
    tokio::pin!(connection, exchange);
    tokio::select! {
        // What the connection has for the exchange, also when it fails, comes before its end.
        biased;
        result = &mut exchange => result,
        _ = &mut connection => exchange.await,
    }
}

fn request(check: &HttpCheck, host: HeaderValue) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = Uri::from(check.path.clone());
    let headers = request.headers_mut();
    headers.insert(HOST, host);
    headers.insert(USER_AGENT, HeaderValue::from_static("portcullis"));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    request
}

/// Reads `body` until `part` has come, or [`MOST`].
async fn look_for(part: &[u8], mut body: Incoming) -> Result<(), CheckError> {
    let mut seen = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(CheckError::of_http)?.into_data() else { continue };
        let fits = data.len().min(MOST - seen.len());
        // It may have begun before.
        let from = seen.len().saturating_sub(part.len());
        seen.extend_from_slice(data.get(..fits).unwrap_or_default());
        if seen.get(from..).unwrap_or_default().windows(part.len()).any(|window| window == part) {
            return Ok(());
        }
        if seen.len() >= MOST {
            break;
        }
    }
    Err(CheckError::Body)
}
