//! The project's own commands: `cargo xtask demo`, `cargo xtask test`, and what those are made of.

use std::process::ExitCode;

use clap::Parser;

mod accuracy;
mod alerts;
mod bench;
mod build_ebpf;
mod chaos;
mod churn;
mod containers;
mod daemon;
mod dashboards;
mod deb;
mod deb_test;
mod demo;
mod dist;
mod fixtures;
mod fuzz;
mod go;
mod k8s_test;
mod manifests;
mod oci;
mod offsets;
mod scrape;
mod screenshots;
mod servers;
mod test;
mod tools;
mod vm_test;

/// The project's own commands.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Command {
    /// Watch two leaking programs and a healthy one, and show what leaktrace says
    Demo(demo::Arguments),
    /// Run every test, those that attach to real processes too
    Test(test::Arguments),
    /// Try every known leak and many healthy programs, and write doc/accuracy.md
    Accuracy(accuracy::Arguments),
    /// Record a real leak and its end for the tests of the alert rules
    Alerts(alerts::Arguments),
    /// Write the Grafana dashboards of deploy/grafana
    Dashboards(dashboards::Arguments),
    /// Measure what being traced costs a program
    Bench(bench::Arguments),
    /// Arm and stop ten million timers under leaktrace, and see what is left behind
    Churn(churn::Arguments),
    /// Kill, starve and overrun the daemon while twenty programs come and go, and see that it counts right afterwards
    Chaos(chaos::Arguments),
    /// Trace Go programs in real containers, of containerd and of docker
    Containers(containers::Arguments),
    /// Build the Debian package
    Deb(deb::Arguments),
    /// Install, use, upgrade and remove the Debian package under a real systemd
    DebTest(deb_test::Arguments),
    /// Build a static binary and a container image
    Dist(dist::Arguments),
    /// Trace Deployments on a real Kubernetes node, with the manifests of deploy/
    K8sTest(k8s_test::Arguments),
    /// Check the Kubernetes manifests and the Helm chart
    Manifests(manifests::Arguments),
    /// Build the eBPF objects that are checked in
    BuildEbpf(build_ebpf::BuildEbpf),
    /// Make the table of struct offsets from what Go toolchains compile
    Offsets(offsets::Arguments),
    /// Fetch Go toolchains
    Go(go::Arguments),
    /// Build a Go fixture and print where it is
    Fixture(fixtures::Arguments),
    /// Feed random inputs to everything that reads a traced program's bytes
    Fuzz(fuzz::Arguments),
    /// Let a real Prometheus scrape the daemon, with a program of ten thousand call sites
    Scrape(scrape::Arguments),
    /// Open the page in a real browser, use it, and take the pictures of doc/
    Screenshots(screenshots::Arguments),
    /// Watch real servers of many kinds and Go releases, and compare with what they say of themselves
    Servers(servers::Arguments),
    /// Fetch the real servers that tests attach to
    Tools(tools::Arguments),
    /// Boot Debian's kernels in emulated machines, and trace Go programs on them
    VmTest(vm_test::Arguments),
}

fn main() -> ExitCode {
    let done = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
    let result = match Command::parse() {
        Command::Demo(arguments) => done(demo::run(&arguments)),
        Command::Test(arguments) => done(test::run(&arguments)),
        Command::Accuracy(arguments) => done(accuracy::run(&arguments)),
        Command::Alerts(arguments) => done(alerts::run(&arguments)),
        Command::Dashboards(arguments) => done(dashboards::run(&arguments)),
        Command::Bench(arguments) => done(bench::run(&arguments)),
        Command::Churn(arguments) => done(churn::run(&arguments)),
        Command::Chaos(arguments) => done(chaos::run(&arguments)),
        Command::Containers(arguments) => done(containers::run(&arguments)),
        Command::Deb(arguments) => done(deb::run(&arguments)),
        Command::DebTest(arguments) => done(deb_test::run(&arguments)),
        Command::Dist(arguments) => done(dist::run(&arguments)),
        Command::K8sTest(arguments) => done(k8s_test::run(&arguments)),
        Command::Manifests(arguments) => done(manifests::run(&arguments)),
        Command::BuildEbpf(task) => task.run(),
        Command::Offsets(arguments) => done(offsets::run(&arguments)),
        Command::Go(arguments) => done(go::run(&arguments)),
        Command::Fixture(arguments) => done(fixtures::run(&arguments)),
        Command::Fuzz(arguments) => done(fuzz::run(&arguments)),
        Command::Scrape(arguments) => done(scrape::run(&arguments)),
        Command::Screenshots(arguments) => done(screenshots::run(&arguments)),
        Command::Servers(arguments) => done(servers::run(&arguments)),
        Command::Tools(arguments) => done(tools::run(&arguments)),
        Command::VmTest(arguments) => vm_test::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
