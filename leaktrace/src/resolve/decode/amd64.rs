//! x86-64: iced-x86 decodes; the kernel's rules for uprobes are its own.

use iced_x86::{
    Code, ConditionCode, Decoder, DecoderOptions, EncodingKind, FlowControl, Formatter as _,
    InstructionInfoFactory, IntelFormatter, Mnemonic, OpAccess, OpKind, Register,
};

use super::{Condition, Flow, Instruction, Machine, Reference, Usage};
use crate::address::VirtAddr;
use crate::resolve::Execution;

/// Decodes all of `code`; an error is the address where it made no sense.
pub fn decode(code: &[u8], entry: VirtAddr) -> Result<Vec<Instruction>, VirtAddr> {
    let mut decoder = Decoder::with_ip(64, code, entry.0, DecoderOptions::NONE);
    let mut rest = code;
    let mut instructions = Vec::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let address = VirtAddr(instruction.ip());
        if instruction.is_invalid() {
            return Err(address);
        }
        let Some((bytes, after)) = rest.split_at_checked(instruction.len()) else {
            return Err(address);
        };
        rest = after;
        instructions.push(Instruction {
            address,
            bytes: bytes.to_vec(),
            flow: flow(&instruction),
            execution: execution(bytes, &instruction),
            machine: Machine::Amd64(instruction),
        });
    }
    Ok(instructions)
}

fn flow(instruction: &iced_x86::Instruction) -> Flow {
    let target = VirtAddr(instruction.near_branch_target());
    match instruction.flow_control() {
        FlowControl::Next => Flow::Next,
        FlowControl::Call if instruction.is_call_near() => Flow::Call(target),
        // A far call, syscall and their like: control comes back, nobody knows from where.
        FlowControl::Call | FlowControl::IndirectCall => Flow::IndirectCall,
        FlowControl::UnconditionalBranch if instruction.is_jmp_short_or_near() => {
            Flow::Jump(target)
        }
        FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => Flow::IndirectJump,
        FlowControl::ConditionalBranch => Flow::Branch {
            when: match instruction.condition_code() {
                ConditionCode::b => Condition::Below,
                ConditionCode::be => Condition::BelowOrEqual,
                _ => Condition::Other,
            },
            target,
        },
        FlowControl::Return => Flow::Return,
        FlowControl::Interrupt | FlowControl::Exception | FlowControl::XbeginXabortXend => {
            Flow::Trap
        }
    }
}

/// What the kernel does with a uprobe here: arch/x86/kernel/uprobes.c, `branch_setup_xol_ops` (calls,
/// jumps, conditional jumps, one-byte nop: emulated since 3.16) and `push_setup_xol_ops` (since 4.16).
/// Whatever has a prefix that `is_prefix_bad` names, or a VEX or EVEX encoding, it refuses.
fn execution(bytes: &[u8], instruction: &iced_x86::Instruction) -> Option<Execution> {
    match bytes {
        // Branches without any prefix: with the 0x66 prefix they are refused, and Go writes none.
        [0xe8 | 0xe9, _, _, _, _] | [0xeb | 0x70..=0x7f, _] | [0x0f, 0x80..=0x8f, _, _, _, _] => {
            Some(Execution::Emulated)
        }
        [0x90] | [0x50..=0x57] | [0x41, 0x50..=0x57] => Some(Execution::Emulated),
        _ => {
            let prefixed =
                instruction.has_lock_prefix() || instruction.segment_prefix() != Register::None;
            let trap = matches!(
                instruction.flow_control(),
                FlowControl::Interrupt
                    | FlowControl::Exception
                    | FlowControl::XbeginXabortXend
                    | FlowControl::ConditionalBranch
                    | FlowControl::UnconditionalBranch
            );
            let plain = instruction.encoding() == EncodingKind::Legacy;
            (plain && !prefixed && !trap).then_some(Execution::SingleStepped)
        }
    }
}

