//! Who may ask the daemon: TLS, passwords, certificates, and what is shown to whom. The client is curl, which knows nothing of us.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use leaktrace_fixtures::program::Program;
use nix::sys::signal::Signal;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};

use crate::http::Connection;
use crate::tool::Tool;
use crate::{needs, tool};

/// Of "correct horse", at the least cost that there is.
const HASH: &str = "$2b$04$CJYSUYA7/1PfUfdF3IepBOkbfD1KIXjm8e4UECVTqCpfNzqdDCoz6";

const SOON: Duration = Duration::from_secs(5);

/// A folder with an authority, what it has signed, and the file that names all that.
struct Folder {
    folder: tempfile::TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Folder {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority");
        let key = KeyPair::generate().expect("a key");
        let new = Self {
            folder: tempfile::tempdir().expect("a folder"),
            authority: CertifiedIssuer::self_signed(params, key).expect("a certificate"),
        };
        new.write("ca.crt", &new.authority.pem());
        new.sign("server", ExtendedKeyUsagePurpose::ServerAuth);
        new.sign("client", ExtendedKeyUsagePurpose::ClientAuth);
        new
    }

    /// Writes NAME.crt and NAME.key.
    fn sign(&self, name: &str, usage: ExtendedKeyUsagePurpose) {
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])
            .expect("names");
        params.extended_key_usages = vec![usage];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.authority).expect("it signs");
        self.write(&format!("{name}.crt"), &signed.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    /// Puts a file in place at once, as one should.
    fn write(&self, name: &str, text: &str) {
        let new = self.path(&format!("{name}.new"));
        fs::write(&new, text).expect("ours");
        fs::rename(new, self.path(name)).expect("ours");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

const TLS: &str = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n";

fn users() -> String {
    format!("basic_auth_users:\n  alice: {HASH}\n")
}

struct Daemon {
    tool: Tool,
    port: String,
}

impl Daemon {
    fn start(program: &Program, arguments: &[&str], file: Option<&Path>) -> Self {
        let pid = program.pid().to_string();
        let mut command = tool::leaktrace();
        command.args(["daemon", "--pid", &pid, "--interval", "500ms"]);
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.args(arguments);
        if let Some(file) = file {
            command.arg("--web-config-file").arg(file);
        }
        let tool = Tool::spawn(&mut command);
        let line = line_with(&tool, "listening on http");
        let port = line.trim().rsplit_once(':').expect("a port").1.to_owned();
        Self { tool, port }
    }

    /// What curl is answered with: the status, 0 for no answer, and the body.
    fn ask(&self, scheme: &str, path: &str, more: &[&str]) -> (u16, String) {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--max-time",
            "10",
            "--write-out",
            "\n%{http_code}",
        ]);
        curl.args(more)
            .arg(format!("{scheme}://127.0.0.1:{}{path}", self.port));
        let output = curl.output().expect("curl is there");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').expect("it writes a line");
        (status.parse().expect("a status"), body.to_owned())
    }

    fn status(&self, scheme: &str, path: &str, more: &[&str]) -> u16 {
        self.ask(scheme, path, more).0
    }
}

/// The next line of its log with this in it.
fn line_with(tool: &Tool, what: &str) -> String {
    loop {
        let line = tool.error_line(Duration::from_secs(20));
        if line.contains(what) {
            return line;
        }
    }
}

fn program() -> Option<Program> {
    if Command::new("curl").arg("--version").output().is_err() {
        return needs::skip("needs curl: apt-get install curl");
    }
    needs::program("handler-timeout", "1.27.3", &["-burst", "30", "-rate", "0"])
}

