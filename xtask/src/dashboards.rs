//! `cargo xtask dashboards`: writes the Grafana dashboards of `deploy/grafana/` from the tables below.

mod typed;

use std::fs;

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::repository;
use serde_json::{Value, json};

/// Arguments of `cargo xtask dashboards`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Write nothing; fail if a file is not what would be written
    #[arg(long)]
    check: bool,
    /// Also hold them against Grafana's own types, of npm and PyPI
    #[arg(long)]
    typed: bool,
}

/// One dashboard.
struct Dashboard {
    uid: &'static str,
    title: &'static str,
    /// Variables that narrow it down, each with the query for its values.
    variables: &'static [Variable],
    panels: &'static [Panel],
}

/// One picture: kind, title, unit, width of 24, and its queries with their legends.
struct Panel {
    kind: &'static str,
    title: &'static str,
    unit: &'static str,
    width: u32,
    queries: &'static [(&'static str, &'static str)],
}

/// A panel of one query.
const fn panel(
    kind: &'static str,
    title: &'static str,
    unit: &'static str,
    width: u32,
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel {
        kind,
        title,
        unit,
        width,
        queries,
    }
}

/// A variable: its name, the query for its values, and what stands for all of them: "" is a list of the values.
type Variable = (&'static str, &'static str, &'static str);

/// Processes outside Kubernetes have no namespace: all of them is whatever there is.
const NAMESPACES: Variable = (
    "namespace",
    "label_values(leaktrace_target_info, namespace)",
    ".*",
);
/// Listed, so that all of them are those of the chosen namespaces.
const TARGETS: Variable = (
    "target",
    "label_values(leaktrace_target_info{namespace=~\"$namespace\"}, target)",
    "",
);
const SITES: Variable = (
    "site",
    "label_values(leaktrace_goroutines_created_total{target=~\"$target\"}, site)",
    ".*",
);

const DASHBOARDS: [Dashboard; 3] = [
    Dashboard {
        uid: "leaktrace-fleet",
        title: "leaktrace: fleet",
        variables: &[NAMESPACES, TARGETS],
        panels: &[
            panel(
                "stat",
                "Leaking lines",
                "short",
                6,
                &[(
                    "count(leaktrace_leak{target=~\"$target\"} == 1) or vector(0)",
                    "",
                )],
            ),
            panel(
                "stat",
                "Services that leak",
                "short",
                6,
                &[(
                    "count(count by (target) (leaktrace_leak{target=~\"$target\"} == 1)) or vector(0)",
                    "",
                )],
            ),
            panel(
                "stat",
                "Services watched",
                "short",
                6,
                &[("sum(leaktrace_target_up{target=~\"$target\"})", "")],
            ),
            panel(
                "stat",
                "Cannot be traced",
                "short",
                6,
                &[("sum(leaktrace_target_refused) or vector(0)", "")],
            ),
            panel(
                "table",
                "Lines that leak, growth an hour",
                "short",
                16,
                &[(
                    "sort_desc(leaktrace_leak_growth_per_hour{target=~\"$target\"})",
                    "{{target}} {{site}}",
                )],
            ),
            panel(
                "table",
                "Time until the memory is gone",
                "s",
                8,
                &[(
                    "sort(target:leaktrace_memory_left:seconds{target=~\"$target\"})",
                    "{{target}}",
                )],
            ),
            panel(
                "timeseries",
                "Goroutines",
                "short",
                12,
                &[(
                    "sum by (target) (leaktrace_goroutines{target=~\"$target\"})",
                    "{{target}}",
                )],
            ),
            panel(
                "timeseries",
                "Pending timers",
                "short",
                12,
                &[(
                    "sum by (target) (leaktrace_timers_pending{target=~\"$target\"})",
                    "{{target}}",
                )],
            ),
            panel(
                "timeseries",
                "Processes",
                "short",
                12,
                &[("leaktrace_processes", "{{status}}")],
            ),
            panel(
                "timeseries",
                "Probe hits a second",
                "ops",
                12,
                &[(
                    "sum by (target) (rate(leaktrace_probe_hits_total{target=~\"$target\"}[$__rate_interval]))",
                    "{{target}}",
                )],
            ),
        ],
    },
    Dashboard {
        uid: "leaktrace-service",
        title: "leaktrace: service",
        variables: &[NAMESPACES, TARGETS],
        panels: &[
            panel(
                "table",
                "Verdicts",
                "short",
                24,
                &[("leaktrace_leak{target=~\"$target\"}", "{{site}}")],
            ),
            panel(
                "timeseries",
                "Goroutines by call site",
                "short",
                12,
                &[(
                    "topk(10, sum by (site) (leaktrace_goroutines{target=~\"$target\"}))",
                    "{{site}}",
                )],
            ),
            panel(
                "timeseries",
                "Goroutines by state",
                "short",
                12,
                &[(
                    "sum by (state) (leaktrace_goroutines{target=~\"$target\"})",
                    "{{state}}",
                )],
            ),
            panel(
                "timeseries",
                "Pending timers by call site",
                "short",
                12,
                &[(
                    "topk(10, sum by (site) (leaktrace_timers_pending{target=~\"$target\"}))",
                    "{{site}}",
                )],
            ),
            panel(
                "timeseries",
                "Memory",
                "bytes",
                12,
                &[
                    (
                        "leaktrace_target_memory_bytes{target=~\"$target\"}",
                        "{{target}}",
                    ),
                    (
                        "leaktrace_target_memory_limit_bytes{target=~\"$target\"}",
                        "limit of {{target}}",
                    ),
                    (
                        "sum by (target) (leaktrace_goroutine_stack_bytes{target=~\"$target\"})",
                        "goroutine stacks of {{target}}",
                    ),
                ],
            ),
            panel(
                "timeseries",
                "Goroutines a second",
                "ops",
                12,
                &[
                    (
                        "sum(rate(leaktrace_goroutines_created_total{target=~\"$target\"}[$__rate_interval]))",
                        "made",
                    ),
                    (
                        "sum(rate(leaktrace_goroutines_ended_total{target=~\"$target\"}[$__rate_interval]))",
                        "ended",
                    ),
                ],
            ),
            panel(
                "timeseries",
                "Cost of the probes, of one core",
                "percentunit",
                12,
                &[
                    ("leaktrace_overhead_ratio{target=~\"$target\"}", "cost"),
                    ("leaktrace_budget_ratio{target=~\"$target\"}", "budget"),
                ],
            ),
            panel(
                "timeseries",
                "Drift of the two witnesses",
                "short",
                12,
                &[("leaktrace_census_drift{target=~\"$target\"}", "drift")],
            ),
        ],
    },
    Dashboard {
        uid: "leaktrace-site",
        title: "leaktrace: call site",
        variables: &[NAMESPACES, TARGETS, SITES],
        panels: &[
            panel(
                "timeseries",
                "Alive by state",
                "short",
                24,
                &[(
                    "sum by (state) (leaktrace_goroutines{target=~\"$target\", site=~\"$site\"})",
                    "{{state}}",
                )],
            ),
            panel(
                "timeseries",
                "A second",
                "ops",
                12,
                &[
                    (
                        "sum(rate(leaktrace_goroutines_created_total{target=~\"$target\", site=~\"$site\"}[$__rate_interval]))",
                        "made",
                    ),
                    (
                        "sum(rate(leaktrace_goroutines_ended_total{target=~\"$target\", site=~\"$site\"}[$__rate_interval]))",
                        "ended",
                    ),
                ],
            ),
            panel(
                "timeseries",
                "Age of the oldest",
                "s",
                12,
                &[(
                    "max(leaktrace_goroutine_oldest_age_seconds{target=~\"$target\", site=~\"$site\"})",
                    "oldest",
                )],
            ),
            panel(
                "timeseries",
                "Stack memory",
                "bytes",
                12,
                &[(
                    "sum(leaktrace_goroutine_stack_bytes{target=~\"$target\", site=~\"$site\"})",
                    "stacks",
                )],
            ),
            panel(
                "timeseries",
                "Growth an hour",
                "short",
                12,
                &[(
                    "leaktrace_leak_growth_per_hour{target=~\"$target\", site=~\"$site\"}",
                    "{{kind}}",
                )],
            ),
        ],
    },
];

/// Writes them.
pub fn run(arguments: &Arguments) -> Result<()> {
    let folder = repository().join("deploy/grafana");
    fs::create_dir_all(&folder)?;
    let mut paths = Vec::new();
    for dashboard in &DASHBOARDS {
        let path = folder.join(format!("{}.json", dashboard.uid));
        let text = format!("{:#}\n", rendered(dashboard));
        if arguments.check {
            let found = fs::read_to_string(&path).unwrap_or_default();
            ensure!(
                found == text,
                "{} is not what `cargo xtask dashboards` writes",
                path.display()
            );
        } else {
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            println!("{}", path.display());
        }
        paths.push(path);
    }
    if arguments.typed {
        typed::check(&paths)?;
    }
    Ok(())
}

fn rendered(dashboard: &Dashboard) -> Value {
    const HEIGHT: u32 = 8;
    let source = json!({"type": "prometheus", "uid": "${datasource}"});
    let mut variables = vec![json!({
        "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
    })];
    for (name, query, all) in dashboard.variables {
        let mut variable = json!({
            "name": name, "type": "query", "datasource": source, "refresh": 2, "sort": 1,
            "multi": true, "includeAll": true,
            "query": {"query": query, "refId": name},
            "current": {"text": ["All"], "value": ["$__all"]},
        });
        if !all.is_empty() {
            variable["allValue"] = json!(all);
        }
        variables.push(variable);
    }
    let (mut x, mut y) = (0, 0);
    let mut panels = Vec::new();
    for (panel, id) in dashboard.panels.iter().zip(1..) {
        let height = if panel.kind == "stat" {
            HEIGHT / 2
        } else {
            HEIGHT
        };
        if x + panel.width > 24 {
            (x, y) = (0, y + HEIGHT);
        }
        let targets: Vec<Value> = (panel.queries.iter())
            .zip('A'..)
            .map(|((query, legend), name)| {
                let table = panel.kind == "table";
                json!({
                    "refId": name.to_string(), "datasource": source, "expr": query, "legendFormat": legend,
                    "instant": table, "range": !table, "format": if table { "table" } else { "time_series" },
                })
            })
            .collect();
        panels.push(json!({
            "id": id, "type": panel.kind, "title": panel.title, "datasource": source, "targets": targets,
            "gridPos": {"x": x, "y": y, "w": panel.width, "h": height},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        }));
        x += panel.width;
    }
    json!({
        "uid": dashboard.uid, "title": dashboard.title, "tags": ["leaktrace", "go"], "schemaVersion": 39,
        "editable": true, "refresh": "30s", "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": variables}, "panels": panels,
        "links": [{"type": "dashboards", "tags": ["leaktrace"], "title": "leaktrace", "icon": "external link", "tooltip": "", "asDropdown": true, "includeVars": true, "keepTime": true, "targetBlank": false}],
    })
}
