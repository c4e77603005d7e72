//! The fuzz targets: what is done with an input. Each panics when leaktrace does not keep its word.

use leaktrace::address::{LoadBias, RuntimeAddr, VirtAddr};
use leaktrace::census::semaphores::semaphores;
use leaktrace::census::{self, Census, CoreFile, CoreMemory, Layout, Memory as _, stacks, waits};
use leaktrace::event::{Change, Ktime, decode};
use leaktrace::ledger::{Ledger, SiteKind};
use leaktrace::resolve::buildinfo::{self, GoVersion};
use leaktrace::resolve::code::CodeView as _;
use leaktrace::resolve::decode::Listing;
use leaktrace::resolve::elf::Elf;
use leaktrace::resolve::pclntab::Pclntab;
use leaktrace::resolve::{self, dwarf, globals, sites};

use crate::code::Functions;
use crate::elf_file::{ElfFile, Segment, WRITABLE};
use crate::symbols::AnyAddress;
use crate::{debug_info, function_table, memory};

/// A fuzz target: its name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 9] = [
    ("elf", elf),
    ("buildinfo", buildinfo),
    ("pclntab", pclntab),
    ("dwarf", dwarf),
    ("code", code),
    ("resolve", resolve),
    ("event", event),
    ("census", census),
    ("core", core),
];

/// An ELF file that may hold anything: everything that can be asked of it.
pub fn elf(data: &[u8]) {
    let data = data.to_vec();
    let Ok(elf) = Elf::open(&data) else { return };
    let _ = (elf.arch(), elf.pie(), elf.packed(), elf.build_id());
    let _ = elf.program_headers();
    let _ = elf.section(".gopclntab");
    for name in ["runtime.allgptr", "main.main", ""] {
        let _ = elf.symbol(name);
    }
    for segment in elf.segments() {
        for address in [
            segment.address,
            segment.address.offset(segment.file_size),
            VirtAddr(u64::MAX),
        ] {
            let _ = elf.file_offset(address);
            let _ = elf.read(address, 100);
            let _ = elf.read_up_to(address, u64::MAX);
            let value = elf.pointer(address).unwrap_or(0);
            let _ = elf.words_with_value(value).take(4).count();
        }
        let found = elf.search(|_| true, 8, |bytes| bytes.first() == Some(&1));
        let _ = found.take(4).count();
    }
}

/// Build information that may hold anything, in a segment where it is searched for; and any text as a release.
pub fn buildinfo(data: &[u8]) {
    let _ = GoVersion::parse(&String::from_utf8_lossy(data));
    let file = ElfFile {
        segments: vec![Segment {
            address: 0x50_0000,
            flags: WRITABLE,
            bytes: data.to_vec(),
        }],
        ..ElfFile::default()
    }
    .bytes();
    if let Ok(elf) = Elf::open(&file) {
        let _ = buildinfo::read(&elf);
    }
}

/// Enough to meet every function of a seed.
const ADDRESSES: u64 = 512;

/// A function table that may hold anything: functions by name and address, frames, files, lines, inlined calls.
pub fn pclntab(data: &[u8]) {
    let (file, offsets) = function_table::file(data);
    let Ok(elf) = Elf::open(&file) else { return };
    let Ok(functions) = Pclntab::read(&elf, offsets) else {
        return;
    };
    for name in ["runtime.newproc1", "main.main", "?", ""] {
        let _ = functions.function_named(name);
    }
    let mut address = VirtAddr(0x40_0000);
    let mut frames = Vec::new();
    for _ in 0..ADDRESSES {
        let found = functions.find(address);
        frames.clear();
        functions.frames(address, &mut frames);
        functions.frames_of_return(address, &mut frames);
        let Some(found) = found else {
            address = address.offset(16);
            continue;
        };
        let _ = functions.function_named(&functions.name(found));
        frames.clear();
        functions.frames(
            found.entry.offset((found.end.0 - found.entry.0) / 2),
            &mut frames,
        );
        assert!(found.entry < found.end);
        address = found.end;
    }
    frames.clear();
    functions.frames(VirtAddr(u64::MAX), &mut frames);
    functions.frames_of_return(VirtAddr(0), &mut frames);
}

/// Debug information that may hold anything.
pub fn dwarf(data: &[u8]) {
    let file = debug_info::file(data);
    let elf = Elf::open(&file).expect("the file around it is sound");
    let _ = dwarf::offsets(&elf);
}

/// Functions with any code: are sites and globals found, and is every site an instruction of its function?
pub fn code(data: &[u8]) {
    let view = Functions::decode(data);
    let _ = globals::find(&view);
    let choices = sites::find(&view, view.go_minor);
    for site in choices
        .into_iter()
        .filter_map(|choice| choice.found.ok())
        .flatten()
    {
        let function = view.function(&site.function).expect("a site's function");
        let start = usize::try_from(site.offset_in_function).expect("an offset");
        let bytes = function.code.get(start..start + site.bytes.len());
        assert_eq!(bytes, Some(site.bytes.as_slice()));
        assert!(start > 0, "a probe on a function's first instruction");
        let listing = Listing::decode(view.arch(), &function).expect("it was decoded before");
        assert!(listing.index_of(site.address).is_some());
        for instruction in &listing.instructions {
            let _ = (instruction.text(), instruction.copies());
        }
    }
}

