//! Looking things up in the JSON of `snapshot` and `record`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// Goroutines by "main.go:31" and by state, of the sites in files named main.go.
pub type States = BTreeMap<String, BTreeMap<String, u64>>;

/// The site of this kind at this line of the fixture's main.go.
pub fn site<'a>(report: &'a Value, kind: &str, line: u32) -> Option<&'a Value> {
    let place = format!("main.go:{line}");
    sites(report).find(|site| site["kind"] == kind && self::place(site) == place)
}

/// All sites.
pub fn sites(report: &Value) -> impl Iterator<Item = &Value> {
    report["sites"]
        .as_array()
        .expect("a report has sites")
        .iter()
}

/// What a report says of the goroutines made in main.go.
pub fn states(report: &Value) -> States {
    let mut states = States::new();
    for site in sites(report).filter(|site| site["kind"] == "goroutine") {
        let place = place(site);
        // What the events saw but is gone now has count 0.
        if !place.starts_with("main.go:") || number(&site["count"]) == 0 {
            continue;
        }
        let by_state = states.entry(place).or_default();
        for (state, count) in site["states"].as_object().expect("a site has states") {
            *by_state.entry(state.clone()).or_default() += number(count);
        }
    }
    states
}

/// The same as the program itself says it.
pub fn truth(answer: &Value) -> States {
    serde_json::from_value(answer["states"].clone()).expect("fixtures answer in this shape")
}

/// Where a report says the goroutines made in main.go are, in the shape of the fixtures' own answer.
pub fn stacks(report: &Value) -> BTreeMap<String, u64> {
    let mut stacks = BTreeMap::new();
    for site in sites(report).filter(|site| site["kind"] == "goroutine") {
        if !place(site).starts_with("main.go:") {
            continue;
        }
        for stack in site["blocked_stacks"]
            .as_array()
            .expect("a site has stacks")
        {
            let frames = stack["frames"].as_array().expect("a stack has frames");
            let frames: Vec<String> = frames
                .iter()
                .map(|frame| {
                    let function = frame["function"].as_str().unwrap_or_default();
                    format!("{function} {}", place(frame))
                })
                .filter(|frame| !frame.contains(".gowrap") && !frame.starts_with("runtime."))
                .collect();
            *stacks.entry(frames.join(" < ")).or_default() += number(&stack["count"]);
        }
    }
    stacks
}

/// The same as the program itself says.
pub fn true_stacks(answer: &Value) -> BTreeMap<String, u64> {
    serde_json::from_value(answer["stacks"].clone()).expect("fixtures answer in this shape")
}

/// A count.
pub fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is not a count"))
}

/// "main.go:31".
fn place(site: &Value) -> String {
    let file = site["file"]
        .as_str()
        .map(Path::new)
        .and_then(Path::file_name);
    format!("{}:{}", file.unwrap_or_default().display(), site["line"])
}
