//! leaktrace as a DaemonSet, two Deployments of Go programs, and what happens to them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Steps;
use super::confined::confined;
use super::images::{HEALTHY, LEAKY};
use super::node::Node;
use super::pods::{FIRST, Pod, SOON, running, sum};
use super::shipped::Shipped;
use crate::daemon::Asked;

/// Where `leaktrace.yaml` puts it, and where it listens.
const NAMESPACE: &str = "leaktrace";
const PORT: u16 = 9779;

/// Its `terminationGracePeriodSeconds`: then it is killed.
const GRACE: f64 = 60.0;

/// Arguments of kubectl.
const LEAKTRACE: [&str; 2] = ["--namespace", NAMESPACE];
const SHOP: [&str; 2] = ["--namespace", "shop"];

/// Name, image and arguments of a container, replicas, name of the Deployment.
struct Deployment {
    name: &'static str,
    container: &'static str,
    image: &'static str,
    arguments: &'static str,
    replicas: usize,
}

/// It was there before leaktrace.
const API: Deployment = Deployment {
    name: "order-api",
    container: "api",
    image: HEALTHY,
    arguments: "-rate, \"5\"",
    replicas: 1,
};

/// It comes afterwards. One goroutine stays with each request.
const WEB: Deployment = Deployment {
    name: "web",
    container: "server",
    image: LEAKY,
    arguments: "-rate, \"5\", -burst, \"20\"",
    replicas: 2,
};

/// A pod that nothing made, though its name is as if a Deployment had.
const LONELY: &str = "lonely-7d4b9c6f5d-x2x7k";
const LONELY_LABEL: &str = "tier=odd";

