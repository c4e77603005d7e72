//! The traced program's file, and where to probe it: found by a few lines of their own, so that these tests do not
//! believe the finder that they are used with.

use std::{
    collections::HashMap, fs, fs::File, num::NonZeroU32, os::unix::fs::FileExt as _, path::Path,
};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use leaktrace::{
    address::{FileOffset, RuntimeAddr},
    probe::{AttachRequest, Point, Scope},
    resolve::Execution,
};
use leaktrace_common::{binary::BinaryConfig, event::Kind};
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};

/// A Go executable with symbols, not position independent.
pub struct Binary {
    pub file: File,
    pub minor: u32,
    /// Start, end, name; by start.
    pub functions: Vec<(u64, u64, String)>,
    pub by_name: HashMap<String, (u64, u64)>,
    pub bytes: Vec<u8>,
    /// Address, offset in the file, size of each segment.
    pub segments: Vec<(u64, u64, u64)>,
}

impl Binary {
    pub fn open(path: &Path, minor: u32) -> Self {
        let bytes = fs::read(path).expect("the executable");
        let elf = object::File::parse(&*bytes).expect("an ELF file");
        let mut functions: Vec<_> = elf
            .symbols()
            .filter(|symbol| symbol.kind() == object::SymbolKind::Text)
            .map(|symbol| {
                let name = symbol.name().expect("a name").trim_end_matches(".abi0");
                let start = symbol.address();
                (start, start + symbol.size(), name.to_owned())
            })
            .collect();
        functions.sort();
        let by_name = functions
            .iter()
            .map(|(start, end, name)| (name.clone(), (*start, *end)))
            .collect();
        let segments = elf
            .segments()
            .map(|segment| (segment.address(), segment.file_range().0, segment.size()))
            .collect();
        Self {
            file: File::open(path).expect("the executable"),
            minor,
            functions,
            by_name,
            segments,
            bytes,
        }
    }

    /// The function that a return address belongs to.
    pub fn function_at(&self, return_address: RuntimeAddr) -> &str {
        let pc = return_address.0 - 1;
        let after = self.functions.partition_point(|(start, ..)| *start <= pc);
        match self.functions.get(after.wrapping_sub(1)) {
            Some((_, end, name)) if pc < *end => name,
            _ => "?",
        }
    }

    pub fn request<'a>(&'a self, pid: NonZeroU32, points: &'a [Point]) -> AttachRequest<'a> {
        AttachRequest {
            executable: &self.file,
            pid,
            binary: offsets(self.minor),
            points,
            scope: Scope::Process,
        }
    }

    /// The first byte of each point in the memory of a process that runs it: 0xcc where a probe is.
    pub fn text(&self, pid: NonZeroU32, points: &[Point]) -> Vec<u8> {
        let memory = File::open(format!("/proc/{pid}/mem")).expect("its memory");
        points
            .iter()
            .map(|point| {
                let mut byte = [0];
                let address = self.address_of(point.offset);
                memory.read_exact_at(&mut byte, address).expect("its text");
                byte[0]
            })
            .collect()
    }

    pub fn address_of(&self, offset: FileOffset) -> u64 {
        let segment = self
            .segments
            .iter()
            .find(|(_, start, size)| (*start..start + size).contains(&offset.0));
        let (address, start, _) = segment.expect("in a segment");
        address + offset.0 - start
    }

    pub fn offset_of(&self, address: u64) -> u64 {
        let segment = self
            .segments
            .iter()
            .find(|(start, _, size)| (*start..start + size).contains(&address));
        let (start, offset, _) = segment.expect("in a segment");
        offset + address - start
    }

    pub fn instructions(&self, function: &str) -> Vec<Instruction> {
        let (start, end) = self.by_name[function];
        let from = usize::try_from(self.offset_of(start)).expect("small");
        let bytes = &self.bytes[from..from + usize::try_from(end - start).expect("small")];
        Decoder::with_ip(64, bytes, start, DecoderOptions::NONE)
            .into_iter()
            .collect()
    }

