//! Is this binary of the release that it says? And where it keeps its timers, which a release alone does not tell.
//!
//! Without DWARF the offsets come from a table by release, so everything hangs on one string in the file. What it
//! says is compared with what the code and data of the binary show: the list of wait reasons, which nearly every
//! release has changed, and the place of a P's timers, which since Go 1.23 its code gives away.

use super::buildinfo::GoVersion;
use super::code::CodeView;
use super::decode::Listing;
use super::elf::Elf;
use super::globals::STRING_HEADER;
use super::offsets::{Offsets, Release};
use super::pclntab::Pclntab;
use super::{Code, Globals, Refusal};
use crate::address::VirtAddr;

/// Longest name of a wait reason that is read; the longest of Go 1.27 has 29 bytes.
const LONGEST_NAME: u64 = 64;
/// No binary has more wait reasons: they are numbered by a byte.
const MOST_NAMES: u64 = 255;

/// Compares what the binary shows with what is known of its release, and completes the offsets.
///
/// # Errors
/// [`Refusal::OtherRelease`] when they differ.
pub fn check(
    elf: &Elf<'_>,
    view: &dyn CodeView,
    go: &GoVersion,
    globals: &Globals,
    release: &Release,
) -> Result<Offsets, Refusal> {
    let other = |reason: &'static str| Refusal::OtherRelease {
        version: go.text.clone(),
        reason,
    };
    let names = wait_reasons(elf, globals.wait_reasons, globals.wait_reason_count)
        .ok_or_else(|| other("its wait reasons cannot be read"))?;
    if !same_names(&names, &release.wait_reasons) {
        return Err(other("its wait reasons are those of another release"));
    }
    let mut offsets = release.offsets.clone();
    if let Some(from_code) = timers_by_code(view, &offsets) {
        if offsets.p_timers.is_some_and(|known| known != from_code) {
            return Err(other("it keeps its timers elsewhere"));
        }
        offsets.p_timers = Some(from_code);
    }
    Ok(offsets)
}

/// The same list, but for one name at the end: Go 1.23.2 added one to what 1.23.0 had, and nothing else ever moved
/// between patch releases.
fn same_names(found: &[String], known: &[String]) -> bool {
    let common = found.len().min(known.len());
    found.len().abs_diff(known.len()) <= 1 && found.get(..common) == known.get(..common)
}

/// The names of the wait reasons, of a binary with a symbol table.
#[must_use]
pub fn wait_reasons_by_symbol(elf: &Elf<'_>) -> Option<Vec<String>> {
    let (table, bytes) = elf.symbol("runtime.waitReasonStrings")?;
    wait_reasons(elf, table, bytes / STRING_HEADER)
}

/// The strings whose headers lie at `table`.
fn wait_reasons(elf: &Elf<'_>, table: VirtAddr, count: u64) -> Option<Vec<String>> {
    (0..count.min(MOST_NAMES))
        .map(|number| {
            let header = table.offset(number * STRING_HEADER);
            let length = elf.pointer(header.offset(8))?;
            // The first is the empty string, whose address means nothing.
            if length == 0 {
                return Some(String::new());
            }
            let start = VirtAddr(elf.pointer(header)?);
            let bytes = elf.read(start, (length <= LONGEST_NAME).then_some(length)?)?;
            String::from_utf8(bytes).ok()
        })
        .collect()
}

/// The release that compiled a binary without build information and symbols, which some projects cut out.
///
/// `schedinit` compares `runtime.buildVersion` with the empty string, only to keep it in the binary
/// (src/runtime/proc.go). To find that function one must know where module data has its fields, which differs by
/// release: so each known release is tried, and an answer that is no release's name is none.
#[must_use]
pub fn build_version_by_code(elf: &Elf<'_>) -> Option<String> {
    let releases = super::offsets::table().ok()?;
    let functions = releases
        .iter()
        .rev()
        .find_map(|release| Pclntab::read(elf, &release.offsets).ok())?;
    let view = Code {
        elf,
        functions: &functions,
    };
    let function = view.function("runtime.schedinit")?;
    let listing = Listing::decode(view.arch(), &function).ok()?;
    listing.addresses().into_iter().find_map(|address| {
        // The code names the string's header, or the length in it.
        [address, VirtAddr(address.0.wrapping_sub(8))]
            .into_iter()
            .filter_map(|header| super::buildinfo::go_string(elf, header))
            .find(|text| GoVersion::parse(text).is_some())
    })
}

/// `p.timers` as the code of `timeSleepUntil` has it: for each P it reads `timers.minWhenModified`, then the field
/// before it, `timers.minWhenHeap` (src/runtime/time.go: timers.wakeTime). `None` before Go 1.23.
fn timers_by_code(view: &dyn CodeView, offsets: &Offsets) -> Option<u32> {
    let min_when_heap = offsets.timers_min_when_heap?;
    let function = view.function("runtime.timeSleepUntil")?;
    let listing = Listing::decode(view.arch(), &function).ok()?;
    let fields = listing.fields_read();
    let mut places = fields.windows(2).filter_map(|pair| match pair {
        [modified, heap] if heap.checked_add(8)? == *modified => {
            let timers = heap.checked_sub(min_when_heap.into())?;
            u32::try_from(timers)
                .ok()
                .filter(|at| *at > 0 && at % 8 == 0)
        }
        _ => None,
    });
    let place = places.next()?;
    places.all(|other| other == place).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_may_differ_by_the_last_name() {
        let list = |names: &str| names.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(same_names(&list("a b c"), &list("a b c")));
        assert!(same_names(&list("a b"), &list("a b c")));
        assert!(!same_names(&list("a"), &list("a b c")));
        assert!(!same_names(&list("a c b"), &list("a b c")));
    }
}
