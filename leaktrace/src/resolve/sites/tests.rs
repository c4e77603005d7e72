//! What is proved before an instruction is chosen, on a few bytes of machine code.

use super::*;
use crate::address::FileOffset;
use crate::resolve::code::Function;

/// amd64 functions side by side, 0x100 bytes each.
struct Bytes(Vec<(&'static str, Vec<u8>)>);

impl Bytes {
    fn entry(index: usize) -> VirtAddr {
        VirtAddr(0x1000).offset(0x100 * index as u64)
    }

    fn listing(&self, name: &str) -> Listing {
        let function = self.function(name).expect("the function");
        Listing::decode(Arch::Amd64, &function).expect("code that decodes")
    }
}

impl CodeView for Bytes {
    fn arch(&self) -> Arch {
        Arch::Amd64
    }

    fn function(&self, name: &str) -> Option<Function> {
        let index = self.0.iter().position(|(known, _)| *known == name)?;
        Some(Function {
            name: name.to_owned(),
            entry: Self::entry(index),
            code: self.0[index].1.clone(),
        })
    }

    fn function_at(&self, address: VirtAddr) -> Option<(String, VirtAddr)> {
        let index = usize::try_from(address.0.checked_sub(0x1000)? / 0x100).ok()?;
        let (name, _) = self.0.get(index)?;
        Some(((*name).to_owned(), Self::entry(index)))
    }

    fn file_offset(&self, address: VirtAddr) -> Option<FileOffset> {
        Some(FileOffset(address.0))
    }

    fn symbol(&self, _: &str) -> Option<(VirtAddr, u64)> {
        None
    }
}

/// `releasem` as it ends `newproc1`: `cmp edx, 1; jne; cmp byte [r14+177], 0; je; mov [r14+16], -1314`.
const RELEASEM: [u8; 23] = [
    0x83, 0xfa, 0x01, 0x75, 0x12, 0x41, 0x80, 0xbe, 0xb1, 0, 0, 0, 0, 0x74, 0x08, 0x49, 0xc7, 0x46,
    0x10, 0xde, 0xfa, 0xff, 0xff,
];

fn exit_of(code: &[&[u8]]) -> Option<(usize, u8)> {
    let view = Bytes(vec![("f", code.concat())]);
    let listing = view.listing("f");
    let last = listing
        .instructions
        .iter()
        .position(|instruction| instruction.flow == Flow::Return)?;
    exit_branch(&listing, last, 0)
}

#[test]
fn the_exit_is_the_last_branch_that_every_return_passes() {
    let ret = [0xc3];
    // As it is by default: the result is in rax already.
    assert_eq!(exit_of(&[&RELEASEM, &ret]), Some((1, 0)));
    // As a profile makes it: mov rax, rsi.
    assert_eq!(
        exit_of(&[&RELEASEM, &[0x48, 0x89, 0xf0], &ret]),
        Some((1, 6))
    );
    // The result comes from the stack: mov rax, [rsp+8].
    let load = [0x48, 0x8b, 0x44, 0x24, 0x08];
    assert_eq!(exit_of(&[&RELEASEM, &load, &ret]), None);
    // Somebody jumps over the branch to the return: jmp to the byte after it.
    assert_eq!(exit_of(&[&[0xeb, 23], &RELEASEM, &ret]), None);
    // To the compare before the branch it may jump.
    assert_eq!(exit_of(&[&[0xeb, 0], &RELEASEM, &ret]), Some((2, 0)));
    // Nobody knows where: jmp rcx.
    assert_eq!(exit_of(&[&RELEASEM, &ret, &[0xff, 0xe1]]), None);
    // The copy is skipped on one way: the je leads past it.
    let mut skipping = RELEASEM;
    skipping[14] += 3;
    assert_eq!(exit_of(&[&skipping, &[0x48, 0x89, 0xf0], &ret]), None);
}

/// `cmp rsp, [r14+16]; jbe tail; ret; tail: call <index 1>; jmp entry`.
fn with_stack_check(growth: &'static str) -> Bytes {
    let code = vec![
        0x49, 0x3b, 0x66, 0x10, 0x76, 0x01, 0xc3, 0xe8, 0xf4, 0, 0, 0, 0xeb, 0xf2,
    ];
    Bytes(vec![("runtime.park_m", code), (growth, vec![0xc3])])
}

#[test]
fn a_stack_check_must_lead_to_morestack_and_back() {
    let site = |view: &Bytes| {
        let choice = find(view, 25).into_iter().nth(2).expect("Parked is third");
        assert_eq!(choice.kind, Kind::Parked);
        choice.found
    };
    let found = site(&with_stack_check("runtime.morestack_noctxt"));
    let found = found.expect("a site");
    assert_eq!(found[0].offset_in_function, 4);
    assert_eq!(found[0].text, "jbe 0x1007");
    assert_eq!(found[0].bytes, [0x76, 0x01]);

    assert!(site(&with_stack_check("main.morestack")).is_err());
    let mut wrong_guard = with_stack_check("runtime.morestack");
    wrong_guard.0[0].1[3] = 32;
    assert!(site(&wrong_guard).is_err());
    let mut no_way_back = with_stack_check("runtime.morestack");
    no_way_back.0[0].1[13] = 0xf8;
    assert!(site(&no_way_back).is_err());
}

#[test]
fn what_is_missing_is_said_in_a_sentence() {
    let reasons: Vec<String> = find(&Bytes(Vec::new()), 25)
        .into_iter()
        .map(|choice| choice.found.expect_err("nothing is there"))
        .collect();
    assert_eq!(reasons.len(), Kind::ALL.len());
    assert_eq!(
        reasons[4],
        "the program has no function time.newTimer, so it never arms a timer"
    );
}

/// An inlined `addtimer` leaves `push rbp` after the stack check of the door.
#[test]
fn the_doors_of_old_timers_need_no_call() {
    let mut view = with_stack_check("runtime.morestack");
    view.0[0].0 = "time.startTimer";
    view.0[0].1[6] = 0x55;
    let found = find(&view, 22)[4].found.clone().expect("a site");
    assert_eq!((found[0].text.as_str(), found[0].register), ("push rbp", 0));
    assert!(find(&view, 23)[4].found.is_err());
}
