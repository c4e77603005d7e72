//! The daemon's HTTP: the route table, nothing else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use super::Report;
use super::metrics::{self, Watched};
use super::page;

/// What the server shows: replaced as a whole by the one who watches the target.
#[derive(Clone)]
pub enum Status {
    /// The last report.
    Watching(Arc<Report>),
    /// The target is gone; its name.
    Gone(String),
}

/// Connections served at one time; further ones wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 64;

/// How long a client may take over its request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one connection may stay open in all: a scraper simply connects again.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);

/// Opens the listening socket.
///
/// # Errors
/// When the address is taken or not ours.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: choose another address with --listen")
    })
}

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, status: watch::Receiver<Status>) {
    let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, or a client that gave up: the next one may be luckier.
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let status = status.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = respond(&request, &status.borrow());
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
                tracing::debug!("a connection ended early: {error}");
            }
            drop(permit);
        });
    }
}

fn respond(request: &Request<Incoming>, status: &Status) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served\n");
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/" => the_page(),
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match status {
            Status::Watching(_) => text(StatusCode::OK, "ok\n"),
            Status::Gone(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the target has exited\n"),
        },
        "/metrics" => {
            let watched = match status {
                Status::Watching(report) => Watched::Up(report),
                Status::Gone(name) => Watched::Down(name.clone()),
            };
            match metrics::render(&watched) {
                Ok(body) => answer(StatusCode::OK, metrics::CONTENT_TYPE, body),
                Err(error) => text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    &format!("cannot render metrics: {error}\n"),
                ),
            }
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "there is no such page; / leads to all of them\n",
        ),
    }
}

/// The page, which may not be put in a frame, nor run anything but itself.
fn the_page() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(page::HTML.as_bytes())));
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, page::POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // A newer leaktrace has a newer page.
        (CACHE_CONTROL, "no-cache"),
    ] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    answer(
        status,
        "text/plain; charset=utf-8",
        body.as_bytes().to_vec(),
    )
}

fn answer(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
