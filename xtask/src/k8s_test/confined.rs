//! What leaktrace's process on the node may do.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use super::configuration::NODE;
use super::pods::Pod;
use crate::dist;

/// It has what the manifest gives, and no more.
pub fn confined(daemon: &Pod) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid))?;
    let field = |name: &str| {
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_default().trim().to_owned()
    };
    ensure!(field("Uid") == "65532\t65532\t65532\t65532", "{status}");
    ensure!(
        field("Seccomp") == "2",
        "no filter of system calls: {status}"
    );
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let bits = u64::from_str_radix(&field(name), 16)?;
        let more = bits & !dist::CAPABILITIES;
        ensure!(more == 0, "{name} has {more:#x} beyond the manifest");
    }
    ensure!(
        !field("CapEff").trim_start_matches('0').is_empty(),
        "it has no capability"
    );
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", daemon.pid))?;
    let options = |place: &str| {
        let mut lines = mounts.lines().map(|line| line.split(' '));
        let line = lines.find(|line| line.clone().nth(4) == Some(place));
        line.and_then(|mut line| line.nth(5))
            .unwrap_or_default()
            .to_owned()
    };
    for place in ["/", "/host/var/log", "/etc/leaktrace"] {
        let options = options(place);
        ensure!(
            options.split(',').any(|option| option == "ro"),
            "{place} is {options:?}"
        );
    }
    let own = |namespace: &str| -> Result<bool> {
        let of = |pid: &str| fs::read_link(Path::new("/proc").join(pid).join("ns").join(namespace));
        Ok(of(&daemon.pid.to_string())? != of("self")?)
    };
    ensure!(
        own("net")? && own("mnt")? && !own("pid")?,
        "its namespaces are not its pod's"
    );
    Ok(format!(
        "it is not privileged: user 65532, capabilities {} of {:x}, system calls filtered, everything read-only, on {NODE}",
        field("CapEff"),
        dist::CAPABILITIES
    ))
}
