//! The daemon's configuration file. Pure: text in, settings out.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use glob::Pattern;
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::budget::Share;
use crate::cli::{Allowed, Details, EventsLevel, budget, duration};
use crate::target::pod_source::PodSource;
use crate::target::selection::Patterns;
use crate::verdict;

/// The file with all keys at their defaults, each explained: what `leaktrace generate config` prints.
pub const TEMPLATE: &str = include_str!("config.toml");

/// What the file says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address to serve on.
    pub listen: SocketAddr,
    /// Where it is said who may ask; "" for no such file.
    pub web_config_file: PathBuf,
    /// Who is shown stacks and paths.
    #[serde(deserialize_with = "details")]
    pub details: Details,
    /// Time between two counts of one target.
    #[serde(deserialize_with = "time")]
    pub interval: Duration,
    /// What the probes hear.
    #[serde(deserialize_with = "events")]
    pub events: EventsLevel,
    /// What a program may lose.
    #[serde(deserialize_with = "share")]
    pub budget: Allowed,
    /// What all of them together may lose.
    #[serde(deserialize_with = "share")]
    pub host_budget: Allowed,
    /// Where the kubelet keeps logs.
    pub pod_logs: PathBuf,
    /// Who is asked for the pods of this node.
    pub pod_list: PodSource,
    /// Whom to watch.
    pub watch: Names,
    /// Whom not to watch.
    pub exclude: Names,
    /// Targets that are watched in another way.
    pub target: Vec<Special>,
    /// Whether to ask the programs themselves about their leaks.
    pub confirm: bool,
    /// What the rules are tuned by.
    pub rules: verdict::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9779)),
            web_config_file: PathBuf::new(),
            details: Details::Auto,
            interval: Duration::from_secs(5),
            events: EventsLevel::Auto,
            budget: Allowed(Some(Share::DEFAULT)),
            host_budget: Allowed(Some(Share(0.05))),
            pod_logs: PathBuf::from("/var/log"),
            pod_list: PodSource::default(),
            watch: Names::default(),
            exclude: Names::default(),
            target: Vec::new(),
            confirm: false,
            rules: verdict::Config::default(),
        }
    }
}

/// Processes by what they are called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Names {
    #[serde(deserialize_with = "patterns")]
    exe: Vec<Pattern>,
    #[serde(deserialize_with = "patterns")]
    name: Vec<Pattern>,
    #[serde(deserialize_with = "patterns")]
    unit: Vec<Pattern>,
    #[serde(deserialize_with = "patterns")]
    container: Vec<Pattern>,
    #[serde(deserialize_with = "patterns")]
    pod: Vec<Pattern>,
    #[serde(deserialize_with = "patterns")]
    pod_label: Vec<Pattern>,
    #[serde(deserialize_with = "patterns")]
    namespace: Vec<Pattern>,
}

impl From<Names> for Patterns {
    fn from(names: Names) -> Self {
        Self {
            exe: names.exe,
            name: names.name,
            unit: names.unit,
            container: names.container,
            pod: names.pod,
            pod_label: names.pod_label,
            namespace: names.namespace,
        }
    }
}

/// Targets that are watched in another way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Special {
    #[serde(deserialize_with = "patterns")]
    exe: Vec<Pattern>,
    #[serde(deserialize_with = "patterns")]
    name: Vec<Pattern>,
    #[serde(deserialize_with = "patterns")]
    unit: Vec<Pattern>,
    #[serde(deserialize_with = "patterns")]
    container: Vec<Pattern>,
    #[serde(deserialize_with = "patterns")]
    pod: Vec<Pattern>,
    #[serde(deserialize_with = "patterns")]
    pod_label: Vec<Pattern>,
    #[serde(deserialize_with = "patterns")]
    namespace: Vec<Pattern>,
    /// Another level for them.
    #[serde(deserialize_with = "other_events")]
    pub events: Option<EventsLevel>,
    /// Another time between two counts.
    #[serde(deserialize_with = "other_time")]
    pub interval: Option<Duration>,
}

impl Special {
    /// Whom it is about.
    #[must_use]
    pub fn whom(&self) -> Patterns {
        Patterns {
            exe: self.exe.clone(),
            name: self.name.clone(),
            unit: self.unit.clone(),
            container: self.container.clone(),
            pod: self.pod.clone(),
            pod_label: self.pod_label.clone(),
            namespace: self.namespace.clone(),
        }
    }
}

/// Reads a file's text.
///
/// # Errors
/// A sentence that names the line.
pub fn parse(text: &str) -> Result<Config, String> {
    let config: Config = toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| {
            let before = text.get(..span.start).unwrap_or_default();
            before.matches('\n').count() + 1
        });
        match line {
            Some(line) => format!("line {line}: {}", error.message()),
            None => error.message().to_owned(),
        }
    })?;
    (config.pod_list.check()).map_err(|mistake| format!("[pod_list] url: {mistake}"))?;
    match config.target.iter().position(|one| one.whom().is_empty()) {
        Some(index) => Err(format!("[[target]] number {} names nobody", index + 1)),
        None => Ok(config),
    }
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(&String::deserialize(from)?).map_err(D::Error::custom)
}

