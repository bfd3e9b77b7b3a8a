//! Requests.

use super::Refused;
use ipnetwork::IpNetwork;
use meshd_model::PublicKey;
use meshd_wireguard_proto::{PeerConfig, PresharedKey, PrivateKey};
use zeroize::Zeroizing;

/// What is asked.
pub(crate) enum Request {
    Get,
    Set(SetDevice),
}

/// A change of the device, in the order in which it takes effect.
#[derive(Default)]
pub(crate) struct SetDevice {
    /// Some(None) takes the key away.
    pub(crate) private_key: Option<Option<PrivateKey>>,
    pub(crate) listen_port: Option<u16>,
    /// 0 for none.
    pub(crate) fwmark: Option<u32>,
    pub(crate) replace_peers: bool,
    pub(crate) peers: Vec<PeerChange>,
}

/// A change of one peer.
pub(crate) struct PeerChange {
    pub(crate) public_key: PublicKey,
    pub(crate) remove: bool,
    /// Change it only if it is there.
    pub(crate) update_only: bool,
    pub(crate) config: PeerConfig,
}

/// Reads a request, its last empty line included or not.
pub(crate) fn parse(text: &str) -> Result<Request, Refused> {
    let mut lines = text.lines().take_while(|line| !line.is_empty());
    match lines.next() {
        Some("get=1") => match lines.next() {
            None => Ok(Request::Get),
            Some(line) => Err(refuse(line, "get=1 takes nothing more")),
        },
        Some("set=1") => parse_set(lines).map(Request::Set),
        _ => Err(Refused::Operation),
    }
}

fn parse_set<'a>(lines: impl Iterator<Item = &'a str>) -> Result<SetDevice, Refused> {
    let mut set = SetDevice::default();
    for line in lines {
        let (key, value) = line
            .split_once('=')
            .ok_or_else(|| refuse(line, "a line is key=value"))?;
        let done = match set.peers.last_mut() {
            _ if key == "public_key" => set.begin_peer(value),
            Some(peer) => peer.apply(key, value),
            None => set.apply(key, value),
        };
        done.map_err(|reason| refuse(key, reason))?;
    }
    Ok(set)
}

fn refuse(line: &str, reason: &'static str) -> Refused {
    let line = line.split('=').next().unwrap_or_default();
    Refused::Line {
        line: line.chars().take(64).collect(),
        reason,
    }
}

impl SetDevice {
    fn apply(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match key {
            "private_key" => {
                let secret = secret(value)?;
                let is_none = *secret == [0; 32];
                self.private_key = Some((!is_none).then(|| PrivateKey::from_bytes(secret)));
            }
            "listen_port" => self.listen_port = Some(number(value, "a port is 0 to 65535")?),
            "fwmark" => self.fwmark = Some(mark(value)?),
            "replace_peers" => self.replace_peers = truth(value)?,
            _ => return Err("not a key of the device, and no public_key came before"),
        }
        Ok(())
    }

    fn begin_peer(&mut self, value: &str) -> Result<(), &'static str> {
        let key = secret(value)?;
        if *key == [0; 32] {
            return Err("a public key is not all zero");
        }
        self.peers.push(PeerChange {
            public_key: PublicKey(*key),
            remove: false,
            update_only: false,
            config: PeerConfig::default(),
        });
        Ok(())
    }
}

impl PeerChange {
    fn apply(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        let config = &mut self.config;
        match key {
            "remove" => self.remove = truth(value)?,
            "update_only" => self.update_only = truth(value)?,
            "preshared_key" => config.preshared_key = Some(PresharedKey::from_bytes(secret(value)?)),
            "endpoint" => {
                let endpoint = value
                    .parse()
                    .map_err(|_| "an endpoint is ADDRESS:PORT or [ADDRESS]:PORT")?;
                config.endpoint = Some(endpoint);
            }
            "persistent_keepalive_interval" => {
                config.keepalive = Some(number(value, "an interval is 0 to 65535 seconds")?);
            }
            "replace_allowed_ips" => config.replace_allowed_ips = truth(value)?,
            "allowed_ip" => match value.strip_prefix('-') {
                Some(removed) => config.remove_allowed_ips.push(prefix(removed)?),
                None => config
                    .allowed_ips
                    .push(prefix(value.strip_prefix('+').unwrap_or(value))?),
            },
            "protocol_version" if value == "1" => {}
            "protocol_version" => return Err("the only protocol version is 1"),
            _ => return Err("not a key of a peer"),
        }
        Ok(())
    }
}

