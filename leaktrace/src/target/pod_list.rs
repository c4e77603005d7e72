//! What a kubelet or an API server tells of the pods: labels, owners, names of containers. Pure: its answer in, pods out.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::names::{self, Pod};

/// Pods by their unique id, as cgroups have it.
pub type PodList = HashMap<String, Listed>;

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Namespace and name; which container is not said here.
    pub pod: Pod,
    /// What made it, such as a Deployment; its own name when nothing did.
    pub owner: String,
    /// `key=value`, in the order of the keys.
    pub labels: Vec<String>,
    /// Names of its containers by their ids.
    pub containers: HashMap<String, String>,
}

/// Pods that are taken: a node runs some hundred, and the list may be that of a whole cluster.
const MOST_PODS: usize = 20_000;
/// Labels of one pod, and containers.
const MOST_LABELS: usize = 256;

// k8s.io/api/core/v1/types.go and k8s.io/apimachinery/pkg/apis/meta/v1/types.go. Go writes null for what is empty.
#[derive(Deserialize)]
struct List {
    #[serde(default)]
    kind: String,
    items: Option<Vec<Item>>,
}

#[derive(Deserialize)]
struct Item {
    metadata: Metadata,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    namespace: String,
    uid: String,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<Owner>>,
}

#[derive(Deserialize)]
struct Owner {
    kind: String,
    name: String,
    controller: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    container_statuses: Option<Vec<Container>>,
    init_container_statuses: Option<Vec<Container>>,
    ephemeral_container_statuses: Option<Vec<Container>>,
}

#[derive(Deserialize)]
struct Container {
    name: String,
    /// `containerd://ID`; missing until it was made.
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

/// Reads a PodList in JSON.
///
/// # Errors
/// A sentence, when it is none.
pub fn parse(json: &[u8]) -> Result<PodList, String> {
    let list: List = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    if list.kind != "PodList" {
        return Err(format!("it is a \"{}\"", names::shortened(&list.kind)));
    }
    let mut pods = PodList::new();
    for item in list.items.unwrap_or_default().into_iter().take(MOST_PODS) {
        // The cgroup of a static pod carries the hash of its manifest, by which the kubelet knows it; the API server calls the
        // pod that stands for it there by another id (pkg/kubelet/types/pod_update.go: ConfigHashAnnotationKey).
        let annotations = item.metadata.annotations.as_ref();
        let hash = annotations.and_then(|all| all.get("kubernetes.io/config.hash").cloned());
        let uid = item.metadata.uid.clone();
        let listed = listed(item);
        if let Some(hash) = hash.filter(|hash| *hash != uid) {
            pods.insert(hash, listed.clone());
        }
        pods.insert(uid, listed);
    }
    Ok(pods)
}

fn listed(item: Item) -> Listed {
    let owner = names::shortened(&owner(&item.metadata));
    let Metadata {
        name,
        namespace,
        labels,
        ..
    } = item.metadata;
    let status = item.status.map(|status| {
        [
            status.container_statuses,
            status.init_container_statuses,
            status.ephemeral_container_statuses,
        ]
    });
    let containers = (status.into_iter().flatten().flatten().flatten())
        .take(MOST_LABELS)
        .filter_map(|container| {
            let id = container.container_id?;
            let (_, id) = id.split_once("://")?;
            Some((id.to_owned(), names::shortened(&container.name)))
        })
        .collect();
    Listed {
        pod: Pod {
            namespace: names::shortened(&namespace),
            name: names::shortened(&name),
            container: String::new(),
        },
        owner,
        labels: (labels.unwrap_or_default().into_iter())
            .take(MOST_LABELS)
            .map(|(key, value)| format!("{key}={value}"))
            .collect(),
        containers,
    }
}

/// What people would look for: not the ReplicaSet but its Deployment, not the node but the static pod.
fn owner(metadata: &Metadata) -> String {
    let references = metadata.owner_references.iter().flatten();
    let Some(owner) = references
        .into_iter()
        .find(|owner| owner.controller == Some(true))
    else {
        return metadata.name.clone();
    };
    let (name, suffix) = match owner.kind.as_str() {
        "ReplicaSet" => {
            let labels = metadata.labels.as_ref();
            let hash = labels.and_then(|labels| labels.get("pod-template-hash"));
            (&owner.name, hash)
        }
        "Node" => (&metadata.name, Some(&owner.name)),
        _ => (&owner.name, None),
    };
    let without = suffix.and_then(|suffix| name.strip_suffix(suffix.as_str())?.strip_suffix('-'));
    without.unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kubectl prints it, shortened to what matters.
    const ANSWER: &str = r#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[
        {"metadata":{"name":"web-7d4b9c6f5d-x2x7k","generateName":"web-7d4b9c6f5d-","namespace":"shop","uid":"c19ccb16",
            "labels":{"app":"web","pod-template-hash":"7d4b9c6f5d"},
            "ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"web-7d4b9c6f5d","uid":"1","controller":true}]},
         "spec":{"containers":[{"name":"server"}]},
         "status":{"phase":"Running","containerStatuses":[{"name":"server","containerID":"containerd://4e50"},{"name":"side"}],
            "initContainerStatuses":[{"name":"setup","containerID":"cri-o://5e50"}]}},
        {"metadata":{"name":"web-7d4b9c6f5d-x2x7k","namespace":"test","uid":"d19ccb16"}},
        {"metadata":{"name":"etcd-node1","namespace":"kube-system","uid":"e19ccb16","annotations":{"kubernetes.io/config.hash":"f00d"},
            "ownerReferences":[{"kind":"Node","name":"node1","controller":true}]},"status":{"containerStatuses":null}},
        {"metadata":{"name":"agent-x2x7k","namespace":"kube-system","uid":"f19ccb16",
            "ownerReferences":[{"kind":"Someone","name":"other"},{"kind":"DaemonSet","name":"agent","controller":true}]}}
    ]}"#;

    #[test]
    fn pods_have_their_owners_labels_and_containers() {
        let pods = parse(ANSWER.as_bytes()).expect("it is a list");
        let web = &pods["c19ccb16"];
        assert_eq!((&*web.pod.namespace, &*web.owner), ("shop", "web"));
        assert_eq!(web.labels, ["app=web", "pod-template-hash=7d4b9c6f5d"]);
        assert_eq!(web.containers["4e50"], "server");
        assert_eq!(web.containers["5e50"], "setup");
        assert_eq!(web.containers.len(), 2);
        // It is only called as if a Deployment had made it.
        assert_eq!(pods["d19ccb16"].owner, "web-7d4b9c6f5d-x2x7k");
        assert_eq!(pods["e19ccb16"].owner, "etcd");
        assert_eq!(pods["f00d"], pods["e19ccb16"]);
        assert_eq!(pods["f19ccb16"].owner, "agent");
        assert_eq!(pods.len(), 5);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let status = r#"{"kind":"Status","status":"Failure","message":"forbidden","code":403}"#;
        assert_eq!(
            parse(status.as_bytes()),
            Err("it is a \"Status\"".to_owned())
        );
        assert!(parse(b"<html>").is_err());
        assert_eq!(
            parse(br#"{"kind":"PodList","items":null}"#),
            Ok(PodList::new())
        );
    }
}
