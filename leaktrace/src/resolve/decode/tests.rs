//! Encodings as objdump shows them in real binaries.

use super::*;

fn listing(arch: Arch, code: &[u8]) -> Listing {
    let function = Function {
        name: "f".to_owned(),
        entry: VirtAddr(0x1000),
        code: code.to_vec(),
    };
    Listing::decode(arch, &function).expect("code that decodes")
}

fn arm64(words: &[u32]) -> Listing {
    let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    listing(Arch::Arm64, &code)
}

#[test]
fn amd64_knows_what_the_kernel_emulates() {
    use Execution::{Emulated, SingleStepped};
    let cases: [(&[u8], Option<Execution>, &str); 12] = [
        (&[0x76, 0x10], Some(Emulated), "jbe 0x1012"),
        (&[0x0f, 0x86, 0, 1, 0, 0], Some(Emulated), "jbe 0x1106"),
        (&[0xe8, 0, 0, 0, 0], Some(Emulated), "call 0x1005"),
        (&[0xeb, 0xfe], Some(Emulated), "jmp 0x1000"),
        (&[0x90], Some(Emulated), "nop"),
        (&[0x55], Some(Emulated), "push rbp"),
        (&[0x41, 0x57], Some(Emulated), "push r15"),
        (&[0xc3], Some(SingleStepped), "ret"),
        (
            &[0x48, 0x83, 0xec, 0x20],
            Some(SingleStepped),
            "sub rsp, 0x20",
        ),
        (
            &[0xf0, 0x48, 0x0f, 0xc1, 0x0a],
            None,
            "lock xadd [rdx], rcx",
        ),
        (&[0xc5, 0xf8, 0x77], None, "vzeroupper"),
        (&[0xcc], None, "int3"),
    ];
    for (code, execution, text) in cases {
        let listing = listing(Arch::Amd64, code);
        let [instruction] = listing.instructions.as_slice() else {
            panic!("{code:x?} is one instruction");
        };
        assert_eq!(instruction.execution, execution, "{text}");
        assert_eq!(instruction.text(), text);
    }
}

#[test]
fn arm64_knows_what_the_kernel_simulates() {
    use Execution::{Emulated, SingleStepped};
    let cases = [
        (0x5400_0049, Some(Emulated), "b.ls 0x1008"),
        (0x9400_0002, Some(Emulated), "bl 0x1008"),
        (0x17ff_ffff, Some(Emulated), "b 0xffc"),
        (0xb400_0041, Some(Emulated), "cbz x1, 0x1008"),
        (0x3700_0062, Some(Emulated), "tbnz w2, #0, 0x100c"),
        (0xd65f_03c0, Some(Emulated), "ret"),
        (0xd63f_0020, Some(Emulated), "blr x1"),
        (0xd503_201f, Some(SingleStepped), "nop"),
        (0xf81d_0ffe, Some(SingleStepped), "str x30, [sp, #-48]!"),
        (0x5800_0041, None, ".word 0x58000041"), // ldr x1, literal
        (0xc85f_fc20, None, ".word 0xc85ffc20"), // ldaxr
        (0xd538_d080, None, ".word 0xd538d080"), // mrs
        (0xd420_0000, None, ".word 0xd4200000"), // brk
        (0, None, ".word 0x00000000"),
    ];
    for (word, execution, text) in cases {
        let listing = arm64(&[word]);
        let instruction = listing.instructions.first().expect("one instruction");
        assert_eq!(instruction.execution, execution, "{text}");
        assert_eq!(instruction.text(), text);
    }
}

#[test]
fn arm64_follows_addresses_until_the_register_changes() {
    let references = arm64(&[
        0xd000_0001, // adrp x1, 0x3000
        0x9100_4021, // add x1, x1, #16
        0xc8df_fc22, // ldar x2, [x1]
        0xa940_8c3b, // ldp x27, x3, [x1, #8]
        0xd000_001b, // adrp x27, 0x3000
        0xf940_0763, // ldr x3, [x27, #8]
        0x9400_0000, // bl: nothing is known any more
        0xf940_0763, // ldr x3, [x27, #8]
    ])
    .references();
    let loads: Vec<(u64, u8)> = references
        .iter()
        .filter(|reference| reference.usage == Usage::Load)
        .map(|reference| (reference.address.0, reference.register))
        .collect();
    assert_eq!(loads, [(0x3010, 2), (0x3018, 27), (0x3020, 3), (0x3008, 3)]);
    assert_eq!(references.len(), 5);
}

#[test]
fn nonsense_is_an_error() {
    let decode = |arch, code: Vec<u8>| {
        let function = Function {
            name: "f".to_owned(),
            entry: VirtAddr(u64::MAX - 1),
            code,
        };
        Listing::decode(arch, &function).err()
    };
    assert!(matches!(
        decode(Arch::Amd64, vec![0x90, 0x0f]),
        Some(DecodeError::Invalid { .. })
    ));
    assert!(matches!(
        decode(Arch::Arm64, vec![0; 6]),
        Some(DecodeError::Invalid { .. })
    ));
    for code in [Vec::new(), vec![0x90; MAX_FUNCTION_BYTES + 1]] {
        assert!(matches!(
            decode(Arch::Amd64, code),
            Some(DecodeError::Size { .. })
        ));
    }
}
