//! Which processes shall be traced? Pure.

use glob::Pattern;

use super::Pid;
use super::whereabouts::Whereabouts;

/// What the user asked for. An exclusion beats everything but a pid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Every Go program.
    pub all: bool,
    /// These processes.
    pub pids: Vec<Pid>,
    /// Those that match any of these.
    pub include: Patterns,
    /// Not those that match any of these.
    pub exclude: Patterns,
}

/// Processes by what they are called; `*` and `?` stand for anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns {
    /// Path of the executable.
    pub exe: Vec<Pattern>,
    /// Name (`comm`).
    pub name: Vec<Pattern>,
    /// Systemd unit.
    pub unit: Vec<Pattern>,
    /// Id of the container, or its name in the pod; of an id the beginning is enough.
    pub container: Vec<Pattern>,
    /// Pod.
    pub pod: Vec<Pattern>,
    /// Label of the pod, as `key=value`.
    pub pod_label: Vec<Pattern>,
    /// Namespace of the pod.
    pub namespace: Vec<Pattern>,
}

/// What a selection looks at.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'s> {
    /// Its number.
    pub pid: Pid,
    /// Its name.
    pub name: &'s str,
    /// Path of its executable.
    pub exe: &'s str,
    /// Where it lives.
    pub place: &'s Whereabouts,
}

impl Patterns {
    /// Whether nobody is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the process is one of those.
    #[must_use]
    pub fn matches(&self, subject: Subject<'_>) -> bool {
        self.find(subject).is_some()
    }

    /// What of the process matches, and the pattern that it matches.
    fn find(&self, subject: Subject<'_>) -> Option<(&'static str, &str)> {
        let exe = subject
            .exe
            .strip_suffix(" (deleted)")
            .unwrap_or(subject.exe);
        let place = subject.place;
        let subjects = [
            ("executable", &self.exe, exe),
            ("name", &self.name, subject.name),
            ("unit", &self.unit, &*place.unit),
            ("container", &self.container, &*place.container),
            ("pod", &self.pod, &*place.pod),
            ("namespace", &self.namespace, &*place.namespace),
        ];
        // What is not known is "", and matched by nothing, not even by a star.
        let known = subjects.into_iter().filter(|(_, _, text)| !text.is_empty());
        let mut by_text = known.filter_map(|(what, patterns, text)| {
            let found = patterns.iter().find(|pattern| pattern.matches(text));
            found.map(|pattern| (what, pattern.as_str()))
        });
        let by_id = || {
            let mut patterns = self.container.iter().map(Pattern::as_str);
            patterns.find(|id| id.len() >= LEAST_OF_AN_ID && place.container_id.starts_with(id))
        };
        let by_label = || {
            let mut patterns = self.pod_label.iter();
            let found =
                patterns.find(|pattern| place.labels.iter().any(|one| pattern.matches(one)));
            found.map(|pattern| ("pod's label", pattern.as_str()))
        };
        by_text
            .next()
            .or_else(|| by_id().map(|id| ("container", id)))
            .or_else(by_label)
    }
}

/// Digits of a container's id that are enough to name it.
const LEAST_OF_AN_ID: usize = 6;

impl Selection {
    /// Whether only processes that were named by their number are wanted.
    #[must_use]
    pub fn only_pids(&self) -> bool {
        !self.all && self.include.is_empty()
    }

    /// Whether this process is wanted.
    ///
    /// # Errors
    /// The reason why it is not, as a sentence.
    pub fn judge(&self, subject: Subject<'_>) -> Result<(), String> {
        if self.pids.contains(&subject.pid) {
            return Ok(());
        }
        if let Some((what, pattern)) = self.exclude.find(subject) {
            return Err(format!("its {what} is excluded by \"{pattern}\""));
        }
        if self.all || self.include.find(subject).is_some() {
            return Ok(());
        }
        Err("it is none of those that were asked for".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        let compile = |text: &&str| Pattern::new(text).expect("a pattern");
        texts.iter().map(compile).collect()
    }

    fn check(selection: &Selection, pid: i32, name: &str, exe: &str) -> bool {
        let subject = Subject {
            pid: Pid(pid),
            name,
            exe,
            place: &Whereabouts::default(),
        };
        selection.judge(subject).is_ok()
    }

    #[test]
    fn any_of_the_wishes_will_do() {
        let selection = Selection {
            pids: vec![Pid(7)],
            include: Patterns {
                exe: patterns(&["/opt/*/server"]),
                name: patterns(&["etcd"]),
                ..Patterns::default()
            },
            ..Selection::default()
        };
        assert!(check(&selection, 7, "x", "/x"));
        assert!(check(&selection, 8, "x", "/opt/shop/server"));
        assert!(check(&selection, 8, "x", "/opt/shop/server (deleted)"));
        assert!(check(&selection, 8, "etcd", "/x"));
        assert!(!check(&selection, 8, "etcdctl", "/opt/server"));
    }

    #[test]
    fn an_exclusion_beats_all_but_a_pid() {
        let selection = Selection {
            all: true,
            pids: vec![Pid(7)],
            exclude: Patterns {
                exe: patterns(&["/usr/bin/*"]),
                name: patterns(&["kube*"]),
                pod: patterns(&["*"]),
                ..Patterns::default()
            },
            ..Selection::default()
        };
        assert!(check(&selection, 8, "x", "/opt/x"));
        assert!(!check(&selection, 8, "x", "/usr/bin/x"));
        assert!(!check(&selection, 8, "kubelet", "/opt/kubelet"));
        assert!(check(&selection, 7, "kubelet", "/usr/bin/kubelet"));
    }

    #[test]
    fn by_where_it_lives() {
        let place = Whereabouts {
            unit: "shop.service".to_owned(),
            container_id: "4e5021a7f3b2".to_owned(),
            container: "server".to_owned(),
            pod: "web-0".to_owned(),
            namespace: "shop".to_owned(),
            owner: "web".to_owned(),
            labels: vec!["app=web".to_owned(), "tier=front".to_owned()],
            unlisted: false,
        };
        let subject = Subject {
            pid: Pid(8),
            name: "x",
            exe: "/x",
            place: &place,
        };
        let wanted = |include: Patterns| {
            let selection = Selection {
                include,
                ..Selection::default()
            };
            selection.judge(subject).is_ok()
        };
        let container = |text| Patterns {
            container: patterns(&[text]),
            ..Patterns::default()
        };
        assert!(wanted(container("4e5021a7")));
        assert!(wanted(container("server")));
        assert!(!wanted(container("4e")), "too little of an id");
        assert!(!wanted(container("21a7f3b2")));
        assert!(wanted(Patterns {
            namespace: patterns(&["sh*"]),
            ..Patterns::default()
        }));
        assert!(wanted(Patterns {
            unit: patterns(&["shop.service"]),
            ..Patterns::default()
        }));
        assert!(wanted(Patterns {
            pod: patterns(&["web-?"]),
            ..Patterns::default()
        }));
        let label = |text| Patterns {
            pod_label: patterns(&[text]),
            ..Patterns::default()
        };
        assert!(wanted(label("tier=front")));
        assert!(wanted(label("app=*")));
        assert!(!wanted(label("app=webs")));
        assert!(!wanted(label("app")), "a label is its value, too");
    }
}
