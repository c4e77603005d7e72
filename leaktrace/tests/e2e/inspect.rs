//! `inspect` names the instructions that probes sit on, and they are the cheap ones.

use std::fs;
use std::path::Path;

use leaktrace_fixtures::build::Variant;
use object::{Object, ObjectSymbol};
use serde_json::Value;

use crate::{needs, tool};

/// What is true of each site, checked against the file without any code of leaktrace.
#[test]
fn no_probe_sits_on_a_first_instruction_or_a_return() {
    for go in ["1.22.10", "1.25.5", "1.27.3"] {
        let Some(executable) = needs::fixture("handler-timeout", go, Variant::DEFAULT) else {
            continue;
        };
        let bytes = fs::read(&executable).expect("the fixture is there");
        let file = object::File::parse(bytes.as_slice()).expect("the fixture is an ELF file");
        let found = inspect(&executable);
        assert_eq!(found["go_version"], format!("go{go}"));
        for event in ["born", "ended"] {
            assert!(
                !sites(&found, event).is_empty(),
                "{go}: {event} has a site: {found}"
            );
        }
        for site in all_sites(&found) {
            let name = site["function"]
                .as_str()
                .expect("a site names its function");
            let address = hex(&site["address"]);
            let function = file.symbols().find(|symbol| symbol.name() == Ok(name));
            let function = function.unwrap_or_else(|| panic!("{name} is in the symbol table"));
            let end = function.address() + function.size();
            assert!(
                function.address() < address && address < end,
                "{go}: {site}"
            );
            let text = site["text"].as_str().expect("a site has its instruction");
            assert!(!text.starts_with("ret"), "{go}: {site}");
            assert_eq!(site["execution"], "emulated", "{go}: {site}");
            let offset =
                usize::try_from(hex(&site["file_offset"])).expect("the file fits in memory");
            let expected: String = site["bytes"]
                .as_str()
                .expect("a site has bytes")
                .split_whitespace()
                .collect();
            let here = bytes[offset..][..expected.len() / 2]
                .iter()
                .map(|byte| format!("{byte:02x}"));
            assert_eq!(here.collect::<String>(), expected, "{go}: {site}");
        }
    }
}

#[test]
fn a_stripped_binary_has_its_probes_on_the_same_instructions() {
    for go in ["1.22.10", "1.27.3"] {
        let build = |variant| needs::fixture("handler-timeout", go, variant);
        let (Some(whole), Some(stripped)) = (build(Variant::DEFAULT), build(Variant::STRIPPED))
        else {
            continue;
        };
        let (whole, stripped) = (inspect(&whole), inspect(&stripped));
        for event in ["born", "ended"] {
            let place =
                |site: &&Value| (site["function"].clone(), site["offset_in_function"].clone());
            let places = |answer| sites(answer, event).iter().map(place).collect::<Vec<_>>();
            assert_eq!(places(&whole), places(&stripped), "{go} {event}");
        }
    }
}

fn inspect(executable: &Path) -> Value {
    tool::json(&["inspect", executable.to_str().expect("our paths are UTF-8")])
}

/// The probe sites of one event.
fn sites<'a>(answer: &'a Value, event: &str) -> Vec<&'a Value> {
    let probes = answer["probes"].as_array().expect("inspect lists probes");
    let of_event = probes.iter().filter(|probe| probe["event"] == event);
    of_event
        .flat_map(|probe| probe["sites"].as_array().expect("a probe has sites"))
        .collect()
}

/// The probe sites of all events.
fn all_sites(answer: &Value) -> impl Iterator<Item = &Value> {
    let probes = answer["probes"].as_array().expect("inspect lists probes");
    probes
        .iter()
        .flat_map(|probe| probe["sites"].as_array().expect("a probe has sites"))
}

/// "0x4037c0".
fn hex(value: &Value) -> u64 {
    let text = value.as_str().and_then(|text| text.strip_prefix("0x"));
    u64::from_str_radix(text.expect("addresses are written 0x…"), 16).expect("and are hexadecimal")
}
