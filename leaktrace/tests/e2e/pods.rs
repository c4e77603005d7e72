//! Pods without Kubernetes: cgroups and folders as the kubelet makes them, and a server that tells of pods as it does.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use leaktrace_fixtures::program::Program;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::daemon::address;
use crate::http::Connection;
use crate::tool::Tool;
use crate::{needs, tool};

const SOON: Duration = Duration::from_secs(20);

/// What the kernel and the kubelet's folders show of a pod with one container. Dropping it removes the cgroups, which are empty
/// then.
pub struct Pod {
    uid: String,
    container_id: String,
    cgroup: PathBuf,
    depth: usize,
}

impl Pod {
    /// The pod with this name (`NAMESPACE_POD`), whose log is below `logs`; `None` where no cgroup can be made.
    pub fn make(logs: &Path, name: &str, container: &str) -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(1);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let uid = format!("0b94c6ba-6ca0-4f3c-9d1c-2d0d{number:08x}");
        let hierarchies = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let root = (hierarchies.iter()).find(|place| place.join("cgroup.procs").is_file())?;
        let container_id = format!("{:032x}{number:032x}", std::process::id());
        let path = format!(
            "leaktrace-test-{}-{number}/kubepods/pod{uid}/{container_id}",
            std::process::id()
        );
        let cgroup = root.join(&path);
        fs::create_dir_all(&cgroup).ok()?;
        let folder = logs.join(format!("pods/{name}_{uid}/{container}"));
        fs::create_dir_all(folder).expect("temporary folders can be made");
        Some(Self {
            uid,
            container_id,
            cgroup,
            depth: path.split('/').count(),
        })
    }

    /// Runs a program that is in the container before it begins.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        let enter = "echo $$ > \"$1/cgroup.procs\"; exec \"$2\"";
        (command.args(["-ec", enter, "sh"])).args([&self.cgroup, program]);
        command
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for cgroup in self.cgroup.ancestors().take(self.depth) {
            // One that still holds a process stays, and is named after this one's pid.
            let _ = fs::remove_dir(cgroup);
        }
    }
}

const TOKEN: &str = "let-me-see";

/// A server with a certificate, which tells whoever shows the token what it was given last.
struct ApiServer {
    port: u16,
    answer: Arc<Mutex<(u16, Value)>>,
    asked: Arc<AtomicU32>,
}

impl ApiServer {
    /// Its authority's certificate goes to `ca.crt`, and the token to `token`.
    fn start(folder: &Path) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        fs::write(folder.join("ca.crt"), authority.pem()).expect("ours");
        fs::write(folder.join("token"), format!("{TOKEN}\n")).expect("ours");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["kubelet.test".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &authority).expect("it signs");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("they belong together");
        let (config, listener) = (
            Arc::new(config),
            TcpListener::bind("127.0.0.1:0").expect("there is a free port"),
        );
        let port = listener.local_addr().expect("it has an address").port();
        let answer = Arc::new(Mutex::new((403, json!({"kind": "Status"}))));
        let asked = Arc::new(AtomicU32::new(0));
        let (told, counted) = (Arc::clone(&answer), Arc::clone(&asked));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let tls = ServerConnection::new(Arc::clone(&config)).expect("a configuration");
                counted.fetch_add(1, Ordering::Relaxed);
                let (status, body) = told.lock().expect("nobody panics").clone();
                // A client that does not like the certificate goes away.
                let _ = serve(StreamOwned::new(tls, stream), status, &body.to_string());
            }
        });
        Self {
            port,
            answer,
            asked,
        }
    }

    fn tell(&self, status: u16, body: Value) {
        *self.answer.lock().expect("nobody panics") = (status, body);
    }
}

fn serve(mut stream: impl Read + Write, status: u16, body: &str) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        request.extend(byte);
    }
    let request = String::from_utf8_lossy(&request).to_lowercase();
    let known = request.starts_with("get /pods?node=1 http/1.1\r\n")
        && request.contains(&format!("\r\nauthorization: bearer {TOKEN}\r\n"));
    let status = if known { status } else { 401 };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} Said\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    stream.flush()
}

