//! Sluice comes to a node where somebody else balances, and goes again: nobody's connections break.
//!
//! The other is a few rules of nftables that do what a kube-proxy's do: a random backend, the node's own
//! address in place of the client's.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use lb_common::reason::Reason;
use lb_tests::{
    netns::{
        Namespace, Process,
        agent::Node,
        manifest::{ServiceManifest, service},
        poll_until, serial,
        server::{Download, Server, UdpClient, http, udp_whoami},
        world::{VIP4, VIP6, World, backend4, backend6, vips},
    },
    require,
};

const BACKENDS: usize = 3;
/// Sessions of each kind; that all of one backend's stay with it by chance is out of the question.
const SESSIONS: usize = 32;
/// Whom backends see: the node's own address, or an SNAT address of ours.
const OTHER: [&str; 2] = ["10.0.0.1", "2001:db8:a::1"];
const SLUICE: [&str; 2] = ["10.0.0.100", "2001:db8:a::64"];

/// What a kube-proxy would have put there. Its table's name is how Sluice knows it.
fn other_balancer(lb: &Namespace) {
    let pick = |family: &str, address: fn(usize) -> String, port| {
        let pods = (0..BACKENDS).map(|number| format!("{number} : {} . {port}", address(number)));
        format!(
            "dnat {family} to numgen random mod {BACKENDS} map {{ {} }}",
            pods.collect::<Vec<_>>().join(", ")
        )
    };
    let mut rules = String::new();
    let tables = [
        ("ip", VIP4, backend4 as fn(usize) -> String),
        ("ip6", VIP6, backend6),
    ];
    for ((table, vip, address), node) in tables.into_iter().zip(OTHER) {
        let family = format!("{table} addr . port");
        let (web, dns) = (pick(&family, address, 8080), pick(&family, address, 5353));
        let table = format!(
            "table {table} kube-proxy {{
                chain services {{
                    type nat hook prerouting priority dstnat
                    {table} daddr {vip} tcp dport 80 {web}
                    {table} daddr {vip} udp dport 53 {dns}
                }}
                chain away {{
                    type nat hook postrouting priority srcnat
                    ct status dnat snat to {node} random
                }}
            }}\n"
        );
        rules.push_str(&table);
    }
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), rules).expect("a temporary file");
    let path = file.path().display().to_string();
    lb.run("nft", ["-f", &path]);
}

fn web() -> ServiceManifest {
    let service = service("web")
        .vip(VIP4)
        .vip(VIP6)
        .tcp(80, 8080)
        .udp(53, 5353);
    (0..BACKENDS).fold(service, |service, number| {
        service
            .endpoint(&backend4(number))
            .endpoint(&backend6(number))
    })
}

fn servers(world: &World) -> Vec<(Server, Server)> {
    let backends = world.backends.iter().enumerate();
    backends
        .map(|(number, backend)| {
            let name = format!("b{number}");
            (http(backend, &name, 8080), udp_whoami(backend, &name, 5353))
        })
        .collect()
}

/// UDP sessions, each with the answer it got first: backend and whom that saw.
struct Sessions(Vec<(UdpClient, String)>);

impl Sessions {
    fn start(client: &Namespace) -> Self {
        let all = vips(53).into_iter().flat_map(|vip| {
            (0..SESSIONS).map(move |_| {
                let session = UdpClient::new(client, &vip);
                let first = session.ask("").trim().to_owned();
                (session, first)
            })
        });
        Self(all.collect())
    }

    /// Every session goes on with the backend it began with.
    fn assert_unmoved(&self, when: &str) {
        for (session, first) in &self.0 {
            for question in ["once", "twice"] {
                assert_eq!(
                    session.ask(question),
                    format!("{first} {question}"),
                    "{when}"
                );
            }
        }
    }

    /// Asks those whose turn it is: one in `turns`. Whoever is there answers.
    fn ask_every(&self, turns: usize, turn: u32) {
        let turn = usize::try_from(turn).expect("few turns");
        for (session, _) in self.0.iter().skip(turn % turns).step_by(turns) {
            session.ask("again");
        }
    }

    /// Whom the backends see, and how many backends there are.
    fn seen(&self) -> (BTreeSet<&str>, usize) {
        let words = self.0.iter().filter_map(|(_, first)| first.split_once(' '));
        let (backends, peers): (BTreeSet<_>, BTreeSet<_>) = words.unzip();
        (peers, backends.len())
    }
}

fn downloads(client: &Namespace) -> Vec<Download> {
    let vips = vips(80).into_iter().cycle().take(2 * 4);
    vips.map(|vip| Download::start(client, &vip, "/stream/100000"))
        .collect()
}

/// For how long at most somebody who only wants to sleep was not woken: so long the machine stood still.
#[derive(Default)]
struct Halts {
    longest: Arc<AtomicU64>,
}

