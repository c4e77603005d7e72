//! Which real servers there are, and how each is started, asked and loaded. A table; [`super`] runs it.
//!
//! In arguments, environment, files and addresses `{dir}` stands for a fresh folder, `{port1}` to `{port3}` for free
//! ports of the loopback, `{root}` for the unpacked package and `{executable}` for the program.

/// A program, the same in all its versions.
pub struct Program {
    /// Its name in the table.
    pub name: &'static str,
    /// What it is started with.
    pub arguments: &'static [&'static str],
    pub environment: &'static [(&'static str, &'static str)],
    /// Files below `{dir}` that are there before it starts.
    pub files: &'static [(&'static str, &'static str)],
    /// What it needs besides.
    pub needs: &'static [Need],
    /// How it shows that it is ready, and later that it still serves.
    pub ready: Ready,
    /// What is done to it while it is watched.
    pub load: Load,
    /// Where `go_goroutines` is: address and path.
    pub metrics: Option<(&'static str, &'static str)>,
    /// Where `net/http/pprof` is: address and path of the listing.
    pub listing: Option<(&'static str, &'static str)>,
}

/// What a program needs besides its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A standard input that stays open: it ends with it.
    OpenInput,
    /// Mounts of its own, which are gone when it is.
    OwnMounts,
    /// Its package's `usr/share` in the place of the machine's.
    OwnShare,
    /// A containerd of the same suite on `{dir}/containerd.sock`, and a runc in PATH.
    Containerd,
    /// A Docker daemon on `{port1}`, which sends it an event ten times a second.
    DockerDaemon,
    /// A Python that loads it.
    Python,
}

/// How a program shows that it serves.
#[derive(Clone, Copy, Debug)]
pub enum Ready {
    /// It answers at this address to this path with a success.
    Http(&'static str, &'static str),
    /// It prints something.
    Output,
}

/// Light load.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// These requests in turn to the address where it listens: method, path, body.
    Http(&'static [(&'static str, &'static str, &'static str)]),
    /// Publishing and hearing messages of NATS.
    Nats,
    /// This command line again and again.
    Command(&'static [&'static str]),
    /// None of ours: what it needs besides keeps it busy, or nothing does.
    None,
}

/// Where an executable comes from.
#[derive(Clone, Copy, Debug)]
pub enum Origin {
    /// A package of one of Debian's suites.
    Debian(&'static str, &'static str),
    /// A package of npm, and its version.
    Npm(&'static str, &'static str),
    /// A wheel of PyPI, and its version.
    Wheel(&'static str, &'static str),
    /// On this machine, or not.
    Machine,
}