fn secret(value: &str) -> Result<Zeroizing<[u8; 32]>, &'static str> {
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(value, bytes.as_mut_slice()).map_err(|_| "a key is 64 hexadecimal digits")?;
    Ok(bytes)
}

fn truth(value: &str) -> Result<bool, &'static str> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("true or false"),
    }
}

fn number(value: &str, reason: &'static str) -> Result<u16, &'static str> {
    value.parse().map_err(|_| reason)
}

fn mark(value: &str) -> Result<u32, &'static str> {
    let parsed = match value.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => value.parse(),
    };
    parsed.map_err(|_| "a mark is a number of 32 bits")
}

fn prefix(value: &str) -> Result<IpNetwork, &'static str> {
    value.parse().map_err(|_| "an allowed IP is ADDRESS/PREFIX")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";

    fn set(text: &str) -> SetDevice {
        match parse(text).unwrap() {
            Request::Set(set) => set,
            Request::Get => panic!("a get"),
        }
    }

    #[test]
    fn a_whole_set() {
        let set = set(&format!(
            "set=1\nprivate_key={KEY}\nlisten_port=51820\nfwmark=0x10\nreplace_peers=true\npublic_key={KEY}\n\
             update_only=true\npreshared_key={KEY}\nendpoint=[fe80::1%3]:7\npersistent_keepalive_interval=25\n\
             replace_allowed_ips=true\nallowed_ip=10.0.0.0/8\nallowed_ip=-fd00::/64\nallowed_ip=+1.2.3.4/32\n\
             protocol_version=1\npublic_key={KEY}\nremove=true\n\n"
        ));
        assert_eq!(set.listen_port, Some(51820));
        assert_eq!(set.fwmark, Some(16));
        assert!(set.replace_peers && set.private_key.is_some_and(|key| key.is_some()));
        let [changed, removed] = set.peers.as_slice() else {
            panic!("two peers");
        };
        assert!(changed.update_only && !changed.remove && changed.config.replace_allowed_ips);
        assert_eq!(changed.config.endpoint, Some("[fe80::1%3]:7".parse().unwrap()));
        assert_eq!(changed.config.keepalive, Some(25));
        assert_eq!(changed.config.allowed_ips.len(), 2);
        assert_eq!(changed.config.remove_allowed_ips.len(), 1);
        assert!(removed.remove);
    }

    #[test]
    fn an_all_zero_key_takes_the_key_away() {
        let set = set(&format!("set=1\nprivate_key={}\n\n", "0".repeat(64)));
        assert!(set.private_key.is_some_and(|key| key.is_none()));
    }

    #[test]
    fn bad_lines_are_named_without_their_values() {
        for bad in [
            "",
            "\n",
            "get=2\n",
            "get=1\nx=1\n",
            "set=1\nprivate_key=12\n",
            "set=1\nlisten_port=65536\n",
            "set=1\nendpoint=1.2.3.4:1\n",
            "set=1\nnonsense\n",
            &format!("set=1\npublic_key={}\n", "0".repeat(64)),
            &format!("set=1\npublic_key={KEY}\nallowed_ip=10.0.0.0/33\n"),
            &format!("set=1\npublic_key={KEY}\nendpoint=host:1\n"),
            &format!("set=1\npublic_key={KEY}\nlisten_port=1\n"),
            &format!("set=1\npublic_key={KEY}\nprotocol_version=2\n"),
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        let error = parse(&format!("set=1\nprivate_key={KEY}ff\n")).err().unwrap();
        assert!(!error.to_string().contains(KEY), "{error}");
    }

    proptest! {
        #[test]
        fn junk_is_refused_not_feared(text in "(set=1\n)?([a-z_]{1,24}=[^\n]{0,80}\n){0,8}|\\PC{0,200}") {
            let _ = parse(&text);
        }
    }
}
