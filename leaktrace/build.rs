//! Embeds the eBPF object for the target's architecture, once it is sure that it belongs to the sources, and tells the
//! browser by hash which style and script are the page's own.
//!
//! Plain stable Rust is enough: the objects are checked in. `LEAKTRACE_BPF_DIR` names another directory
//! with objects and stamp, as `cargo xtask build-ebpf --log` makes one.

use std::{env, fs, path::PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest as _, Sha256};

#[path = "build/stamp.rs"]
mod stamp;

fn main() {
    println!("cargo::rerun-if-env-changed=LEAKTRACE_BPF_DIR");
    match checked_object() {
        Ok(object) => println!("cargo::rustc-env=LEAKTRACE_BPF_OBJECT={}", object.display()),
        Err(sentence) => println!("cargo::error={sentence}"),
    }
    match page_policy() {
        Ok(policy) => println!("cargo::rustc-env=LEAKTRACE_PAGE_POLICY={policy}"),
        Err(sentence) => println!("cargo::error={sentence}"),
    }
}

/// The Content-Security-Policy of the page: its one style and its one script, by their hashes.
fn page_policy() -> Result<String, String> {
    const PAGE: &str = "src/export/page.html";
    println!("cargo::rerun-if-changed={PAGE}");
    let page = fs::read_to_string(PAGE).map_err(|error| format!("cannot read {PAGE}: {error}"))?;
    let hash = |tag: &str| {
        let (_, rest) = page.split_once(&format!("<{tag}>"))?;
        let (body, _) = rest.split_once(&format!("</{tag}>"))?;
        Some(BASE64_STANDARD.encode(Sha256::digest(body)))
    };
    let (Some(style), Some(script)) = (hash("style"), hash("script")) else {
        return Err(format!("{PAGE} must have one <style> and one <script>"));
    };
    Ok(format!(
        "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ))
}

/// Path of the object to embed, or why there is none.
fn checked_object() -> Result<PathBuf, String> {
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = manifest
        .parent()
        .ok_or("the leaktrace crate must lie in its workspace")?;
    for source in [
        "Cargo.lock",
        "leaktrace-ebpf",
        "leaktrace-common",
        "leaktrace/build",
        "leaktrace/build.rs",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(source).display()
        );
    }
    let directory = match env::var_os("LEAKTRACE_BPF_DIR") {
        // A relative path is meant as typed in the workspace's root, where cargo is run.
        Some(directory) => workspace.join(directory),
        None => manifest.join("bpf"),
    };
    println!("cargo::rerun-if-changed={}", directory.display());

    let arch = variable("CARGO_CFG_TARGET_ARCH")?;
    let object = directory.join(stamp::object_file(&arch));
    if !object.is_file() {
        return Err(format!(
            "there is no eBPF object for {arch} in {}: leaktrace runs on x86_64 and aarch64",
            directory.display()
        ));
    }
    let sources = stamp::hash_sources(workspace)
        .map_err(|error| format!("cannot read the sources of the eBPF objects: {error}"))?;
    let stamped = fs::read_to_string(directory.join(stamp::STAMP_FILE)).unwrap_or_default();
    if stamped.lines().next() != Some(sources.as_str()) {
        return Err(
            "the eBPF objects in leaktrace/bpf are older than their source: run `cargo xtask build-ebpf`"
                .to_owned(),
        );
    }
    Ok(object)
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("cargo did not set {name}"))
}