/// What leaktrace is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It traces it.
    Traced,
    /// It refuses it with these words.
    Refused(&'static str),
    /// It does either, as its table of offsets is: with these words if it refuses.
    Either(&'static str),
}

/// One row.
pub struct Server {
    pub program: &'static Program,
    pub origin: Origin,
    /// The executable in what was unpacked.
    pub executable: &'static str,
    /// The minor release of Go that built it, as in "1.24"; checked.
    pub go: &'static str,
    /// Whether it is position independent; checked.
    pub pie: bool,
    pub expected: Expected,
}

/// A package in a Debian suite, traced like most.
const fn debian(
    program: &'static Program,
    suite: &'static str,
    package: &'static str,
    executable: &'static str,
    go: &'static str,
) -> Server {
    Server {
        program,
        origin: Origin::Debian(suite, package),
        executable,
        go,
        pie: false,
        expected: Expected::Traced,
    }
}

/// The same, position independent.
const fn pie(server: Server) -> Server {
    Server {
        pie: true,
        ..server
    }
}

/// A build of esbuild.
const fn esbuild(
    package: &'static str,
    version: &'static str,
    go: &'static str,
    expected: Expected,
) -> Server {
    Server {
        program: &ESBUILD,
        origin: Origin::Npm(package, version),
        executable: "package/bin/esbuild",
        go,
        pie: false,
        expected,
    }
}

const NO_OFFSETS: Expected = Expected::Either("struct offsets of go1.");

/// Every server. The dearest come first, so that the last batch does not wait for one of them.
#[rustfmt::skip]
pub const ALL: &[Server] = &[
    pie(debian(&DOCKERD, "bookworm", "docker.io", "usr/sbin/dockerd", "1.19")),
    pie(debian(&DOCKERD, "trixie", "docker.io", "usr/sbin/dockerd", "1.24")),
    pie(debian(&DOCKERD, "forky", "docker.io", "usr/sbin/dockerd", "1.27")),
    debian(&PROMETHEUS, "bookworm", "prometheus", "usr/bin/prometheus", "1.19"),
    debian(&PROMETHEUS, "trixie", "prometheus", "usr/bin/prometheus", "1.24"),
    debian(&PROMETHEUS, "forky", "prometheus", "usr/bin/prometheus", "1.27"),
    debian(&ALERTMANAGER, "bookworm", "prometheus-alertmanager", "usr/bin/prometheus-alertmanager", "1.19"),
    debian(&ALERTMANAGER, "trixie", "prometheus-alertmanager", "usr/bin/prometheus-alertmanager", "1.24"),
    debian(&ALERTMANAGER, "forky", "prometheus-alertmanager", "usr/bin/prometheus-alertmanager", "1.27"),
    debian(&NODE_EXPORTER, "bookworm", "prometheus-node-exporter", "usr/bin/prometheus-node-exporter", "1.19"),
    debian(&NODE_EXPORTER, "forky", "prometheus-node-exporter", "usr/bin/prometheus-node-exporter", "1.26"),
    debian(&ETCD, "bookworm", "etcd-server", "usr/bin/etcd", "1.19"),
    debian(&ETCD, "trixie", "etcd-server", "usr/bin/etcd", "1.24"),
    debian(&ETCD, "forky", "etcd-server", "usr/bin/etcd", "1.26"),
    debian(&NATS, "bookworm", "nats-server", "usr/sbin/nats-server", "1.19"),
    debian(&NATS, "trixie", "nats-server", "usr/sbin/nats-server", "1.24"),
    debian(&NATS, "forky", "nats-server", "usr/sbin/nats-server", "1.27"),
    debian(&CADDY, "bookworm", "caddy", "usr/bin/caddy", "1.19"),
    debian(&CADDY, "trixie", "caddy", "usr/bin/caddy", "1.24"),
    debian(&CADDY, "forky", "caddy", "usr/bin/caddy", "1.26"),
    debian(&SYNCTHING, "bookworm", "syncthing", "usr/bin/syncthing", "1.19"),
    debian(&SYNCTHING, "trixie", "syncthing", "usr/bin/syncthing", "1.24"),
    debian(&SYNCTHING, "forky", "syncthing", "usr/bin/syncthing", "1.26"),
    debian(&INFLUXDB, "bookworm", "influxdb", "usr/bin/influxd", "1.19"),
    debian(&INFLUXDB, "forky", "influxdb", "usr/bin/influxd", "1.26"),
    debian(&VICTORIA, "bookworm", "victoria-metrics", "usr/bin/victoria-metrics", "1.19"),
    debian(&VICTORIA, "trixie", "victoria-metrics", "usr/bin/victoria-metrics", "1.24"),
    debian(&VICTORIA, "forky", "victoria-metrics", "usr/bin/victoria-metrics", "1.27"),
    debian(&RCLONE, "bookworm", "rclone", "usr/bin/rclone", "1.19"),
    debian(&RCLONE, "trixie", "rclone", "usr/bin/rclone", "1.23"),
    debian(&CONTAINERD, "bookworm", "containerd", "usr/bin/containerd", "1.19"),
    debian(&CONTAINERD, "trixie", "containerd", "usr/bin/containerd", "1.24"),
    debian(&CONTAINERD, "forky", "containerd", "usr/bin/containerd", "1.27"),
    pie(debian(&KUBECTL, "trixie", "kubectl", "usr/bin/kubectl", "1.24")),
    pie(debian(&KUBECTL, "forky", "kubectl", "usr/bin/kubectl", "1.27")),
    esbuild("esbuild-linux-64", "0.13.15", "1.17", Expected::Refused("compiled by go1.17.2, which is too old")),
    esbuild("esbuild-linux-64", "0.14.30", "1.18", NO_OFFSETS),
    esbuild("@esbuild/linux-x64", "0.17.10", "1.20", NO_OFFSETS),
    esbuild("@esbuild/linux-x64", "0.28.2", "1.26", Expected::Traced),
    Server {
        program: &DOCKER_CLIENT,
        origin: Origin::Machine,
        executable: "/usr/local/bin/docker",
        go: "1.24",
        pie: false,
        expected: Expected::Traced,
    },
    Server {
        program: &HELM_IN_PYTHON,
        origin: Origin::Wheel("helm-sdkpy", "0.1.32"),
        executable: "helm_sdkpy/_lib/linux-amd64/libhelm_sdkpy.so",
        go: "1.27",
        pie: true,
        expected: Expected::Refused("-buildmode=c-shared"),
    },
];

/// A handful for the ordinary test run, by program and origin: one of each peculiarity.
pub const HANDFUL: [(&str, &str); 6] = [
    ("prometheus", "trixie"),
    ("nats-server", "forky"),
    ("etcd", "bookworm"),
    ("caddy", "forky"),
    ("containerd", "trixie"),
    ("esbuild", "0.28.2"),
];

impl Server {
    /// Whether it goes on serving: a library only shows once that it was loaded.
    pub fn expected_to_serve(&self) -> bool {
        !self.program.needs.contains(&Need::Python)
    }

    /// Suite or version: what tells it from others of its name.
    pub fn release(&self) -> &'static str {
        match self.origin {
            Origin::Debian(suite, _) => suite,
            Origin::Npm(_, version) | Origin::Wheel(_, version) => version,
            Origin::Machine => "machine",
        }
    }
}

