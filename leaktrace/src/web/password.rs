//! Who knows a password. A check by bcrypt is slow on purpose, so what came of it is remembered, and only one runs at a time.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, oneshot};

/// Answers that are remembered, of each kind; the oldest is forgotten first.
const MOST_REMEMBERED: usize = 256;

/// Checks that wait for the one that runs; a further client is told to come back.
const MOST_WAITING: usize = 16;

/// After a wrong password nobody is checked for this many times as long as the check took: guessing takes at most a
/// quarter of a core.
const PAUSE: u32 = 3;

/// Who knows a password.
pub struct Passwords {
    users: BTreeMap<String, String>,
    /// A name that nobody has is checked against this, so that the time tells no names.
    nobody: String,
    /// Keeps what is remembered from being a quick way to try passwords, should somebody get hold of it.
    key: [u8; 32],
    remembered: Arc<Mutex<Remembered>>,
    waiting: Semaphore,
    running: Arc<Semaphore>,
}

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The password is right.
    Yes,
    /// It is not, or there is no such user.
    No,
    /// Too many checks wait.
    Busy,
}

#[derive(Default)]
struct Remembered {
    right: Recent,
    wrong: Recent,
}

/// A bounded set.
#[derive(Default)]
struct Recent {
    set: HashSet<[u8; 32]>,
    order: VecDeque<[u8; 32]>,
}

impl Recent {
    fn insert(&mut self, item: [u8; 32]) {
        if !self.set.insert(item) {
            return;
        }
        self.order.push_back(item);
        if self.order.len() > MOST_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }
}

impl Passwords {
    /// Names and bcrypt hashes, and 32 bytes that nobody can guess.
    #[must_use]
    pub fn new(users: BTreeMap<String, String>, key: [u8; 32]) -> Self {
        let cost = |hash: &String| hash.get(4..6)?.parse::<u32>().ok();
        let dearest = users.values().filter_map(cost).max().unwrap_or(10);
        Self {
            users,
            // The digest of no password that anybody knows.
            nobody: format!("$2b${dearest:02}$abcdefghijklmnopqrstu{}", "u".repeat(32)),
            key,
            remembered: Arc::default(),
            waiting: Semaphore::new(MOST_WAITING),
            running: Arc::new(Semaphore::new(1)),
        }
    }

    /// Whether anybody is asked at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Checks a name and a password. At once if they were checked before.
    pub async fn check(&self, user: &str, password: &str) -> Answer {
        let known = self.users.get(user);
        let hash = known.unwrap_or(&self.nobody).clone();
        let digest = self.digest(user, password);
        if let Some(answer) = self.recall(&digest) {
            return answer;
        }
        let Ok(_place) = self.waiting.try_acquire() else {
            return Answer::Busy;
        };
        let Ok(turn) = Arc::clone(&self.running).acquire_owned().await else {
            return Answer::Busy;
        };
        // Another request with the same password may have been first.
        if let Some(answer) = self.recall(&digest) {
            return answer;
        }
        let password = password.to_owned();
        let is_known = known.is_some();
        let remembered = Arc::clone(&self.remembered);
        let (reply, answer) = oneshot::channel();
        // Who hangs up ends neither the check nor the pause.
        tokio::task::spawn_blocking(move || {
            let begin = Instant::now();
            let right = bcrypt::verify(password, &hash).unwrap_or(false) && is_known;
            let mut remembered = remembered.lock().unwrap_or_else(PoisonError::into_inner);
            if right {
                remembered.right.insert(digest);
            } else {
                remembered.wrong.insert(digest);
            }
            drop(remembered);
            let _ = reply.send(right);
            if !right {
                thread::sleep(begin.elapsed() * PAUSE);
            }
            drop(turn);
        });
        match answer.await {
            Ok(true) => Answer::Yes,
            Ok(false) => Answer::No,
            Err(_) => Answer::Busy,
        }
    }

    fn recall(&self, digest: &[u8; 32]) -> Option<Answer> {
        let remembered = self
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if remembered.right.set.contains(digest) {
            return Some(Answer::Yes);
        }
        remembered.wrong.set.contains(digest).then_some(Answer::No)
    }

    /// What stands for a name and a password. It depends on the key, so how long a comparison takes tells nothing.
    fn digest(&self, user: &str, password: &str) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(self.key);
        hasher.update(user.len().to_le_bytes());
        hasher.update(user);
        hasher.update(password);
        hasher.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Of "correct horse", by libxcrypt.
    const HASH: &str = "$2b$04$CJYSUYA7/1PfUfdF3IepBOkbfD1KIXjm8e4UECVTqCpfNzqdDCoz6";

    fn passwords() -> Passwords {
        let users = [("alice", HASH), ("bob", &HASH.replace("$2b$", "$2y$"))];
        let users = users.map(|(name, hash)| (name.to_owned(), hash.to_owned()));
        Passwords::new(users.into(), [7; 32])
    }

    fn run<T>(task: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(task)
    }

    #[test]
    fn right_wrong_and_unknown() {
        run(async {
            let passwords = passwords();
            for _ in 0..2 {
                assert_eq!(passwords.check("alice", "correct horse").await, Answer::Yes);
                assert_eq!(passwords.check("bob", "correct horse").await, Answer::Yes);
                assert_eq!(passwords.check("alice", "wrong horse").await, Answer::No);
                assert_eq!(passwords.check("", "").await, Answer::No);
                assert_eq!(passwords.check("eve", "correct horse").await, Answer::No);
                // The same letters, cut elsewhere.
                assert_eq!(passwords.check("alicec", "orrect horse").await, Answer::No);
            }
        });
    }

    #[test]
    fn a_name_that_nobody_has_is_checked_as_long() {
        let nobody = passwords().nobody;
        assert!(nobody.starts_with("$2b$04$"), "{nobody}");
        assert!(matches!(bcrypt::verify("x", &nobody), Ok(false)));
    }

    #[test]
    fn those_who_guess_wait_and_those_who_know_do_not() {
        run(async {
            let passwords = Arc::new(passwords());
            assert_eq!(passwords.check("alice", "correct horse").await, Answer::Yes);
            // No check ends before all have asked.
            let turn = passwords.running.acquire().await.expect("it is open");
            let guesses = (0..MOST_WAITING + 10).map(|number| {
                let passwords = Arc::clone(&passwords);
                tokio::spawn(async move { passwords.check("alice", &number.to_string()).await })
            });
            let guesses: Vec<_> = guesses.collect();
            tokio::task::yield_now().await;
            let known = passwords.check("alice", "correct horse");
            let known = tokio::time::timeout(Duration::from_millis(100), known).await;
            assert_eq!(known, Ok(Answer::Yes));
            drop(turn);
            let mut busy = 0;
            for guess in guesses {
                match guess.await.expect("it ends") {
                    Answer::Yes => panic!("a guess was right"),
                    Answer::Busy => busy += 1,
                    Answer::No => {}
                }
            }
            assert_eq!(busy, 10);
        });
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut recent = Recent::default();
        for number in 0..2 * MOST_REMEMBERED {
            let mut item = [0; 32];
            item[..8].copy_from_slice(&number.to_le_bytes());
            recent.insert(item);
        }
        assert_eq!(recent.set.len(), MOST_REMEMBERED);
        assert_eq!(recent.order.len(), MOST_REMEMBERED);
    }
}
