//! Asking a server that has to answer.

use leaktrace_fixtures::http;
pub use leaktrace_fixtures::http::Answer;

/// One open connection.
pub struct Connection(pub http::Connection);

impl Connection {
    /// Connects to an address such as "127.0.0.1:9090".
    pub fn open(address: &str) -> std::io::Result<Self> {
        http::Connection::open(address).map(Self)
    }

    /// Asks for a path and reads the whole answer.
    pub fn get(&mut self, path: &str) -> Answer {
        self.0.get(path).expect("the server answers")
    }
}