/// `cmp rsp, [r14+16|24]; jbe` or, for frames over 128 bytes, `lea r12, [rsp-N]; cmp r12, [r14+16|24]; jbe`.
/// The guard is at 24 in functions that must run on the system stack.
pub fn stack_check(instructions: &[Instruction]) -> Option<usize> {
    let machine = |index: usize| match instructions.get(index)?.machine {
        Machine::Amd64(instruction) => Some(instruction),
        Machine::Arm64(_) => None,
    };
    let first = machine(0)?;
    let large = first.mnemonic() == Mnemonic::Lea
        && first.op0_register() == Register::R12
        && first.memory_base() == Register::RSP
        && first.memory_index() == Register::None;
    let (compare, stack_pointer) = if large {
        (1, Register::R12)
    } else {
        (0, Register::RSP)
    };
    let guard = machine(compare)?;
    let checks = guard.code() == Code::Cmp_r64_rm64
        && guard.op0_register() == stack_pointer
        && guard.op1_kind() == OpKind::Memory
        && guard.memory_base() == Register::R14
        && guard.memory_index() == Register::None
        && matches!(guard.memory_displacement64(), 16 | 24);
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

/// `mov r64, [rip+d]` and `lea r64, [rip+d]`.
pub fn references(instructions: &[Instruction]) -> Vec<Reference> {
    instructions.iter().filter_map(reference).collect()
}

fn reference(instruction: &Instruction) -> Option<Reference> {
    let Machine::Amd64(instruction) = &instruction.machine else {
        return None;
    };
    let usage = match instruction.code() {
        Code::Mov_r64_rm64 => Usage::Load,
        Code::Lea_r64_m => Usage::Address,
        _ => return None,
    };
    if !instruction.is_ip_rel_memory_operand() {
        return None;
    }
    Some(Reference {
        address: VirtAddr(instruction.ip_rel_memory_address()),
        usage,
        register: number(instruction.op0_register())?,
    })
}

/// Every address in the form `[rip+d]`.
pub fn addresses(instructions: &[Instruction]) -> Vec<VirtAddr> {
    instructions
        .iter()
        .filter_map(|instruction| match &instruction.machine {
            Machine::Amd64(machine) if machine.is_ip_rel_memory_operand() => {
                Some(VirtAddr(machine.ip_rel_memory_address()))
            }
            _ => None,
        })
        .collect()
}

/// The distances in `mov r64, [register+d]`.
pub fn fields_read(instructions: &[Instruction]) -> Vec<u64> {
    instructions
        .iter()
        .filter_map(|instruction| match &instruction.machine {
            Machine::Amd64(machine)
                if machine.code() == Code::Mov_r64_rm64
                    && machine.op1_kind() == OpKind::Memory
                    && machine.memory_index() == Register::None
                    && number(machine.memory_base()).is_some()
                    && machine.memory_base() != Register::RSP =>
            {
                Some(machine.memory_displacement64())
            }
            _ => None,
        })
        .collect()
}

/// Whether any part of the register is written, perhaps.
pub fn writes(instruction: &iced_x86::Instruction, register: u8) -> bool {
    let mut factory = InstructionInfoFactory::new();
    factory
        .info(instruction)
        .used_registers()
        .iter()
        .any(|used| {
            number(used.register()) == Some(register)
                && matches!(
                    used.access(),
                    OpAccess::Write
                        | OpAccess::CondWrite
                        | OpAccess::ReadWrite
                        | OpAccess::ReadCondWrite
                )
        })
}

/// `mov r64, r64`.
pub fn copies(instruction: &iced_x86::Instruction) -> Option<(u8, u8)> {
    let moves = matches!(instruction.code(), Code::Mov_r64_rm64 | Code::Mov_rm64_r64)
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register;
    if !moves {
        return None;
    }
    Some((
        number(instruction.op0_register())?,
        number(instruction.op1_register())?,
    ))
}

/// `mov r64, [register + 8*index]`.
pub fn loads_element_of(instruction: &iced_x86::Instruction, register: u8) -> bool {
    instruction.code() == Code::Mov_r64_rm64
        && instruction.op1_kind() == OpKind::Memory
        && number(instruction.memory_base()) == Some(register)
        && instruction.memory_index() != Register::None
        && instruction.memory_index_scale() == 8
        && instruction.memory_displacement64() == 0
}

/// `cmp reg, imm`.
pub fn compares_with(instruction: &iced_x86::Instruction) -> Option<u64> {
    let constant = instruction.mnemonic() == Mnemonic::Cmp
        && instruction.op0_kind() == OpKind::Register
        && matches!(
            instruction.op1_kind(),
            OpKind::Immediate8
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32
                | OpKind::Immediate32to64
        );
    constant.then(|| instruction.immediate(1))
}

/// Plain Intel syntax: `jbe 0x43fc4b`.
pub fn text(instruction: &iced_x86::Instruction) -> String {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    options.set_show_branch_size(false);
    options.set_space_after_operand_separator(true);
    let mut text = String::new();
    formatter.format(instruction, &mut text);
    text
}

/// The hardware's number of a general register or a part of one.
fn number(register: Register) -> Option<u8> {
    let full = register.full_register();
    if full.is_gpr64() {
        u8::try_from(full.number()).ok()
    } else {
        None
    }
}
