//! Requests of the control socket, carried out.

use super::Runtime;
use crate::clock;
use crate::uapi::{self, PeerChange, Request, SetDevice};
use crate::udp::Sockets;
use meshd_model::{Boot, PublicKey};
use std::io;
use zeroize::Zeroizing;

impl Runtime {
    pub(super) fn serve_connection(&mut self, index: usize, now: Boot) {
        // Taken out while it asks things of the rest of us.
        let Some(mut connection) = self.control.take(index) else {
            return;
        };
        connection.proceed(now, |text| self.answer(text));
        self.control.put_back(index, connection);
        self.flush();
    }

    fn answer(&mut self, text: &str) -> Zeroizing<String> {
        match uapi::parse(text) {
            Ok(Request::Get) => uapi::get(&self.device, self.sockets.port(), self.fwmark),
            Ok(Request::Set(set)) => uapi::errno(self.set(set).err().map_or(0, |error| error_number(&error))),
            Err(refused) => {
                tracing::warn!("a request on the control socket was refused: {refused}");
                uapi::errno(libc::EINVAL)
            }
        }
    }

    /// First what can fail, so that a request that fails changes no peer.
    fn set(&mut self, set: SetDevice) -> io::Result<()> {
        self.set_sockets(&set)?;
        let now = clock::now();
        if let Some(key) = set.private_key {
            self.device.set_private_key(now, key);
        }
        if set.replace_peers {
            let all: Vec<PublicKey> = self.device.peers().map(|p| p.public_key).collect();
            for key in all {
                self.device.remove_peer(&key);
            }
        }
        for peer in set.peers {
            self.set_peer(now, peer);
        }
        Ok(())
    }

    fn set_sockets(&mut self, set: &SetDevice) -> io::Result<()> {
        let mark = set.fwmark.unwrap_or(self.fwmark);
        match set.listen_port {
            Some(port) if port != self.sockets.port() => {
                self.sockets = Sockets::bind(port, mark).inspect_err(|error| {
                    tracing::warn!(%error, "cannot listen on UDP port {port}; the old port stays");
                })?;
            }
            _ if mark != self.fwmark => self.sockets.set_mark(mark)?,
            _ => {}
        }
        self.fwmark = mark;
        Ok(())
    }

    fn set_peer(&mut self, now: meshd_model::Now, change: PeerChange) {
        let key = change.public_key;
        if change.remove {
            self.device.remove_peer(&key);
            return;
        }
        if change.update_only && self.device.peer(&key).is_none() {
            return;
        }
        if !self.device.set_peer(now, key, change.config) {
            tracing::warn!(peer = %key, "not added: it is the device's own key, or there are too many peers");
        }
    }
}

fn error_number(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
