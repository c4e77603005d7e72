//! Asks a kubelet or an API server for the pods of this node, where the configuration names one.
//!
//! It is asked in a thread of its own, which waits for the network and may do nothing else, and only when a process turns up
//! whose pod is not known yet.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::time::Duration;
use std::{fs, io, thread};

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::http::uri::Scheme;
use hyper::{Request, StatusCode, Uri};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};

use super::http;
use super::pod_list::{self, PodList};
use crate::privilege;

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PodSource {
    /// What answers with a PodList in JSON; "" for nobody.
    pub url: String,
    /// Holds the token that is shown; "" for none.
    pub token_file: PathBuf,
    /// Holds the certificates that the server's must be signed with.
    pub ca_file: PathBuf,
    /// What the server is called in its certificate; "" for what it is called in the URL.
    pub server_name: String,
}

impl Default for PodSource {
    fn default() -> Self {
        let account =
            |name| PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount").join(name);
        Self {
            url: String::new(),
            token_file: account("token"),
            ca_file: account("ca.crt"),
            server_name: String::new(),
        }
    }
}

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer: a pod takes some ten thousand.
const MOST_BYTES: usize = 64 << 20;
/// Bytes of a file with a token or certificates.
const MOST_FILE_BYTES: u64 = 1 << 20;
/// Pause between two questions about processes that are new.
const PAUSE_NS: u64 = 200_000_000;
/// The same when the last one was not answered, or the pods of old ones are still missing.
const LONG_PAUSE_NS: u64 = 10_000_000_000;

impl PodSource {
    /// Whether it can be asked.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.url.is_empty() {
            return Ok(());
        }
        let uri: Uri = (self.url.parse()).map_err(|error| format!("\"{}\": {error}", self.url))?;
        if uri.host().is_none_or(str::is_empty) {
            return Err(format!("\"{}\" names no host", self.url));
        }
        match uri.scheme_str() {
            Some("http") => Ok(()),
            Some("https") if cfg!(feature = "tls") => Ok(()),
            Some("https") => Err("this leaktrace was built without TLS".to_owned()),
            _ => Err(format!(
                "\"{}\" begins neither with http:// nor https://",
                self.url
            )),
        }
    }
}

/// Asks, one question at a time.
pub struct Asker {
    source: PodSource,
    questions: SyncSender<Question>,
    answers: Receiver<Result<PodList, String>>,
    waiting: bool,
    /// When the last question was answered, or was not.
    answered_ns: u64,
    /// Why there was no answer last time.
    trouble: Option<String>,
}

/// What the thread cannot read itself, for it may nothing.
#[cfg_attr(
    not(feature = "tls"),
    expect(dead_code, reason = "secrets are only shown where TLS is spoken")
)]
struct Question {
    source: PodSource,
    token: Option<String>,
    authorities: Vec<u8>,
}

impl Asker {
    /// Nobody is asked yet; `None` when nobody is to be.
    #[must_use]
    pub fn start(source: &PodSource) -> Option<Self> {
        if source.url.is_empty() {
            return None;
        }
        let (questions, asked) = mpsc::sync_channel::<Question>(1);
        let (answer, answers) = mpsc::channel();
        let started = thread::Builder::new()
            .name("pods".to_owned())
            .spawn(move || {
                privilege::give_up_all();
                while let Ok(question) = asked.recv() {
                    if answer.send(ask(&question)).is_err() {
                        return;
                    }
                }
            });
        if let Err(error) = started {
            tracing::warn!("labels and owners of pods are not known: {error}");
            return None;
        }
        Some(Self {
            source: source.clone(),
            questions,
            answers,
            waiting: false,
            answered_ns: 0,
            trouble: None,
        })
    }

    /// Whether an answer can be expected soon.
    #[must_use]
    pub fn is_hopeful(&self) -> bool {
        self.trouble.is_none()
    }

    /// Asks, unless a question is on its way or was answered a moment ago; with `again` because of somebody about whom it
    /// has asked already.
    pub fn ask(&mut self, again: bool, now_ns: u64) {
        let pause = if again || self.trouble.is_some() {
            LONG_PAUSE_NS
        } else {
            PAUSE_NS
        };
        let rested = self.answered_ns == 0 || now_ns.saturating_sub(self.answered_ns) >= pause;
        if self.waiting || !rested {
            return;
        }
        match self.question() {
            Ok(question) => self.waiting = self.questions.try_send(question).is_ok(),
            Err(reason) => {
                self.answered_ns = now_ns;
                self.fail(reason);
            }
        }
    }