fn listed(pod: &Pod, name: &str, label: &str, replica_set: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": pod.uid,
            "labels": {"app": label, "pod-template-hash": "1"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": replica_set, "controller": true}],
        },
        "status": {"containerStatuses": [
            {"name": "main", "containerID": format!("containerd://{}", pod.container_id)},
        ]},
    })
}

/// What the daemon says of a process.
fn row(connection: &mut Connection, pid: u32) -> Value {
    let answer = connection.get("/api/v1/targets");
    let all: Value = serde_json::from_str(&answer.body).expect("JSON");
    let mut rows = all["targets"].as_array().expect("rows").iter();
    rows.find(|row| row["pid"] == pid)
        .cloned()
        .unwrap_or_default()
}

#[test]
fn pods_are_chosen_by_their_labels() {
    let (Some(()), Some(fixture)) = (
        needs::root(),
        needs::fixture(
            "handler-timeout-healthy",
            "1.27.3",
            leaktrace_fixtures::build::Variant::DEFAULT,
        ),
    ) else {
        return;
    };
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let make = |name| Pod::make(folder.path(), name, "server");
    let Some([web, other]) = make("shop_web-1-x2x7k")
        .zip(make("shop_other-1-x2x7k"))
        .map(<[Pod; 2]>::from)
    else {
        println!("no cgroup can be made here");
        return;
    };
    let server = ApiServer::start(folder.path());
    let place = |name: &str| folder.path().join(name).display().to_string();
    let config = format!(
        "pod_logs = \"{}\"\n[watch]\npod_label = [\"app=web*\"]\n[pod_list]\nurl = \"https://127.0.0.1:{}/pods?node=1\"\n\
         token_file = \"{}\"\nca_file = \"{}\"\nserver_name = \"kubelet.test\"\n",
        folder.path().display(),
        server.port,
        place("token"),
        place("ca.crt"),
    );
    fs::write(place("leaktrace.toml"), config).expect("ours");
    let start = |pod: &Pod| Program::spawn(&mut pod.command(&fixture)).expect("fixtures start");
    let early = start(&web);
    let daemon = Tool::spawn(
        tool::leaktrace()
            .args(["daemon", "--listen", "127.0.0.1:0", "--config"])
            .arg(place("leaktrace.toml")),
    );
    let mut connection = Connection::open(&address(&daemon)).expect("it listens");

    // Nobody tells what the pods' labels are.
    tool::eventually("it is refused, and says so", SOON, || {
        daemon
            .error_line(SOON)
            .contains("403 Forbidden: the token may not list pods")
    });
    tool::eventually("who has no known label is not wanted", SOON, || {
        row(&mut connection, early.pid())["status"] == "excluded"
    });

    // The first process is looked at again as soon as the list has its pod.
    let list = |pods: Value| json!({"kind": "PodList", "items": pods});
    server.tell(
        200,
        list(json!([listed(&web, "web-1-x2x7k", "web-shop", "web-1")])),
    );
    tool::eventually("the first is traced", SOON, || {
        row(&mut connection, early.pid())["status"] == "traced"
    });
    let found = row(&mut connection, early.pid());
    assert_eq!(found["target"], "shop/web/main", "{found}");
    assert_eq!(found["pod_labels"][0], "app=web-shop", "{found}");

    // One whose pod is told only while it is waited for, and one that has another label.
    let third = make("shop_late-1-x2x7k").expect("cgroups can be made");
    let (late, unwanted) = (start(&third), start(&other));
    let begin = Instant::now();
    server.tell(
        200,
        list(json!([
            listed(&web, "web-1-x2x7k", "web-shop", "web-1"),
            listed(&third, "late-1-x2x7k", "web-late", "late-1"),
            listed(&other, "other-1-x2x7k", "other", "other-1"),
        ])),
    );
    tool::eventually("the late one is traced", SOON, || {
        row(&mut connection, late.pid())["target"] == "shop/late/main"
    });
    println!("traced {:?} after its start", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(2));
    tool::eventually("the unwanted one is not", SOON, || {
        row(&mut connection, unwanted.pid())["status"] == "excluded"
    });

    // All are known: nobody asks any more.
    let asked = server.asked.load(Ordering::Relaxed);
    assert!(daemon.pid() > 0 && asked < 20, "asked {asked} times");
}
