//! Flows go from one layout of the tables to another, up and down, whenever the agent dies on the way.

use std::{
    net::SocketAddr,
    os::{fd::AsFd as _, unix::process::ExitStatusExt as _},
    time::Duration,
};

use lb_common::names;
use lb_tests::{
    disruption::{
        flows::Flows,
        own::{self, Endpoints},
        scene::{self, Scene},
        server::Servers,
    },
    netns::{Process, agent::Node, now, poll_until, serial},
    require,
};
use lb_userspace::{
    kernel::{self, Hook, Link},
    pins::{
        Candidate, PinDirectory,
        step::{KILL_AFTER, Step},
    },
};

/// Watched flows: both families, `dnat` and `full-nat`, to pods and to remote backends.
const FLOWS: usize = 80;
/// Flows beside them that do not meet the load balancer.
const CONTROLS: usize = 4;
/// How long an agent may take to die where it is told to: the kernel checks its programs first, and that takes long
/// on a busy machine.
const PATIENCE: Duration = Duration::from_mins(3);
/// How soon packets of every flow must be seen to arrive.
const SOON: Duration = Duration::from_secs(5);

/// The network, its servers and an agent that serves, of the ordinary layout.
struct Rig<'s> {
    scene: &'s Scene,
    node: Node<'s>,
    /// The second layout serves.
    second: bool,
}

fn ready() -> bool {
    require::kernel_tests() && require::file(&require::second_layout().join("lb-agent"))
}

fn targets(number: usize) -> Vec<SocketAddr> {
    own::frontends().into_iter().cycle().take(number).collect()
}

impl<'s> Rig<'s> {
    fn new(scene: &'s Scene) -> Self {
        let mut node = scene.node();
        Endpoints::Few.publish(&node.manifests());
        node.start(own::frontends().len());
        Self {
            scene,
            node,
            second: false,
        }
    }

    fn flows(&self) -> Flows {
        let controls: Vec<_> = scene::controls()
            .into_iter()
            .cycle()
            .take(CONTROLS)
            .collect();
        Flows::start(&self.scene.client, &targets(FLOWS), &controls)
    }

    /// Starts the agent of a layout and waits until it is done.
    fn serve(&mut self, second: bool) {
        self.node.use_second_layout(second);
        self.node.start(own::frontends().len());
        poll_until("the other layout to go", PATIENCE, || {
            (self.layouts().len() == 1).then_some(())
        });
        self.second = second;
    }

    /// Starts the agent of a layout, which kills itself after a step.
    fn die(&mut self, second: bool, step: Step) {
        self.node.use_second_layout(second);
        let mut command = self.node.command();
        let mut process = Process::spawn(command.env(KILL_AFTER, step.name()));
        let status = process.wait(PATIENCE);
        assert_eq!(
            status.signal(),
            Some(9),
            "after {}: {status}\n{}",
            step.name(),
            process.output()
        );
    }

    /// Every layout that is pinned.
    fn layouts(&self) -> Vec<Candidate> {
        let all = PinDirectory::all(self.node.pin_root()).expect("the pin root");
        all.into_iter().map(Candidate::look).collect()
    }

    /// The XDP links of the only layout and the ids of their programs, then those at TCX.
    fn programs(&self) -> Vec<(String, u32)> {
        let layouts = self.layouts();
        let directory = &layouts.first().expect("a layout").directory;
        let program = |name: String| {
            let link = kernel::open_pinned(&directory.link(&name)).expect("a link");
            let info = Link::from(link).info().expect("a link");
            (name, info.program)
        };
        let mut all: Vec<_> = directory.links().into_iter().map(program).collect();
        all.sort_by_key(|(name, _)| (!name.starts_with("xdp"), name.clone()));
        all
    }

    /// What a layout change left, in words: gate and links of the layout before and of the one after.
    fn state(&self, before: &PinDirectory) -> String {
        let layouts = self.layouts();
        let (old, new): (Vec<_>, Vec<_>) = layouts.iter().partition(|one| one.directory == *before);
        let tell = |found: Vec<&Candidate>| match found.first() {
            None => "none".to_owned(),
            Some(one) if !one.complete => "incomplete".to_owned(),
            Some(one) => {
                let gate = match one.gate.mode() {
                    0 => "open",
                    1 => "standby",
                    _ => "frozen",
                };
                format!("{gate}, {} links", one.links)
            }
        };
        format!("{:<20} {:<20}", tell(old), tell(new))
    }

    /// Packets of the flows go on arriving, and new connections are made.
    fn expect_life(&self, flows: &Flows, when: &str) {
        let before = flows.answers();
        let wanted = u64::try_from(3 * FLOWS).expect("few flows");
        poll_until(&format!("answers, {when}"), SOON, || {
            (flows.answers() >= before + wanted).then_some(())
        });
        assert_eq!(flows.broken(), 0, "{when}");
        for frontend in own::frontends() {
            let connect = || self.scene.client.inside(|| connect(frontend));
            poll_until(
                &format!("a connection to {frontend}, {when}"),
                PATIENCE,
                || connect().then_some(()),
            );
        }
    }
}

fn connect(frontend: SocketAddr) -> bool {
    std::net::TcpStream::connect_timeout(&frontend, Duration::from_secs(10)).is_ok()
}

/// Every flow must have gone on by the end.
fn judge(flows: Flows, servers: &Servers) -> usize {
    let outcome = flows.finish();
    let mut lost = outcome.lost();
    lost.extend(servers.complaints());
    assert!(lost.is_empty(), "{lost:#?}");
    lost.len()
}

