//! Connections: how many, for how long, and who may ask what. A thread of their own, so that counting a large target keeps no
//! client waiting, and no client keeps the ring from being emptied.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
#[cfg(feature = "tls")]
use tokio::io::AsyncWriteExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::Door;
use super::password::Answer;
use crate::cli::Details;
use crate::export::server::{self, Source};

/// Connections open at one time; for a further one the oldest that is not being answered is closed, so that slow
/// clients, however many, keep nobody else waiting.
const MOST_CONNECTIONS: usize = 256;

/// How long a client may take over its request's headers, and over the handshake of TLS.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a request's headers.
const MOST_HEADER_BYTES: usize = 16 << 10;

/// How long one connection may stay open in all.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);

/// After so long an answer is the connection's last and says so: who asks all the time connects again, and is not cut off.
const LAST_ANSWER: Duration = Duration::from_secs(60);

/// What is asked of clients, and what they may see.
#[derive(Clone)]
pub struct Policy {
    /// Who may come in.
    pub door: Arc<Door>,
    /// Who may see stacks and paths.
    pub details: Details,
}

/// The running server, as its owner sees it.
pub struct Server {
    /// Replaced as a whole; what is open goes on under the new one with its next request.
    pub policy: watch::Sender<Policy>,
    listeners: mpsc::Sender<std::net::TcpListener>,
}

/// Opens a listening socket.
///
/// # Errors
/// When the address is taken or not ours.
pub fn bind(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address).with_context(|| {
        format!("cannot listen on {address}: choose another address with --listen")
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Server {
    /// Serves from a thread of its own, which lives as long as the process. `prepare` is the first that it does.
    ///
    /// # Errors
    /// When there can be no such thread.
    pub fn start(
        listener: std::net::TcpListener,
        source: Source,
        policy: Policy,
        prepare: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (policy, policies) = watch::channel(policy);
        let (listeners, more) = mpsc::channel(1);
        let serve = move || {
            prepare();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                // Passwords are checked there, one at a time.
                .max_blocking_threads(1)
                .thread_name("password")
                .build();
            match runtime {
                Ok(runtime) => runtime.block_on(serve(listener, more, &source, &policies)),
                Err(error) => tracing::error!("nothing is served: {error}"),
            }
        };
        let thread = thread::Builder::new().name("http".to_owned());
        thread.spawn(serve).context("cannot start a thread")?;
        Ok(Self { policy, listeners })
    }

    /// Listens there instead. What is open stays open.
    pub fn listen(&self, listener: std::net::TcpListener) {
        if self.listeners.try_send(listener).is_err() {
            tracing::error!("the address stays as it was: the one before is not taken up yet");
        }
    }
}

/// A connection: whether an answer is being made for it, and how to close it.
struct Open {
    task: AbortHandle,
    answering: Arc<AtomicBool>,
}

async fn serve(
    first: std::net::TcpListener,
    mut more: mpsc::Receiver<std::net::TcpListener>,
    source: &Source,
    policies: &watch::Receiver<Policy>,
) {
    let mut listener = match TcpListener::from_std(first) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("nothing is served: {error}"),
    };
    let mut open: VecDeque<Open> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(other) = more.recv() => {
                match TcpListener::from_std(other) {
                    Ok(other) => listener = other,
                    Err(error) => tracing::error!("the address stays as it was: {error}"),
                }
                continue;
            }
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
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
        let visitor = Visitor {
            peer: peer.ip(),
            has_certificate: false,
            source: source.clone(),
            policies: policies.clone(),
            answering: Arc::clone(&answering),
        };
        let limited = tokio::time::timeout(CONNECTION_TIMEOUT, visitor.enter(stream));
        let task = tokio::spawn(async move {
            // Its own error was told where it happened.
            let _ = limited.await;
        });
        open.push_back(Open {
            task: task.abort_handle(),
            answering,
        });
    }
}

/// Who is at the other end.
#[derive(Clone)]
struct Visitor {
    peer: IpAddr,
    /// Whether it has shown a certificate, which was found good.
    has_certificate: bool,
    source: Source,
    policies: watch::Receiver<Policy>,
    answering: Arc<AtomicBool>,
}

