//! Where does the runtime keep its lists?
//!
//! The symbol table says it outright. A stripped binary says it in code: three small runtime functions,
//! the same in every release from 1.18 to 1.27 on both machines, read exactly these variables first.

use super::code::CodeView;
use super::decode::{Condition, DecodeError, Flow, Listing, Reference, Usage};
use super::{Globals, GlobalsSource};
use crate::address::VirtAddr;

/// Bytes of a string header, of which `waitReasonStrings` is an array.
pub(super) const STRING_HEADER: u64 = 16;

/// Every release has between 30 (1.18) and 47 (1.27) wait reasons; outside of this it is something else.
const WAIT_REASONS: std::ops::RangeInclusive<u64> = 20..=80;

/// Why the runtime's variables could not be found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobalsError {
    /// A function that reads them is not there.
    #[error("there is neither a symbol table nor a function {0} to find the runtime's lists by")]
    NoFunction(&'static str),
    /// Its code makes no sense.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Its code is not what every known release has.
    #[error("the code of {function} does not read {variable} in the way that is known")]
    UnknownCode {
        /// The function.
        function: &'static str,
        /// What it should read.
        variable: &'static str,
    },
    /// An address that cannot hold a variable.
    #[error("{variable} would lie at {address}, which cannot be")]
    Implausible {
        /// The variable.
        variable: &'static str,
        /// Where it would lie.
        address: VirtAddr,
    },
    /// A number of wait reasons that no release has.
    #[error("runtime.waitReasonStrings would have {0} entries, which cannot be")]
    WaitReasonCount(u64),
}

/// Finds the runtime's lists: by their symbols, else in the code that reads them.
pub fn find(view: &dyn CodeView) -> Result<(Globals, GlobalsSource), GlobalsError> {
    let (globals, source) = match by_symbol(view) {
        Some(globals) => (globals, GlobalsSource::Symtab),
        None => (by_code(view)?, GlobalsSource::Code),
    };
    check(view, &globals)?;
    Ok((globals, source))
}

/// The lists by the symbol table; `None` if it does not have all of them.
fn by_symbol(view: &dyn CodeView) -> Option<Globals> {
    let sized = |name: &str, bytes: u64| {
        let (address, size) = view.symbol(name)?;
        (size == bytes).then_some(address)
    };
    let (wait_reasons, table) = view.symbol("runtime.waitReasonStrings")?;
    Some(Globals {
        allglen: sized("runtime.allglen", 8)?,
        allgptr: sized("runtime.allgptr", 8)?,
        allp: sized("runtime.allp", 24)?,
        wait_reasons,
        wait_reason_count: table / STRING_HEADER,
        semtable: view.symbol("runtime.semtable").map(|(address, _)| address),
    })
}

/// The lists by the code of `forEachGRace`, `preemptall` and `waitReason.String`.
pub fn by_code(view: &dyn CodeView) -> Result<Globals, GlobalsError> {
    let (allglen, allgptr) = goroutine_list(view)?;
    let (wait_reasons, wait_reason_count) = wait_reasons(view)?;
    Ok(Globals {
        allglen,
        allgptr,
        allp: processor_list(view)?,
        wait_reasons,
        wait_reason_count,
        semtable: semaphore_roots(view),
    })
}

/// `proc.go`, `forEachGRace`: `ptr, length := atomicAllG()`, which loads `allglen`, then `allgptr`; the
/// loop then loads `ptr[i]`.
fn goroutine_list(view: &dyn CodeView) -> Result<(VirtAddr, VirtAddr), GlobalsError> {
    const FUNCTION: &str = "runtime.forEachGRace";
    let listing = decode(view, FUNCTION)?;
    match loads(&listing).as_slice() {
        [length, pointer] if loads_element(&listing, pointer) => {
            Ok((length.address, pointer.address))
        }
        _ => Err(GlobalsError::UnknownCode {
            function: FUNCTION,
            variable: "runtime.allglen and runtime.allgptr",
        }),
    }
}

/// `proc.go`, `preemptall`: `for _, pp := range allp`, which loads the slice's pointer and its length.
fn processor_list(view: &dyn CodeView) -> Result<VirtAddr, GlobalsError> {
    const FUNCTION: &str = "runtime.preemptall";
    let listing = decode(view, FUNCTION)?;
    match loads(&listing).as_slice() {
        [pointer, length, ..]
            if pointer.address.offset(8) == length.address && loads_element(&listing, pointer) =>
        {
            Ok(pointer.address)
        }
        _ => Err(GlobalsError::UnknownCode {
            function: FUNCTION,
            variable: "runtime.allp",
        }),
    }
}