#[test]
fn tls_with_and_without_a_password() {
    let Some(program) = program() else { return };
    let folder = Folder::new();
    let file = folder.path("web.yml");
    folder.write(
        "web.yml",
        &format!(
            "{TLS}{}http_server_config:\n  headers:\n    X-Frame-Options: deny\n",
            users()
        ),
    );
    let mut daemon = Daemon::start(&program, &[], Some(&file));
    let authority = folder.path("ca.crt");
    let trust = ["--cacert", authority.to_str().expect("text")];
    let with = |more: &[&'static str]| [&trust[..], more].concat();

    assert_eq!(daemon.status("https", "/metrics", &with(&[])), 401);
    for wrong in [
        "alice:wrong horse",
        "eve:correct horse",
        "alice:",
        ":correct horse",
    ] {
        let more = with(&["--user", wrong]);
        assert_eq!(daemon.status("https", "/metrics", &more), 401, "{wrong}");
    }
    let right = with(&["--user", "alice:correct horse"]);
    for version in ["--tlsv1.3", "--tls-max=1.2"] {
        let version = version
            .split_once('=')
            .map_or(vec![version], |(name, value)| vec![name, value]);
        let more = [&right[..], &version[..]].concat();
        let (status, metrics) = daemon.ask("https", "/metrics", &more);
        assert_eq!(status, 200, "{version:?}");
        assert!(metrics.contains("leaktrace_goroutines{"), "{metrics}");
    }
    // Who has shown a password may see all; the paths and stacks of nobody else's.
    assert_eq!(
        daemon.status(
            "https",
            "/debug/pprof/goroutine?target=handler-timeout",
            &right
        ),
        200
    );
    let (_, headers) = daemon.ask("https", "/metrics", &[&right[..], &["--head"]].concat());
    assert!(
        headers.to_lowercase().contains("x-frame-options: deny"),
        "{headers}"
    );
    let (_, headers) = daemon.ask("https", "/metrics", &with(&["--head"]));
    assert!(
        headers.to_lowercase().contains("www-authenticate: basic"),
        "{headers}"
    );
    // A kubelet has no password.
    assert_eq!(daemon.status("https", "/healthz", &with(&[])), 200);
    assert_eq!(daemon.status("https", "/readyz", &with(&[])), 200);
    // Who does not know the authority does not ask; who speaks no TLS is told.
    assert_eq!(daemon.status("https", "/healthz", &[]), 0);
    let (status, said) = daemon.ask("http", "/metrics", &[]);
    assert_eq!(status, 400);
    assert!(said.contains("https://"), "{said}");
    // An old version is not spoken.
    assert_eq!(
        daemon.status("https", "/healthz", &with(&["--tls-max", "1.1"])),
        0
    );

    // Right passwords are remembered: a hundred scrapes cost no hundred checks, whatever those who guess do.
    let begin = Instant::now();
    for _ in 0..20 {
        assert_eq!(daemon.status("https", "/metrics", &right), 200);
    }
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert!(daemon.tool.is_running());
}

#[test]
fn clients_show_a_certificate() {
    let Some(program) = program() else { return };
    let folder = Folder::new();
    let stranger = Folder::new();
    let file = folder.path("web.yml");
    let asked = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n";
    folder.write("web.yml", &format!("{TLS}{asked}"));
    let daemon = Daemon::start(&program, &["--details", "auto"], Some(&file));
    let paths = |of: &Folder, name: &str| {
        ["crt", "key"].map(|kind| of.path(&format!("{name}.{kind}")).display().to_string())
    };
    let authority = folder.path("ca.crt").display().to_string();
    let status = |of: &Folder, name: &str| {
        let [certificate, key] = paths(of, name);
        let more = [
            "--cacert",
            &authority,
            "--cert",
            &certificate,
            "--key",
            &key,
        ];
        daemon.status(
            "https",
            "/debug/pprof/goroutine?target=handler-timeout",
            &more,
        )
    };
    assert_eq!(status(&folder, "client"), 200);
    assert_eq!(status(&stranger, "client"), 0);
    assert_eq!(status(&folder, "server"), 0, "it is no client's");
    assert_eq!(
        daemon.status("https", "/metrics", &["--cacert", &authority]),
        0
    );
}

#[test]
fn files_are_read_again_and_wrong_ones_refused() {
    let Some(program) = program() else { return };
    let folder = Folder::new();
    let file = folder.path("web.yml");
    folder.write("web.yml", "");
    let mut daemon = Daemon::start(&program, &[], Some(&file));
    assert_eq!(daemon.status("http", "/metrics", &[]), 200);

    // By itself, and then by a signal.
    folder.write("web.yml", &users());
    line_with(&daemon.tool, "were read again");
    assert_eq!(daemon.status("http", "/metrics", &[]), 401);
    assert_eq!(
        daemon.status("http", "/metrics", &["--user", "alice:correct horse"]),
        200
    );
    folder.write("web.yml", TLS);
    daemon.tool.signal(Signal::SIGHUP);
    line_with(&daemon.tool, "the configuration was read again");
    assert_eq!(daemon.status("https", "/metrics", &["--insecure"]), 200);

    // A certificate is renewed.
    let authority = folder.path("ca.crt").display().to_string();
    let trust = ["--cacert", &authority];
    assert_eq!(daemon.status("https", "/healthz", &trust), 200);
    let other = Folder::new();
    for name in ["ca.crt", "server.key", "server.crt"] {
        let text = fs::read_to_string(other.path(name)).expect("it is there");
        folder.write(name, &text);
    }
    line_with(&daemon.tool, "were read again");
    assert_eq!(daemon.status("https", "/healthz", &trust), 200);

    // What is wrong is named with its line, and changes nothing.
    folder.write(
        "web.yml",
        &format!("{TLS}basic_auth_users:\n  alice: secret\n"),
    );
    let line = line_with(&daemon.tool, "stay as they were");
    assert!(
        line.contains("web.yml: line 5: the hash of user alice"),
        "{line}"
    );
    assert!(!line.contains("secret"), "{line}");
    assert_eq!(daemon.status("https", "/healthz", &trust), 200);
    folder.write("web.yml", TLS);
    line_with(&daemon.tool, "were read again");
    folder.write("server.key", "nothing");
    let line = line_with(&daemon.tool, "stay as they were");
    assert!(
        line.contains("server.key: it holds no private key"),
        "{line}"
    );
    assert_eq!(daemon.status("https", "/healthz", &trust), 200);
    assert!(daemon.tool.is_running());

    // At its start a wrong one is the end.
    let file = file.display().to_string();
    let pid = program.pid().to_string();
    let refused = tool::run(
        &[
            "daemon",
            "--pid",
            &pid,
            "--listen",
            "127.0.0.1:0",
            "--web-config-file",
            &file,
        ],
        SOON,
    );
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("server.key"), "{}", refused.stderr);
}