    /// Over http nothing secret is said.
    fn question(&self) -> Result<Question, String> {
        let read = |path: &PathBuf| {
            let found = fs::metadata(path).and_then(|found| {
                if found.is_file() && found.len() <= MOST_FILE_BYTES {
                    fs::read(path)
                } else {
                    Err(io::Error::other("it is too large, or no file"))
                }
            });
            found.map_err(|error| format!("{}: {error}", path.display()))
        };
        let secure = self.source.url.starts_with("https:");
        let token = if secure && !self.source.token_file.as_os_str().is_empty() {
            let bytes = read(&self.source.token_file)?;
            Some(String::from_utf8_lossy(&bytes).trim().to_owned())
        } else {
            None
        };
        let authorities = if secure {
            read(&self.source.ca_file)?
        } else {
            Vec::new()
        };
        Ok(Question {
            source: self.source.clone(),
            token,
            authorities,
        })
    }

    /// The pods, if they have been told since the last call.
    pub fn answer(&mut self, now_ns: u64) -> Option<PodList> {
        let answer = match self.answers.try_recv() {
            Ok(answer) => answer,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) if !self.waiting => return None,
            Err(TryRecvError::Disconnected) => Err("nobody asks any more".to_owned()),
        };
        self.waiting = false;
        self.answered_ns = now_ns;
        match answer {
            Ok(pods) => {
                if self.trouble.take().is_some() {
                    tracing::info!("{} tells of its pods again", self.source.url);
                }
                Some(pods)
            }
            Err(reason) => {
                self.fail(reason);
                None
            }
        }
    }

    /// Says so once for each reason.
    fn fail(&mut self, reason: String) {
        if self.trouble.as_ref() != Some(&reason) {
            tracing::warn!(
                "labels and owners of pods are not known: {}: {reason}",
                self.source.url
            );
        }
        self.trouble = Some(reason);
    }
}

fn ask(question: &Question) -> Result<PodList, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let fetched = runtime.block_on(async { tokio::time::timeout(PATIENCE, fetch(question)).await });
    let json = fetched.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))??;
    pod_list::parse(&json)
}

async fn fetch(question: &Question) -> Result<Bytes, String> {
    let uri: Uri = (question.source.url.parse())
        .map_err(|error: hyper::http::uri::InvalidUri| error.to_string())?;
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let secure = uri.scheme() == Some(&Scheme::HTTPS);
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = tokio::net::TcpStream::connect((host, port))
        .await
        .map_err(|error| error.to_string())?;
    if !secure {
        return get(stream, &uri, None).await;
    }
    #[cfg(feature = "tls")]
    return get(
        tls::connect(stream, host, question).await?,
        &uri,
        question.token.as_deref(),
    )
    .await;
    #[cfg(not(feature = "tls"))]
    Err("this leaktrace was built without TLS".to_owned())
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    uri: &Uri,
    token: Option<&str>,
) -> Result<Bytes, String> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let mut request = Request::get(path)
        .header("Host", host)
        .header("Accept", "application/json");
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let request = request
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    match http::get(stream, request, MOST_BYTES).await? {
        (StatusCode::OK, body) => body,
        (status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN), _) => {
            Err(format!("{status}: the token may not list pods"))
        }
        (status, _) => Err(status.to_string()),
    }
}

#[cfg(feature = "tls")]
mod tls {
    use std::sync::Arc;

    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

    use super::Question;

    /// Talks to nobody but who shows a certificate that the authorities have signed.
    pub(super) async fn connect(
        stream: TcpStream,
        host: &str,
        question: &Question,
    ) -> Result<TlsStream<TcpStream>, String> {
        let file = question.source.ca_file.display();
        let mut roots = RootCertStore::empty();
        let found = CertificateDer::pem_slice_iter(&question.authorities).flatten();
        let (added, _) = roots.add_parsable_certificates(found);
        if added == 0 {
            return Err(format!("{file} holds no certificate in PEM"));
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let named = &question.source.server_name;
        let name = if named.is_empty() { host } else { named };
        let name = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
        let connector = TlsConnector::from(Arc::new(config));
        connector
            .connect(name, stream)
            .await
            .map_err(|error| error.to_string())
    }
}
