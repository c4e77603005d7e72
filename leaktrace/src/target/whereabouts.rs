//! Where a process lives: unit, container, pod. Reads its cgroup and the kubelet's log folders on this machine, and has the
//! kubelet or the API server asked where that was configured.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::Pid;
use super::names::{self, Pod};
use super::pod_list::PodList;
use super::pod_source::{Asker, PodSource};
use crate::clock::monotonic_ns;

/// What is known of where a process lives; "" for what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// Systemd unit.
    pub unit: String,
    /// Id of the container.
    pub container_id: String,
    /// Name of the container in its pod.
    pub container: String,
    /// Name of the pod.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// What made the pod, such as a Deployment: as the list of pods has it, else as the pod's name tells ([`names::owner`]).
    pub owner: String,
    /// Labels of the pod, `key=value`, if it is in the list.
    pub labels: Vec<String>,
    /// Whether the pod may be in the list when that is told the next time.
    pub unlisted: bool,
}

impl Whereabouts {
    /// Of a process, by its cgroup; the pod by its log folder.
    #[must_use]
    pub fn of(pid: Pid, pods: &mut Pods) -> Self {
        // A process that may not be looked into lives nowhere.
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let place = names::place(&cgroups);
        let container_id = place.container.unwrap_or_default();
        let mut found = Self {
            unit: place.unit.unwrap_or_default(),
            ..Self::default()
        };
        if let Some(uid) = &place.pod_uid {
            let pod = pods.find(&container_id, uid);
            found.owner = names::owner(&pod.name).to_owned();
            (found.namespace, found.pod, found.container) =
                (pod.namespace, pod.name, pod.container);
            pods.complete(&mut found, &container_id, uid);
        }
        found.container_id = container_id;
        found
    }

    /// The name that stays the same across restarts: `namespace/owner/container`, else the service; `None` where
    /// neither is known.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        if !self.pod.is_empty() {
            let mut name = format!("{}/{}", self.namespace, self.owner);
            if !self.container.is_empty() {
                name = format!("{name}/{}", self.container);
            }
            return Some(name);
        }
        // The scope of a login holds whatever was started there.
        self.unit.ends_with(".service").then(|| self.unit.clone())
    }
}

/// The pods of this machine, by the folders in which the kubelet keeps their logs, and by the list of who is asked.
pub struct Pods {
    asker: Option<Asker>,
    listed: PodList,
    logs: PathBuf,
    containers: HashMap<String, Pod>,
    by_uid: HashMap<String, Pod>,
    read: Option<Instant>,
    /// When the folders had last been changed by then, if that was long enough before to be told from a change since.
    changed: [Option<SystemTime>; 2],
}

/// Where the kubelet keeps logs.
const LOGS: &str = "/var/log";

/// A container that is not known makes the folders be read again, if they were changed or not read for so long.
const READ_EVERY: Duration = Duration::from_secs(1);

/// Changes nearer to each other may have the same time: the clock of files ticks every 10 ms at worst.
const TICK: Duration = Duration::from_millis(50);

/// Names that are read of each folder: a node runs some hundred pods.
const MOST_NAMES: usize = 20_000;

impl Default for Pods {
    fn default() -> Self {
        Self::at(LOGS)
    }
}

impl Pods {
    /// With the folders `containers` and `pods` below `logs`.
    #[must_use]
    pub fn at(logs: impl Into<PathBuf>) -> Self {
        Self {
            asker: None,
            listed: PodList::new(),
            logs: logs.into(),
            containers: HashMap::new(),
            by_uid: HashMap::new(),
            read: None,
            changed: [None; 2],
        }
    }

    /// The same, and whoever is asked for what the folders do not tell.
    #[must_use]
    pub fn asking(self, source: &PodSource) -> Self {
        Self {
            asker: Asker::start(source),
            ..self
        }
    }

    /// Has the list of pods told, because of a process that is new, or `again` because of one that is not.
    pub fn ask(&mut self, again: bool) {
        if let Some(asker) = &mut self.asker {
            asker.ask(again, monotonic_ns());
        }
    }

    /// Takes the list of pods if it has been told; whether it has.
    pub fn hear(&mut self) -> bool {
        let asker = self.asker.as_mut();
        let told = asker.and_then(|asker| asker.answer(monotonic_ns()));
        let Some(listed) = told else {
            return false;
        };
        self.listed = listed;
        true
    }

    /// Whether a pod that is not in the list may soon be.
    #[must_use]
    pub fn is_hopeful(&self) -> bool {
        self.asker.as_ref().is_some_and(Asker::is_hopeful)
    }

