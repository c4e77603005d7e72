//! The part of doc/go-runtime.md that says where each field lies in each release: drawn from the table and from the list
//! of fields in leaktrace's source, so that it cannot say anything else.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::Value;

/// The document.
pub const FILE: &str = "doc/go-runtime.md";

/// What stands around the part that is drawn.
const BEGIN: &str = "<!-- begin: written by `cargo xtask offsets` -->\n";
const END: &str = "<!-- end -->\n";

/// The list of fields, each under its own name and the runtime's.
const FIELDS: &str = include_str!("../../../leaktrace/src/resolve/offsets.rs");

/// The document with its table drawn anew.
pub fn renewed(document: &str, table: &[Value]) -> Result<String> {
    let missing = || format!("{FILE} does not say where its table begins and ends");
    let (before, rest) = document.split_once(BEGIN).with_context(missing)?;
    let (_, after) = rest.split_once(END).with_context(missing)?;
    Ok(format!("{before}{BEGIN}{}{END}{after}", drawn(table)?))
}

/// Fields as rows, releases as columns.
fn drawn(table: &[Value]) -> Result<String> {
    let mut text = String::from("| field |");
    for release in table {
        write!(text, " 1.{}", release["minor"])?;
        if release["from_patch"] != 0 {
            write!(text, ".{}", release["from_patch"])?;
        }
        text.push_str(" |");
    }
    text.push_str("\n|---|");
    text.push_str(&"--:|".repeat(table.len()));
    for (field, name) in fields() {
        write!(text, "\n| `{name}` |")?;
        for release in table {
            let offset = &release["offsets"][field];
            match offset.as_u64() {
                Some(offset) => write!(text, " {offset} |")?,
                None => text.push_str(" – |"),
            }
        }
    }
    text.push_str("\n\nMeasured on");
    for (release, index) in table.iter().zip(1..) {
        let names = release["measured"].as_array().context("a list")?;
        let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
        let end = if index == table.len() { ".\n" } else { ";" };
        write!(text, "\n{}{end}", names.join(", "))?;
    }
    Ok(text)
}

/// Each field's own name, and the newest of the runtime's for it.
fn fields() -> impl Iterator<Item = (&'static str, &'static str)> {
    FIELDS.lines().filter_map(|line| {
        let (field, rest) = line.trim().split_once(": ")?;
        let names = rest.split_once(" = [\"")?.1;
        Some((field, names.split('"').next()?))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use leaktrace_fixtures::repository;

    use super::*;

    #[test]
    fn the_document_says_what_the_table_does() {
        let read = |file: &str| fs::read_to_string(repository().join(file)).expect(file);
        let table: Vec<Value> =
            serde_json::from_str(&read(super::super::TABLE)).expect("it is JSON");
        let known = table[0]["offsets"].as_object().expect("offsets").len();
        assert_eq!(fields().count(), known, "every field has a row");
        let document = read(FILE);
        assert!(
            renewed(&document, &table).expect("it has its marks") == document,
            "run `cargo xtask offsets`"
        );
    }
}