/// `runtime2.go`, `waitReason.String`: compares with the length of the table, takes the address of
/// "unknown wait reason", then that of the table.
fn wait_reasons(view: &dyn CodeView) -> Result<(VirtAddr, u64), GlobalsError> {
    const FUNCTION: &str = "runtime.waitReason.String";
    let listing = decode(view, FUNCTION)?;
    let count = listing.instructions.windows(2).find_map(|pair| match pair {
        [compare, branch] => match branch.flow {
            Flow::Branch {
                when: Condition::Below,
                ..
            } => compare.compares_with(),
            _ => None,
        },
        _ => None,
    });
    let addresses: Vec<Reference> = listing
        .references()
        .into_iter()
        .filter(|reference| reference.usage == Usage::Address)
        .collect();
    match (count, addresses.as_slice()) {
        (Some(count), [_unknown, table]) => Ok((table.address, count)),
        _ => Err(GlobalsError::UnknownCode {
            function: FUNCTION,
            variable: "runtime.waitReasonStrings",
        }),
    }
}

/// `sema.go`, `semrelease1`: `root := semtable.rootFor(addr)` takes the address of the only variable that it names and
/// that is zero at the start. A census can do without, so another code is no reason to refuse a program.
fn semaphore_roots(view: &dyn CodeView) -> Option<VirtAddr> {
    let listing = decode(view, "runtime.semrelease1").ok()?;
    let mut variables = listing
        .references()
        .into_iter()
        .filter(|reference| {
            reference.usage == Usage::Address
                && view.file_offset(reference.address).is_none()
                && view.function_at(reference.address).is_none()
        })
        .map(|reference| reference.address);
    let table = variables.next()?;
    (table.0 % 8 == 0 && variables.all(|other| other == table)).then_some(table)
}

fn decode(view: &dyn CodeView, name: &'static str) -> Result<Listing, GlobalsError> {
    let function = view.function(name).ok_or(GlobalsError::NoFunction(name))?;
    Ok(Listing::decode(view.arch(), &function)?)
}

fn loads(listing: &Listing) -> Vec<Reference> {
    listing
        .references()
        .into_iter()
        .filter(|reference| reference.usage == Usage::Load)
        .collect()
}

/// Whether the function indexes what `pointer` loaded, as it does with a list of pointers.
fn loads_element(listing: &Listing, pointer: &Reference) -> bool {
    listing
        .instructions
        .iter()
        .any(|instruction| instruction.loads_element_of(pointer.register))
}

/// Variables are aligned, apart from each other and not code; the table of strings is in the file. (The
/// others are zero at the start and so have no place in it.)
fn check(view: &dyn CodeView, globals: &Globals) -> Result<(), GlobalsError> {
    let table = globals.wait_reasons;
    let count = globals.wait_reason_count;
    if !WAIT_REASONS.contains(&count) {
        return Err(GlobalsError::WaitReasonCount(count));
    }
    let mut spans = [
        ("runtime.allglen", globals.allglen, 8),
        ("runtime.allgptr", globals.allgptr, 8),
        ("runtime.allp", globals.allp, 24),
        (
            "runtime.waitReasonStrings",
            table,
            count.saturating_mul(STRING_HEADER),
        ),
    ];
    spans.sort_by_key(|(_, address, _)| *address);
    let mut end = 1;
    for (variable, address, bytes) in spans {
        let fits = address.0 % 8 == 0 && address.0 >= end;
        let last = address.0.checked_add(bytes).filter(|_| fits);
        if last.is_none() || view.function_at(address).is_some() {
            return Err(GlobalsError::Implausible { variable, address });
        }
        end = last.unwrap_or(u64::MAX);
    }
    let final_byte = table.offset(count.saturating_mul(STRING_HEADER).saturating_sub(1));
    if view.file_offset(table).is_none() || view.file_offset(final_byte).is_none() {
        return Err(GlobalsError::Implausible {
            variable: "runtime.waitReasonStrings",
            address: table,
        });
    }
    Ok(())
}
