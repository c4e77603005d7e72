//! The symbols of one process: the tables of its executable, moved to where the kernel put it.

use std::collections::HashMap;
use std::rc::Rc;

use super::Symbols;
use crate::address::{LoadBias, RuntimeAddr};
use crate::census::stacks::Frames;
use crate::census::{TimerFunctions, TimerKind};
use crate::event::StackId;
use crate::resolve::pclntab::{Frame, FuncRef};
use crate::resolve::{Arch, Program};

/// Answers what an address in one process means.
pub struct Symbolizer {
    program: Rc<Program>,
    bias: LoadBias,
    timer_functions: TimerFunctions,
    stacks: HashMap<StackId, Vec<RuntimeAddr>>,
    /// `runtime.goexit`.
    outermost: Option<FuncRef>,
}

impl Symbolizer {
    /// The symbols of `program` in a process that the kernel moved by `bias`.
    #[must_use]
    pub fn new(program: Rc<Program>, bias: LoadBias, timer_functions: TimerFunctions) -> Self {
        Self {
            outermost: program.functions.function_named("runtime.goexit"),
            program,
            bias,
            timer_functions,
            stacks: HashMap::new(),
        }
    }

    /// Whether the frames of this creation stack are known.
    #[must_use]
    pub fn knows(&self, stack: StackId) -> bool {
        self.stacks.contains_key(&stack)
    }

    /// Learns the frames of a creation stack. As many as the kernel's own bounded map holds can be learnt.
    pub fn learn(&mut self, stack: StackId, frames: Vec<RuntimeAddr>) {
        self.stacks.insert(stack, frames);
    }
}

impl Symbols for Symbolizer {
    fn frames_of_return(&self, pc: RuntimeAddr) -> Vec<Frame> {
        let mut frames = Vec::new();
        let functions = &self.program.functions;
        functions.frames_of_return(self.bias.to_linked(pc), &mut frames);
        frames
    }

    fn frames(&self, pc: RuntimeAddr) -> Vec<Frame> {
        let mut frames = Vec::new();
        let functions = &self.program.functions;
        functions.frames(self.bias.to_linked(pc), &mut frames);
        frames
    }

    fn stack(&self, stack: StackId) -> Vec<RuntimeAddr> {
        self.stacks.get(&stack).cloned().unwrap_or_default()
    }

    fn timer_kind(&self, function: RuntimeAddr, period_ns: i64) -> Option<TimerKind> {
        self.timer_functions.kind(function, period_ns)
    }
}

impl Frames for Symbolizer {
    fn frame_bytes(&self, pc: RuntimeAddr) -> Option<u32> {
        self.program.functions.frame_bytes(self.bias.to_linked(pc))
    }

    fn is_outermost(&self, pc: RuntimeAddr) -> bool {
        self.outermost
            .is_some_and(|goexit| goexit.contains(self.bias.to_linked(pc)))
    }

    fn arch(&self) -> Arch {
        self.program.arch
    }
}