fn lonely() -> String {
    let label = LONELY_LABEL.replace('=', ": ");
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {LONELY}, namespace: shop, labels: {{{label}}}}}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  containers:
    - {{name: server, image: '{HEALTHY}', imagePullPolicy: Never, args: [-rate, \"5\"]}}
"
    )
}

impl Deployment {
    fn manifest(&self) -> String {
        let Self {
            name,
            container,
            image,
            arguments,
            replicas,
        } = self;
        format!(
            "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: shop}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      containers:
        - {{name: {container}, image: '{image}', imagePullPolicy: Never, args: [{arguments}]}}
"
        )
    }

    fn apply(&self, node: &Node) -> Result<()> {
        node.apply(&format!("{}.yaml", self.name), &self.manifest())?;
        self.rolled_out(node)
    }

    fn rolled_out(&self, node: &Node) -> Result<()> {
        let what = format!("deployment/{}", self.name);
        rolled_out(node, "shop", &what)
    }

    /// Its pods, which have to be as many as it wants, and its own.
    fn pods(&self, node: &Node) -> Result<Vec<Pod>> {
        let mut found = Vec::new();
        node.eventually(&format!("{} has its pods", self.name), || {
            found = running(node, "shop")?;
            found.retain(|pod| pod.owner == self.name);
            Ok(found.len() == self.replicas)
        })?;
        Ok(found)
    }
}

/// All of it, in order.
pub fn run(node: &Node, steps: &Steps, only_pods: bool) -> Result<()> {
    let shipped = Shipped { only_pods };
    node.kubectl(&["create", "namespace", "shop"])?;
    API.apply(node)?;
    steps.say("Deployment order-api runs, and does not leak");

    shipped.apply(node)?;
    rolled_out(node, NAMESPACE, "daemonset/leaktrace")?;
    steps.say(&format!("DaemonSet leaktrace is Ready; {shipped}"));
    let (daemon, asked) = daemon(node)?;
    steps.say(&confined(&daemon)?);

    let api = API.pods(node)?;
    all_traced(&api, &asked, FIRST)?;
    steps.say(&format!(
        "{} was there before, and is traced as {}",
        api[0].name,
        api[0].label()
    ));

    WEB.apply(node)?;
    let web = WEB.pods(node)?;
    let oldest = all_traced(&web, &asked, SOON)?;
    steps.say(&format!(
        "{} and {} came, and are traced as {} within {oldest:.1} s of their start",
        web[0].name,
        web[1].name,
        web[0].label()
    ));
    judged(node, &asked)?;
    steps.say("the leaking line of web is a leak, and order-api has none");

    node.kubectl(&[&SHOP[..], &["delete", "pod", &web[0].name, "--wait=false"]].concat())?;
    let gone = web[0].is_forgotten(node, &asked)?;
    let (stayed, came): (Vec<_>, Vec<_>) =
        (WEB.pods(node)?.into_iter()).partition(|pod| pod.name == web[1].name);
    all_traced(&stayed, &asked, SOON)?;
    let oldest = all_traced(&came, &asked, SOON)?;
    let web = [stayed, came].concat();
    steps.say(&format!(
        "a pod of web was deleted: its series were gone {gone:.1} s after its end, what replaced it was traced within {oldest:.1} s"
    ));

    node.kubectl(&[
        "--namespace",
        "shop",
        "set",
        "env",
        "deployment/web",
        "ROLLED=1",
    ])?;
    WEB.rolled_out(node)?;
    let rolled = WEB.pods(node)?;
    ensure!(
        rolled
            .iter()
            .all(|pod| web.iter().all(|old| old.name != pod.name)),
        "it was not rolled"
    );
    let gone = all_forgotten(&web, node, &asked)?;
    all_traced(&rolled, &asked, SOON)?;
    all_traced(&api, &asked, FIRST)?;
    steps.say(&format!(
        "web was rolled: the series of both old pods were gone within {gone:.1} s of their ends, both new ones are {}",
        rolled[0].label()
    ));

    node.kubectl(&[
        "--namespace",
        "shop",
        "delete",
        "deployment",
        "web",
        "--wait=false",
    ])?;
    let gone = all_forgotten(&rolled, node, &asked)?;
    let metrics = asked.page("/metrics")?;
    ensure!(
        !metrics.contains("target=\"shop/web/"),
        "series of web are left"
    );
    steps.say(&format!(
        "web was deleted: its series were gone within {gone:.1} s"
    ));

    ensure!(
        daemon.restarts == 0,
        "the kubelet had to start leaktrace again"
    );
    let delete = ["delete", "pod", &*daemon.name, "--wait=false"];
    node.kubectl(&[&LEAKTRACE[..], &delete].concat())?;
    let ended = daemon.ends(node)?;
    ensure!(
        ended < GRACE,
        "it had not ended after {ended:.1} s, and was killed"
    );
    // Its DaemonSet may not have noticed yet.
    node.eventually("another pod of leaktrace runs", || {
        let pods = running(node, NAMESPACE)?;
        Ok(pods.len() == 1 && pods.iter().all(|pod| pod.name != daemon.name))
    })?;
    rolled_out(node, NAMESPACE, "daemonset/leaktrace")?;
    let (_, asked) = self::daemon(node)?;
    all_traced(&api, &asked, FIRST)?;
    steps.say(&format!(
        "the daemon's pod was deleted: it ended within {ended:.1} s, and another one traces order-api"
    ));
    node.keep_logs(NAMESPACE, "daemonset/leaktrace");
    shipped.delete(node)?;
    no_pods(node)?;
    node.eventually("its namespace is gone", || {
        let all = node.json(&["get", "namespaces"])?;
        let mut names =
            (all["items"].as_array().into_iter().flatten()).map(|one| &one["metadata"]["name"]);
        Ok(names.all(|name| name != NAMESPACE))
    })?;
    steps.say("deploy/kubernetes was deleted, and so was the daemon");

    node.apply("lonely.yaml", &lonely())?;
    node.kubectl(&["create", "namespace", NAMESPACE])?;
    shipped.install_chart(node)?;
    rolled_out(node, NAMESPACE, "daemonset/leaktrace")?;
    let (daemon, asked) = self::daemon(node)?;
    confined(&daemon)?;
    all_traced(&api, &asked, FIRST)?;
    let mut lonely = Vec::new();
    node.eventually("the lonely pod runs", || {
        lonely = running(node, "shop")?;
        lonely.retain(|pod| pod.name == LONELY);
        Ok(!lonely.is_empty())
    })?;
    all_traced(&lonely, &asked, FIRST)?;
    let row = asked.waits_for(lonely[0].pid, SOON)?;
    ensure!(
        row["pod_labels"] == serde_json::json!([LONELY_LABEL]),
        "its label is not {LONELY_LABEL}: {row}"
    );
    node.keep_logs(NAMESPACE, "daemonset/leaktrace");
    shipped.uninstall_chart(node)?;
    no_pods(node)?;
    steps.say(&format!(
        "deploy/helm/leaktrace was installed by Helm, with podList: Ready, as confined, traces order-api, and {LONELY} as its own \
         owner, with {LONELY_LABEL}; and uninstalled"
    ));
    Ok(())
}

fn rolled_out(node: &Node, namespace: &str, what: &str) -> Result<()> {
    let mut last = None;
    // Its controller has to have seen it first.
    let waited = node.eventually(what, || {
        let asked = node.kubectl(&[
            "--namespace",
            namespace,
            "rollout",
            "status",
            what,
            "--timeout=10s",
        ]);
        let done = asked.is_ok();
        last = asked.err();
        Ok(done)
    });
    if waited.is_err() {
        node.keep_logs(namespace, what);
        let events = node.kubectl(&[
            "--namespace",
            namespace,
            "get",
            "events",
            "--sort-by=.lastTimestamp",
        ]);
        let events = events.unwrap_or_default();
        println!("{events}");
    }
    waited.with_context(|| {
        format!(
            "{what}: {}",
            last.map(|error| error.to_string()).unwrap_or_default()
        )
    })
}

/// The one pod of leaktrace, and how to ask it.
fn daemon(node: &Node) -> Result<(Pod, Asked)> {
    let mut pods = running(node, NAMESPACE)?;
    ensure!(pods.len() == 1, "leaktrace runs in {} pods", pods.len());
    let pod = pods.remove(0);
    ensure!(pod.owner == "leaktrace", "{} is of {}", pod.name, pod.owner);
    let asked = Asked {
        address: format!("{}:{PORT}", pod.address),
    };
    asked.page("/readyz")?;
    Ok((pod, asked))
}

/// Each has to be traced; answers the age in seconds of the one that was the oldest when it was seen.
fn all_traced(pods: &[Pod], asked: &Asked, limit: Duration) -> Result<f64> {
    let mut oldest = 0.0_f64;
    for pod in pods {
        let age = pod
            .is_traced(asked, limit)
            .with_context(|| pod.name.clone())?;
        oldest = oldest.max(age);
    }
    Ok(oldest)
}

/// Each has to be forgotten; answers the seconds that the slowest took.
fn all_forgotten(pods: &[Pod], node: &Node, asked: &Asked) -> Result<f64> {
    let mut slowest = 0.0_f64;
    for pod in pods {
        slowest = slowest.max(pod.is_forgotten(node, asked)?);
    }
    Ok(slowest)
}

/// What leaks is said to, and only that; the probes hear births.
fn judged(node: &Node, asked: &Asked) -> Result<()> {
    let web = ["target=\"shop/web/server", "main.handle"];
    let mut metrics = String::new();
    node.eventually("both pods of web are judged", || {
        metrics = asked.page("/metrics")?;
        let leaks = sum(&metrics, "leaktrace_leak", &web);
        Ok(leaks >= 2.0)
    })?;
    let [target, site] = web;
    let stuck = sum(
        &metrics,
        "leaktrace_goroutines",
        &[target, site, "state=\"chan send\""],
    );
    ensure!(stuck > 40.0, "{stuck} goroutines of web are stuck");
    let born = sum(
        &metrics,
        "leaktrace_goroutines_created_total",
        &[target, site],
    );
    ensure!(born > 0.0, "no birth was heard in web");
    let api = sum(&metrics, "leaktrace_leak", &["target=\"shop/order-api/"]);
    ensure!(api == 0.0, "order-api is said to leak");
    Ok(())
}

/// Waits until leaktrace has no pod.
fn no_pods(node: &Node) -> Result<()> {
    node.eventually("the daemon's pod is gone", || {
        let pods = node.json(&["get", "pods", "--namespace", NAMESPACE])?;
        Ok(pods["items"].as_array().is_some_and(Vec::is_empty))
    })
}