    /// Adds what the list has of a pod.
    fn complete(&self, place: &mut Whereabouts, container_id: &str, uid: &str) {
        let Some(listed) = self.listed.get(uid) else {
            place.unlisted = self.asker.is_some();
            return;
        };
        place.namespace.clone_from(&listed.pod.namespace);
        place.pod.clone_from(&listed.pod.name);
        place.owner.clone_from(&listed.owner);
        place.labels.clone_from(&listed.labels);
        if let Some(name) = listed.containers.get(container_id) {
            place.container.clone_from(name);
        }
    }

    /// The pod of a container, with the container's name in it; as much as is known.
    fn find(&mut self, container_id: &str, uid: &str) -> Pod {
        if let Some(pod) = self.containers.get(container_id) {
            return pod.clone();
        }
        let old = self.read.is_none_or(|read| read.elapsed() >= READ_EVERY);
        if old || self.changed.contains(&None) || self.changes() != self.changed {
            self.read_again();
        }
        let known = self.containers.get(container_id);
        known
            .or_else(|| self.by_uid.get(uid))
            .cloned()
            .unwrap_or_default()
    }

    /// When the folders were last changed.
    fn changes(&self) -> [Option<SystemTime>; 2] {
        ["containers", "pods"].map(|folder| {
            let folder = fs::metadata(self.logs.join(folder)).ok()?;
            folder.modified().ok()
        })
    }

    fn read_again(&mut self) {
        let now = SystemTime::now();
        let settled = |at: &SystemTime| now.duration_since(*at).is_ok_and(|age| age >= TICK);
        self.changed = self.changes().map(|at| at.filter(settled));
        self.containers = list(&self.logs.join("containers"))
            .filter_map(|name| names::container_log(&name))
            .collect();
        let folders = self.logs.join("pods");
        self.by_uid = list(&folders)
            .filter_map(|name| {
                let (uid, mut pod) = names::pod_folder(&name)?;
                // The link among the containers' logs is made last; a pod with one container needs none.
                let mut containers = list(&folders.join(&name)).take(2);
                if let (Some(only), None) = (containers.next(), containers.next()) {
                    pod.container = only;
                }
                Some((uid, pod))
            })
            .collect();
        self.read = Some(Instant::now());
    }
}

fn list(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .take(MOST_NAMES)
        .filter_map(|entry| entry.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4e5021a7f3b2c1d09f8e7d6c5b4a39281706f5e4d3c2b1a0998877665544332f";

    #[test]
    fn a_pod_is_found_by_its_container_or_by_its_folder() {
        let logs = tempfile::tempdir().expect("a folder");
        let make = |path: &str| fs::create_dir_all(logs.path().join(path)).expect("a folder");
        make("containers");
        make("pods/shop_web-7d4b9c6f5d-x2x7k_c19ccb16/server");
        make("pods/shop_db-0_d19ccb16/db");
        make("pods/shop_db-0_d19ccb16/backup");
        let mut pods = Pods::at(logs.path());
        // No link yet: one container is the only one, of two nobody knows which.
        let web = pods.find(ID, "c19ccb16");
        assert_eq!(
            (&*web.name, &*web.container),
            ("web-7d4b9c6f5d-x2x7k", "server")
        );
        let db = pods.find("unknown", "d19ccb16");
        assert_eq!((&*db.namespace, &*db.container), ("shop", ""));
        assert_eq!(pods.find("unknown", "unknown"), Pod::default());

        let link = format!("containers/db-0_shop_backup-{ID}.log");
        // At once: whoever is born has one name for all its life.
        fs::write(logs.path().join(link), "").expect("a file");
        assert_eq!(pods.find(ID, "d19ccb16").container, "backup");
    }

    #[test]
    fn a_name_is_the_pods_owner_or_the_service() {
        let mut place = Whereabouts {
            unit: "session-3.scope".to_owned(),
            ..Whereabouts::default()
        };
        assert_eq!(place.name(), None);
        place.unit = "nginx.service".to_owned();
        assert_eq!(place.name().as_deref(), Some("nginx.service"));
        place.namespace = "shop".to_owned();
        place.pod = "web-7d4b9c6f5d-x2x7k".to_owned();
        place.owner = names::owner(&place.pod).to_owned();
        assert_eq!(place.name().as_deref(), Some("shop/web"));
        place.container = "server".to_owned();
        assert_eq!(place.name().as_deref(), Some("shop/web/server"));
    }
}