#[test]
fn flows_outlive_a_layout_change_up_and_down() {
    if !ready() {
        return;
    }
    let _one = serial();
    let scene = Scene::new();
    let servers = Servers::start(&scene.servers());
    let mut rig = Rig::new(&scene);
    let flows = rig.flows();
    for (name, second) in [("up", true), ("down", false), ("up again", true)] {
        rig.node.stop();
        rig.serve(second);
        rig.expect_life(&flows, name);
    }
    judge(flows, &servers);
}

#[test]
fn tables_may_get_another_size() {
    if !ready() {
        return;
    }
    let _one = serial();
    let scene = Scene::new();
    let servers = Servers::start(&scene.servers());
    let mut rig = Rig::new(&scene);
    let flows = rig.flows();
    rig.node.stop();
    let tables = |entries: u32| {
        format!(
            "tables: {{flowsV4: {entries}, flowsV6: {entries}, embryonicV4: 4096, embryonicV6: 4096}}\n"
        )
    };
    for entries in [8_192, 32_768] {
        rig.node.configure(&tables(entries));
        rig.serve(false);
        rig.expect_life(&flows, "another size");
        let flows = rig.node.map(names::FLOWS_V4).expect("FLOWS_V4");
        assert_eq!(flows.info().max_entries, entries);
        rig.node.stop();
    }
    // Too small for what is there: refused, and the old one serves on.
    let layouts = rig.layouts();
    rig.node.configure(&tables(16));
    let said = Node::refused(rig.node.command());
    assert!(said.contains("FLOWS_V4 has room for 16 entries"), "{said}");
    assert_eq!(rig.layouts(), layouts, "nothing is left of the attempt");
    rig.expect_life(&flows, "after a refusal");
    judge(flows, &servers);
}

#[test]
fn an_agent_that_cannot_attach_gives_everything_back() {
    if !ready() {
        return;
    }
    let _one = serial();
    let scene = Scene::new();
    let servers = Servers::start(&scene.servers());
    let mut rig = Rig::new(&scene);
    let flows = rig.flows();
    rig.node.stop();
    let (layouts, programs) = (rig.layouts(), rig.programs());
    // One more device, which has another's XDP program.
    scene
        .lb
        .ip("link add extra type veth peer name other\nlink set extra up");
    let index = scene
        .lb
        .inside(|| nix::net::if_::if_nametoindex("extra").expect("a device"));
    let (_, id) = programs.first().expect("an XDP link");
    let program = kernel::open_program(*id).expect("its program");
    let attach = || Link::create(program.as_fd(), index, Hook::XdpNative);
    let foreign = scene.lb.inside(attach).expect("a link");
    rig.node.use_second_layout(true);
    let mut command = rig.node.command();
    command.args(["--interface", "extra"]);
    let said = Node::refused(command);
    let words = "interface extra: another XDP program is attached";
    assert!(said.contains(words), "{said}");
    assert_eq!(rig.layouts(), layouts, "nothing is left of the attempt");
    assert_eq!(rig.programs(), programs, "every link has its program back");
    rig.expect_life(&flows, "after a refusal");
    drop(foreign);
    rig.serve(true);
    rig.expect_life(&flows, "without the obstacle");
    judge(flows, &servers);
}

/// `kill -9` after each step of a change in either direction: packets flow, and whichever agent comes next
/// ends it.
#[test]
fn the_agent_may_die_after_any_step() {
    if !ready() {
        return;
    }
    let _one = serial();
    let scene = Scene::new();
    let servers = Servers::start(&scene.servers());
    let mut rig = Rig::new(&scene);
    let flows = rig.flows();
    let mut lines = Vec::new();
    for (second, step, by_new) in cases() {
        let begun = now();
        if rig.second == second {
            rig.serve(!second);
        }
        rig.node.kill();
        let before = rig.layouts().first().expect("a layout").directory.clone();
        rig.die(second, step);
        let state = rig.state(&before);
        let when = format!("killed after {} on the way {}", step.name(), way(second));
        rig.expect_life(&flows, &when);
        rig.serve(second == by_new);
        rig.expect_life(&flows, &format!("{when}, restarted"));
        let next = if by_new { "the new one" } else { "the old one" };
        let line = format!(
            "{:<9} {:<5} {state} {next:<12} {}",
            step.name(),
            way(second),
            flows.broken()
        );
        eprintln!("{line}  ({:.1} s)", begun.elapsed().as_secs_f64());
        lines.push(line);
    }
    let lost = judge(flows, &servers);
    println!("step      way   before               after                restarted    flows lost");
    for line in lines {
        println!("{line}");
    }
    println!("flows: {FLOWS}  lost: {lost}");
}

const fn way(second: bool) -> &'static str {
    if second { "up" } else { "down" }
}

/// Every step, up and down where the new agent comes next; up where the old one does, for one step of each
/// state it can find. In an order in which nothing need be changed in between.
fn cases() -> Vec<(bool, Step, bool)> {
    let on = Step::ALL
        .into_iter()
        .flat_map(|step| [true, false].map(|up| (up, step, true)));
    let back = [
        Step::Maps,
        Step::Attached,
        Step::Frozen,
        Step::Open,
        Step::Links,
        Step::Removed,
    ];
    on.chain(back.map(|step| (true, step, false))).collect()
}