const HERE: &str = "127.0.0.1:{port1}";
const PPROF: &str = leaktrace_fixtures::own_count::LISTING;

const PROMETHEUS: Program = Program {
    name: "prometheus",
    arguments: &[
        "--config.file={dir}/prometheus.yml",
        "--storage.tsdb.path={dir}/data",
        "--web.listen-address=127.0.0.1:{port1}",
    ],
    environment: &[],
    files: &[(
        "prometheus.yml",
        "global: {scrape_interval: 5s}\nscrape_configs:\n- job_name: self\n  static_configs: [{targets: ['127.0.0.1:{port1}']}]\n",
    )],
    needs: &[],
    ready: Ready::Http(HERE, "/-/ready"),
    load: Load::Http(&[
        ("GET", "/api/v1/query?query=up", ""),
        (
            "GET",
            "/api/v1/query?query=rate(go_gc_duration_seconds_count[1m])",
            "",
        ),
        ("GET", "/metrics", ""),
    ]),
    metrics: Some((HERE, "/metrics")),
    listing: Some((HERE, PPROF)),
};

const ALERTMANAGER: Program = Program {
    name: "alertmanager",
    arguments: &[
        "--config.file={dir}/alertmanager.yml",
        "--storage.path={dir}/data",
        "--web.listen-address=127.0.0.1:{port1}",
        "--cluster.listen-address=",
    ],
    environment: &[],
    files: &[(
        "alertmanager.yml",
        "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n",
    )],
    // Its templates are looked for in /usr/share/prometheus/alertmanager.
    needs: &[Need::OwnShare],
    ready: Ready::Http(HERE, "/-/ready"),
    load: Load::Http(&[
        ("GET", "/api/v2/status", ""),
        (
            "POST",
            "/api/v2/alerts",
            "[{\"labels\":{\"alertname\":\"one\"}}]",
        ),
        ("GET", "/api/v2/alerts", ""),
    ]),
    metrics: Some((HERE, "/metrics")),
    listing: Some((HERE, PPROF)),
};

const NODE_EXPORTER: Program = Program {
    name: "node-exporter",
    arguments: &["--web.listen-address=127.0.0.1:{port1}"],
    environment: &[],
    files: &[],
    needs: &[],
    ready: Ready::Http(HERE, "/"),
    load: Load::Http(&[("GET", "/metrics", ""), ("GET", "/", "")]),
    metrics: Some((HERE, "/metrics")),
    listing: Some((HERE, PPROF)),
};

const ETCD: Program = Program {
    name: "etcd",
    arguments: &[
        "--data-dir={dir}/data",
        "--listen-client-urls=http://127.0.0.1:{port1}",
        "--advertise-client-urls=http://127.0.0.1:{port1}",
        "--listen-peer-urls=http://127.0.0.1:{port2}",
        "--initial-advertise-peer-urls=http://127.0.0.1:{port2}",
        "--initial-cluster=default=http://127.0.0.1:{port2}",
        "--enable-pprof",
    ],
    environment: &[],
    files: &[],
    needs: &[],
    ready: Ready::Http(HERE, "/health"),
    load: Load::Http(&[
        (
            "POST",
            "/v3/kv/put",
            "{\"key\":\"Zm9v\",\"value\":\"YmFy\"}",
        ),
        ("POST", "/v3/kv/range", "{\"key\":\"Zm9v\"}"),
        ("GET", "/health", ""),
    ]),
    metrics: Some((HERE, "/metrics")),
    listing: Some((HERE, PPROF)),
};