impl Halts {
    fn watch() -> Self {
        const NAP: Duration = Duration::from_millis(5);
        let this = Self::default();
        let longest = Arc::downgrade(&this.longest);
        std::thread::spawn(move || {
            while let Some(longest) = longest.upgrade() {
                let begin = clock();
                std::thread::sleep(NAP);
                let late = begin.elapsed().saturating_sub(NAP).as_micros();
                longest.fetch_max(
                    u64::try_from(late).expect("not for ages"),
                    Ordering::Relaxed,
                );
            }
        });
        this
    }

    fn longest(&self) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::Relaxed))
    }
}

/// Each goes on; none may be silent for a second, but for what the machine stood still.
fn assert_flowing(downloads: &[Download], halts: &Halts, when: &str) {
    for download in downloads {
        let before = download.bytes();
        poll_until(
            &format!("more of a download, {when}"),
            Duration::from_secs(5),
            || (download.bytes() > before).then_some(()),
        );
        let gap = download.longest_gap();
        let halt = halts.longest();
        assert!(
            gap < Duration::from_secs(1) + halt,
            "{when}: silent for {gap:?}, the machine for {halt:?}"
        );
    }
}

fn detach(node: &Node<'_>) -> Process {
    let mut command = node.lbctl_command();
    command
        .args(["detach", "--udp-idle", "2", "--lock-file"])
        .arg(node.lock_file());
    Process::spawn(&mut command)
}

#[expect(clippy::disallowed_methods, reason = "a test's own clock")]
fn clock() -> Instant {
    Instant::now()
}

#[test]
fn sluice_comes_and_goes_beside_another_balancer() {
    if !require::kernel_tests() || !require::program("nft") || !require::program("bpftool") {
        return;
    }
    let _one = serial();
    let world = World::one_armed(BACKENDS);
    let _servers = servers(&world);
    other_balancer(&world.lb);
    let halts = Halts::watch();
    let old = Sessions::start(&world.client);
    let old_downloads = downloads(&world.client);
    assert_eq!(old.seen(), (OTHER.into(), BACKENDS), "before");

    let mut node = Node::new(&world).snat();
    node.apply("web", &web());
    node.start(4);
    node.wait_log("UDP that the node's stack serves stays there");
    let new = Sessions::start(&world.client);
    let new_downloads = downloads(&world.client);
    assert_eq!(new.seen(), (SLUICE.into(), BACKENDS), "with Sluice");
    for _ in 0..5 {
        old.assert_unmoved("old, with Sluice");
        new.assert_unmoved("new, with Sluice");
    }
    assert_flowing(&old_downloads, &halts, "old, with Sluice");
    assert_flowing(&new_downloads, &halts, "new, with Sluice");
    let passed = node.reason(Reason::StackFlow);
    assert!(passed >= 20 * SESSIONS as u64, "{passed} packets passed");

    // Another agent finds its frontends served already, and those flows still pass.
    node.kill();
    node.start(4);
    old.assert_unmoved("old, with another agent");
    new.assert_unmoved("new, with another agent");

    node.stop();
    let mut leaving = detach(&node);
    poll_until(
        "new flows to go to the other",
        Duration::from_secs(20),
        || leaving.output().contains("new flows go to").then_some(()),
    );
    let last = Sessions::start(&world.client);
    assert_eq!(last.seen(), (OTHER.into(), BACKENDS), "while leaving");
    for _ in 0..5 {
        old.assert_unmoved("old, while leaving");
        new.assert_unmoved("new, while leaving");
        last.assert_unmoved("last, while leaving");
    }
    assert_flowing(&old_downloads, &halts, "old, while leaving");
    assert_flowing(&new_downloads, &halts, "new, while leaving");
    assert!(leaving.ended().is_none(), "{}", leaving.output());

    // Its own flows end, and with them its work. Those of the stack do not keep it, nor do clients of which
    // some one always asks: each is silent for long enough.
    drop(new_downloads);
    let start = clock();
    let mut asked = 0;
    let status = poll_until("the end of detach", Duration::from_mins(1), || {
        old.assert_unmoved("old, to the end");
        last.assert_unmoved("last, to the end");
        if start.elapsed() > asked * Duration::from_secs(1) {
            new.ask_every(SESSIONS, asked);
            asked += 1;
        }
        leaving.ended()
    });
    drop(new);
    assert!(status.success(), "{}", leaving.output());
    assert!(leaving.output().contains("removed"), "{}", leaving.output());
    let attached = world.lb.run("bpftool", ["net"]);
    assert!(!attached.contains("lb_"), "{attached}");
    old.assert_unmoved("old, alone again");
    last.assert_unmoved("last, alone again");
    assert_flowing(&old_downloads, &halts, "old, alone again");
    let seen = Sessions::start(&world.client);
    assert_eq!(seen.seen(), (OTHER.into(), BACKENDS), "alone again");
}
