//! The `target` label of metrics: stable across restarts, and each given to one process at a time.

use std::collections::BTreeSet;

/// The labels in use.
#[derive(Default)]
pub struct Labels {
    taken: BTreeSet<String>,
}

impl Labels {
    /// The name itself for the first process of this name, `name#2` for the second; a number that was given back
    /// is used again, so that a restarted process gets what it had.
    pub fn take(&mut self, name: &str) -> String {
        let numbered = |number: u32| match number {
            1 => name.to_owned(),
            number => format!("{name}#{number}"),
        };
        // There are not more processes than that.
        let mut labels = (1..u32::MAX).map(numbered);
        let free = labels.find(|label| !self.taken.contains(label));
        let label = free.unwrap_or_else(|| name.to_owned());
        self.taken.insert(label.clone());
        label
    }

    /// The process is no more.
    pub fn give_back(&mut self, label: &str) {
        self.taken.remove(label);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_gets_the_label_that_it_had() {
        let mut labels = Labels::default();
        assert_eq!(labels.take("server"), "server");
        assert_eq!(labels.take("server"), "server#2");
        assert_eq!(labels.take("server"), "server#3");
        assert_eq!(labels.take("other"), "other");
        labels.give_back("server#2");
        assert_eq!(labels.take("server"), "server#2");
        labels.give_back("server");
        assert_eq!(labels.take("server"), "server");
    }
}
