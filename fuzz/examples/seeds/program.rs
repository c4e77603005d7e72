//! All seeds of one program.

use std::cell::RefCell;
use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use leaktrace::address::{FileOffset, VirtAddr};
use leaktrace::resolve::code::{CodeView, Function};
use leaktrace::resolve::elf::Elf;
use leaktrace::resolve::pclntab::FuncRef;
use leaktrace::resolve::{self, Arch, GlobalsSource, Program, globals, sites};
use leaktrace_fuzz::code::Functions;
use leaktrace_fuzz::number_of;

use crate::cut::Cut;
use crate::{dwarf, table};

/// Further functions: those by which a release is checked, and some whose frames have inlined calls.
const MORE: [&str; 4] = [
    "runtime.timeSleepUntil",
    "runtime.schedinit",
    "main.main",
    "time.Sleep",
];

/// The seeds by target.
pub fn seeds(file: &Vec<u8>) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let elf = Elf::open(file)?;
    let program = resolve::resolve(file)?;
    let functions = wanted(&elf, &program);
    // The lists are zero at the start, and so are all variables behind the first of them.
    let lists = &program.globals;
    let zero_from = [lists.allglen, lists.allgptr, lists.allp]
        .into_iter()
        .chain(lists.semtable)
        .min()
        .unwrap_or(lists.allp);
    let code = Functions::encode(program.arch, program.build.go.minor, &functions, zero_from);
    let view = Functions::decode(&code);
    ensure!(
        globals::by_code(&view).ok() == globals::by_code(&Recorder::new(&elf, &program)).ok(),
        "the cut out functions tell other globals"
    );

    let entries: Vec<VirtAddr> = functions.iter().map(|function| function.entry).collect();
    let original = table::Original::read(&elf, &program.offsets)?;
    let small = original.keep(&entries)?;
    let mut pclntab = vec![number_of(program.build.go.minor)];
    pclntab.extend(u16::try_from(small.trees.len())?.to_le_bytes());
    pclntab.extend(&small.trees);
    pclntab.extend(&small.table);

    let debug_info = dwarf::runtime_types(&elf);
    let record = build_info(&elf).context("no build information")?;
    let cut = Cut {
        elf: &elf,
        program: &program,
        original: &original,
        small: &small,
        functions: &functions,
        build_info: &record,
        debug_info: debug_info.as_ref(),
    };
    let executable = cut.executable()?;
    check(&executable, &program)?;

    let mut seeds = vec![
        ("code", code),
        ("pclntab", pclntab),
        ("buildinfo", record),
        ("elf", executable.clone()),
        ("resolve", executable),
    ];
    if let Some((abbreviations, units)) = &debug_info {
        let length = u16::try_from(abbreviations.len())?.to_le_bytes();
        seeds.push(("dwarf", [&[0][..], &length, abbreviations, units].concat()));
    }
    Ok(seeds)
}

/// A seed is worth nothing if leaktrace does not come as far with it as with the program.
fn check(seed: &Vec<u8>, program: &Program) -> Result<()> {
    let found = resolve::resolve(seed).context("the seed is refused")?;
    let without_file_offsets = |program: &Program| {
        let mut sites = program.sites.clone();
        for site in sites
            .iter_mut()
            .filter_map(|choice| choice.found.as_mut().ok())
        {
            for site in site {
                site.file_offset = FileOffset(0);
            }
        }
        sites
    };
    for (cut, whole) in without_file_offsets(&found)
        .iter()
        .zip(without_file_offsets(program))
    {
        ensure!(
            *cut == whole,
            "the seed has other sites: {cut:?}, not {whole:?}"
        );
    }
    let mut expected = program.globals;
    if program.globals_source == GlobalsSource::Code {
        // Its code names strings too, which are not in the seed: what is a variable cannot be told.
        expected.semtable = found.globals.semtable;
    }
    ensure!(found.globals == expected, "the seed has other globals");
    ensure!(
        found.offsets == program.offsets,
        "the seed has other offsets"
    );
    for choice in &program.sites {
        for site in choice.found.iter().flatten() {
            let frames = |program: &Program| {
                let mut frames = Vec::new();
                program.functions.frames(site.address, &mut frames);
                frames
            };
            ensure!(
                frames(&found) == frames(program),
                "the seed has other frames"
            );
        }
    }
    Ok(())
}

/// The functions that are looked at when sites and globals are searched for.
fn wanted(elf: &Elf<'_>, program: &Program) -> Vec<Function> {
    let recorder = Recorder::new(elf, program);
    // What they find is of no interest here, only what they ask for.
    let _ = sites::find(&recorder, program.build.go.minor);
    let _ = globals::by_code(&recorder);
    for name in MORE {
        let _ = recorder.function(name);
    }
    recorder.asked.into_inner().into_values().collect()
}

/// The record of the build, from its magic bytes to its end.
fn build_info(elf: &Elf<'_>) -> Option<Vec<u8>> {
    let magic = b"\xff Go buildinf:";
    let at = elf
        .search(
            |segment| segment.writable,
            16,
            |bytes| bytes.starts_with(magic),
        )
        .find(|at| elf.read(*at, 32).is_some())?;
    // Our fixtures have no dependencies, so a record is short.
    elf.read_up_to(at, 1024)
}

/// A program that writes down which functions it is asked for.
struct Recorder<'p> {
    elf: &'p Elf<'p>,
    program: &'p Program,
    asked: RefCell<BTreeMap<VirtAddr, Function>>,
}

impl<'p> Recorder<'p> {
    fn new(elf: &'p Elf<'p>, program: &'p Program) -> Self {
        Self {
            elf,
            program,
            asked: RefCell::default(),
        }
    }

    fn record(&self, found: FuncRef) -> Option<Function> {
        let function = || {
            Some(Function {
                name: self.program.functions.name(found),
                entry: found.entry,
                code: self.elf.read(found.entry, found.end.0 - found.entry.0)?,
            })
        };
        self.asked.borrow_mut().insert(found.entry, function()?);
        function()
    }
}

impl CodeView for Recorder<'_> {
    fn arch(&self) -> Arch {
        self.program.arch
    }

    fn function(&self, name: &str) -> Option<Function> {
        let found = self.program.functions.function_named(name)?;
        self.record(found)
    }

    fn function_at(&self, address: VirtAddr) -> Option<(String, VirtAddr)> {
        let found = self.program.functions.find(address)?;
        let name = self.program.functions.name(found);
        if name.starts_with("runtime.morestack") {
            self.record(found)?;
        }
        Some((name, found.entry))
    }

    fn file_offset(&self, address: VirtAddr) -> Option<FileOffset> {
        self.elf.file_offset(address)
    }

    fn symbol(&self, _: &str) -> Option<(VirtAddr, u64)> {
        None
    }
}
