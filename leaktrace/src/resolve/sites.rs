//! On which instructions can probes sit?
//!
//! For each kind of event [`find`] names the instruction that every such event passes exactly once, at
//! which the object is in a known register, and which the kernel emulates ([`Execution`] says why
//! that matters). Each choice is proved on the bytes of this binary: the stack check leads to `morestack`,
//! the callee is really called, nothing by-passes the exit. What cannot be proved is an `Err` with the
//! reason, and never a guess.

use leaktrace_common::event::Kind;

use super::code::CodeView;
use super::decode::{DecodeError, Flow, Instruction, Listing};
use super::{Arch, Execution, ProbeSite, SiteChoice};
use crate::address::VirtAddr;

/// The first minor release with the timers of Go 1.23 (`time.newTimer`, `(*timer).modify`).
const NEW_TIMERS: u32 = 23;

/// The first minor release with coroutines, and with `gdestroy` apart from `goexit0`.
const COROUTINES: u32 = 22;

/// How far before the return an exit is looked for, in instructions: `releasem` inlined has 10.
const EXIT_WINDOW: usize = 24;

/// How far `morestack` may lie in the tail of a stack check: it spills at most nine registers and reloads
/// them.
const TAIL_WINDOW: usize = 32;

/// Why there is no site for an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum SiteError {
    #[error("the binary has no function {0}")]
    NoFunction(&'static str),
    #[error("the program has no function {0}, so it never {1}")]
    NotUsed(&'static str, &'static str),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("{0} does not begin with the stack check that Go compiles into it")]
    NoStackCheck(&'static str),
    #[error(
        "{caller} does not call {callee} directly: the binary was built with a profile, or without inlining"
    )]
    Inlined {
        caller: &'static str,
        callee: &'static str,
    },
    #[error("{caller} calls {callee} from {calls} places where one is known")]
    Calls {
        caller: &'static str,
        callee: &'static str,
        calls: usize,
    },
    #[error("{function} has {returns} returns where one is known")]
    Returns {
        function: &'static str,
        returns: usize,
    },
    #[error("the instruction at {0} cannot carry a probe: {1}")]
    Unfit(VirtAddr, String),
    #[error("the instruction at {0} is not in the file")]
    NotInFile(VirtAddr),
}

type Sites = Result<Vec<ProbeSite>, SiteError>;

/// For each kind of event, in the order of [`Kind::ALL`], where to probe it in the binary behind `view`,
/// which Go 1.`go_minor` built; or the reason, as a sentence, why it cannot be probed.
#[must_use]
pub fn find(view: &dyn CodeView, go_minor: u32) -> Vec<SiteChoice> {
    let finder = Finder { view, go_minor };
    Kind::ALL
        .into_iter()
        .map(|kind| SiteChoice {
            kind,
            found: finder.find(kind).map_err(|error| error.to_string()),
        })
        .collect()
}

struct Finder<'a> {
    view: &'a dyn CodeView,
    go_minor: u32,
}

