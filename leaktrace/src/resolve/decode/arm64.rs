//! AArch64: every instruction is one word, and few of them matter here, so masks do.
//!
//! Encodings: Arm Architecture Reference Manual, C4.1. What the kernel does under a probe:
//! arch/arm64/kernel/probes/decode-insn.c, `arm_probe_decode_insn`.

use super::{Condition, Flow, Instruction, Machine, Reference, Usage};
use crate::address::VirtAddr;
use crate::resolve::Execution;

const NOP: u32 = 0xd503_201f;

/// Cuts `code` into words; an error is the address of an incomplete last one.
pub fn decode(code: &[u8], entry: VirtAddr) -> Result<Vec<Instruction>, VirtAddr> {
    let (words, rest) = code.as_chunks::<4>();
    let mut address = entry;
    let mut instructions = Vec::with_capacity(words.len());
    for bytes in words {
        let word = u32::from_le_bytes(*bytes);
        instructions.push(Instruction {
            address,
            bytes: bytes.to_vec(),
            flow: flow(word, address),
            execution: execution(word),
            machine: Machine::Arm64(word),
        });
        address = address.offset(4);
    }
    if rest.is_empty() {
        Ok(instructions)
    } else {
        Err(address)
    }
}

fn flow(word: u32, address: VirtAddr) -> Flow {
    let other = Condition::Other;
    if word & 0xfc00_0000 == 0x1400_0000 {
        Flow::Jump(relative(address, word, 0, 26))
    } else if word & 0xfc00_0000 == 0x9400_0000 {
        Flow::Call(relative(address, word, 0, 26))
    } else if word & 0xff00_0010 == 0x5400_0000 {
        let target = relative(address, word, 5, 19);
        match word & 0xf {
            0x3 => Flow::Branch {
                when: Condition::Below,
                target,
            },
            0x9 => Flow::Branch {
                when: Condition::BelowOrEqual,
                target,
            },
            0xe | 0xf => Flow::Jump(target),
            _ => Flow::Branch {
                when: other,
                target,
            },
        }
    } else if word & 0x7e00_0000 == 0x3400_0000 {
        Flow::Branch {
            when: other,
            target: relative(address, word, 5, 19),
        }
    } else if word & 0x7e00_0000 == 0x3600_0000 {
        Flow::Branch {
            when: other,
            target: relative(address, word, 5, 14),
        }
    } else if word & 0xfe1f_fc1f == 0xd61f_0000 {
        // Unconditional branch to a register, without pointer authentication.
        match word >> 21 & 0xf {
            0 => Flow::IndirectJump,
            1 => Flow::IndirectCall,
            2 => Flow::Return,
            _ => Flow::Trap,
        }
    } else if word & 0xfe00_0000 == 0xd600_0000 {
        // The authenticated forms: Go writes none; treat them as the least known.
        Flow::IndirectJump
    } else if word & 0xff00_0000 == 0xd400_0000 || word >> 16 == 0 {
        Flow::Trap
    } else {
        Flow::Next
    }
}

/// Branches, `ret` and `adr` are simulated; system instructions, exclusive accesses and loads relative to
/// the program counter are refused or may be; a nop is simulated only since 6.13, so it counts as stepped.
fn execution(word: u32) -> Option<Execution> {
    let simulated = word & 0x7c00_0000 == 0x1400_0000 // b, bl
        || word & 0xff00_0010 == 0x5400_0000 // b.cond
        || word & 0x7c00_0000 == 0x3400_0000 // cbz, cbnz, tbz, tbnz
        || matches!(word & 0xffff_fc1f, 0xd61f_0000 | 0xd63f_0000 | 0xd65f_0000) // br, blr, ret
        || word & 0x1f00_0000 == 0x1000_0000; // adr, adrp
    let refused = word >> 16 == 0 // udf
        || word & 0x1c00_0000 == 0x1400_0000 && word != NOP // branches and system
        || word & 0x3f80_0000 == 0x0800_0000 // exclusive
        || word & 0x3b00_0000 == 0x1800_0000; // literal
    if simulated {
        Some(Execution::Emulated)
    } else if refused {
        None
    } else {
        Some(Execution::SingleStepped)
    }
}