const NATS: Program = Program {
    name: "nats-server",
    arguments: &[
        "-a",
        "127.0.0.1",
        "-p",
        "{port2}",
        "-m",
        "{port1}",
        "--profile",
        "{port3}",
        "-js",
        "-sd",
        "{dir}/data",
    ],
    environment: &[],
    files: &[],
    needs: &[],
    ready: Ready::Http(HERE, "/healthz"),
    load: Load::Nats,
    metrics: None,
    listing: Some(("127.0.0.1:{port3}", PPROF)),
};

const CADDY: Program = Program {
    name: "caddy",
    arguments: &["run", "--config", "{dir}/caddy.json"],
    environment: &[],
    files: &[(
        "caddy.json",
        r#"{"admin":{"listen":"127.0.0.1:{port2}"},"apps":{"http":{"servers":{"one":{
            "listen":["127.0.0.1:{port1}"],"automatic_https":{"disable":true},
            "routes":[{"handle":[{"handler":"static_response","body":"hello"}]}]}}}}}"#,
    )],
    needs: &[],
    ready: Ready::Http(HERE, "/"),
    load: Load::Http(&[("GET", "/", ""), ("GET", "/some/page", "")]),
    metrics: Some(("127.0.0.1:{port2}", "/metrics")),
    listing: Some(("127.0.0.1:{port2}", PPROF)),
};

const SYNCTHING: Program = Program {
    name: "syncthing",
    arguments: &[
        "serve",
        "--home={dir}",
        "--no-browser",
        "--no-default-folder",
        "--skip-port-probing",
        "--gui-address=127.0.0.1:{port1}",
    ],
    // STMONITORED: the server itself, without the process that watches over it.
    environment: &[("STMONITORED", "yes"), ("STPROFILER", "127.0.0.1:{port3}")],
    // It is to speak to nobody.
    files: &[(
        "config.xml",
        "<configuration version=\"35\"><options><listenAddress>tcp://127.0.0.1:{port2}</listenAddress>\
         <globalAnnounceEnabled>false</globalAnnounceEnabled><localAnnounceEnabled>false</localAnnounceEnabled>\
         <relaysEnabled>false</relaysEnabled><natEnabled>false</natEnabled><urAccepted>-1</urAccepted>\
         <autoUpgradeIntervalH>0</autoUpgradeIntervalH><crashReportingEnabled>false</crashReportingEnabled>\
         </options></configuration>\n",
    )],
    needs: &[],
    ready: Ready::Http(HERE, "/"),
    load: Load::Http(&[
        ("GET", "/", ""),
        ("GET", "/assets/img/favicon-default.png", ""),
    ]),
    metrics: None,
    listing: Some(("127.0.0.1:{port3}", PPROF)),
};

const INFLUXDB: Program = Program {
    name: "influxdb",
    arguments: &["-config", "{dir}/influxdb.conf"],
    environment: &[],
    files: &[(
        "influxdb.conf",
        "reporting-disabled = true\nbind-address = \"127.0.0.1:{port2}\"\n\
         [meta]\n dir = \"{dir}/meta\"\n[data]\n dir = \"{dir}/data\"\n wal-dir = \"{dir}/wal\"\n\
         [http]\n bind-address = \"127.0.0.1:{port1}\"\n pprof-enabled = true\n log-enabled = false\n",
    )],
    needs: &[],
    ready: Ready::Http(HERE, "/ping"),
    load: Load::Http(&[
        ("POST", "/query?q=CREATE%20DATABASE%20one", ""),
        ("POST", "/write?db=one", "load,host=a value=1"),
        (
            "GET",
            "/query?db=one&q=SELECT%20mean(value)%20FROM%20load",
            "",
        ),
    ]),
    metrics: None,
    listing: Some((HERE, PPROF)),
};

const VICTORIA: Program = Program {
    name: "victoria-metrics",
    arguments: &[
        "-storageDataPath={dir}/data",
        "-httpListenAddr=127.0.0.1:{port1}",
    ],
    environment: &[],
    files: &[],
    needs: &[],
    ready: Ready::Http(HERE, "/health"),
    load: Load::Http(&[
        ("POST", "/write?db=one", "load,host=a value=1"),
        ("GET", "/api/v1/query?query=load_value", ""),
        ("GET", "/health", ""),
    ]),
    metrics: Some((HERE, "/metrics")),
    listing: Some((HERE, PPROF)),
};

const RCLONE: Program = Program {
    name: "rclone",
    arguments: &[
        "rcd",
        "--rc-addr=127.0.0.1:{port1}",
        "--rc-no-auth",
        "--rc-enable-metrics",
        "--config={dir}/rclone.conf",
    ],
    environment: &[],
    files: &[("rclone.conf", "")],
    needs: &[],
    ready: Ready::Http(HERE, "/metrics"),
    load: Load::Http(&[
        ("POST", "/rc/noop", "{}"),
        ("POST", "/core/stats", "{}"),
        ("POST", "/core/memstats", "{}"),
    ]),
    metrics: Some((HERE, "/metrics")),
    listing: Some((HERE, PPROF)),
};

