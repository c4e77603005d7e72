//! One question over HTTP, on a connection that is there already.

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::http::HeaderValue;
use hyper::http::header::USER_AGENT;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Asks, and waits for the end of the answer: its status and its body, of which no more than `most_bytes` are waited for.
///
/// # Errors
/// What went wrong before there was a status; a body that is longer or breaks off has its own.
pub(super) async fn get(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    mut request: Request<Empty<Bytes>>,
    most_bytes: usize,
) -> Result<(StatusCode, Result<Bytes, String>), String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let agent = HeaderValue::from_static("leaktrace");
    request.headers_mut().insert(USER_AGENT, agent);
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), most_bytes).collect();
    let body = body.await.map_err(|error| error.to_string());
    connection.abort();
    Ok((status, body.map(|body| body.to_bytes())))
}
