//! Which real servers there are: programs in their versions, and what leaktrace is to say of each. A table;
//! [`super`] runs it, and [`super::programs`] tells how.

use super::programs::{
    ALERTMANAGER, CADDY, CONTAINERD, DOCKER_CLIENT, DOCKERD, ESBUILD, ETCD, HELM_IN_PYTHON,
    INFLUXDB, KUBECTL, NATS, NODE_EXPORTER, PROMETHEUS, RCLONE, SYNCTHING, VICTORIA,
};

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
        expected: Expected::Traced,
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
        expected,
    }
}

const NO_OFFSETS: Expected = Expected::Either("struct offsets of go1.");

/// Every server. The dearest come first, so that the last batch does not wait for one of them.
#[rustfmt::skip]
pub const ALL: &[Server] = &[
    debian(&DOCKERD, "bookworm", "docker.io", "usr/sbin/dockerd", "1.19"),
    debian(&DOCKERD, "trixie", "docker.io", "usr/sbin/dockerd", "1.24"),
    debian(&DOCKERD, "forky", "docker.io", "usr/sbin/dockerd", "1.27"),
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
    debian(&KUBECTL, "trixie", "kubectl", "usr/bin/kubectl", "1.24"),
    debian(&KUBECTL, "forky", "kubectl", "usr/bin/kubectl", "1.27"),
    esbuild("esbuild-linux-64", "0.13.15", "1.17", Expected::Refused("compiled by go1.17.2, which is too old")),
    esbuild("esbuild-linux-64", "0.14.30", "1.18", NO_OFFSETS),
    esbuild("@esbuild/linux-x64", "0.17.10", "1.20", NO_OFFSETS),
    esbuild("@esbuild/linux-x64", "0.28.2", "1.26", Expected::Traced),
    Server {
        program: &DOCKER_CLIENT,
        origin: Origin::Machine,
        executable: "/usr/local/bin/docker",
        go: "1.24",
        expected: Expected::Traced,
    },
    Server {
        program: &HELM_IN_PYTHON,
        origin: Origin::Wheel("helm-sdkpy", "0.1.32"),
        executable: "helm_sdkpy/_lib/linux-amd64/libhelm_sdkpy.so",
        go: "1.27",
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
