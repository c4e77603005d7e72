//! Which processes shall be traced? Pure.

use glob::Pattern;

use super::Pid;

/// What the user asked for. An exclusion beats everything but a pid.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Every Go program.
    pub all: bool,
    /// These processes.
    pub pids: Vec<Pid>,
    /// Those whose executable's path matches.
    pub exes: Vec<Pattern>,
    /// Those with this name (`comm`).
    pub names: Vec<Pattern>,
    /// Not those whose executable's path matches.
    pub exclude_exes: Vec<Pattern>,
    /// Not those with this name.
    pub exclude_names: Vec<Pattern>,
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
}

impl Selection {
    /// Whether only processes that were named by their number are wanted.
    #[must_use]
    pub fn only_pids(&self) -> bool {
        !self.all && self.exes.is_empty() && self.names.is_empty()
    }

    /// Whether this process is wanted; if not, why, as a sentence.
    ///
    /// # Errors
    /// The reason why it is not wanted.
    pub fn judge(&self, subject: Subject<'_>) -> Result<(), String> {
        if self.pids.contains(&subject.pid) {
            return Ok(());
        }
        let exe = subject
            .exe
            .strip_suffix(" (deleted)")
            .unwrap_or(subject.exe);
        let matching = |patterns: &'_ [Pattern], text: &str| {
            let found = patterns.iter().find(|pattern| pattern.matches(text));
            found.map(|pattern| pattern.as_str().to_owned())
        };
        if let Some(pattern) = matching(&self.exclude_exes, exe) {
            return Err(format!("its executable is excluded by \"{pattern}\""));
        }
        if let Some(pattern) = matching(&self.exclude_names, subject.name) {
            return Err(format!("its name is excluded by \"{pattern}\""));
        }
        let wanted = self.all
            || matching(&self.exes, exe).is_some()
            || matching(&self.names, subject.name).is_some();
        if wanted {
            return Ok(());
        }
        Err("neither its pid, its executable nor its name was asked for".to_owned())
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
        };
        selection.judge(subject).is_ok()
    }

    #[test]
    fn any_of_the_wishes_will_do() {
        let selection = Selection {
            pids: vec![Pid(7)],
            exes: patterns(&["/opt/*/server"]),
            names: patterns(&["etcd"]),
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
            exclude_exes: patterns(&["/usr/bin/*"]),
            exclude_names: patterns(&["kube*"]),
            ..Selection::default()
        };
        assert!(check(&selection, 8, "x", "/opt/x"));
        assert!(!check(&selection, 8, "x", "/usr/bin/x"));
        assert!(!check(&selection, 8, "kubelet", "/opt/kubelet"));
        assert!(check(&selection, 7, "kubelet", "/usr/bin/kubelet"));
    }
}
