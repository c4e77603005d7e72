//! The daemon's HTTP: the route table, nothing else.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::{Report, api, metrics, page, pprof};
use crate::target::Pid;
use crate::watcher::board::{Board, Row};

/// A question to the one who watches: a fresh report of this process, with where its goroutines are stuck.
pub struct Ask {
    /// Which process.
    pub pid: Pid,
    /// Where the answer goes; `None` when it is not watched any more.
    pub reply: oneshot::Sender<Option<Arc<Report>>>,
}

/// Where answers come from: the board is replaced as a whole by the one who watches, who also takes questions.
#[derive(Clone)]
pub struct Source {
    /// What is known of everybody.
    pub board: watch::Receiver<Arc<Board>>,
    /// For what has to be looked up.
    pub questions: mpsc::Sender<Ask>,
}

/// Questions that wait; a client whose question does not fit is told to come back.
pub const MOST_QUESTIONS: usize = 8;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Connections open at one time; for a further one the oldest that is not being answered is closed, so that slow
/// clients, however many, keep nobody else waiting.
const MOST_CONNECTIONS: usize = 256;

/// How long a client may take over its request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a request's headers.
const MOST_HEADER_BYTES: usize = 16 << 10;

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
pub async fn serve(listener: TcpListener, source: Source) {
    let mut open: VecDeque<Open> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, or a client that gave up: the next one may be luckier.
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        open.retain(|connection| !connection.task.is_finished());
        if open.len() >= MOST_CONNECTIONS {
            let idle = |connection: &Open| !connection.answering.load(Ordering::Relaxed);
            let Some(oldest) = open.iter().position(idle).and_then(|at| open.remove(at)) else {
                continue;
            };
            oldest.task.abort();
        }
        let answering = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(converse(stream, source.clone(), Arc::clone(&answering)));
        open.push_back(Open {
            task: task.abort_handle(),
            answering,
        });
    }
}

/// A connection: whether an answer is being made for it, and how to close it.
struct Open {
    task: AbortHandle,
    answering: Arc<AtomicBool>,
}

async fn converse(stream: TcpStream, source: Source, answering: Arc<AtomicBool>) {
    let service = service_fn(move |request| {
        let (source, answering) = (source.clone(), Arc::clone(&answering));
        async move {
            answering.store(true, Ordering::Relaxed);
            let response = respond(&request, &source).await;
            answering.store(false, Ordering::Relaxed);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MOST_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        tracing::debug!("a connection ended early: {error}");
    }
}

async fn respond(request: &Request<Incoming>, source: &Source) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served\n");
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let board = Arc::clone(&source.board.borrow());
    let path = request.uri().path();
    match path {
        "/" => the_page(),
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" if board.ready() => text(StatusCode::OK, "ok\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "the target has exited\n"),
        "/metrics" => match metrics::render(&board) {
            Ok(body) => answer(StatusCode::OK, metrics::CONTENT_TYPE, body),
            Err(error) => failed(&format!("cannot render metrics: {error}")),
        },
        "/api/v1/targets" => json(&api::targets(&board)),
        "/api/v1/leaks" => json(&api::leaks(&board)),
        "/debug/pprof/goroutine" => profile(request, source, &board, "goroutine").await,
        "/debug/pprof/timer" => profile(request, source, &board, "timer").await,
        _ => match path.strip_prefix("/api/v1/targets/") {
            Some(key) => one_target(key, source, &board).await,
            None => text(
                StatusCode::NOT_FOUND,
                "there is no such page; / lists them\n",
            ),
        },
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

async fn one_target(key: &str, source: &Source, board: &Board) -> Response<Full<Bytes>> {
    let Some(key) = percent_decoded(key) else {
        return text(StatusCode::BAD_REQUEST, "the id is not understood\n");
    };
    let Some(row) = board.find(&key) else {
        return no_such_target();
    };
    let report = match row.report {
        Some(_) => match fresh(row, source).await {
            Ok(report) => Some(report),
            Err(refused) => return *refused,
        },
        None => None,
    };
    json(&api::target(row, report.as_deref()))
}

async fn profile(
    request: &Request<Incoming>,
    source: &Source,
    board: &Board,
    first: &str,
) -> Response<Full<Bytes>> {
    let query = request.uri().query().unwrap_or_default();
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let key = pairs.find(|(name, _)| *name == "target");
    let Some(key) = key.and_then(|(_, value)| percent_decoded(value)) else {
        return text(
            StatusCode::BAD_REQUEST,
            "name a target: ?target=ID, as /api/v1/targets lists them\n",
        );
    };
    let Some(row) = board.find(&key).filter(|row| row.report.is_some()) else {
        return no_such_target();
    };
    let rendered = match fresh(row, source).await {
        Ok(report) => pprof::render_with(&report, first),
        Err(refused) => return *refused,
    };
    match rendered {
        Ok(body) => answer(StatusCode::OK, "application/octet-stream", body),
        Err(error) => failed(&format!("cannot write a profile: {error}")),
    }
}

/// Has a target counted now.
async fn fresh(row: &Row, source: &Source) -> Result<Arc<Report>, Box<Response<Full<Bytes>>>> {
    let (reply, answer) = oneshot::channel();
    let pid = Pid(row.pid);
    let asked = source.questions.try_send(Ask { pid, reply });
    let report = match asked {
        Ok(()) => tokio::time::timeout(ANSWER_TIMEOUT, answer).await,
        Err(_) => return Err(Box::new(busy())),
    };
    match report {
        Ok(Ok(Some(report))) => Ok(report),
        Ok(Ok(None) | Err(_)) => Err(Box::new(no_such_target())),
        Err(_) => Err(Box::new(busy())),
    }
}

fn busy() -> Response<Full<Bytes>> {
    text(
        StatusCode::SERVICE_UNAVAILABLE,
        "too many questions at a time: come back in a moment\n",
    )
}

fn no_such_target() -> Response<Full<Bytes>> {
    text(
        StatusCode::NOT_FOUND,
        "there is no such target; /api/v1/targets lists them\n",
    )
}

/// A label may hold slashes and number signs; `None` when it is malformed or no text.
fn percent_decoded(text: &str) -> Option<String> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .ok()
        .map(Into::into)
}

fn json(answered: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(answered) {
        Ok(body) => answer(StatusCode::OK, "application/json", body),
        Err(error) => failed(&format!("cannot write JSON: {error}")),
    }
}

fn failed(why: &str) -> Response<Full<Bytes>> {
    text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{why}\n"))
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