#[test]
fn stacks_and_paths_are_shown_where_allowed() {
    let Some(program) = program() else { return };
    let exe = "/handler-timeout\"";
    let profile = "/debug/pprof/goroutine?target=handler-timeout";
    let here = ["--header", "Host: localhost:1"];
    let elsewhere = ["--header", "Host: evil.example"];
    for (details, local, other) in [
        ("auto", 200, 403),
        ("always", 200, 200),
        ("never", 403, 403),
    ] {
        let daemon = Daemon::start(&program, &["--details", details], None);
        for (host, expected) in [(here, local), (elsewhere, other)] {
            for path in [profile, "/api/v1/targets/handler-timeout"] {
                assert_eq!(
                    daemon.status("http", path, &host),
                    expected,
                    "{details} {host:?} {path}"
                );
            }
            for path in ["/metrics", "/api/v1/targets"] {
                let (status, body) = daemon.ask("http", path, &host);
                assert_eq!(status, 200);
                assert_eq!(
                    body.contains(exe),
                    expected == 200,
                    "{details} {host:?} {path}"
                );
            }
        }
    }
    // Another address of this machine is as good as another machine: nobody has shown who asks.
    let Some(address) = own_address() else {
        needs::skip::<()>("this machine has no address but loopback");
        return;
    };
    let mut daemon = Daemon::start(&program, &["--listen", &format!("{address}:0")], None);
    let mut connection =
        Connection::open(&format!("{address}:{}", daemon.port)).expect("it listens");
    assert_eq!(connection.get("/metrics").status, 200);
    assert_eq!(connection.get(profile).status, 403);
    assert!(daemon.tool.is_running());
}

#[test]
fn slow_handshakes_keep_nobody_waiting() {
    let Some(program) = program() else { return };
    let folder = Folder::new();
    let file = folder.path("web.yml");
    folder.write("web.yml", &format!("{TLS}{}", users()));
    let daemon = Daemon::start(&program, &[], Some(&file));
    let mut clients = Vec::new();
    for number in 0..400 {
        let mut client =
            TcpStream::connect(format!("127.0.0.1:{}", daemon.port)).expect("it listens");
        // Nothing, or the beginning of a handshake without its end.
        let hello: &[u8] = if number % 2 == 0 {
            b""
        } else {
            b"\x16\x03\x01\x02\x00\x01"
        };
        let _ = client.write_all(hello);
        clients.push(client);
    }
    let right = ["--insecure", "--user", "alice:correct horse"];
    let begin = Instant::now();
    assert_eq!(daemon.status("https", "/metrics", &right), 200);
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
    // Those that say nothing are shown out in the end.
    let mut last = clients.pop().expect("one of them");
    last.set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a timeout");
    let mut answer = Vec::new();
    last.read_to_end(&mut answer)
        .expect("it was closed in time");
}

/// An address of this machine that is not loopback: that from which it would reach others. Nothing is sent.
fn own_address() -> Option<String> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then(|| address.to_string())
}
