//! WireGuard without IO: the Noise handshake, transport sessions, timers and cryptokey routing of the
//! [whitepaper](https://www.wireguard.com/papers/wireguard.pdf), as a state machine.
//!
//! No clock, no sockets, no threads: time is a parameter, randomness comes from a seed, datagrams and IP packets
//! are bytes that go in and come out of a [`Device`].

mod aead;
mod constants;
mod cookie;
mod crypto;
mod device;
mod ip;
mod key;
mod keypairs;
mod limiter;
mod message;
mod noise;
mod peer;
mod peers;
mod replay;
mod routing;
mod session;
mod tai64n;
mod timers;
mod types;

pub use device::Device;
pub use key::{PresharedKey, PrivateKey};
pub use types::{DropReason, Path, PeerConfig, PeerStats, Transmit};
