//! In what a goroutine is stuck, in the terms that the rules think in.

/// What a goroutine waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Wait {
    /// It runs, or could.
    Runs,
    /// A nil channel.
    NilChannel,
    /// A select without cases.
    NoCases,
    /// Somebody to receive what it sends.
    Send,
    /// Somebody to send.
    Receive,
    /// One of several channels.
    Select,
    /// A lock.
    Mutex,
    /// A `sync.WaitGroup`.
    WaitGroup,
    /// A `sync.Cond`.
    Cond,
    /// A semaphore, for one of the three above: before Go 1.20 the runtime does not say which.
    Semaphore,
    /// The network, a pipe.
    Network,
    /// Time.
    Sleep,
    /// The next value that somebody pulls out of an iterator.
    Coroutine,
    /// A system call, or C code.
    Syscall,
    /// Anything else.
    Other,
}

/// How many kinds of [`Wait`] there are.
pub const WAITS: usize = 15;

impl Wait {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; WAITS] = [
        Self::Runs,
        Self::NilChannel,
        Self::NoCases,
        Self::Send,
        Self::Receive,
        Self::Select,
        Self::Mutex,
        Self::WaitGroup,
        Self::Cond,
        Self::Semaphore,
        Self::Network,
        Self::Sleep,
        Self::Coroutine,
        Self::Syscall,
        Self::Other,
    ];

    /// By the runtime's own name of the wait reason (src/runtime/runtime2.go: waitReasonStrings, Go 1.18 to 1.27).
    #[must_use]
    pub fn of_reason(reason: &str) -> Self {
        match reason {
            "chan send (nil chan)" | "chan receive (nil chan)" => Self::NilChannel,
            "select (no cases)" => Self::NoCases,
            "chan send" => Self::Send,
            "chan receive" => Self::Receive,
            "select" => Self::Select,
            "sync.Mutex.Lock" | "sync.RWMutex.Lock" | "sync.RWMutex.RLock" => Self::Mutex,
            "sync.WaitGroup.Wait" => Self::WaitGroup,
            "sync.Cond.Wait" => Self::Cond,
            "semacquire" => Self::Semaphore,
            "IO wait" => Self::Network,
            "sleep" => Self::Sleep,
            "coroutine" => Self::Coroutine,
            _ => Self::Other,
        }
    }

    /// The same, where the stack tells what the reason does not.
    #[must_use]
    pub fn seen_on(self, functions: &[String]) -> Self {
        if self != Self::Semaphore {
            return self;
        }
        let on = |prefix: &str| {
            functions
                .iter()
                .any(|function| function.starts_with(prefix))
        };
        if on("sync.(*WaitGroup).") {
            Self::WaitGroup
        } else if on("sync.(*Mutex).") || on("sync.(*RWMutex).") {
            Self::Mutex
        } else {
            self
        }
    }

    /// In words, for a sentence: "in chan send".
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Runs => "running",
            Self::NilChannel => "on a nil channel",
            Self::NoCases => "in a select without cases",
            Self::Send => "in chan send",
            Self::Receive => "in chan receive",
            Self::Select => "in select",
            Self::Mutex => "waiting for a lock",
            Self::WaitGroup => "in sync.WaitGroup.Wait",
            Self::Cond => "in sync.Cond.Wait",
            Self::Semaphore => "in semacquire",
            Self::Network => "in IO wait",
            Self::Sleep => "in sleep",
            Self::Coroutine => "in a coroutine that nobody resumes",
            Self::Syscall => "in a system call",
            Self::Other => "waiting",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_listed_in_order() {
        for (number, wait) in Wait::ALL.into_iter().enumerate() {
            assert_eq!(wait as usize, number);
        }
    }

    #[test]
    fn old_releases_tell_locks_by_the_stack() {
        let stack = |function: &str| vec!["runtime.gopark".to_owned(), function.to_owned()];
        let wait = Wait::of_reason("semacquire");
        assert_eq!(wait.seen_on(&stack("sync.(*Mutex).lockSlow")), Wait::Mutex);
        assert_eq!(
            wait.seen_on(&stack("sync.(*WaitGroup).Wait")),
            Wait::WaitGroup
        );
        assert_eq!(wait.seen_on(&[]), Wait::Semaphore);
        assert_eq!(
            Wait::Send.seen_on(&stack("sync.(*Mutex).lockSlow")),
            Wait::Send
        );
    }
}
