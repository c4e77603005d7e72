//! What do people call this process? Systemd unit and container from its cgroup, pod from the kubelet's log
//! folders. Pure: text in, names out.

/// What a cgroup path tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Systemd unit, such as `nginx.service`; not of a process in a container.
    pub unit: Option<String>,
    /// Id of the container, the innermost one.
    pub container: Option<String>,
    /// Unique id of the pod, with dashes.
    pub pod_uid: Option<String>,
}

/// Longest name that is taken from a path.
const MOST_BYTES: usize = 253;

/// Reads `/proc/PID/cgroup`: cgroup v1 has a line for each controller, v2 the line `0::`, a mixture both.
#[must_use]
pub fn place(cgroups: &str) -> Place {
    let mut best = Place::default();
    for line in cgroups.lines() {
        // hierarchy:controllers:path, and the path may hold colons.
        let Some(path) = line.splitn(3, ':').nth(2) else {
            continue;
        };
        let found = of_path(path);
        if best.container.is_none() && found.container.is_some() {
            best.container = found.container;
            best.unit = None;
        }
        best.pod_uid = best.pod_uid.or(found.pod_uid);
        if best.container.is_none() {
            best.unit = best.unit.or(found.unit);
        }
    }
    best
}

fn of_path(path: &str) -> Place {
    let mut place = Place::default();
    let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
    // containerd's own client puts its containers into /NAMESPACE/ID.
    if let Some(first) = parts.peek()
        && (*first == "default" || *first == "moby")
        && let [_, id] = parts.clone().collect::<Vec<_>>()[..]
    {
        place.container = Some(shortened(id));
        return place;
    }
    for part in parts {
        if let Some(uid) = pod_uid(part) {
            place.pod_uid = Some(uid);
        }
        if let Some(id) = container(part) {
            // Whatever lies deeper is of the container's own making, unless that is a container again.
            (place.container, place.unit) = (Some(id), None);
        } else if place.container.is_none() && is_unit(part) {
            place.unit = Some(unescaped(part));
        }
    }
    place
}

/// A part of the path that names a container: 64 hexadecimal digits, alone (cgroupfs: `/docker/ID`,
/// `/kubepods/burstable/podUID/ID`, `/ecs/TASK/ID`), in a scope of systemd's (`docker-ID.scope`,
/// `cri-containerd-ID.scope`, `crio-ID.scope`, `libpod-ID.scope`) or after colons
/// (`kubepods-burstable-podUID.slice:cri-containerd:ID`). `crio-conmon-ID.scope` and `libpod-conmon-ID.scope` hold
/// the container's keeper.
fn container(part: &str) -> Option<String> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    let (before, id) = match name.rsplit_once([':', '-']) {
        Some((before, id)) => (before, id),
        None => ("", name),
    };
    let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_id && !before.ends_with("conmon")).then(|| id.to_owned())
}

/// `podUID`, or `kubepods-burstable-podU_I_D.slice`, where systemd wants no dashes.
fn pod_uid(part: &str) -> Option<String> {
    let part = part.split_once(':').map_or(part, |(slice, _)| slice);
    let name = part.strip_suffix(".slice").unwrap_or(part);
    let uid = match name.rsplit_once("-pod") {
        Some((before, uid)) if before.contains("kubepods") => uid,
        Some(_) => return None,
        None => name.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-");
    let is_uid = |uid: &str| {
        // A static pod's is the hash of its manifest.
        let hexadecimal = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        (uid.len() == 36 && uid.split('-').count() == 5 && uid.split('-').all(hexadecimal))
            || (uid.len() == 32 && hexadecimal(uid))
    };
    is_uid(&uid).then_some(uid)
}

/// A service or a scope. `user@1000.service` holds the user's own units deeper down.
fn is_unit(part: &str) -> bool {
    part.ends_with(".service") || part.ends_with(".scope")
}

/// systemd writes bytes that a path may not hold as `\x2d` (systemd.unit(5), "String escaping").
fn unescaped(unit: &str) -> String {
    let mut text = String::new();
    let mut rest = unit;
    while let Some((before, after)) = rest.split_once("\\x") {
        text.push_str(before);
        let code = after
            .get(..2)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code.filter(u8::is_ascii_graphic) {
            Some(byte) => {
                text.push(char::from(byte));
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                text.push_str("\\x");
                rest = after;
            }
        }
    }
    text.push_str(rest);
    shortened(&text)
}

pub(super) fn shortened(name: &str) -> String {
    name.chars().take(MOST_BYTES).collect()
}

/// What the kubelet's log folders tell of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Name of the container in it; "" when not known.
    pub container: String,
}