    pub fn points(&self, kinds: &[Kind]) -> Vec<Point> {
        kinds.iter().map(|&kind| self.point(kind)).collect()
    }

    pub fn point(&self, kind: Kind) -> Point {
        const RAX: u8 = 0;
        const RBX: u8 = 3;
        let new = self.minor >= 23;
        let (instruction, register) = match kind {
            Kind::Born => (self.exit_of_newproc1(), RAX),
            Kind::Ended => (self.stack_check("runtime.gdestroy"), RAX),
            Kind::Parked => (self.stack_check("runtime.park_m"), RAX),
            Kind::Readied => (self.stack_check("runtime.ready"), RAX),
            Kind::Armed if new => (self.call("time.newTimer", "runtime.(*timer).modify"), RAX),
            Kind::Armed => (self.call("time.startTimer", "runtime.addtimer"), RAX),
            Kind::Stopped if new => (self.call("time.stopTimer", "runtime.(*timer).stop"), RAX),
            Kind::Stopped => (self.call("time.stopTimer", "runtime.deltimer"), RAX),
            Kind::Rearmed if new => (self.call("time.resetTimer", "runtime.(*timer).modify"), RAX),
            Kind::Rearmed => (self.call("time.resetTimer", "runtime.modtimer"), RAX),
            Kind::Fired if new => (self.stack_check("runtime.(*timer).unlockAndRun"), RAX),
            Kind::Fired => (self.stack_check("runtime.runOneTimer"), RBX),
        };
        let offset = self.offset_of(instruction.ip());
        let from = usize::try_from(offset).expect("small");
        Point {
            kind,
            offset: FileOffset(offset),
            bytes: self.bytes[from..from + instruction.len()].to_vec(),
            register,
            execution: Execution::Emulated,
        }
    }

    /// The last `jne` before the test of `g.preempt` that precedes the only return.
    pub fn exit_of_newproc1(&self) -> Instruction {
        let instructions = self.instructions("runtime.newproc1");
        let end = instructions
            .iter()
            .position(|i| i.flow_control() == FlowControl::Return)
            .expect("a return");
        let test = instructions[..end]
            .iter()
            .rposition(|i| {
                i.mnemonic() == Mnemonic::Cmp
                    && i.op0_kind() == OpKind::Memory
                    && i.memory_base() == Register::R14
            })
            .expect("the test of g.preempt");
        instructions[..test]
            .iter()
            .rfind(|i| i.mnemonic() == Mnemonic::Jne)
            .copied()
            .expect("the jne")
    }

    pub fn stack_check(&self, function: &str) -> Instruction {
        self.instructions(function)
            .into_iter()
            .find(|i| i.mnemonic() == Mnemonic::Jbe)
            .expect("a stack check")
    }

    pub fn call(&self, function: &str, callee: &str) -> Instruction {
        let callee = self.by_name[callee].0;
        self.instructions(function)
            .into_iter()
            .find(|i| i.mnemonic() == Mnemonic::Call && i.near_branch_target() == callee)
            .expect("the call")
    }
}

/// From the DWARF of each release: go-runtime.md, appendix A.
pub fn offsets(minor: u32) -> BinaryConfig {
    let (goid, waitreason, parent, gopc, startpc, bp, curg, timer) = match minor {
        22 => (152, 176, 272, 280, 296, 104, 192, 8),
        25 => (152, 176, 272, 280, 296, 96, 184, 24),
        27 => (152, 176, 280, 288, 304, 96, 184, 24),
        _ => panic!("no offsets for Go 1.{minor}"),
    };
    BinaryConfig {
        g_stack: 0,
        g_m: 48,
        g_sched_bp: bp,
        g_goid: goid,
        g_waitreason: waitreason,
        g_gopc: gopc,
        g_startpc: startpc,
        g_parent_goid: parent,
        m_curg: curg,
        timer_when: timer,
        timer_period: timer + 8,
        timer_f: timer + 16,
        timer_arg: timer + 24,
        armed_in_registers: u32::from(minor >= 23),
        frame_pointers: 1,
        filled: 0,
        object_is_current_g: 0,
        registers: [0; Kind::COUNT as usize],
    }
}