impl Finder<'_> {
    fn find(&self, kind: Kind) -> Sites {
        match kind {
            Kind::Born => self.born(),
            Kind::Ended => self.ended(),
            Kind::Parked => self.entry("runtime.park_m", self.argument(0)),
            Kind::Readied => self.readied(),
            Kind::Armed => self.armed(),
            Kind::Stopped => self.stopped(),
            Kind::Rearmed => self.rearmed(),
            Kind::Fired => self.fired(),
        }
    }

    /// `newproc1` returns the new g to its callers, all on the system stack (proc.go, `newproc`; coro.go,
    /// `newcoro`). Where it was inlined into `newproc.func1`, the g is the second argument of the `runqput`
    /// that follows, and `newproc1` itself is left to coroutines.
    fn born(&self) -> Sites {
        const NEWPROC1: &str = "runtime.newproc1";
        const GO_STATEMENT: &str = "runtime.newproc.func1";
        self.all_call(&["runtime.newcoro.func1"], NEWPROC1)?;
        if self.calls(GO_STATEMENT, NEWPROC1)? {
            return Ok(vec![self.exit(NEWPROC1)?]);
        }
        let mut sites = vec![self.call(GO_STATEMENT, "runtime.runqput", self.argument(1))?];
        if self.view.function(NEWPROC1).is_some() {
            sites.push(self.exit(NEWPROC1)?);
        }
        Ok(sites)
    }

    /// Since 1.22 `gdestroy` ends every goroutine: `goexit0` calls it, and `coroswitch_m` for coroutines.
    /// Where it was inlined into `goexit0`, that is the site, and `gdestroy` that of coroutines alone.
    fn ended(&self) -> Sites {
        const GOEXIT0: &str = "runtime.goexit0";
        const GDESTROY: &str = "runtime.gdestroy";
        const COROUTINE: &str = "runtime.coroswitch_m";
        let gp = self.argument(0);
        if self.go_minor < COROUTINES {
            return self.entry(GOEXIT0, gp);
        }
        let coroutines = self.view.function(COROUTINE).is_some();
        if coroutines && !self.calls(COROUTINE, GDESTROY)? {
            return Err(SiteError::Inlined {
                caller: COROUTINE,
                callee: GDESTROY,
            });
        }
        if self.calls(GOEXIT0, GDESTROY)? {
            return self.entry(GDESTROY, gp);
        }
        let mut sites = self.entry(GOEXIT0, gp)?;
        if coroutines {
            sites.extend(self.entry(GDESTROY, gp)?);
        }
        Ok(sites)
    }

    /// `ready` is called by closures that `goready` leaves wherever it is inlined; those that are known
    /// must really call it.
    fn readied(&self) -> Sites {
        const READY: &str = "runtime.ready";
        const CLOSURES: [&str; 7] = [
            "runtime.goready.func1",
            "runtime.send.goready.func1",
            "runtime.recv.goready.func1",
            "runtime.closechan.goready.func1",
            "runtime.readyWithTime.goready.func1",
            "runtime.netpollgoready.goready.func1",
            "_.goready.func1",
        ];
        self.all_call(&CLOSURES, READY)?;
        self.entry(READY, self.argument(0))
    }

    fn armed(&self) -> Sites {
        if self.go_minor >= NEW_TIMERS {
            self.timer_call("time.newTimer", "runtime.(*timer).modify", "arms a timer")
        } else {
            self.timer_function("time.startTimer", "runtime.addtimer", "arms a timer")
        }
    }

    fn stopped(&self) -> Sites {
        if self.go_minor >= NEW_TIMERS {
            self.timer_call("time.stopTimer", "runtime.(*timer).stop", "stops a timer")
        } else {
            self.timer_function("time.stopTimer", "runtime.deltimer", "stops a timer")
        }
    }

    /// Since 1.23 `(*timer).reset` lies between, mostly inlined; when and period are in the same registers
    /// in both calls. Before 1.23 `Ticker.Reset` had a door of its own, `time.modTimer`.
    fn rearmed(&self) -> Sites {
        const RESET: &str = "time.resetTimer";
        const MODIFY: &str = "time.modTimer";
        const USE: &str = "arms a timer again";
        if self.go_minor >= NEW_TIMERS {
            return match self.timer_call(RESET, "runtime.(*timer).modify", USE) {
                Err(SiteError::Inlined { .. }) => {
                    self.timer_call(RESET, "runtime.(*timer).reset", USE)
                }
                other => other,
            };
        }
        let callee = "runtime.modtimer";
        let mut sites = Vec::new();
        if self.view.function(MODIFY).is_some() {
            sites.extend(self.timer_function(MODIFY, callee, USE)?);
        }
        match self.timer_call(RESET, callee, USE) {
            Ok(found) => sites.extend(found),
            Err(SiteError::NotUsed(..)) if !sites.is_empty() => {}
            Err(error) => return Err(error),
        }
        Ok(sites)
    }

    /// A timer fires on its P's heap, or, since 1.23, when its channel is looked at.
    fn fired(&self) -> Sites {
        if self.go_minor >= NEW_TIMERS {
            const RUN: &str = "runtime.(*timer).unlockAndRun";
            const CALLERS: [&str; 3] = [
                "runtime.(*timers).run",
                "runtime.(*timer).maybeRunChan.func1",
                "runtime.(*timer).maybeRunAsync.func1",
            ];
            self.all_call(&CALLERS, RUN)?;
            self.entry(RUN, self.argument(0))
        } else {
            const RUN: &str = "runtime.runOneTimer";
            self.all_call(&["runtime.runtimer"], RUN)?;
            self.entry(RUN, self.argument(1))
        }
    }

    /// The call of `callee` in one of package time's doors into the runtime: its first argument is the
    /// inner timer.
    fn timer_call(&self, door: &'static str, callee: &'static str, does: &'static str) -> Sites {
        if self.view.function(door).is_none() {
            return Err(SiteError::NotUsed(door, does));
        }
        Ok(vec![self.call(door, callee, self.argument(0))?])
    }

    /// The same for a door with the same arguments as `callee`: where that was inlined, the first
    /// instruction after the door's stack check will do (not the check itself, which runs twice when the
    /// goroutine's stack must grow).
    fn timer_function(
        &self,
        door: &'static str,
        callee: &'static str,
        does: &'static str,
    ) -> Sites {
        let timer = self.argument(0);
        match self.timer_call(door, callee, does) {
            Err(SiteError::Inlined { .. }) => {
                let listing = self.listing(door)?;
                let after = self.stack_check(&listing, door)? + 1;
                let instruction = listing.instructions.get(after);
                let instruction = instruction.ok_or(SiteError::NoStackCheck(door))?;
                Ok(vec![self.site(&listing, instruction, timer)?])
            }
            other => other,
        }
    }

    /// The stack check's branch of a function that runs on the system stack, where it happens once.
    fn entry(&self, name: &'static str, register: u8) -> Sites {
        let listing = self.listing(name)?;
        let index = self.stack_check(&listing, name)?;
        let branch = listing.instructions.get(index);
        let branch = branch.ok_or(SiteError::NoStackCheck(name))?;
        Ok(vec![self.site(&listing, branch, register)?])
    }

    /// The only call of `callee` in `caller`.
    fn call(
        &self,
        caller: &'static str,
        callee: &'static str,
        register: u8,
    ) -> Result<ProbeSite, SiteError> {
        let listing = self.listing(caller)?;
        let calls = self.calls_in(&listing, callee);
        match calls.as_slice() {
            [call] => self.site(&listing, call, register),
            [] => Err(SiteError::Inlined { caller, callee }),
            _ => Err(SiteError::Calls {
                caller,
                callee,
                calls: calls.len(),
            }),
        }
    }

    /// The last emulated instruction that every return of `name` passes with the result in a register;
    /// the return itself if there is none.
    fn exit(&self, name: &'static str) -> Result<ProbeSite, SiteError> {
        let listing = self.listing(name)?;
        let returns: Vec<usize> = (0..)
            .zip(&listing.instructions)
            .filter(|(_, instruction)| instruction.flow == Flow::Return)
            .map(|(index, _)| index)
            .collect();
        let &[last] = returns.as_slice() else {
            return Err(SiteError::Returns {
                function: name,
                returns: returns.len(),
            });
        };
        let result = self.argument(0);
        let (index, register) = exit_branch(&listing, last, result).unwrap_or((last, result));
        let instruction = listing.instructions.get(index);
        let instruction = instruction.ok_or(SiteError::NoFunction(name))?;
        self.site(&listing, instruction, register)
    }

    /// The branch of the stack check, once it is sure that it leads to `morestack` and back to the entry.
    fn stack_check(&self, listing: &Listing, name: &'static str) -> Result<usize, SiteError> {
        let missing = SiteError::NoStackCheck(name);
        let Some(index) = listing.stack_check() else {
            return Err(missing);
        };
        let Some(Flow::Branch { target, .. }) = listing.instructions.get(index).map(|i| i.flow)
        else {
            return Err(missing);
        };
        let tail = listing.index_of(target).unwrap_or(usize::MAX);
        let mut grown = false;
        for instruction in listing.instructions.iter().skip(tail).take(TAIL_WINDOW) {
            match instruction.flow {
                Flow::Next => {}
                Flow::Call(callee) if !grown && self.is_morestack(callee) => grown = true,
                Flow::Jump(to) if grown && to == listing.entry => return Ok(index),
                _ => break,
            }
        }
        Err(missing)
    }

    fn is_morestack(&self, address: VirtAddr) -> bool {
        self.view
            .function_at(address)
            .is_some_and(|(name, entry)| entry == address && name.starts_with("runtime.morestack"))
    }

    /// Those of `callers` that the binary has must call `callee` directly.
    fn all_call(&self, callers: &[&'static str], callee: &'static str) -> Result<(), SiteError> {
        for &caller in callers {
            if self.view.function(caller).is_some() && !self.calls(caller, callee)? {
                return Err(SiteError::Inlined { caller, callee });
            }
        }
        Ok(())
    }

    /// Whether `caller` calls `callee` directly.
    fn calls(&self, caller: &'static str, callee: &str) -> Result<bool, SiteError> {
        Ok(!self.calls_in(&self.listing(caller)?, callee).is_empty())
    }

    fn calls_in<'l>(&self, listing: &'l Listing, callee: &str) -> Vec<&'l Instruction> {
        let Some(callee) = self.view.function(callee) else {
            return Vec::new();
        };
        listing
            .instructions
            .iter()
            .filter(|instruction| instruction.flow == Flow::Call(callee.entry))
            .collect()
    }

    fn listing(&self, name: &'static str) -> Result<Listing, SiteError> {
        let function = self.view.function(name);
        let function = function.ok_or(SiteError::NoFunction(name))?;
        Ok(Listing::decode(self.view.arch(), &function)?)
    }

    /// Hardware number of the register of the n-th integer argument, which is also that of the result
    /// (Go's ABIInternal: abi-internal.md).
    fn argument(&self, index: usize) -> u8 {
        match (self.view.arch(), index) {
            (Arch::Amd64, 0) | (Arch::Arm64, 0) => 0,
            (Arch::Amd64, _) => 3,
            (Arch::Arm64, _) => 1,
        }
    }

    /// Makes a site of an instruction, unless it is the function's first or the kernel would refuse it.
    fn site(
        &self,
        listing: &Listing,
        instruction: &Instruction,
        register: u8,
    ) -> Result<ProbeSite, SiteError> {
        let address = instruction.address;
        let unfit = |why: &str| SiteError::Unfit(address, format!("{}: {why}", instruction.text()));
        let offset_in_function = address.0.checked_sub(listing.entry.0);
        let offset_in_function = offset_in_function
            .filter(|&offset| offset > 0)
            .ok_or_else(|| unfit("it is the function's first"))?;
        let execution = instruction.execution;
        let execution = execution.ok_or_else(|| unfit("the kernel refuses it"))?;
        let file_offset = self.view.file_offset(address);
        let file_offset = file_offset.ok_or(SiteError::NotInFile(address))?;
        Ok(ProbeSite {
            function: listing.function.clone(),
            address,
            file_offset,
            offset_in_function,
            bytes: instruction.bytes.clone(),
            text: self.text(instruction),
            execution,
            register,
        })
    }

    /// The instruction as text, with the name of what it calls.
    fn text(&self, instruction: &Instruction) -> String {
        let text = instruction.text();
        let Flow::Call(target) = instruction.flow else {
            return text;
        };
        match (text.split_once(' '), self.view.function_at(target)) {
            (Some((mnemonic, _)), Some((name, entry))) if entry == target => {
                format!("{mnemonic} {name}")
            }
            _ => text,
        }
    }
}