impl Visitor {
    #[cfg(feature = "tls")]
    async fn enter(mut self, stream: TcpStream) {
        let Some(acceptor) = self.policies.borrow().door.tls.clone() else {
            return self.converse(stream).await;
        };
        let handshake = tokio::time::timeout(HEADER_TIMEOUT, async {
            if speaks_plain_http(&stream).await {
                return say_that_this_is_tls(stream).await.map(|()| None);
            }
            acceptor.accept(stream).await.map(Some)
        });
        match handshake.await {
            Ok(Ok(Some(stream))) => {
                self.has_certificate = stream.get_ref().1.peer_certificates().is_some();
                self.converse(stream).await;
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::debug!("no TLS with {}: {error}", self.peer),
            Err(_) => tracing::debug!("no TLS with {}: it took too long", self.peer),
        }
    }

    #[cfg(not(feature = "tls"))]
    async fn enter(self, stream: TcpStream) {
        self.converse(stream).await;
    }

    async fn converse(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let peer = self.peer;
        let since = Instant::now();
        let service = service_fn(move |request| {
            let visitor = self.clone();
            async move {
                visitor.answering.store(true, Ordering::Relaxed);
                let mut response = visitor.answer(&request).await;
                visitor.answering.store(false, Ordering::Relaxed);
                if since.elapsed() >= LAST_ANSWER {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(response)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MOST_HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            tracing::debug!("the connection with {peer} ended early: {error}");
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let policy = self.policies.borrow().clone();
        let mut response = match self.is_known(request, &policy).await {
            Ok(known) => {
                let details = self.may_see_details(request, policy.details, known);
                server::respond(request, &self.source, details).await
            }
            Err(refused) => *refused,
        };
        for (name, value) in &policy.door.headers {
            let headers = response.headers_mut();
            headers.entry(name).or_insert_with(|| value.clone());
        }
        response
    }

    /// Whether the client has shown who it is; an answer when it has to and has not.
    async fn is_known(
        &self,
        request: &Request<Incoming>,
        policy: &Policy,
    ) -> Result<bool, Box<Response<Full<Bytes>>>> {
        let passwords = &policy.door.passwords;
        // A kubelet that asks whether we live has no password, and learns nothing else.
        if passwords.is_empty() || matches!(request.uri().path(), "/healthz" | "/readyz") {
            return Ok(self.has_certificate);
        }
        let named = request.headers().get(AUTHORIZATION).and_then(credentials);
        let answer = match named {
            Some((user, password)) => passwords.check(&user, &password).await,
            None => Answer::No,
        };
        match answer {
            Answer::Yes => Ok(true),
            Answer::No => {
                let mut response = server::text(StatusCode::UNAUTHORIZED, "name and password?\n");
                response.headers_mut().insert(
                    WWW_AUTHENTICATE,
                    HeaderValue::from_static("Basic realm=\"leaktrace\", charset=\"UTF-8\""),
                );
                Err(Box::new(response))
            }
            Answer::Busy => Err(Box::new(server::busy())),
        }
    }

    fn may_see_details(&self, request: &Request<Incoming>, details: Details, known: bool) -> bool {
        match details {
            Details::Always => true,
            Details::Never => false,
            Details::Auto => {
                let host = request.headers().get(HOST).map(|host| host.to_str());
                let host = match host {
                    None => true,
                    Some(host) => host.is_ok_and(names_this_machine),
                };
                known || (self.peer.to_canonical().is_loopback() && host)
            }
        }
    }
}

/// Whether `Host` is an address or localhost. A page from elsewhere can point a name of its own at this machine, and have a
/// browser here ask for it (DNS rebinding); it cannot choose what `Host` then says.
fn names_this_machine(host: &str) -> bool {
    if host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok() {
        return true;
    }
    if let Some(inner) = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        return inner.parse::<IpAddr>().is_ok();
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.ends_with(".localhost")
}

/// Name and password of `Authorization: Basic …`.
fn credentials(header: &HeaderValue) -> Option<(String, String)> {
    let (scheme, coded) = header.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(coded.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// Whether the first byte is a letter: a record of TLS begins with 22.
#[cfg(feature = "tls")]
async fn speaks_plain_http(stream: &TcpStream) -> bool {
    let mut first = [0];
    matches!(stream.peek(&mut first).await, Ok(1)) && first[0].is_ascii_uppercase()
}

#[cfg(feature = "tls")]
async fn say_that_this_is_tls(mut stream: TcpStream) -> std::io::Result<()> {
    let said = "this is an HTTPS server: ask with https://\n";
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{said}",
        said.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for host in [
            "localhost",
            "localhost:9779",
            "127.0.0.1:9779",
            "[::1]:9779",
            "::1",
            "a.localhost:1",
            "[::1]",
        ] {
            assert!(names_this_machine(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9779",
            "localhost.evil.example",
            "",
            "127.0.0.1.evil.example:1",
        ] {
            assert!(!names_this_machine(host), "{host}");
        }
    }

    #[test]
    fn names_and_passwords() {
        let read = |text: &'static str| credentials(&HeaderValue::from_static(text));
        let right = Some(("alice".to_owned(), "a:b".to_owned()));
        assert_eq!(read("Basic YWxpY2U6YTpi"), right);
        assert_eq!(read("basic  YWxpY2U6YTpi"), right);
        for wrong in [
            "",
            "Basic",
            "Basic !",
            "Bearer YWxpY2U6YTpi",
            "Basic YWxpY2U=",
            "Basic //86",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
