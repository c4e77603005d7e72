//! Asks a program itself which of its goroutines leaked, where it offers to tell and the user allows it.
//!
//! Programs built with Go 1.27 that serve `net/http/pprof` have `/debug/pprof/goroutineleak`. Asking makes them run a garbage
//! collection that looks for leaks, after which the runtime keeps what it found in the status of each goroutine
//! (src/runtime/runtime2.go: `_Gleaked`). So the answer itself is thrown away: the next census reads what it rests on.
//!
//! Only sockets that the process itself listens on are asked, over loopback, in our own network namespace.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::Duration;

use http_body_util::Empty;
use hyper::{Request, StatusCode};

use super::{Pid, http};

/// What is asked for.
const PATH: &str = "/debug/pprof/goroutineleak?debug=1";
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer that are waited for: it is written after the collection.
const MOST_BYTES: usize = 1 << 20;
/// Sockets of one process that are asked.
const MOST_SOCKETS: usize = 4;
/// Open files of a process that are looked at.
const MOST_FILES: usize = 1 << 16;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InquiryError {
    /// It has a network of its own, in which loopback is another.
    #[error("it is in another network namespace")]
    ElsewhereInNetwork,
    /// It listens nowhere on loopback.
    #[error("it listens on no TCP port that can be reached over loopback")]
    ListensNowhere,
    /// None of its ports has the page.
    #[error("none of its ports serves {PATH}")]
    NotServed,
    /// The kernel does not say what it listens on.
    #[error("cannot see what it listens on: {0}")]
    Kernel(String),
}

/// A question that was asked.
pub struct Inquiry(Receiver<Result<SocketAddr, InquiryError>>);

impl Inquiry {
    /// Asks in the background.
    #[must_use]
    pub fn begin(pid: Pid) -> Self {
        let (sender, answer) = mpsc::channel();
        // It ends by itself in time; nobody may wait for the answer any more by then.
        thread::spawn(move || {
            let _ = sender.send(ask(pid));
        });
        Self(answer)
    }

    /// The address that answered, once it has.
    #[must_use]
    pub fn answer(&self) -> Option<Result<SocketAddr, InquiryError>> {
        match self.0.try_recv() {
            Ok(answer) => Some(answer),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(InquiryError::NotServed)),
        }
    }
}

fn ask(pid: Pid) -> Result<SocketAddr, InquiryError> {
    let kernel = |error: std::io::Error| InquiryError::Kernel(error.to_string());
    let network = |who: &str| fs::read_link(format!("/proc/{who}/ns/net"));
    if network("self").map_err(kernel)? != network(&pid.to_string()).map_err(kernel)? {
        return Err(InquiryError::ElsewhereInNetwork);
    }
    let own = sockets(pid).map_err(kernel)?;
    let table = |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}"));
    let four = table("tcp").map_err(kernel)?;
    // A kernel without IPv6 has no such table.
    let six = table("tcp6").unwrap_or_default();
    let addresses = listeners(&four, &six, &own);
    if addresses.is_empty() {
        return Err(InquiryError::ListensNowhere);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(kernel)?;
    let asking = async {
        for address in addresses.into_iter().take(MOST_SOCKETS) {
            if serves(address).await {
                return Ok(address);
            }
        }
        Err(InquiryError::NotServed)
    };
    let limited = async { tokio::time::timeout(PATIENCE, asking).await };
    (runtime.block_on(limited)).unwrap_or(Err(InquiryError::NotServed))
}

/// Asks one address, and waits for the end of what it answers.
async fn serves(address: SocketAddr) -> bool {
    let asked = async {
        let stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let request = Request::get(PATH)
            .header("Host", address.to_string())
            .body(Empty::new())
            .ok()?;
        let (status, _) = http::get(stream, request, MOST_BYTES).await.ok()?;
        Some(status)
    };
    // One that does not answer leaves time for the others.
    let asked = tokio::time::timeout(PATIENCE / 2, asked).await;
    asked == Ok(Some(StatusCode::OK))
}

/// Inodes of the sockets that a process has open.
fn sockets(pid: Pid) -> std::io::Result<HashSet<u64>> {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))?;
    Ok((files.take(MOST_FILES))
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
        .filter_map(|link| {
            let link = link.to_str()?;
            link.strip_prefix("socket:[")?
                .strip_suffix(']')?
                .parse()
                .ok()
        })
        .collect())
}

/// Where a process listens, as reached over loopback, from the tables of /proc/PID/net (Documentation/networking/proc_net_tcp.rst).
/// A port on which another process listens, too, is left alone.
fn listeners(four: &str, six: &str, own: &HashSet<u64>) -> Vec<SocketAddr> {
    let listening: Vec<(SocketAddr, u64)> = (four.lines().chain(six.lines()))
        .filter_map(listener)
        .collect();
    let foreign: HashSet<u16> = (listening.iter())
        .filter(|(_, inode)| !own.contains(inode))
        .map(|(address, _)| address.port())
        .collect();
    let mut found: Vec<SocketAddr> = (listening.into_iter())
        .filter(|(address, inode)| own.contains(inode) && !foreign.contains(&address.port()))
        .filter_map(|(address, _)| {
            let ip = match address.ip() {
                ip if ip.is_loopback() => ip,
                ip if !ip.is_unspecified() => return None,
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            Some(SocketAddr::new(ip, address.port()))
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Address and inode of a line, if somebody listens there.
fn listener(line: &str) -> Option<(SocketAddr, u64)> {
    /// `TCP_LISTEN`
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    if *state != LISTEN {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    // Words of 32 bits, each as the machine reads it from memory.
    let word = |from: usize| -> Option<[u8; 4]> {
        let digits = address.get(from..from.checked_add(8)?)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (part, from) in bytes.chunks_exact_mut(4).zip([0, 8, 16, 24]) {
                part.copy_from_slice(&word(from)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((SocketAddr::new(ip, port), inode.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUR: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
        0: 0100007F:17AC 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 111 1 0 100 0 0 10 0\n\
        1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 112 1 0 100 0 0 10 0\n\
        2: 0A00000A:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 113 1 0 100 0 0 10 0\n\
        3: 0100007F:1F92 00000000:0000 01 00000000:00000000 00:00000000 00000000  0 0 114 1 0 100 0 0 10 0\n\
        4: 0100007F:1F93 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 999 1 0 100 0 0 10 0\n";
    const SIX: &str = "0: 00000000000000000000000001000000:17AD 0:0 0A 0:0 0:0 0 0 0 115 1\n\
        1: 00000000000000000000000000000000:1F93 0:0 0A 0:0 0:0 0 0 0 116 1\n";

    #[test]
    fn only_what_the_process_itself_listens_on_over_loopback() {
        let own = (111..=116).collect();
        let found = listeners(FOUR, SIX, &own);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        // 8081 is another machine's address, 8082 is connected, and 8083 somebody else's as well.
        assert_eq!(found, ["127.0.0.1:6060", "127.0.0.1:8080", "[::1]:6061"]);
        assert!(listeners(FOUR, SIX, &HashSet::new()).is_empty());
    }

    #[test]
    fn what_is_no_table_is_no_listener() {
        for line in [
            "",
            "0: zz:1 x 0A",
            "0: 0100007F 0 0A 0 0 0 0 0 1",
            "0: 01:FFFFF 0 0A 0 0 0 0 0 1",
        ] {
            assert_eq!(listener(line), None, "{line}");
        }
    }
}
