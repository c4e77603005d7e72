//! The file that `web_config_file` names, as Prometheus' exporter-toolkit defines it (docs/web-configuration.md). Pure: text
//! in, settings out. What is in that format but not built here is refused by its name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What the file says. An empty file asks for nothing: plain HTTP without a password.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebConfig {
    /// Without it the daemon speaks plain HTTP.
    #[serde(rename = "tls_server_config")]
    pub tls: Option<Tls>,
    /// What else is said in HTTP.
    #[serde(rename = "http_server_config")]
    pub http: Http,
    /// Names and bcrypt hashes; without any, nobody is asked for a password.
    #[serde(rename = "basic_auth_users")]
    pub users: BTreeMap<String, String>,
}

/// Files and rules of TLS. File names are relative to the folder of the file that names them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The certificate, with those between it and its authority; PEM.
    pub cert_file: PathBuf,
    /// Its key; PEM.
    pub key_file: PathBuf,
    /// Whether clients have to show a certificate.
    pub client_auth_type: ClientAuth,
    /// Who has to have signed theirs; PEM.
    pub client_ca_file: Option<PathBuf>,
    /// The oldest version spoken.
    pub min_version: Version,
    /// The newest version spoken.
    pub max_version: Option<Version>,
    /// Which ciphers of TLS 1.2 are spoken; all that are safe without it.
    pub cipher_suites: Vec<String>,
    /// Which curves are used; all that are safe without it.
    pub curve_preferences: Vec<String>,
    /// Whether the order of ciphers is ours.
    #[serde(default = "yes")]
    pub prefer_server_cipher_suites: bool,
}

/// Whether clients have to show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum ClientAuth {
    /// They are not asked.
    #[default]
    #[serde(rename = "", alias = "NoClientCert")]
    None,
    /// One that is shown has to be good.
    VerifyClientCertIfGiven,
    /// Each has to show a good one.
    RequireAndVerifyClientCert,
    /// Go asks for one and does not look at it: refused here.
    RequestClientCert,
    /// Go wants one and does not look at it: refused here.
    RequireAnyClientCert,
}

/// Versions of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Version {
    /// Known to be unsafe: refused here.
    TLS10,
    /// Likewise.
    TLS11,
    /// The oldest that is spoken.
    #[default]
    TLS12,
    /// The newest.
    TLS13,
}

/// What else is said in HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Whether HTTP/2 may be spoken. It never is: every client speaks HTTP/1.1 too.
    pub http2: bool,
    /// Headers of every answer that has none of that name.
    pub headers: BTreeMap<String, String>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            http2: true,
            headers: BTreeMap::new(),
        }
    }
}

/// The headers that may be set: exporter-toolkit allows no others.
const HEADERS: [&str; 5] = [
    "Content-Security-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
];

/// A hash whose check takes longer than this would lock everybody out: each step doubles it, and 15 takes seconds.
const MOST_COST: u32 = 15;

fn yes() -> bool {
    true
}

/// Reads a file's text; names in it are relative to `folder`.
///
/// # Errors
/// A sentence that names the line, if one line is wrong.
pub fn parse(text: &str, folder: &Path) -> Result<WebConfig, String> {
    if text.lines().all(is_empty) {
        return Ok(WebConfig::default());
    }
    let mut config: WebConfig = serde_saphyr::from_str(text).map_err(|error| sentence(&error))?;
    let at = |word: &str, mistake: String| match line_of(text, word) {
        Some(line) => format!("line {line}: {mistake}"),
        None => mistake,
    };
    if let Some(tls) = &mut config.tls {
        check_tls(tls).map_err(|(key, mistake)| at(key, mistake))?;
        for path in [&mut tls.cert_file, &mut tls.key_file]
            .into_iter()
            .chain(&mut tls.client_ca_file)
        {
            *path = folder.join(&*path);
        }
    }
    for name in config.http.headers.keys() {
        if !HEADERS.contains(&name.as_str()) {
            let may = HEADERS.join(", ");
            return Err(at(
                name,
                format!("the header {name} cannot be set, only {may}"),
            ));
        }
    }
    for (user, hash) in &config.users {
        check_hash(hash)
            .map_err(|mistake| at(user, format!("the hash of user {user} {mistake}")))?;
    }
    Ok(config)
}

fn check_tls(tls: &Tls) -> Result<(), (&'static str, String)> {
    if tls.cert_file.as_os_str().is_empty() {
        return Err(("tls_server_config", "cert_file is missing".to_owned()));
    }
    if tls.key_file.as_os_str().is_empty() {
        return Err(("tls_server_config", "key_file is missing".to_owned()));
    }
    let checks = matches!(
        tls.client_auth_type,
        ClientAuth::VerifyClientCertIfGiven | ClientAuth::RequireAndVerifyClientCert
    );
    match tls.client_auth_type {
        ClientAuth::RequestClientCert | ClientAuth::RequireAnyClientCert => Err((
            "client_auth_type",
            "a client's certificate that nobody checks proves nothing: VerifyClientCertIfGiven or \
             RequireAndVerifyClientCert"
                .to_owned(),
        )),
        _ if checks && tls.client_ca_file.is_none() => Err((
            "client_auth_type",
            "client_ca_file is missing: it tells whose certificates are good".to_owned(),
        )),
        _ if !checks && tls.client_ca_file.is_some() => Err((
            "client_ca_file",
            "client_auth_type is missing: without it no client is asked for a certificate"
                .to_owned(),
        )),
        _ if tls.min_version < Version::TLS12 => Err((
            "min_version",
            "versions before TLS12 are not spoken".to_owned(),
        )),
        _ if tls.max_version.is_some_and(|most| most < tls.min_version) => Err((
            "max_version",
            "max_version is older than min_version".to_owned(),
        )),
        _ => Ok(()),
    }
}

