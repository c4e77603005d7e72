//! As much HTTP/1.1 as the tests need: GET over one connection that stays open.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// One open connection.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

/// The answer to one request.
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Connection {
    /// Connects to an address such as "127.0.0.1:9090".
    pub fn open(address: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Asks for a path and reads the whole answer.
    pub fn get(&mut self, path: &str) -> Answer {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.stream
            .get_mut()
            .write_all(request.as_bytes())
            .expect("the server takes a request");
        let status = self.line();
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let (mut length, mut chunked) = (0, false);
        loop {
            let header = self.line().to_ascii_lowercase();
            match header.split_once(':') {
                Some(("content-length", value)) => {
                    length = value.trim().parse().expect("a length is a number");
                }
                Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
                Some(_) => {}
                None => break,
            }
        }
        let mut body = Vec::new();
        if chunked {
            loop {
                let size = self.line();
                let size = usize::from_str_radix(size.trim(), 16).expect("a chunk has a size");
                body.extend(self.bytes(size));
                self.line();
                if size == 0 {
                    break;
                }
            }
        } else {
            body = self.bytes(length);
        }
        Answer {
            status: status.expect("an answer begins with its status"),
            body: String::from_utf8(body).expect("the answer is text"),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream
            .read_line(&mut line)
            .expect("the server answers");
        line.trim_end().to_owned()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream
            .read_exact(&mut bytes)
            .expect("the server answers in full");
        bytes
    }
}
