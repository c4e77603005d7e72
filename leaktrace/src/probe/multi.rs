//! Links of uprobe_multi, which hold any number of probes of one program; those that aya makes hold one each, as a perf event.
//!
//! They are taken off without harm: when a perf event goes, every thread that hits it waits for the kernel to have told all
//! processors, up to 20 ms (kernel/trace/trace_uprobe.c: uprobe_perf_close, whose uprobe_apply waits under the lock that
//! kernel/events/uprobes.c: handler_chain then takes to unapply the probe). A link just takes its consumers out. It also takes
//! them out all together, and asks for no CAP_SYS_ADMIN, as perf events do since July 2025.
//!
//! The library that leaktrace loads its programs with knows neither these links nor the kind of program that they want
//! (expected_attach_type), so both calls of bpf(2) are made here.
#![expect(
    unsafe_code,
    reason = "bpf(2) takes pointers; nobody else makes these two calls"
)]

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::num::NonZeroU32;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};

use aya::Ebpf;
use aya::maps::Map;
use aya_obj::Object;
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type};
use leaktrace_common::event::Kind;
use nix::libc;

/// The first kernel whose links keep to one process: earlier ones only to one of its threads
/// (v6.10, 46ba0e49b642 "bpf: fix multi-uprobe PID filtering logic", kernel/trace/bpf_trace.c: uprobe_prog_run).
const FIRST: (u32, u32) = (6, 10);

/// A part of an object that is ready to be given to the kernel, by the name of its program.
pub(super) struct Programs {
    instructions: HashMap<String, Vec<bpf_insn>>,
    license: CString,
    /// The instructions name their numbers.
    _maps: Vec<OwnedFd>,
    loaded: HashMap<&'static str, OwnedFd>,
}

/// Probes that are on. Dropping it takes them off.
pub(super) struct Link {
    /// What they watch.
    pub kind: Kind,
    /// How many they are.
    pub probes: usize,
    _link: OwnedFd,
}

/// Whether this kernel's links can be used.
pub(super) fn is_usable() -> bool {
    let release = nix::sys::utsname::uname();
    let release = release
        .as_ref()
        .map(|name| name.release().to_string_lossy());
    release.is_ok_and(|release| version(&release).is_some_and(|found| found >= FIRST))
}

/// The first two numbers of a release such as `6.12.107-cloud-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

impl Programs {
    /// From the object whose maps are there already.
    pub(super) fn new(bytes: &[u8], ebpf: &Ebpf) -> Result<Self, String> {
        let mut object = Object::parse(bytes).map_err(|error| error.to_string())?;
        let mut maps = Vec::new();
        for (name, map) in ebpf.maps() {
            let data = match map {
                Map::Array(data)
                | Map::HashMap(data)
                | Map::LruHashMap(data)
                | Map::PerCpuArray(data)
                | Map::RingBuf(data) => data,
                _ => return Err(format!("the map {name} is of a kind that it was not")),
            };
            let fd = data.fd().as_fd().try_clone_to_owned();
            let fd = fd.map_err(|error| error.to_string())?;
            let definition = object.maps.get(name).cloned();
            maps.push((
                name,
                fd,
                definition.ok_or_else(|| format!("no map {name}"))?,
            ));
        }
        let sections: HashSet<usize> = object.functions.keys().map(|(index, _)| *index).collect();
        let numbered = (maps.iter()).map(|(name, fd, map)| (*name, fd.as_raw_fd(), map));
        object
            .relocate_maps(numbered, &sections)
            .map_err(|error| error.to_string())?;
        object
            .relocate_calls(&sections)
            .map_err(|error| error.to_string())?;
        let instructions = object.programs.iter().filter_map(|(name, program)| {
            let function = object.functions.get(&program.function_key())?;
            Some((name.clone(), function.instructions.clone()))
        });
        Ok(Self {
            instructions: instructions.collect(),
            license: object.license.clone(),
            _maps: maps.into_iter().map(|(_, fd, _)| fd).collect(),
            loaded: HashMap::new(),
        })
    }

    /// Puts a program on instructions of a file, each with its cookie: for one process, or for all.
    ///
    /// # Errors
    /// The kernel's: ESRCH when the process has ended.
    pub(super) fn attach(
        &mut self,
        name: &'static str,
        kind: Kind,
        path: &str,
        pid: Option<NonZeroU32>,
        places: &[(u64, u64)],
    ) -> io::Result<Link> {
        let path = CString::new(path)?;
        let (offsets, cookies): (Vec<u64>, Vec<u64>) = places.iter().copied().unzip();
        let program = self.load(name)?;
        // SAFETY: all fields are numbers, for which 0 says "none".
        let mut attributes = unsafe { zeroed::<bpf_attr>() };
        attributes.link_create.__bindgen_anon_1.prog_fd = number(program);
        attributes.link_create.attach_type = bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;
        attributes.link_create.__bindgen_anon_3.uprobe_multi =
            aya_obj::generated::bpf_attr__bindgen_ty_14__bindgen_ty_3__bindgen_ty_7 {
                path: path.as_ptr() as u64,
                offsets: offsets.as_ptr() as u64,
                ref_ctr_offsets: 0,
                cookies: cookies.as_ptr() as u64,
                cnt: u32::try_from(places.len()).map_err(io::Error::other)?,
                flags: 0,
                pid: pid.map_or(0, NonZeroU32::get),
            };
        // SAFETY: the path and both lists outlive the call, and the lists have as many entries as is said.
        let link = unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes) }?;
        Ok(Link {
            kind,
            probes: places.len(),
            _link: link,
        })
    }

    /// The program, loaded now if it was not before.
    fn load(&mut self, name: &'static str) -> io::Result<&OwnedFd> {
        if !self.loaded.contains_key(name) {
            let instructions = (self.instructions.get(name)).ok_or(io::ErrorKind::NotFound)?;
            // SAFETY: as above.
            let mut attributes = unsafe { zeroed::<bpf_attr>() };
            attributes.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32;
            attributes.__bindgen_anon_3.expected_attach_type =
                bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;
            attributes.__bindgen_anon_3.insns = instructions.as_ptr() as u64;
            attributes.__bindgen_anon_3.insn_cnt =
                u32::try_from(instructions.len()).map_err(io::Error::other)?;
            attributes.__bindgen_anon_3.license = self.license.as_ptr() as u64;
            // SAFETY: instructions and license outlive the call, and the instructions are as many as is said.
            let program = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes) }?;
            self.loaded.insert(name, program);
        }
        self.loaded.get(name).ok_or(io::ErrorKind::NotFound.into())
    }
}

/// Descriptors are small and not negative.
fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// Calls bpf(2) for something new.
///
/// # Safety
/// What the attributes point to has to be there, in the length that they say.
unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are ours, and as large as is said; for the rest the caller answers.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attributes),
            size_of::<bpf_attr>(),
        )
    };
    match i32::try_from(answer) {
        // SAFETY: the kernel has just made it for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_begin_with_two_numbers() {
        assert_eq!(version("6.12.107+deb13-cloud-amd64"), Some((6, 12)));
        assert_eq!(version("7.2-rc1"), Some((7, 2)));
        assert_eq!(version("5.10.0-32"), Some((5, 10)));
        assert_eq!(version("linux"), None);
    }
}