/// `$2y$10$` and 53 characters of salt and digest.
fn check_hash(hash: &str) -> Result<(), String> {
    let cost = (hash.strip_prefix("$2a$"))
        .or_else(|| hash.strip_prefix("$2b$"))
        .or_else(|| hash.strip_prefix("$2y$"))
        .and_then(|rest| rest.split_once('$'))
        .filter(|(_, digest)| digest.len() == 53 && hash.is_ascii())
        .and_then(|(cost, _)| cost.parse::<u32>().ok());
    match cost {
        None => Err("is none of bcrypt: htpasswd -nBC 10 \"\" makes one".to_owned()),
        Some(cost) if cost > MOST_COST => Err(format!(
            "has cost {cost}, and each check would take minutes: the most is {MOST_COST}"
        )),
        Some(_) => Ok(()),
    }
}

/// Whether a line says nothing.
fn is_empty(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || line == "---"
}

/// The parser shows a piece of the file under its sentence, and hashes do not belong in a log.
fn sentence(error: &serde_saphyr::Error) -> String {
    let plain = error.without_snippet();
    let text = plain.to_string();
    let text = text.lines().next().unwrap_or_default();
    let text = text.strip_prefix("error: ").unwrap_or(text);
    match error.location() {
        Some(place) if !text.starts_with("line") => format!("line {}: {text}", place.line()),
        _ => text.to_owned(),
    }
}

/// The line on which a key stands.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let stands = |line: &str| {
        let line = line.trim().trim_matches(['"', '\'']);
        line.strip_prefix(key)
            .is_some_and(|rest| rest.trim_start_matches(['"', '\'', ' ']).starts_with(':'))
    };
    text.lines().position(stands).map(|index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2b$04$CJYSUYA7/1PfUfdF3IepBOkbfD1KIXjm8e4UECVTqCpfNzqdDCoz6";

    fn read(text: &str) -> Result<WebConfig, String> {
        parse(text, Path::new("/etc/leaktrace"))
    }

    #[test]
    fn what_an_exporter_is_given() {
        let config = read(&format!(
            "# for the exporters\n\
             tls_server_config:\n  cert_file: server.crt\n  key_file: /keys/server.key\n  \
             client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n  min_version: TLS13\n\
             http_server_config:\n  http2: false\n  headers:\n    X-Frame-Options: deny\n\
             basic_auth_users:\n  alice: {HASH}\n  bob: '{HASH}'\n"
        ))
        .expect("it is right");
        let tls = config.tls.expect("it has TLS");
        assert_eq!(tls.cert_file, Path::new("/etc/leaktrace/server.crt"));
        assert_eq!(tls.key_file, Path::new("/keys/server.key"));
        assert_eq!(
            tls.client_ca_file.as_deref(),
            Some(Path::new("/etc/leaktrace/ca.crt"))
        );
        assert_eq!(tls.min_version, Version::TLS13);
        assert_eq!(tls.client_auth_type, ClientAuth::RequireAndVerifyClientCert);
        assert!(!config.http.http2);
        assert_eq!(config.http.headers["X-Frame-Options"], "deny");
        assert_eq!(config.users.len(), 2);
        assert_eq!(config.users["bob"], HASH);
    }

    #[test]
    fn an_empty_file_asks_for_nothing() {
        for text in ["", "\n# nothing\n", "---\n"] {
            assert_eq!(read(text), Ok(WebConfig::default()), "{text:?}");
        }
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        let tls = "tls_server_config:\n  cert_file: a\n  key_file: b\n";
        let users = "basic_auth_users:\n  eve: ";
        for (text, start, word) in [
            ("\nbasic_auth: {}\n".to_owned(), "line 2: ", "basic_auth"),
            (
                "tls_server_config:\n  cert_file: [\n".to_owned(),
                "line ",
                "",
            ),
            (
                "tls_server_config:\n  key_file: b\n".to_owned(),
                "line 1: cert_file is missing",
                "",
            ),
            (format!("{tls}  rate_limit: 1\n"), "line 4: ", "rate_limit"),
            (format!("{tls}  min_version: TLS14\n"), "line 4: ", "TLS14"),
            (
                format!("{tls}  min_version: TLS11\n"),
                "line 4: versions before TLS12",
                "",
            ),
            (
                format!("{tls}  client_auth_type: RequestClientCert\n"),
                "line 4: ",
                "nobody checks",
            ),
            (
                format!("{tls}  client_auth_type: VerifyClientCertIfGiven\n"),
                "line 4: client_ca_file is missing",
                "",
            ),
            (
                format!("{tls}  client_ca_file: c\n"),
                "line 4: client_auth_type is missing",
                "",
            ),
            (
                format!("{tls}  min_version: TLS13\n  max_version: TLS12\n"),
                "line 5: max_version is older",
                "",
            ),
            (
                format!("{users}secret\n"),
                "line 2: the hash of user eve is none of bcrypt",
                "",
            ),
            (
                format!("{users}{}\n", HASH.replace("$04$", "$31$")),
                "line 2: the hash of user eve has cost 31",
                "",
            ),
            (
                "http_server_config:\n  headers:\n    Server: x\n".to_owned(),
                "line 3: the header Server",
                "",
            ),
        ] {
            let found = read(&text).expect_err(&text);
            assert!(
                found.starts_with(start) && found.contains(word),
                "{text}\n{found}"
            );
            assert!(!found.contains('\n') && !found.contains("$2b"), "{found}");
        }
    }

    #[test]
    fn the_word_of_a_hash_stays_out_of_the_sentence() {
        let found = read("basic_auth_users:\n  eve: hunter2\n").expect_err("no hash");
        assert!(!found.contains("hunter2"), "{found}");
    }
}
