//! The file of `web_config_file` and those that it names, as they were when last read.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::config::{self, WebConfig};
use super::password::Passwords;

/// What stands before the daemon's answers.
pub struct Door {
    /// Without it, plain HTTP is spoken.
    #[cfg(feature = "tls")]
    pub tls: Option<tokio_rustls::TlsAcceptor>,
    /// Who may come in.
    pub passwords: Passwords,
    /// Headers of every answer that has none of that name.
    pub headers: HeaderMap,
}

/// The file, and when it and those that it names were last changed.
#[derive(Default)]
pub struct Watched {
    path: Option<PathBuf>,
    seen: Vec<(PathBuf, Option<Stamp>)>,
}

/// Another file, or another state of one.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
}

/// Nobody writes this much by hand, nor chains so many certificates.
const MOST_BYTES: u64 = 1 << 20;

impl Watched {
    /// Watches this file; with none, everybody may ask and plain HTTP is spoken.
    #[must_use]
    pub fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            seen: Vec::new(),
        }
    }

    /// Whether it is this file.
    #[must_use]
    pub fn is(&self, path: Option<&Path>) -> bool {
        self.path.as_deref() == path
    }

    /// Reads everything anew.
    ///
    /// # Errors
    /// A sentence with the file, and the line where one is wrong.
    pub fn read(&mut self) -> anyhow::Result<Arc<Door>> {
        let config = match &self.path {
            None => WebConfig::default(),
            Some(path) => {
                self.seen = stamps([path.clone()]);
                let text = read(path)?;
                let text = String::from_utf8(text)
                    .map_err(|_| anyhow!("{}: it is no text", path.display()))?;
                let folder = path.parent().unwrap_or(Path::new("."));
                config::parse(&text, folder)
                    .map_err(|mistake| anyhow!("{}: {mistake}", path.display()))?
            }
        };
        if let Some(tls) = &config.tls {
            let named = [&tls.cert_file, &tls.key_file]
                .into_iter()
                .chain(&tls.client_ca_file);
            self.seen.extend(stamps(named.cloned()));
        }
        Door::of(config).map(Arc::new)
    }

    /// Whether a file has changed since it was last read, or tried to.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        (self.seen.iter()).any(|(path, stamp)| *stamp != Stamp::of(path))
    }
}

impl Door {
    fn of(config: WebConfig) -> anyhow::Result<Self> {
        #[cfg(not(feature = "tls"))]
        anyhow::ensure!(
            config.tls.is_none(),
            "this leaktrace was built without TLS: take tls_server_config out"
        );
        #[cfg(feature = "tls")]
        let tls = config.tls.as_ref().map(acceptor).transpose()?;
        let mut headers = HeaderMap::new();
        for (name, value) in &config.http.headers {
            let name = HeaderName::from_bytes(name.as_bytes())?;
            let value = HeaderValue::from_str(value)
                .map_err(|_| anyhow!("the value of the header {name} is none of HTTP"))?;
            headers.insert(name, value);
        }
        let mut key = [0; 32];
        if !config.users.is_empty() {
            File::open("/dev/urandom")
                .and_then(|mut source| source.read_exact(&mut key))
                .context("cannot read /dev/urandom")?;
        }
        Ok(Self {
            #[cfg(feature = "tls")]
            tls,
            passwords: Passwords::new(config.users, key),
            headers,
        })
    }
}

#[cfg(feature = "tls")]
fn acceptor(tls: &config::Tls) -> anyhow::Result<tokio_rustls::TlsAcceptor> {
    let files = super::tls::Files {
        certificate: read(&tls.cert_file)?,
        key: read(&tls.key_file)?,
        authority: tls.client_ca_file.as_deref().map(read).transpose()?,
    };
    let config = super::tls::server_config(tls, &files).map_err(|mistake| anyhow!(mistake))?;
    Ok(Arc::new(config).into())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

fn stamps(paths: impl IntoIterator<Item = PathBuf>) -> Vec<(PathBuf, Option<Stamp>)> {
    let stamp = |path: PathBuf| {
        let stamp = Stamp::of(&path);
        (path, stamp)
    };
    paths.into_iter().map(stamp).collect()
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            inode: (found.dev(), found.ino()),
            bytes: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }
}