/// A whole executable that may hold anything.
pub fn resolve(data: &[u8]) {
    let data = data.to_vec();
    match resolve::resolve(&data) {
        Ok(program) => {
            let _ = Layout::new(&program, LoadBias(u64::MAX - 7));
        }
        Err(refusal) => assert!(!refusal.to_string().is_empty()),
    }
}

/// Records that may hold anything, decoded and booked, with a census now and then: the books must add up.
pub fn event(data: &[u8]) {
    let _ = decode(data);
    let mut ledger = Ledger::default();
    let mut census = Census::default();
    for (number, record) in (0_u64..).zip(data.chunks(64)) {
        let Ok(event) = decode(record) else { continue };
        ledger.apply(&event, &AnyAddress);
        // What the census will say: some of what was heard of, and some of it twice.
        match event.change {
            Change::Born { goroutine, .. } => {
                census.goroutines.push(census::Goroutine {
                    goid: goroutine.goid,
                    g: goroutine.g,
                    status: census::Status::Waiting,
                    wait_reason: 3,
                    gopc: goroutine.gopc,
                    startpc: goroutine.startpc,
                    stack_bytes: u32::try_from(goroutine.g.0).unwrap_or(u32::MAX),
                    depth: 128,
                    waiting_since_ns: goroutine.startpc.0,
                    waiting: 0,
                    stops: 0,
                    leaked: false,
                });
            }
            Change::Armed { timer, .. } | Change::Rearmed(timer) => {
                census.timers.get_or_insert_default().push(census::Timer {
                    timer: timer.timer,
                    kind: None,
                    when_ns: timer.when_ns,
                    period_ns: timer.period_ns,
                    function: timer.function,
                    callback: timer.callback,
                });
            }
            Change::Fired(_) => ledger.listen(event.at.0),
            Change::Stopped { .. } => reconcile(&mut ledger, &mut census, event.at),
            Change::Ended(_) => ledger.sample(number),
        }
    }
    reconcile(&mut ledger, &mut census, Ktime(0));
}

fn reconcile(ledger: &mut Ledger, census: &mut Census, at: Ktime) {
    census.started_ns = at.0;
    census.finished_ns = at.0;
    ledger.reconcile(census.clone(), &AnyAddress);
    let _ = census.goroutines.pop();
    let (mut goroutines, mut timers) = (0, 0);
    for site in ledger.sites.iter() {
        let _ = site.history.growth_per_minute();
        match site.kind {
            SiteKind::Timer(_) => timers += site.live,
            _ => goroutines += site.live,
        }
    }
    assert_eq!(goroutines, ledger.goroutines().count() as u64);
    assert_eq!(timers, ledger.timers().count() as u64);
}

/// A process whose memory may hold anything, and may change while it is read.
pub fn census(data: &[u8]) {
    let (memory, layout) = memory::process(data);
    let names = census::wait_reasons(&memory, &layout).unwrap_or_default();
    assert!(names.len() < 256);
    if let Err(distrust) = census::self_check(&memory, &layout) {
        assert!(!distrust.to_string().is_empty());
    }
    let census = match census::take(&memory, &layout, &|| 1) {
        Ok(census) => census,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_eq!((census.started_ns, census.finished_ns), (1, 1));
    let goroutines = &census.goroutines;
    if let Ok(groups) = stacks::walk(&memory, &layout, &AnyAddress, goroutines) {
        let grouped: u64 = groups.iter().map(|group| group.count).sum();
        assert_eq!(grouped, goroutines.len() as u64);
    }
    if let Ok(waits) = waits::channels(&memory, &layout, &names, goroutines) {
        let by_site = waits.by_site(goroutines);
        let edges: u64 = by_site.iter().map(|wait| wait.count).sum();
        assert_eq!(edges, waits.edges.len() as u64);
    }
    if let Ok(waits) = semaphores(&memory, &layout, &names, goroutines) {
        let waiters: u64 = waits.things.iter().map(|semaphore| semaphore.waiters).sum();
        assert_eq!(waiters, waits.edges.len() as u64);
    }
    // The books are made of what was seen, whatever it was.
    let mut ledger = Ledger::default();
    ledger.reconcile(census, &AnyAddress);
    ledger.reconcile(Census::default(), &AnyAddress);
    assert!(ledger.sites.iter().all(|site| site.live == 0));
}

/// A core file that may hold anything, with itself for an executable.
pub fn core(data: &[u8]) {
    let data = data.to_vec();
    let Ok(core) = CoreFile::open(&data) else {
        return;
    };
    let mut bytes = [0; 100];
    // Cores and executables differ in one byte.
    let mut executable = data.clone();
    if let Some(kind) = executable.get_mut(16) {
        *kind = 2;
    }
    let Ok(elf) = Elf::open(&executable) else {
        return;
    };
    let memory = CoreMemory::new(&core, &data, &elf, LoadBias(0));
    for address in [core.program_headers.0, 0, u64::MAX, u64::MAX - 50] {
        let _ = memory.read(RuntimeAddr(address), &mut bytes);
    }
    for segment in elf.segments() {
        let _ = memory.read(RuntimeAddr(segment.address.0), &mut bytes);
        let end = segment.address.0.wrapping_add(segment.file_size);
        let _ = memory.read(RuntimeAddr(end.wrapping_sub(10)), &mut bytes);
    }
}
