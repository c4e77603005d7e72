//! Where the daemon listens and whom it answers: opened at its start, changed when its files change.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use crate::cli::Daemon;
use crate::config::Config;
use crate::web::{self, Policy, Server, Watched};

/// The address and the files of the server, as they are in force.
pub(super) struct Front {
    pub(super) policy: Policy,
    asked: SocketAddr,
    files: Watched,
}

impl Front {
    /// Reads the files and opens the listening socket.
    pub(super) fn open(arguments: &Daemon, config: &Config) -> anyhow::Result<(Self, TcpListener)> {
        let asked = arguments.listen.unwrap_or(config.listen);
        let mut files = Watched::new(file(arguments, config).map(Into::into));
        let policy = Policy {
            door: files.read()?,
            details: arguments.details.unwrap_or(config.details),
        };
        let front = Self {
            policy,
            asked,
            files,
        };
        Ok((front, web::bind(asked)?))
    }

    /// Takes over what a configuration that was read again says, or leaves everything as it was.
    pub(super) fn change(
        &mut self,
        arguments: &Daemon,
        config: &Config,
        server: &Server,
    ) -> anyhow::Result<()> {
        let file = file(arguments, config);
        let mut files = Watched::new(file.map(Into::into));
        let policy = Policy {
            door: files.read()?,
            details: arguments.details.unwrap_or(config.details),
        };
        let asked = arguments.listen.unwrap_or(config.listen);
        let moved = if asked == self.asked {
            None
        } else {
            Some(web::bind(asked)?)
        };
        (self.policy, self.files, self.asked) = (policy, files, asked);
        server.policy.send_replace(self.policy.clone());
        if let Some(listener) = moved {
            let address = listener.local_addr()?;
            server.listen(listener);
            self.say_where(address);
        }
        Ok(())
    }

    /// Reads the files of TLS and passwords again if one of them has changed.
    pub(super) fn look(&mut self, server: &Server) {
        if !self.files.has_changed() {
            return;
        }
        match self.files.read() {
            Ok(door) => {
                self.policy.door = door;
                server.policy.send_replace(self.policy.clone());
                tracing::info!("the files of TLS and passwords were read again");
            }
            Err(error) => tracing::error!("TLS and passwords stay as they were: {error:#}"),
        }
    }

    /// Says where it listens, and if everybody may ask.
    pub(super) fn say_where(&self, address: SocketAddr) {
        #[cfg(feature = "tls")]
        let has_tls = self.policy.door.tls.is_some();
        #[cfg(not(feature = "tls"))]
        let has_tls = false;
        let scheme = if has_tls { "https" } else { "http" };
        tracing::info!("listening on {scheme}://{address}");
        if !address.ip().to_canonical().is_loopback()
            && !has_tls
            && self.policy.door.passwords.is_empty()
        {
            tracing::warn!(
                "everybody who reaches {address} can read the metrics: --web-config-file asks for a password"
            );
        }
    }
}

/// The file that says who may ask, if there is to be one.
fn file<'a>(arguments: &'a Daemon, config: &'a Config) -> Option<&'a Path> {
    let named = arguments.web_config_file.as_deref();
    let path = named.unwrap_or(&config.web_config_file);
    (!path.as_os_str().is_empty()).then_some(path)
}
