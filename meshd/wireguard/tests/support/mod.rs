//! Network namespaces, devices that run in them, and what is said to them.
#![allow(dead_code, unreachable_pub)] // each test uses its part

mod device;
pub mod traffic;

#[allow(unused_imports)] // each test uses its part
pub use device::{Process, meshd_wg, meshd_wg_at};

use meshd_wireguard_proto::PrivateKey;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nlink::netlink::link::VethLink;
use nlink::{Connection, Route};
use std::fs::File;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The TUN interface of every test: each has namespaces of its own.
pub const IFNAME: &str = "mesh0";

/// Runs a test in a network and a mount namespace of its own, or says why it cannot.
pub fn isolated(name: &str, test: impl FnOnce(Lab) + Send + 'static) {
    let shown = name.to_owned();
    let body = move || match isolate() {
        Ok(()) => test(Lab::new()),
        Err(reason) => {
            let reason = format_args!("{reason} (it needs root, or a user namespace that maps it)");
            meshd_skip::skip_on("netns", &shown, reason);
        }
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

fn isolate() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(|e| format!("unshare: {e}"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(|e| format!("make mounts private: {e}"))?;
    // Programs that cannot be told otherwise put their socket under /run.
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .map_err(|e| format!("mount a tmpfs: {e}"))?;
    File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|e| format!("open /dev/net/tun: {e}"))?;
    Ok(())
}

/// A folder, and the namespaces of two nodes.
pub struct Lab {
    pub a: Node,
    pub b: Node,
    folder: tempfile::TempDir,
}

/// One network namespace.
pub struct Node {
    pub n: u8,
    netns: File,
    pub sockets: PathBuf,
}

impl Lab {
    /// Two nodes, `eth0` to `eth0`: 192.0.2.1 and .2, 2001:db8::1 and ::2.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (Node::new(1, folder.path()), Node::new(2, folder.path()));
        let far = b.netns.try_clone().unwrap();
        a.netlink(|conn| async move {
            let veth = VethLink::new("eth0", "eth0").peer_netns_fd(&far);
            conn.add_link(veth).await.unwrap();
        });
        for node in [&a, &b] {
            let (v4, v6) = (
                format!("192.0.2.{}/24", node.n),
                format!("2001:db8::{}/64", node.n),
            );
            node.up("lo", &[]);
            node.up("eth0", &[&v4, &v6]);
        }
        Self { a, b, folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Node {
    fn new(n: u8, folder: &Path) -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self {
            n,
            netns: std::thread::spawn(make).join().unwrap(),
            sockets: folder.join(n.to_string()),
        }
    }

    /// Where `meshd-wg` listens on this node.
    pub fn socket(&self) -> PathBuf {
        self.sockets.join(format!("{IFNAME}.sock"))
    }

    /// Runs `work` inside, on a thread of its own. Sockets and processes made there stay there.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let netns = self.netns.try_clone().unwrap();
        let enter = move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        match std::thread::spawn(enter).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    pub fn netlink<T: Send + 'static, F: Future<Output = T>>(
        &self,
        work: impl FnOnce(Connection<Route>) -> F + Send + 'static,
    ) -> T {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime
                .unwrap()
                .block_on(async { work(Connection::<Route>::new().unwrap()).await })
        })
    }

    /// Gives an interface addresses, and brings it up.
    pub fn up(&self, ifname: &'static str, addresses: &[&str]) {
        let addresses: Vec<ipnetwork::IpNetwork> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        self.netlink(move |conn| async move {
            for address in addresses {
                add_address(&conn, ifname, address).await;
            }
            conn.set_link_up(ifname).await.unwrap();
        });
    }

    /// The addresses of the TUN interface, without link-local ones; None without the interface.
    pub fn tun_addresses(&self) -> Option<usize> {
        self.netlink(|conn| async move {
            conn.get_link_by_name(IFNAME).await.unwrap()?;
            let addresses = conn.get_addresses_by_name(IFNAME).await.unwrap();
            Some(
                addresses
                    .iter()
                    .filter(|a| a.prefix_len() != 64 || !a.is_ipv6())
                    .count(),
            )
        })
    }

    /// Bytes and packets that came out of the tunnel; segments that were glued together count as one packet.
    pub fn tun_received(&self) -> (u64, u64) {
        let devices = self.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        let line = devices
            .lines()
            .find(|l| l.trim_start().starts_with(IFNAME))
            .unwrap();
        let mut numbers = line.split_once(':').unwrap().1.split_whitespace();
        let mut next = || numbers.next().unwrap().parse().unwrap();
        (next(), next())
    }

    /// The node's overlay addresses on the TUN interface, and it up.
    pub fn overlay(&self) {
        let (v4, v6) = (format!("10.0.0.{}/24", self.n), format!("fd00::{}/112", self.n));
        self.up(IFNAME, &[&v4, &v6]);
    }
}

async fn add_address(conn: &Connection<Route>, ifname: &str, net: ipnetwork::IpNetwork) {
    let index = conn
        .get_link_by_name(ifname)
        .await
        .unwrap()
        .expect(ifname)
        .ifindex();
    match net {
        ipnetwork::IpNetwork::V4(n) => {
            let config = nlink::netlink::addr::Ipv4Address::with_index(index, n.ip(), n.prefix());
            conn.add_address(config).await.unwrap();
        }
        ipnetwork::IpNetwork::V6(n) => {
            let config = nlink::netlink::addr::Ipv6Address::with_index(index, n.ip(), n.prefix());
            conn.add_address(config.nodad()).await.unwrap();
        }
    }
}

/// The private key of node `n` in hexadecimal digits, and the public one.
pub fn keys(n: u8) -> (String, String) {
    let key = PrivateKey::from_bytes(Zeroizing::new([n; 32]));
    let public = key.public_key().0;
    let digits = |bytes: [u8; 32]| bytes.map(|b| format!("{b:02x}")).concat();
    (digits([n; 32]), digits(public))
}

/// What sets a device up: its key and port, and the other node as its peer, reached over IPv6 or IPv4.
pub fn setup(node: &Node, over_v6: bool) -> String {
    let other = 3 - node.n;
    let endpoint = match over_v6 {
        true => format!("[2001:db8::{other}]:{}", port(other)),
        false => format!("192.0.2.{other}:{}", port(other)),
    };
    format!(
        "set=1\nprivate_key={}\nlisten_port={}\nreplace_peers=true\npublic_key={}\nendpoint={endpoint}\n\
         replace_allowed_ips=true\nallowed_ip=10.0.0.{other}/32\nallowed_ip=fd00::{other}/128\n\n",
        keys(node.n).0,
        port(node.n),
        keys(other).1,
    )
}

pub fn port(n: u8) -> u16 {
    51820 + u16::from(n)
}
