//! Bad input and bad surroundings: a clear error that names object and field, and everything else
//! keeps serving.

use std::time::Duration;

use lb_tests::{
    netns::{
        Namespace, Process,
        agent::{Node, binary},
        manifest::service,
        serial,
        server::http,
        world::{VIP4, VIP6, World, backend4, backend6, vips},
    },
    require,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Starts an agent that must give up; what it printed.
fn refused(command: &mut std::process::Command) -> String {
    let mut process = Process::spawn(command);
    let status = process.wait(PATIENCE);
    let output = process.output();
    assert!(!status.success(), "the agent ended well:\n{output}");
    output
}

/// The agent's command line with another value after a flag.
fn with_value(node: &Node<'_>, lb: &Namespace, flag: &str, value: &str) -> std::process::Command {
    let whole = node.command();
    let mut command = lb.command(binary("lb-agent"));
    let arguments = whole.get_args().skip_while(|argument| *argument != "run");
    let mut replace = false;
    for argument in arguments {
        if replace {
            command.arg(value);
        } else {
            command.arg(argument);
        }
        replace = !replace && argument == flag;
    }
    command
}

fn expect_words(output: &str, words: &[&str]) {
    for word in words {
        assert!(output.contains(word), "no {word:?} in:\n{output}");
    }
}

#[test]
fn a_broken_manifest_is_named_and_the_rest_serves() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::one_armed(1);
    let _server = http(world.backend(), "b0", 8080);
    let mut node = Node::new(&world).snat();
    let web = service("web").vip(VIP4).vip(VIP6).tcp(80, 8080);
    node.apply("web", &web.endpoint(&backend4(0)).endpoint(&backend6(0)));
    node.manifest(
        "broken.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: [\n",
    );
    let bad_field = service("typo").vip("192.0.2.9").tcp(80, 8080).yaml();
    node.manifest(
        "typo.yaml",
        &bad_field.replace("port: 80,", "port: eighty,"),
    );
    let bad_ip = service("odd")
        .vip("192.0.2.999")
        .tcp(80, 8080)
        .endpoint(&backend4(0));
    node.apply("odd", &bad_ip);
    let bad_endpoint = service("lost")
        .vip("192.0.2.8")
        .tcp(80, 8080)
        .endpoint("10.0.0.999");
    node.apply("lost", &bad_endpoint);
    node.start(3);
    for vip in vips(80) {
        let url = format!("http://{vip}/");
        let out = world.client.run("curl", ["-sS", "--max-time", "5", &url]);
        assert!(out.starts_with("b0 "), "{out}");
    }
    node.wait_log("broken.yaml");
    node.wait_log("typo.yaml");
    let log = node.log();
    expect_words(&log, &["port", "192.0.2.999", "default/odd", "10.0.0.999"]);
    // Repaired, it serves.
    node.apply(
        "odd",
        &service("odd")
            .vip("192.0.2.7")
            .tcp(80, 8080)
            .endpoint(&backend4(0)),
    );
    node.wait_frontends(4);
}

#[test]
fn a_manifest_broken_while_the_agent_was_away_keeps_what_was_served() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::one_armed(1);
    let _server = http(world.backend(), "b0", 8080);
    let mut node = Node::new(&world).snat();
    let web = service("web")
        .vip(VIP4)
        .tcp(80, 8080)
        .endpoint(&backend4(0));
    let old = service("old")
        .vip("192.0.2.7")
        .tcp(80, 8080)
        .endpoint(&backend4(0));
    let new = service("new")
        .vip("192.0.2.8")
        .tcp(80, 8080)
        .endpoint(&backend4(0));
    node.apply("web", &web);
    node.apply("old", &old);
    node.start(2);
    node.kill();
    node.manifest("web.yaml", "kind: Service\nmetadata: {name: [\n");
    node.remove("old.yaml");
    node.apply("new", &new);
    // Nobody can tell whether "old" is what cannot be read: it stays as well, until all is read.
    node.start(3);
    node.wait_log("web.yaml");
    let url = format!("http://{VIP4}/");
    let answer = || world.client.run("curl", ["-sS", "--max-time", "5", &url]);
    assert!(answer().starts_with("b0 "));
    node.apply("web", &web);
    node.wait_frontends(2);
    assert!(answer().starts_with("b0 "));
}