/// `ldr x16, [x28, #16|24]`; perhaps `mov x17, sp` or `sub x17, sp, #N`; `cmp sp|x17, x16`; `b.ls`.
pub fn stack_check(instructions: &[Instruction]) -> Option<usize> {
    let word = |index: usize| instructions.get(index).and_then(machine);
    if !matches!(word(0)?, 0xf940_0b90 | 0xf940_0f90) {
        return None;
    }
    let second = word(1)?;
    let through_x17 = second == 0x9100_03f1 || second & 0xff80_03ff == 0xd100_03f1;
    let compare = if through_x17 { 2 } else { 1 };
    let checks = if through_x17 {
        word(compare)? == 0xeb10_023f
    } else {
        word(compare)? == 0xeb30_63ff
    };
    let branch = compare + 1;
    let splits = matches!(
        instructions.get(branch)?.flow,
        Flow::Branch {
            when: Condition::BelowOrEqual,
            ..
        }
    );
    (checks && splits).then_some(branch)
}

/// Follows addresses made by `adr`, or `adrp` with `add` or a load's own offset.
pub fn references(instructions: &[Instruction]) -> Vec<Reference> {
    let mut found = Vec::new();
    // What each register is known to hold: an address that the code made.
    let mut known: [Option<u64>; 32] = [None; 32];
    for instruction in instructions {
        let Some(word) = machine(instruction) else {
            continue;
        };
        let base = known.get(field(word, 5, 5)).copied().flatten();
        let into = field(word, 0, 5);
        let mut made = None;
        if word & 0x1f00_0000 == 0x1000_0000 {
            made = Some(page_relative(word, instruction.address));
            if word >> 31 == 0 {
                found.extend(reference(made, Usage::Address, into));
            }
        } else if word & 0xff80_0000 == 0x9100_0000 {
            let shift = if word & 1 << 22 == 0 { 0 } else { 12 };
            let immediate = u64::from(word >> 10 & 0xfff) << shift;
            made = base.map(|base| base.wrapping_add(immediate));
            found.extend(reference(made, Usage::Address, into));
        } else if word & 0xffc0_0000 == 0xf940_0000 {
            let at = base.map(|base| base.wrapping_add(u64::from(word >> 10 & 0xfff) * 8));
            found.extend(reference(at, Usage::Load, into));
        } else if word & 0xffff_fc00 == 0xc8df_fc00 {
            found.extend(reference(base, Usage::Load, into));
        } else if word & 0xffc0_0000 == 0xa940_0000 {
            let at = base.map(|base| base.wrapping_add_signed(signed(word, 15, 7) * 8));
            found.extend(reference(at, Usage::Load, into));
            let next = at.map(|at| at.wrapping_add(8));
            found.extend(reference(next, Usage::Load, field(word, 10, 5)));
        }
        for (register, value) in (0..).zip(known.iter_mut()) {
            if writes(word, register) {
                *value = None;
            }
        }
        if made.is_some()
            && let Some(value) = known.get_mut(into)
        {
            *value = made;
        }
    }
    found
}

/// The constants in `mov xn, #d; add xd, xm, xn`.
pub fn fields_read(instructions: &[Instruction]) -> Vec<u64> {
    instructions
        .windows(2)
        .filter_map(|pair| match pair {
            [constant, sum] => {
                let (constant, sum) = (machine(constant)?, machine(sum)?);
                // `movz` without a shift, and `add` of two registers without one.
                let moves = constant & 0xffe0_0000 == 0xd280_0000;
                let adds = sum & 0xffe0_fc00 == 0x8b00_0000;
                let same = field(sum, 16, 5) == field(constant, 0, 5)
                    || field(sum, 5, 5) == field(constant, 0, 5);
                (moves && adds && same).then(|| u64::from(constant >> 5 & 0xffff))
            }
            _ => None,
        })
        .collect()
}

fn reference(address: Option<u64>, usage: Usage, register: usize) -> Option<Reference> {
    Some(Reference {
        address: VirtAddr(address?),
        usage,
        register: u8::try_from(register).ok()?,
    })
}

/// Cautious: a store or a compare may be taken to write the register in its first field.
pub fn writes(word: u32, register: u8) -> bool {
    let register = u32::from(register);
    if word & 0x1c00_0000 == 0x1400_0000 {
        // Branches write nothing; a call writes everything; of the system group `mrs` writes a register.
        let call = word & 0xfc00_0000 == 0x9400_0000 || word & 0xffff_fc1f == 0xd63f_0000;
        let system = word & 0xffc0_0000 == 0xd500_0000;
        return call || system && word != NOP && word & 0x1f == register;
    }
    let first = word & 0x1f == register;
    let pair = word & 0x3a00_0000 == 0x2800_0000 && word >> 10 & 0x1f == register;
    // Loads and stores that move their base: single ones before or after, pairs likewise.
    let single_moves = word & 0x3b20_0400 == 0x3800_0400;
    let pair_moves = word & 0x3a80_0000 == 0x2880_0000;
    let base = (single_moves || pair_moves) && word >> 5 & 0x1f == register;
    first || pair || base
}

