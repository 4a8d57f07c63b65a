//! Pins that are not what an agent left there, and a file system or a machine that refuses: a clear error,
//! and whatever serves goes on.

use std::{
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::Command,
};

use lb_common::names;
use lb_tests::{
    netns::{
        agent::Node,
        limits::{LittleMemory, Mount},
        serial,
        strangers::foreign,
        world::World,
    },
    require,
};
use lb_userspace::kernel;

use scene::{Scene, expect_words};

#[path = "pins/scene.rs"]
mod scene;

/// Whoever removes a pin takes care of it before: the map lives on while somebody has it open.
struct Taken {
    map: kernel::Map,
    path: PathBuf,
}

impl Taken {
    fn new(path: PathBuf) -> Self {
        let map = kernel::Map::open_pinned(&path).expect("a pinned map");
        fs::remove_file(&path).expect("a pin");
        Self { map, path }
    }

    fn put_back(self) {
        let removed = if self.path.is_dir() {
            fs::remove_dir(&self.path)
        } else {
            fs::remove_file(&self.path)
        };
        // It may be what is missing.
        drop(removed);
        kernel::pin(self.map.as_fd(), &self.path).expect("the pin comes back");
    }
}

#[test]
fn pins_that_do_not_fit_are_all_named_and_nothing_is_touched() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let mut scene = Scene::new(&world);
    scene.node.kill();
    let strangers = foreign();
    let pin = |name: &str, path: &Path| {
        let map = strangers.map(name).expect("a map");
        let aya::maps::Map::HashMap(map) = map else {
            panic!("{name} is no hash");
        };
        map.pin(path).expect("it is pinned");
    };
    let layout = scene.layout();
    let directory = layout.display().to_string();
    let at = |name: &str| layout.join("maps").join(name);

    let members = Taken::new(at(names::MEMBERS));
    scene.refuses(
        "a missing pin",
        &[&directory, "MEMBERS: the pin is missing"],
    );
    pin(names::MEMBERS, &at(names::MEMBERS));
    scene.refuses(
        "a smaller map",
        &[&directory, "MEMBERS: max_entries 64, not"],
    );
    let addresses = Taken::new(at(names::ADDRESSES));
    scene.refuses(
        "two differences",
        &[
            &directory,
            "MEMBERS: max_entries 64, not",
            "ADDRESSES: the pin is missing",
        ],
    );
    addresses.put_back();
    members.put_back();

    let members = Taken::new(at(names::MEMBERS));
    pin(names::ADDRESSES, &at(names::MEMBERS));
    scene.refuses("another map", &[&directory, "MEMBERS: key size 16, not 8"]);
    members.put_back();

    let members = Taken::new(at(names::MEMBERS));
    fs::hard_link(
        layout.join("programs").join(names::LB_CLOCK),
        at(names::MEMBERS),
    )
    .expect("another name of a pin");
    scene.refuses(
        "a program",
        &[&at(names::MEMBERS).display().to_string(), "not a map"],
    );
    members.put_back();

    let members = Taken::new(at(names::MEMBERS));
    fs::create_dir(at(names::MEMBERS)).expect("a directory");
    scene.refuses("a directory", &[&at(names::MEMBERS).display().to_string()]);
    members.put_back();

    fs::remove_dir(layout.join("complete")).expect("the mark");
    scene.node.start(2);
    scene.node.wait_log("marked again");
    scene.serves("everything is repaired");
}

#[test]
fn what_is_not_ours_below_the_pin_root_stays() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let mut scene = Scene::new(&world);
    scene.node.kill();
    let root = scene.node.pin_root().to_owned();
    fs::create_dir_all(root.join("notes/deep")).expect("a directory");
    let strangers = foreign();
    let aya::maps::Map::HashMap(map) = strangers.map(names::MEMBERS).expect("a map") else {
        panic!("MEMBERS is no hash");
    };
    map.pin(root.join("theirs")).expect("it is pinned");
    // Named as a layout, made by nobody.
    fs::create_dir_all(root.join("0123456789abcdef/maps")).expect("a directory");
    scene.node.start(2);
    scene.serves("strange pins lie about");
    assert!(root.join("notes/deep").is_dir() && root.join("theirs").exists());
    let listed = scene.node.lbctl(["services"]);
    assert!(listed.contains("default/web"), "{listed}");
}

#[test]
fn a_second_agent_is_refused_whichever_lock_it_takes() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let scene = Scene::new(&world);
    let layout = scene.layout().join("links");
    let links = || fs::read_dir(&layout).expect("links").count();
    let before = links();
    scene.refuses("the same lock", &["lockFile", "another lb-agent"]);
    let files = tempfile::tempdir().expect("a temporary directory");
    let (whole, lock) = (scene.node.command(), scene.node.lock_file());
    let mut other = Command::new(whole.get_program());
    other.args(whole.get_args().map(|argument| {
        if argument == lock.as_os_str() {
            files.path().join("other.lock").into_os_string()
        } else {
            argument.to_owned()
        }
    }));
    let output = Node::refused(other);
    let root = scene.node.pin_root().display().to_string();
    let words = ["pinRoot", &*root, "another lb-agent"];
    expect_words("another lock", &output, &words);
    scene.serves("another lock");
    assert_eq!(links(), before);
}

#[test]
fn a_read_only_bpf_file_system_is_named() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let mount = Mount::new();
    let root = mount.path().join("sluice");
    let named = root.display().to_string();
    let words = [&*named, "Read-only file system"];
    let world = World::two_armed(1);
    {
        mount.remount("ro");
        let node = Node::new(&world).snat().pins_below(root.clone());
        let output = Node::refused(node.command());
        expect_words("from the start", &output, &words);
        mount.remount("rw");
    }
    let mut scene = Scene::with(&world, Node::new(&world).snat().pins_below(root));
    scene.node.kill();
    mount.remount("ro");
    scene.refuses("what serves cannot be changed", &words);
    mount.remount("rw");
    scene.node.start(2);
    scene.serves("writable again");
}

#[test]
fn an_agent_without_descriptors_leaves_what_serves() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let mut scene = Scene::new(&world);
    scene.node.kill();
    let whole = scene.node.command();
    let mut command = Command::new("prlimit");
    command.args(["--nofile=32", "--"]).arg(whole.get_program());
    command.args(whole.get_args()).env("NO_COLOR", "1");
    let output = Node::refused(command);
    expect_words("few descriptors", &output, &["Too many open files"]);
    scene.serves("few descriptors");
    scene.node.start(2);
    scene.serves("enough descriptors");
}

#[test]
fn a_layout_for_which_there_is_no_memory_leaves_the_one_that_serves() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let Some(little) = LittleMemory::new(128 << 20) else {
        eprintln!("skipped: this test needs a memory controller");
        return;
    };
    let world = World::two_armed(1);
    let mut scene = Scene::new(&world);
    scene.node.kill();
    scene
        .node
        .configure("tables: {embryonicV4: 4194304, embryonicV6: 4194304}\n");
    let output = Node::refused(little.run(&scene.node.command()));
    let words = ["load the data path", "create map", "Cannot allocate memory"];
    expect_words("little memory", &output, &words);
    scene.serves("little memory");
    scene.node.configure_small();
    scene.node.start(2);
    scene.serves("the old sizes");
}
