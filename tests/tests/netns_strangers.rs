//! Somebody else's programs on our devices and among our pins: refused or chained, never taken silently.

use std::fs;

use lb_common::names;
use lb_tests::{
    netns::{
        agent::Node,
        limits::Mount,
        serial,
        strangers::{foreign_tcx, foreign_xdp, tcx_programs, theirs},
        world::World,
    },
    require,
};
use lb_userspace::{attach::link_name, kernel::Hook};

use scene::{Scene, expect_words};

#[path = "pins/scene.rs"]
mod scene;

#[test]
fn somebody_elses_xdp_program_is_left_where_it_is() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let theirs = foreign_xdp(&world.lb, "eth0");
    let node = Node::new(&world).snat();
    let output = Node::refused(node.command());
    let words = [
        "interface eth0",
        "another XDP program",
        "ip link set dev eth0 xdp off",
    ];
    expect_words("native", &output, &words);
    let left = fs::read_dir(node.pin_root()).expect("the pin root").count();
    assert_eq!(left, 0, "a start that failed leaves nothing");
    let shown = || world.lb.run("ip", ["-d", "link", "show", "dev", "eth0"]);
    assert!(shown().contains("xdp"), "{}", shown());
    // By TCX alone both live.
    let scene = Scene::with(&world, Node::new(&world).snat().with("--mode=tcx"));
    scene.serves("behind somebody's XDP program");
    assert!(shown().contains("xdp"), "{}", shown());
    drop(theirs);
}

#[test]
fn somebody_elses_tcx_program_and_ours_form_a_chain() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let mount = Mount::new();
    let pin = mount.path().join("theirs");
    foreign_tcx(&world.lb, "eth0", &pin);
    let mut scene = Scene::new(&world);
    scene.serves("behind somebody's program");
    let chain = || tcx_programs(&world.lb, "eth0");
    let both = [theirs(names::LB_INGRESS), names::LB_INGRESS.to_owned()];
    assert_eq!(chain(), both);
    scene.node.kill();
    scene.node.start(2);
    assert_eq!(chain(), both);
    scene.node.stop();
    scene.serves("the agent is gone");
    scene.node.lbctl(["detach", "--force"]);
    assert_eq!(chain(), [theirs(names::LB_INGRESS)]);
}

#[test]
fn a_pinned_link_of_somebody_elses_program_is_refused() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let mut scene = Scene::new(&world);
    scene.node.kill();
    let index = world
        .lb
        .inside(|| nix::net::if_::if_nametoindex("eth0").expect("a device"));
    let links = scene.layout().join("links");
    let pin = links.join(link_name(Hook::TcxIngress, index));
    let saved = scene.layout().join("programs").join("saved");
    fs::rename(&pin, &saved).expect("our link under another name");
    foreign_tcx(&world.lb, "eth0", &pin);
    let both = [names::LB_INGRESS.to_owned(), theirs(names::LB_INGRESS)];
    assert_eq!(tcx_programs(&world.lb, "eth0"), both);
    scene.refuses(
        "a pinned link of another program",
        &[&pin.display().to_string(), &theirs(names::LB_INGRESS)],
    );
    assert_eq!(tcx_programs(&world.lb, "eth0"), both, "both stay");
    fs::remove_file(&pin).expect("their pin");
    fs::rename(&saved, &pin).expect("our link");
    scene.node.start(2);
    scene.serves("repaired");
}