/// The last conditional branch before the return at `last` that every return passes exactly once, and the
/// register that holds, at that branch, what `result` will hold at the return.
///
/// In `newproc1` that is the `jne` of `releasem`, inlined at its end. What is proved: control enters the
/// instructions after the branch only through the branch, and leaves them only through the return; none of
/// them writes the register, but for unconditional copies, which are followed back.
fn exit_branch(listing: &Listing, last: usize, result: u8) -> Option<(usize, u8)> {
    let instructions = &listing.instructions;
    if instructions.get(last)?.execution == Some(Execution::Emulated) {
        return Some((last, result));
    }
    let mut register = result;
    let mut first_copy = last;
    for index in (last.saturating_sub(EXIT_WINDOW)..last).rev() {
        let instruction = instructions.get(index)?;
        match instruction.flow {
            Flow::Next => {}
            Flow::Branch { .. } if is_only_way(listing, index, last, first_copy) => {
                return Some((index, register));
            }
            Flow::Branch { .. } => continue,
            _ => return None,
        }
        if !instruction.writes(register) {
            continue;
        }
        match instruction.copies() {
            Some((to, from)) if to == register => {
                register = from;
                first_copy = index;
            }
            _ => return None,
        }
    }
    None
}

/// Whether control reaches the instructions after `branch` up to `last` only through `branch`, and all
/// that is between them leads on to `first_copy` and `last`.
fn is_only_way(listing: &Listing, branch: usize, last: usize, first_copy: usize) -> bool {
    (0..)
        .zip(&listing.instructions)
        .all(|(index, instruction)| {
            let target = match instruction.flow {
                Flow::Jump(target) | Flow::Branch { target, .. } => target,
                // It may lead anywhere.
                Flow::IndirectJump => return false,
                _ => return true,
            };
            let Some(target) = listing.index_of(target) else {
                return false;
            };
            let inside = branch < target && target <= last;
            if (branch..last).contains(&index) {
                inside && target <= first_copy
            } else {
                !inside
            }
        })
}

#[cfg(test)]
mod tests;
