//! A node of its own for each test: a thread in a fresh network namespace and mount namespace, with the driver.

#![allow(dead_code, unreachable_pub)]

pub mod icmp;

use meshd_core::{ActionId, Failure, KernelAction, KernelEvent, KernelOp, Resource};
use meshd_kernel::{DeviceChoice, DriverConfig, KernelDriver, KeySource};
use meshd_model::kernel::{Firewall, KernelState, Mark, Outside, PodLink, Route, RouteTarget};
use meshd_model::{AttachmentId, KeyHandle};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nlink::Connection;
use nlink::netlink::link::VethLink;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long what is to come may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long what is not to come is waited for.
pub const BRIEFLY: Duration = Duration::from_millis(200);

/// Runs `test` as a node, or says why it cannot.
pub fn node<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Node) -> F + Send + 'static) {
    node_that_holds(false, name, test);
}

/// The same; with `hold` no other hand can change the firewall's table while the driver runs.
pub fn node_that_holds<F: Future<Output = ()>>(
    hold: bool,
    name: &str,
    test: impl FnOnce(Node) -> F + Send + 'static,
) {
    let name = name.to_owned();
    let body = move || match isolate() {
        Ok(()) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let node = Node::start(hold).await;
                tokio::time::timeout(Duration::from_secs(60), test(node))
                    .await
                    .expect("the test takes less than a minute");
            });
        }
        Err(e) => {
            let reason = format_args!("{e} (it needs root, or a user namespace that maps it)");
            meshd_skip::skip_on("netns", &name, reason);
        }
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Puts the calling thread into namespaces of its own, with a `/proc/sys` that can be written.
fn isolate() -> Result<(), String> {
    let what = |what: &'static str| move |e: nix::Error| format!("{what}: {e}");
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(what("unshare"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(what("make mounts private"))?;
    std::fs::write("/proc/sys/net/ipv4/conf/lo/rp_filter", "0").map_err(|e| format!("write /proc/sys: {e}"))
}

/// Private keys of the tests: key generation n is 32 bytes of n.
pub struct Keys;

impl KeySource for Keys {
    fn private_key(&self, handle: KeyHandle) -> Option<zeroize::Zeroizing<[u8; 32]>> {
        let byte = u8::try_from(handle.0).ok().filter(|b| *b != 0)?;
        Some(zeroize::Zeroizing::new([byte; 32]))
    }
}

/// A node: the driver in the test's namespace, and a folder for files.
pub struct Node {
    pub driver: KernelDriver,
    pub conn: Connection<nlink::Route>,
    pub dir: tempfile::TempDir,
    generation: AtomicUsize,
}

pub const DEVICE: &str = "wg0";

impl Node {
    async fn start(hold_table: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let conn = Connection::<nlink::Route>::new().unwrap();
        conn.set_link_up("lo").await.unwrap();
        let config = DriverConfig {
            choice: DeviceChoice::Auto,
            uapi_dir: dir.path().to_owned(),
            hold_table,
            ..DriverConfig::new(DEVICE)
        };
        Self {
            driver: KernelDriver::start(config, Arc::new(Keys)).unwrap(),
            conn,
            dir,
            generation: AtomicUsize::new(0),
        }
    }

    /// Carries one operation out and gives its outcome.
    pub async fn try_apply(&mut self, op: KernelOp) -> Result<(), Failure> {
        let id = self.send(op).await;
        loop {
            match self.event().await {
                KernelEvent::Applied(done) if done == id => return Ok(()),
                KernelEvent::Failed { id: failed, failure } if failed == id => return Err(failure),
                KernelEvent::Observed(_) => {}
                other => panic!("{other:?} while {id:?} was awaited"),
            }
        }
    }

    pub async fn apply(&mut self, op: KernelOp) {
        let shown = format!("{op:?}");
        if let Err(failure) = self.try_apply(op).await {
            panic!("{shown}: {failure:?}");
        }
    }

    pub async fn observe(&mut self) -> KernelState {
        // What came unasked before is older: also what was being looked at while this is asked.
        let nothing = Route {
            dst: "192.0.2.255/32".parse().unwrap(),
            table: 9999,
            metric: 1,
            target: RouteTarget::Unreachable,
        };
        self.apply(KernelOp::RemoveRoute(nothing)).await;
        while self.driver.events.try_recv().is_ok() {}
        self.send(KernelOp::Observe).await;
        match self.event().await {
            KernelEvent::Observed(state) => *state,
            other => panic!("{other:?} while an observation was awaited"),
        }
    }

    /// The next observation that nobody asked for.
    pub async fn unasked(&mut self) -> KernelState {
        match self.event().await {
            KernelEvent::Observed(state) => *state,
            other => panic!("{other:?} while an observation was awaited"),
        }
    }

    /// Waits until nothing is told unasked for a second: what our own hand stirred up is over.
    pub async fn settle(&mut self) {
        let quiet = Duration::from_secs(1);
        while let Ok(event) = tokio::time::timeout(quiet, self.driver.events.recv()).await {
            event.expect("the driver lives");
        }
    }

    async fn send(&self, op: KernelOp) -> ActionId {
        let id = ActionId {
            resource: Resource::Kernel,
            generation: self.generation.fetch_add(1, Ordering::Relaxed) as u64 + 1,
        };
        let action = KernelAction { id: id.clone(), op };
        self.driver.actions.send(action).await.unwrap();
        id
    }

    async fn event(&mut self) -> KernelEvent {
        let event = tokio::time::timeout(Duration::from_secs(20), self.driver.events.recv()).await;
        event
            .expect("the driver answers in time")
            .expect("the driver lives")
    }

    /// Something that carries the node's overlay addresses, where no WireGuard is needed; forwarding is on.
    pub async fn stand_in_device(&self, addresses: &[&str]) {
        // Duplicate detection would stir for seconds.
        std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
        self.conn
            .add_link(VethLink::new(DEVICE, "wg0-far"))
            .await
            .unwrap();
        self.conn.set_link_up(DEVICE).await.unwrap();
        self.conn.set_link_up("wg0-far").await.unwrap();
        add_addresses(&self.conn, DEVICE, addresses).await;
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{key}"), "1").unwrap();
        }
    }

    pub async fn firewall(&mut self) {
        self.apply(KernelOp::SetFirewall(firewall())).await;
    }
}

pub async fn add_addresses(conn: &Connection<nlink::Route>, ifname: &str, addresses: &[&str]) {
    let link = conn.get_link_by_name(ifname).await.unwrap().expect(ifname);
    for address in addresses {
        let net: ipnetwork::IpNetwork = address.parse().unwrap();
        match net {
            ipnetwork::IpNetwork::V4(n) => {
                let config =
                    nlink::netlink::addr::Ipv4Address::with_index(link.ifindex(), n.ip(), n.prefix());
                conn.add_address(config).await.unwrap();
            }
            ipnetwork::IpNetwork::V6(n) => {
                let config =
                    nlink::netlink::addr::Ipv6Address::with_index(link.ifindex(), n.ip(), n.prefix());
                conn.add_address(config.nodad()).await.unwrap();
            }
        }
    }
}

pub fn firewall() -> Firewall {
    Firewall {
        pod_cidrs: ["10.244.0.0/16", "fd00:244::/48"]
            .map(|c| c.parse().unwrap())
            .into(),
        device: DEVICE.to_owned(),
        mark: Mark {
            value: 0x500,
            mask: 0xf00,
        },
        outside: Outside::default(),
    }
}

/// The same, and pods reach the world outside but for the metadata and for 198.51.100.0/24.
pub fn open_firewall() -> Firewall {
    let refused = ["169.254.169.254/32", "198.51.100.0/24", "fd00:ec2::254/128"];
    Firewall {
        outside: Outside {
            masquerade: true,
            refused: refused.map(|c| c.parse().unwrap()).into(),
        },
        ..firewall()
    }
}

/// A node with a stand-in device, a pod, and a neighbour that is the node's way out.
pub struct Site {
    pub pod: Sandbox,
    pub neighbour: Sandbox,
}

/// Makes it, with this firewall.
pub async fn site(node: &mut Node, firewall: Firewall) -> Site {
    node.stand_in_device(&["10.244.1.1/32", "fd00:244:0:1::1/128"])
        .await;
    node.apply(KernelOp::SetFirewall(firewall)).await;
    let pod_ns = Sandbox::new();
    let link = pod(&pod_ns, 2);
    node.apply(KernelOp::AttachPod(link)).await;
    let neighbour = neighbour(node).await;
    // A way out for an absent pod's address, as a lost route would leave it: the node's default route.
    let v4 = nlink::netlink::route::Ipv4Route::default_route().gateway([192, 0, 2, 2].into());
    node.conn.add_route(v4.dev("eth0")).await.unwrap();
    let v6 = nlink::netlink::route::Ipv6Route::default_route().gateway("2001:db8::2".parse().unwrap());
    node.conn.add_route(v6.dev("eth0")).await.unwrap();
    Site {
        pod: pod_ns,
        neighbour,
    }
}

/// A network namespace, held open by a file; gone when this is dropped.
pub struct Sandbox {
    file: File,
}

impl Sandbox {
    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let file = std::thread::spawn(make).join().unwrap();
        Self { file }
    }

    pub fn path(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    pub fn try_clone(&self) -> Self {
        let file = self.file.try_clone().unwrap();
        Self { file }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` inside, on a thread of its own.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let file = self.file.try_clone().unwrap();
        let enter = move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::spawn(enter).join().unwrap()
    }

    /// Runs `work` inside with a netlink socket.
    pub fn netlink<T: Send + 'static, F: Future<Output = T>>(
        &self,
        work: impl FnOnce(Connection<nlink::Route>) -> F + Send + 'static,
    ) -> T {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let conn = Connection::<nlink::Route>::new().unwrap();
                work(conn).await
            })
        })
    }

    /// A socket that sends everything back, for as long as the sandbox or the test lives.
    pub fn echo(&self, at: &str) -> SocketAddr {
        let at: SocketAddr = at.parse().unwrap();
        self.run(move || spawn_echo(UdpSocket::bind(at).unwrap()))
    }

    /// Sends a datagram from inside and waits for its echo.
    pub fn asks(&self, to: SocketAddr) -> bool {
        self.run(move || ask(to))
    }
}

/// A pod's link number `n`, as the agent would ask for it.
pub fn pod(sandbox: &Sandbox, n: u8) -> PodLink {
    PodLink {
        id: AttachmentId {
            container_id: format!("container-{n}"),
            ifname: "eth0".to_owned(),
        },
        netns: sandbox.path(),
        host_ifname: format!("mshp{n}"),
        host_mac: meshd_model::attachment::MacAddr([2, 0, 0, 0, 1, n]),
        mac: meshd_model::attachment::MacAddr([2, 0, 0, 0, 2, n]),
        addresses: vec![
            format!("10.244.1.{n}").parse().unwrap(),
            format!("fd00:244:0:1::{n}").parse().unwrap(),
        ],
        host_addresses: ["10.244.1.1", "fd00:244:0:1::1"]
            .map(|a| a.parse().unwrap())
            .into(),
        mtu: 1420,
        secondary: false,
    }
}

pub fn socket(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// Answers datagrams from now on, on a thread that ends with the test's process.
pub fn spawn_echo(socket: UdpSocket) -> SocketAddr {
    let at = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    at
}

/// Sends a datagram and waits for its echo, which is to come.
pub fn ask(to: SocketAddr) -> bool {
    ask_within(to, PATIENCE)
}

/// Sends a datagram and waits so long for its echo.
pub fn ask_within(to: SocketAddr, patience: Duration) -> bool {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    let mut buffer = [0; 2048];
    // A first refusal may be an ICMP error that was waited for.
    if socket.send_to(b"are you there?", to).is_err() {
        return false;
    }
    matches!(socket.recv_from(&mut buffer), Ok((14, _)))
}

/// The file that a removed bind mount leaves behind.
pub fn stale_netns(node: &Node) -> PathBuf {
    let path = node.dir.path().join("gone");
    File::create(&path).unwrap();
    path
}

/// The pods' entries in the firewall, in hexadecimal digits.
pub async fn pod_entries() -> Vec<String> {
    use nlink::netlink::nftables::Family;
    let nft = Connection::<nlink::Nftables>::new().unwrap();
    let mut entries = Vec::new();
    for set in ["pods4", "pods6"] {
        let elements = nft.list_set_elements("meshd", set, Family::Inet).await.unwrap();
        entries.extend(elements.iter().map(|e| hex::encode(e.key())));
    }
    entries.sort();
    entries
}

/// A neighbour on an underlay of its own: veth `eth0` on the node with 192.0.2.1 and 2001:db8::1, the other end in a
/// sandbox with .2 and ::2. The neighbour routes all of 10.244.0.0/16 and fd00:244::/48 through the node.
pub async fn neighbour(node: &Node) -> Sandbox {
    let sandbox = Sandbox::new();
    let veth = VethLink::new("eth0", "eth0").peer_netns_fd(sandbox.file());
    node.conn.add_link(veth).await.unwrap();
    node.conn.set_link_up("eth0").await.unwrap();
    add_addresses(&node.conn, "eth0", &["192.0.2.1/24", "2001:db8::1/64"]).await;
    sandbox.netlink(|conn| async move {
        conn.set_link_up("lo").await.unwrap();
        conn.set_link_up("eth0").await.unwrap();
        // A pod address that is nowhere, to be sent to.
        let own = [
            "192.0.2.2/24",
            "2001:db8::2/64",
            "10.244.9.9/32",
            "fd00:244:0:9::9/128",
            // The world outside.
            "203.0.113.9/32",
            "198.51.100.7/32",
            "169.254.169.254/32",
            "2001:db8:9::9/128",
            "fd00:ec2::254/128",
        ];
        add_addresses(&conn, "eth0", &own).await;
        let v4 = nlink::netlink::route::Ipv4Route::new([10, 244, 0, 0].into(), 16);
        conn.add_route(v4.gateway([192, 0, 2, 1].into()).dev("eth0"))
            .await
            .unwrap();
        let v6 = nlink::netlink::route::Ipv6Route::new("fd00:244::".parse().unwrap(), 48);
        conn.add_route(v6.gateway("2001:db8::1".parse().unwrap()).dev("eth0"))
            .await
            .unwrap();
    });
    for address in ["192.0.2.2", "[2001:db8::2]", "10.244.9.9", "[fd00:244:0:9::9]"] {
        let echo = sandbox.echo(&format!("{address}:0"));
        until_it_answers(|| sandbox.run(move || ask_within(echo, BRIEFLY)));
        if !address.contains("244") {
            until_it_answers(|| ask_within(echo, BRIEFLY));
        }
    }
    sandbox
}

/// The kernel puts carriers and the local routes of IPv6 addresses in place in the background.
fn until_it_answers(asked: impl Fn() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !asked() {
        assert!(std::time::Instant::now() < end, "the neighbour does not answer");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Counts the datagrams that arrive, and names their sources.
pub struct Inbox {
    socket: UdpSocket,
}

impl Inbox {
    pub fn at(address: &str) -> Self {
        let socket = UdpSocket::bind(address).unwrap();
        Self { socket }
    }

    pub fn within(sandbox: &Sandbox, address: &str) -> Self {
        let address = address.to_owned();
        sandbox.run(move || Self::at(&address))
    }

    pub fn port(&self) -> String {
        self.socket.local_addr().unwrap().port().to_string()
    }

    /// Where the next datagram came from; None if none comes so soon.
    pub fn next(&self, patience: Duration) -> Option<IpAddr> {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let mut buffer = [0; 2048];
        self.socket.recv_from(&mut buffer).ok().map(|(_, from)| from.ip())
    }
}

/// Sends one datagram; whether it is let go at all is not asked.
pub fn send(from: &str, to: &str) {
    let socket = UdpSocket::bind(from).unwrap();
    let _ = socket.send_to(b"plaintext", to);
}
