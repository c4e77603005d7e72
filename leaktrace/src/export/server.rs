//! The daemon's HTTP: the route table, nothing else.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

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

/// Answers. `details`: whether this client may see stacks and paths.
pub async fn respond(
    request: &Request<Incoming>,
    source: &Source,
    details: bool,
) -> Response<Full<Bytes>> {
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
        "/metrics" => match metrics::render(&board, details) {
            Ok(body) => answer(StatusCode::OK, metrics::CONTENT_TYPE, body),
            Err(error) => failed(&format!("cannot render metrics: {error}")),
        },
        "/api/v1/targets" => json(&api::targets(&board, details)),
        "/api/v1/leaks" => json(&api::leaks(&board)),
        _ if !details && shows_details(path) => text(
            StatusCode::FORBIDDEN,
            "stacks and paths are served to who asks from this machine by its address, or with a password or a certificate: \
             see `details` in the configuration\n",
        ),
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

/// Whether a route answers with stacks.
fn shows_details(path: &str) -> bool {
    path.starts_with("/debug/") || path.starts_with("/api/v1/targets/")
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

/// Come back in a moment.
pub fn busy() -> Response<Full<Bytes>> {
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

/// A plain answer.
pub fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
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
