//! How each program of the catalogue is started, asked and loaded.
//!
//! In arguments, environment, files and addresses `{dir}` stands for a fresh folder, `{port1}` to `{port3}` for free
//! ports of the loopback, `{root}` for the unpacked package and `{executable}` for the program.

use super::catalogue::{Load, Need, Program, Ready};

const HERE: &str = "127.0.0.1:{port1}";
const PPROF: &str = leaktrace_fixtures::own_count::LISTING;

pub const PROMETHEUS: Program = Program {
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

pub const ALERTMANAGER: Program = Program {
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

pub const NODE_EXPORTER: Program = Program {
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

pub const ETCD: Program = Program {
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

pub const NATS: Program = Program {
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

pub const CADDY: Program = Program {
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

pub const SYNCTHING: Program = Program {
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

pub const INFLUXDB: Program = Program {
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

pub const VICTORIA: Program = Program {
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

pub const RCLONE: Program = Program {
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

pub const DOCKERD: Program = Program {
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

pub const KUBECTL: Program = Program {
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

pub const ESBUILD: Program = Program {
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

pub const DOCKER_CLIENT: Program = Program {
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

pub const HELM_IN_PYTHON: Program = Program {
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