fn other_time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    time(from).map(Some)
}

fn share<'de, D: Deserializer<'de>>(from: D) -> Result<Allowed, D::Error> {
    budget(&String::deserialize(from)?).map_err(D::Error::custom)
}

fn events<'de, D: Deserializer<'de>>(from: D) -> Result<EventsLevel, D::Error> {
    let text = String::deserialize(from)?;
    clap::ValueEnum::from_str(&text, false)
        .map_err(|_| D::Error::custom(format!("\"{text}\" is not auto, lifecycle, full or none")))
}

fn details<'de, D: Deserializer<'de>>(from: D) -> Result<Details, D::Error> {
    let text = String::deserialize(from)?;
    clap::ValueEnum::from_str(&text, false)
        .map_err(|_| D::Error::custom(format!("\"{text}\" is not auto, always or never")))
}

fn other_events<'de, D: Deserializer<'de>>(from: D) -> Result<Option<EventsLevel>, D::Error> {
    events(from).map(Some)
}

fn patterns<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Pattern>, D::Error> {
    let compile = |text: String| {
        Pattern::new(&text).map_err(|error| D::Error::custom(format!("\"{text}\": {error}")))
    };
    Vec::<String>::deserialize(from)?
        .into_iter()
        .map(compile)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_shows_every_key_at_its_default() {
        assert_eq!(parse(TEMPLATE), Ok(Config::default()));
        assert_eq!(parse(""), Ok(Config::default()));
        // A key that is set to something else must be one that the template shows.
        let keys = |text: &str| -> std::collections::BTreeSet<String> {
            let key = |line: &str| {
                Some(
                    line.split_once(" = ")?
                        .0
                        .trim_start_matches("# ")
                        .to_owned(),
                )
            };
            text.lines().filter_map(key).collect()
        };
        let shown = keys(TEMPLATE);
        // The rules' thresholds have a test of their own.
        let debug = format!("{:?}", Config::default());
        let (debug, _) = debug.split_once("rules:").expect("it has rules");
        for word in debug.split([' ', '{', '}', '[', ']']) {
            if let Some(field) = word.strip_suffix(':')
                && !["watch", "exclude", "target", "pod_list"].contains(&field)
            {
                assert!(shown.contains(field), "{field} is not in the template");
            }
        }
    }

    #[test]
    fn the_template_has_every_threshold_in_a_comment() {
        let (_, rules) = TEMPLATE
            .split_once("# [rules.rise]")
            .expect("there are rules");
        let text: String = format!("# [rules.rise]{rules}")
            .lines()
            .map(|line| format!("{}\n", line.trim_start_matches("# ")).replace("# ", ""))
            .filter(|line| line.contains(" = ") || line.starts_with('['))
            .collect();
        assert_eq!(parse(&text), Ok(Config::default()));
        let keys = text.lines().filter(|line| line.contains(" = ")).count();
        let all = serde_json::to_value(verdict::Config::default()).expect("it can be written");
        let all: usize = (all.as_object().expect("tables").values())
            .filter_map(|table| table.as_object().map(serde_json::Map::len))
            .sum();
        assert_eq!(keys, all);
    }

    #[test]
    fn all_that_can_be_set() {
        let config = parse(
            r#"
            listen = "0.0.0.0:1"
            interval = "1m"
            events = "none"
            pod_logs = "/host/log"
            [watch]
            exe = ["/opt/*"]
            [exclude]
            namespace = ["kube-system"]
            [[target]]
            unit = ["shop.service"]
            events = "full"
            interval = "500ms"
            "#,
        )
        .expect("it is right");
        assert_eq!(config.interval, Duration::from_secs(60));
        assert_eq!(config.events, EventsLevel::None);
        assert_eq!(config.target[0].events, Some(EventsLevel::Full));
        assert_eq!(config.target[0].interval, Some(Duration::from_millis(500)));
        assert!(!Patterns::from(config.watch).is_empty());
        assert!(!Patterns::from(config.exclude).is_empty());
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        for (text, sentence) in [
            ("\nlissen = 1", "line 2: unknown field `lissen`"),
            (
                "interval = \"5 parsecs\"",
                "line 1: unknown unit \" parsecs\"",
            ),
            (
                "events = \"all\"",
                "line 1: \"all\" is not auto, lifecycle, full or none",
            ),
            (
                "details = \"all\"",
                "line 1: \"all\" is not auto, always or never",
            ),
            ("[watch]\nexe = [\"[\"]", "line 2: \"[\": "),
            (
                "[[target]]\nevents = \"full\"",
                "[[target]] number 1 names nobody",
            ),
            (
                "[pod_list]\nurl = \"localhost/pods\"",
                "[pod_list] url: \"localhost/pods\"",
            ),
            (
                "[pod_list]\nurl = \"ftp://localhost/pods\"",
                "[pod_list] url: \"ftp://localhost/pods\" begins neither with http:// nor https://",
            ),
            ("listen = ", "line 1: "),
        ] {
            let found = parse(text).expect_err("a mistake");
            assert!(found.starts_with(sentence), "{found}");
        }
    }
}