/// `mov xd, xm` (`orr xd, xzr, xm`).
pub fn copies(word: u32) -> Option<(u8, u8)> {
    if word & 0xffe0_ffe0 != 0xaa00_03e0 {
        return None;
    }
    let to = u8::try_from(field(word, 0, 5)).ok()?;
    let from = u8::try_from(field(word, 16, 5)).ok()?;
    Some((to, from))
}

/// `ldr xt, [register, xm, lsl #3]`.
pub fn loads_element_of(word: u32, register: u8) -> bool {
    word & 0xffe0_fc00 == 0xf860_7800 && field(word, 5, 5) == usize::from(register)
}

/// `cmp wn, #imm`.
pub fn compares_with(word: u32) -> Option<u64> {
    (word & 0xffc0_001f == 0x7100_001f).then_some(u64::from(word >> 10 & 0xfff))
}

/// The instructions on which a probe may sit; the rest as a bare word.
pub fn text(word: u32, address: VirtAddr) -> String {
    const CONDITIONS: [&str; 16] = [
        "eq", "ne", "hs", "lo", "mi", "pl", "vs", "vc", "hi", "ls", "ge", "lt", "gt", "le", "al",
        "nv",
    ];
    let register = |at: u32| field(word, at, 5);
    match flow(word, address) {
        Flow::Jump(target) if word >> 26 == 0b00_0101 => format!("b {target}"),
        Flow::Call(target) => format!("bl {target}"),
        Flow::IndirectJump => format!("br x{}", register(5)),
        Flow::IndirectCall => format!("blr x{}", register(5)),
        Flow::Return if register(5) == 30 => "ret".to_owned(),
        Flow::Return => format!("ret x{}", register(5)),
        Flow::Jump(target) | Flow::Branch { target, .. } if word >> 24 == 0x54 => {
            let condition = CONDITIONS.get(field(word, 0, 4)).copied().unwrap_or("?");
            format!("b.{condition} {target}")
        }
        Flow::Branch { target, .. } => {
            let negated = if word & 1 << 24 == 0 { "" } else { "n" };
            let width = if word >> 31 == 0 { 'w' } else { 'x' };
            let tested = register(0);
            if word & 1 << 25 == 0 {
                format!("cb{negated}z {width}{tested}, {target}")
            } else {
                let bit = (word >> 31) << 5 | word >> 19 & 0x1f;
                format!("tb{negated}z {width}{tested}, #{bit}, {target}")
            }
        }
        _ if word == NOP => "nop".to_owned(),
        _ if word & 0xffe0_0fff == 0xf800_0ffe => {
            format!("str x30, [sp, #{}]!", signed(word, 12, 9))
        }
        _ => format!(".word {word:#010x}"),
    }
}

fn machine(instruction: &Instruction) -> Option<u32> {
    match instruction.machine {
        Machine::Arm64(word) => Some(word),
        Machine::Amd64(_) => None,
    }
}

/// `width` bits from bit `at`.
fn field(word: u32, at: u32, width: u32) -> usize {
    (word >> at & ((1 << width) - 1)) as usize
}

/// The same, sign extended.
fn signed(word: u32, at: u32, width: u32) -> i64 {
    i64::from((word << (32 - at - width)).cast_signed() >> (32 - width))
}

/// A branch's target: a signed number of words from the branch.
fn relative(address: VirtAddr, word: u32, at: u32, width: u32) -> VirtAddr {
    VirtAddr(address.0.wrapping_add_signed(signed(word, at, width) * 4))
}

/// What `adr` and `adrp` compute.
fn page_relative(word: u32, address: VirtAddr) -> u64 {
    let immediate = signed(word, 5, 19) * 4 + i64::from(word >> 29 & 3);
    if word >> 31 == 0 {
        address.0.wrapping_add_signed(immediate)
    } else {
        (address.0 & !0xfff).wrapping_add_signed(immediate << 12)
    }
}