/// A name in `/var/log/containers`, `POD_NAMESPACE_CONTAINER-ID.log`: the container's id, and what it is. No part of it
/// may hold an underscore.
#[must_use]
pub fn container_log(file: &str) -> Option<(String, Pod)> {
    let (names, id) = file.strip_suffix(".log")?.rsplit_once('-')?;
    let [name, namespace, container] = names.split('_').collect::<Vec<_>>()[..] else {
        return None;
    };
    let pod = Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        container: container.to_owned(),
    };
    Some((id.to_owned(), pod))
}

/// A name in `/var/log/pods`, `NAMESPACE_POD_UID`: the pod's unique id, and what it is.
#[must_use]
pub fn pod_folder(folder: &str) -> Option<(String, Pod)> {
    let [namespace, name, uid] = folder.split('_').collect::<Vec<_>>()[..] else {
        return None;
    };
    let pod = Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        container: String::new(),
    };
    Some((uid.to_owned(), pod))
}

/// What made a pod, by its name alone: Deployments add the hash of a template and five characters, DaemonSets and Jobs
/// five characters, StatefulSets a number. The characters are those of k8s.io/apimachinery/pkg/util/rand, which leave
/// out vowels and what looks like them, so that few real words are taken for one.
#[must_use]
pub fn owner(pod: &str) -> &str {
    let random = |text: &str| {
        text.bytes()
            .all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte))
    };
    let Some((before, last)) = pod
        .rsplit_once('-')
        .filter(|(before, _)| !before.is_empty())
    else {
        return pod;
    };
    if !last.is_empty() && last.len() <= 4 && last.bytes().all(|byte| byte.is_ascii_digit()) {
        return before;
    }
    if last.len() != 5 || !random(last) {
        return pod;
    }
    match before.rsplit_once('-') {
        Some((deployment, hash))
            if !deployment.is_empty() && (6..=10).contains(&hash.len()) && random(hash) =>
        {
            deployment
        }
        _ => before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4e5021a7f3b2c1d09f8e7d6c5b4a39281706f5e4d3c2b1a0998877665544332f";
    const OUTER: &str = "aa5021a7f3b2c1d09f8e7d6c5b4a39281706f5e4d3c2b1a0998877665544332f";
    const UID: &str = "c19ccb16-6c3a-4b2c-9f34-a1b2c3d4e5f6";

    /// Path with ID, OUTER, UID and U_I_D filled in; unit; whether there is a container; whether there is a pod.
    fn check(cgroups: &str, unit: Option<&str>, container: Option<&str>, pod: bool) {
        let text = (cgroups.replace("U_I_D", &UID.replace('-', "_")))
            .replace("OUTER", OUTER)
            .replace("UID", UID)
            .replace("ID", ID);
        let expected = Place {
            unit: unit.map(str::to_owned),
            container: container.map(|id| id.replace("ID", ID)),
            pod_uid: pod.then(|| UID.to_owned()),
        };
        assert_eq!(place(&text), expected, "{text}");
    }

    #[test]
    fn docker() {
        check(
            "12:memory:/docker/ID\n1:name=systemd:/docker/ID\n0::/docker/ID\n",
            None,
            Some("ID"),
            false,
        );
        check(
            "0::/system.slice/docker-ID.scope\n",
            None,
            Some("ID"),
            false,
        );
        // Rootless.
        check(
            "0::/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope",
            None,
            Some("ID"),
            false,
        );
        check("0::/ecs/0f9f8e7d6c5b4a39/ID", None, Some("ID"), false);
    }

    #[test]
    fn containerd() {
        check("0::/default/leak1", None, Some("leak1"), false);
        check(
            "9:name=systemd:/kubepods/burstable/podUID/ID\n0::/kubepods/burstable/podUID/ID",
            None,
            Some("ID"),
            true,
        );
        check("0::/kubepods/podUID/ID", None, Some("ID"), true);
        check(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_I_D.slice/cri-containerd-ID.scope",
            None,
            Some("ID"),
            true,
        );
        check(
            "0::/kubepods.slice/kubepods-podU_I_D.slice/cri-containerd-ID.scope",
            None,
            Some("ID"),
            true,
        );
        check(
            "11:pids:/system.slice/containerd.service/kubepods-besteffort-podU_I_D.slice:cri-containerd:ID",
            None,
            Some("ID"),
            true,
        );
    }

    #[test]
    fn cri_o_and_podman() {
        check(
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU_I_D.slice/crio-ID.scope",
            None,
            Some("ID"),
            true,
        );
        check(
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU_I_D.slice/crio-ID.scope/container",
            None,
            Some("ID"),
            true,
        );
        check(
            "0::/machine.slice/libpod-ID.scope/container",
            None,
            Some("ID"),
            false,
        );
        check("0::/libpod_parent/libpod-ID", None, Some("ID"), false);
        check(
            "0::/machine.slice/libpod-conmon-ID.scope",
            Some(&format!("libpod-conmon-{ID}.scope")),
            None,
            false,
        );
    }

    #[test]
    fn the_innermost_container_counts() {
        // A node of kind: a container that holds a kubelet.
        check(
            "0::/docker/OUTER/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podU_I_D.slice/cri-containerd-ID.scope",
            None,
            Some("ID"),
            true,
        );
        check("0::/docker/OUTER/docker/ID", None, Some("ID"), false);
        // systemd in a container has units of its own.
        check(
            "0::/docker/ID/system.slice/ssh.service",
            None,
            Some("ID"),
            false,
        );
    }

    #[test]
    fn systemd() {
        check(
            "0::/system.slice/nginx.service\n",
            Some("nginx.service"),
            None,
            false,
        );
        check(
            "12:memory:/system.slice/nginx.service\n1:name=systemd:/system.slice/nginx.service\n0::/system.slice/nginx.service",
            Some("nginx.service"),
            None,
            false,
        );
        check(
            r"0::/system.slice/system-getty.slice/getty@tty1.service",
            Some("getty@tty1.service"),
            None,
            false,
        );
        check(
            r"0::/system.slice/system-my\x2dapp.slice/my\x2dapp@1.service",
            Some("my-app@1.service"),
            None,
            false,
        );
        check(
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/shop.service",
            Some("shop.service"),
            None,
            false,
        );
        check(
            "0::/user.slice/user-0.slice/session-3.scope",
            Some("session-3.scope"),
            None,
            false,
        );
        // A service that was given its own subtree.
        check(
            "0::/system.slice/etcd.service/payload",
            Some("etcd.service"),
            None,
            false,
        );
        check("9:name=systemd:/\n8:pids:/\n0::/", None, None, false);
        check("", None, None, false);
        check("nonsense\n0:\n::::\n", None, None, false);
        check(
            "0::/init.scope/pod/podX/pod-",
            Some("init.scope"),
            None,
            false,
        );
        check(r"0::/a\x2.service", Some(r"a\x2.service"), None, false);
    }

    #[test]
    fn the_kubelets_log_folders() {
        let file = format!("web-7d4b9c6f5d-x2x7k_shop_server-{ID}.log");
        let (id, pod) = container_log(&file).expect("a container's log");
        assert_eq!(id, ID);
        assert_eq!(
            (&*pod.name, &*pod.namespace, &*pod.container),
            ("web-7d4b9c6f5d-x2x7k", "shop", "server")
        );
        let (uid, pod) = pod_folder(&format!("shop_web-0_{UID}")).expect("a pod's folder");
        assert_eq!(uid, UID);
        assert_eq!(
            (&*pod.name, &*pod.namespace, &*pod.container),
            ("web-0", "shop", "")
        );
        for nonsense in ["", "x.log", "a_b.log", "a_b_c_d-e.log", "_-.log"] {
            assert_eq!(container_log(nonsense), None, "{nonsense}");
        }
        assert_eq!(pod_folder("shop_web"), None);
    }

    #[test]
    fn what_made_a_pod() {
        for (pod, made_by) in [
            ("web-7d4b9c6f5d-x2x7k", "web"),
            ("shop-api-6b8f9-x2x7k", "shop-api-6b8f9"),
            ("node-exporter-x2x7k", "node-exporter"),
            ("etcd-0", "etcd"),
            ("my-db-12", "my-db"),
            ("etcd-control-plane", "etcd-control-plane"),
            ("web", "web"),
            ("x2x7k", "x2x7k"),
            ("-x2x7k", "-x2x7k"),
            ("", ""),
        ] {
            assert_eq!(owner(pod), made_by, "{pod}");
        }
    }
}