#[test]
fn of_two_services_with_one_frontend_the_older_keeps_it() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::one_armed(2);
    let _servers: Vec<_> = world
        .backends
        .iter()
        .enumerate()
        .map(|(number, backend)| http(backend, &format!("b{number}"), 8080))
        .collect();
    let aged = |name: &str, number: usize, day: u8| {
        let yaml = service(name)
            .vip(VIP4)
            .tcp(80, 8080)
            .endpoint(&backend4(number))
            .yaml();
        let stamp = format!(
            "metadata: {{name: {name}, namespace: default, \
             creationTimestamp: \"2024-01-{day:02}T00:00:00Z\"}}"
        );
        yaml.replace(
            &format!("metadata: {{name: {name}, namespace: default}}"),
            &stamp,
        )
    };
    let mut node = Node::new(&world).snat();
    node.manifest("a.yaml", &aged("younger", 0, 2));
    node.manifest("b.yaml", &aged("older", 1, 1));
    node.start(1);
    let url = format!("http://{VIP4}:80/");
    for _ in 0..5 {
        let out = world.client.run("curl", ["-sS", "--max-time", "5", &url]);
        assert!(out.starts_with("b1 "), "the older service answers: {out}");
    }
    node.wait_log("default/younger");
    expect_words(
        &node.log(),
        &["default/younger", "default/older", "192.0.2.1:80"],
    );
    node.remove("b.yaml");
    lb_tests::netns::poll_until("the younger service to take over", PATIENCE, || {
        let out = world.client.run("curl", ["-sS", "--max-time", "5", &url]);
        out.starts_with("b0 ").then_some(())
    });
}

#[test]
fn an_interface_that_does_not_exist_is_named() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let lb = Namespace::new("lb");
    let node = Node::on(&lb, ["--interface", "nope0"]);
    let output = refused(&mut node.command());
    expect_words(&output, &["interface", "nope0"]);
}

#[test]
fn keys_of_the_configuration_are_named() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let lb = Namespace::new("lb");
    let node = Node::on(&lb, ["--interface", "lo"]);
    let output = refused(node.command().args(["--snat-address", "10.0.0.300"]));
    expect_words(&output, &["snat.addresses", "10.0.0.300"]);
    let output = refused(&mut with_value(
        &node,
        &lb,
        "--manifests",
        "/nonexistent/manifests",
    ));
    expect_words(&output, &["/nonexistent/manifests"]);
}

#[test]
fn missing_privileges_are_named() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let lb = Namespace::new("lb");
    let node = Node::on(&lb, ["--interface", "lo"]);
    // The same command line, but without any capability.
    let whole = node.command();
    let mut command = lb.command("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", "--"]);
    command.arg(binary("lb-agent"));
    let skip = whole
        .get_args()
        .position(|argument| argument == "run")
        .expect("run");
    command.args(whole.get_args().skip(skip));
    let mut process = Process::spawn(&mut command);
    let status = process.wait(PATIENCE);
    let output = process.output();
    assert!(!status.success(), "{output}");
    expect_words(&output, &["privileges", "CAP_BPF", "CAP_NET_ADMIN"]);
}

#[test]
fn a_pin_root_that_is_no_bpf_file_system_is_named() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let lb = Namespace::new("lb");
    let node = Node::on(&lb, ["--interface", "lo"]);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().display().to_string();
    let output = refused(&mut with_value(&node, &lb, "--pin-root", &path));
    expect_words(&output, &["pinRoot", "BPF file system", &path]);
}

#[test]
fn a_second_agent_on_one_lock_is_refused() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::one_armed(1);
    let mut node = Node::new(&world).snat();
    node.start(0);
    let output = refused(&mut node.command());
    expect_words(&output, &["lockFile", "another lb-agent"]);
}