/// Its configuration, with the tables that are of no use without containers left out.
const CONTAINERD_TOML: &str = "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\n\
    disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
    [grpc]\n  address = \"{dir}/containerd.sock\"\n\
    [debug]\n  address = \"{dir}/debug.sock\"\n\
    [metrics]\n  address = \"127.0.0.1:{port1}\"\n";

pub const CONTAINERD: Program = Program {
    name: "containerd",
    arguments: &["--config", "{dir}/containerd.toml"],
    environment: &[],
    files: &[("containerd.toml", CONTAINERD_TOML)],
    needs: &[Need::OwnMounts],
    ready: Ready::Http("{dir}/debug.sock", "/debug/vars"),
    load: Load::Command(&[
        "{root}/usr/bin/ctr",
        "--address",
        "{dir}/containerd.sock",
        "version",
    ]),
    metrics: Some((HERE, "/v1/metrics")),
    listing: Some(("{dir}/debug.sock", PPROF)),
};

const DOCKERD: Program = Program {
    name: "dockerd",
    arguments: &[
        "--debug",
        "--data-root={dir}/data",
        "--exec-root={dir}/exec",
        "--pidfile={dir}/docker.pid",
        "--host=unix://{dir}/docker.sock",
        "--containerd={dir}/containerd.sock",
        "--iptables=false",
        "--ip6tables=false",
        "--bridge=none",
        "--userland-proxy=false",
        "--storage-driver=overlay2",
    ],
    environment: &[],
    files: &[("containerd.toml", CONTAINERD_TOML)],
    needs: &[Need::OwnMounts, Need::Containerd],
    ready: Ready::Http("{dir}/docker.sock", "/_ping"),
    load: Load::Http(&[
        ("GET", "/version", ""),
        ("GET", "/containers/json", ""),
        ("GET", "/images/json", ""),
        ("GET", "/info", ""),
    ]),
    metrics: None,
    listing: Some(("{dir}/docker.sock", PPROF)),
};

const KUBECTL: Program = Program {
    name: "kubectl proxy",
    arguments: &[
        "proxy",
        "--address=127.0.0.1",
        "--port={port1}",
        "--server=http://127.0.0.1:{port2}",
        "--www={dir}",
        "--www-prefix=/static/",
    ],
    environment: &[],
    files: &[("hello.txt", "hello")],
    needs: &[],
    ready: Ready::Http(HERE, "/static/hello.txt"),
    // Nobody is at the other end of the proxy: it tries to connect and says so.
    load: Load::Http(&[("GET", "/static/hello.txt", ""), ("GET", "/api", "")]),
    metrics: None,
    listing: None,
};

const ESBUILD: Program = Program {
    name: "esbuild",
    arguments: &[
        "{dir}/app.js",
        "--bundle",
        "--outdir={dir}/www",
        "--servedir={dir}/www",
        "--serve=127.0.0.1:{port1}",
    ],
    environment: &[],
    files: &[
        (
            "app.js",
            "import {hello} from './hello.js';\nconsole.log(hello());\n",
        ),
        ("hello.js", "export function hello() { return 'hello'; }\n"),
        ("www/index.html", "<script src=app.js></script>\n"),
    ],
    needs: &[Need::OpenInput],
    ready: Ready::Http(HERE, "/"),
    // Each of these builds the bundle.
    load: Load::Http(&[("GET", "/app.js", ""), ("GET", "/", "")]),
    metrics: None,
    listing: None,
};

const DOCKER_CLIENT: Program = Program {
    name: "docker client",
    arguments: &["--host=tcp://127.0.0.1:{port1}", "events"],
    environment: &[("DOCKER_API_VERSION", "1.43")],
    files: &[],
    needs: &[Need::DockerDaemon],
    ready: Ready::Output,
    load: Load::None,
    metrics: None,
    listing: None,
};

const HELM_IN_PYTHON: Program = Program {
    name: "helm in Python",
    arguments: &[
        "-c",
        "import ctypes, sys; ctypes.CDLL(sys.argv[1]); print('loaded', flush=True); sys.stdin.read()",
        "{executable}",
    ],
    environment: &[],
    files: &[],
    needs: &[Need::OpenInput, Need::Python],
    ready: Ready::Output,
    load: Load::None,
    metrics: None,
    listing: None,
};
