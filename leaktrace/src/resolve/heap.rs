//! Where a binary keeps its heap: what is needed to follow pointers from outside.
//!
//! Only a binary with debug information and a symbol table tells. The census does not depend on it: without, nobody asks
//! who else refers to a channel.

use std::ops::Range;

use super::elf::Elf;
use crate::address::VirtAddr;

/// Offsets in bytes from the start of the structure, package runtime (src/runtime/mheap.go, Go 1.18 to 1.27).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapOffsets {
    /// `mheap.allspans`, a slice of `*mspan`.
    pub allspans: u32,
    /// `mspan.startAddr`.
    pub start: u32,
    /// `mspan.npages`, pages of 8 KiB.
    pub pages: u32,
    /// `mspan.elemsize`.
    pub element_bytes: u32,
    /// `mspan.state`, one byte: 1 is in use by the heap.
    pub state: u32,
    /// `mspan.spanclass`, one byte: the lowest bit says that its objects hold no pointers.
    pub class: u32,
    /// `mspan.specials`: list of what is to happen when an object is collected.
    pub specials: u32,
}

impl HeapOffsets {
    /// The runtime's names of the fields, in the order of their declaration here.
    pub(super) const NAMES: [&'static str; 7] = [
        "mheap.allspans",
        "mspan.startAddr",
        "mspan.npages",
        "mspan.elemsize",
        "mspan.state",
        "mspan.spanclass",
        "mspan.specials",
    ];

    /// `None` when one is not known.
    pub(super) fn collect(lookup: impl Fn(&str) -> Option<u32>) -> Option<Self> {
        let [
            allspans,
            start,
            pages,
            element_bytes,
            state,
            class,
            specials,
        ] = Self::NAMES;
        Some(Self {
            allspans: lookup(allspans)?,
            start: lookup(start)?,
            pages: lookup(pages)?,
            element_bytes: lookup(element_bytes)?,
            state: lookup(state)?,
            class: lookup(class)?,
            specials: lookup(specials)?,
        })
    }
}

/// The heap of a binary, as linked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeapPlace {
    /// `runtime.mheap_`.
    pub mheap: VirtAddr,
    /// Offsets of the fields.
    pub offsets: HeapOffsets,
    /// The program's variables with pointers in them.
    pub variables: [Range<VirtAddr>; 2],
    /// `runtime.itabTable`: all pairs of an interface and a type that were met, with their methods.
    pub itab_table: Option<VirtAddr>,
}

/// No program has more than this of variables; the symbols lie.
const MOST_VARIABLE_BYTES: u64 = 256 << 20;

/// Finds it by the symbols that the linker leaves for the garbage collector (src/cmd/link/internal/ld/symtab.go).
pub(super) fn find(elf: &Elf<'_>, offsets: HeapOffsets) -> Option<HeapPlace> {
    let symbol = |name: &str| elf.symbol(name).map(|(address, _)| address);
    let range = |start: &str, end: &str| {
        let range = symbol(start)?..symbol(end)?;
        let bytes = range.end.0.checked_sub(range.start.0)?;
        (bytes <= MOST_VARIABLE_BYTES).then_some(range)
    };
    Some(HeapPlace {
        mheap: symbol("runtime.mheap_")?,
        offsets,
        variables: [
            range("runtime.data", "runtime.edata")?,
            range("runtime.bss", "runtime.ebss")?,
        ],
        itab_table: symbol("runtime.itabTable"),
    })
}
