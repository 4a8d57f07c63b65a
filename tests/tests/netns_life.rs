//! Connections outlive the agent and every change of the services; `PostgreSQL` included.

use std::{io::Write as _, process::Stdio, time::Duration};

use lb_tests::{
    disruption::tables::Tables,
    netns::{
        Process,
        agent::Node,
        manifest::{ServiceManifest, service},
        poll, poll_until,
        postgres::Postgres,
        serial,
        server::{Download, Server, UdpClient, http, udp_echo},
        world::{VIP4, VIP6, World, backend4, backend6, vips},
    },
    require,
};

const SOON: Duration = Duration::from_secs(10);

fn web() -> ServiceManifest {
    service("web")
        .vip(VIP4)
        .vip(VIP6)
        .tcp(80, 8080)
        .udp(53, 5353)
}

fn with(manifest: ServiceManifest, number: usize) -> ServiceManifest {
    manifest
        .endpoint(&backend4(number))
        .endpoint(&backend6(number))
}

fn draining(manifest: ServiceManifest, number: usize) -> ServiceManifest {
    manifest
        .endpoint(&backend4(number))
        .draining()
        .endpoint(&backend6(number))
        .draining()
}

fn serve(world: &World) -> Vec<Server> {
    let backends = world.backends.iter().enumerate();
    backends
        .flat_map(|(number, backend)| {
            let name = format!("b{number}");
            [http(backend, &name, 8080), udp_echo(backend, &name, 5353)]
        })
        .collect()
}

/// The backend that answers one request.
fn who(world: &World, endpoint: &str) -> String {
    let url = format!("http://{endpoint}/");
    let out = world.client.run("curl", ["-sS", "--max-time", "10", &url]);
    out.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_string()
}

/// Starts a download on each family that lasts several seconds.
fn downloads(world: &World) -> Vec<Download> {
    let start = |vip: &String| Download::start(&world.client, vip, "/stream/1000");
    vips(80).iter().map(start).collect()
}

fn expect_whole(downloads: Vec<Download>) {
    for download in downloads {
        let bytes = download
            .finish()
            .unwrap_or_else(|e| panic!("a download broke: {e}"));
        assert_eq!(bytes, 10_000_000);
    }
}

#[test]
fn flows_outlive_restart_kill_and_sigterm_of_the_agent() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(2);
    let _servers = serve(&world);
    let mut node = Node::new(&world).snat();
    node.apply("web", &with(with(web(), 0), 1));
    node.start(4);
    let running = downloads(&world);
    let udp: Vec<UdpClient> = vips(53)
        .iter()
        .map(|vip| UdpClient::new(&world.client, vip))
        .collect();
    let partners: Vec<String> = udp.iter().map(|client| client.ask("who")).collect();

    node.stop();
    // Nobody is there, new connections are made all the same.
    for vip in vips(80) {
        who(&world, &vip);
    }
    node.start(4);
    node.kill();
    for vip in vips(80) {
        who(&world, &vip);
    }
    node.start(4);
    node.stop();
    node.start(4);
    for (client, partner) in udp.iter().zip(&partners) {
        assert_eq!(&client.ask("who"), partner, "a UDP flow moved");
    }
    expect_whole(running);
}

/// Also of a device that no backend is behind any more: flows may still need it.
#[test]
fn an_agent_that_starts_replaces_every_program_that_stays() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::local_pod();
    let _servers = serve(&world);
    let mut node = Node::on(&world.lb, ["--interface", "eth0"]);
    let tables = Tables::new(node.pin_root());
    let (v4, v6) = (backend4(0), backend6(0));
    let pod = web()
        .endpoint(&v4)
        .on_node("edge")
        .endpoint(&v6)
        .on_node("edge");
    node.apply("web", &pod);
    node.start(4);
    let running = downloads(&world);
    poll_until("a program on the pod's device", SOON, || {
        (tables.programs().len() == 3).then_some(())
    });
    let before = tables.programs();
    node.remove("web.yaml");
    node.wait_frontends(0);
    node.kill();
    node.start(0);
    // What is left over is looked at when the rest is attached.
    let mut after = Vec::new();
    let replaced = poll(SOON, || {
        after = tables.programs();
        let mut pairs = before.iter().zip(&after);
        pairs
            .all(|(old, new)| old.0 == new.0 && old.1 != new.1)
            .then_some(())
    });
    assert!(
        replaced.is_some() && after.len() == before.len(),
        "an old program is left: {before:?}, {after:?}"
    );
    expect_whole(running);
}

#[test]
fn a_drained_backend_keeps_its_connections_and_gets_no_new_ones() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(2);
    let servers = serve(&world);
    let mut node = Node::new(&world).snat();
    node.apply("web", &with(web(), 0));
    node.start(4);
    let running = downloads(&world);
    poll_until("both downloads to be on b0", SOON, || {
        (servers.first().map(Server::served) == Some(2)).then_some(())
    });

    node.apply("web", &draining(with(web(), 1), 0));
    for vip in vips(80) {
        poll_until("new connections to reach b1", SOON, || {
            (who(&world, &vip) == "b1").then_some(())
        });
        for _ in 0..10 {
            assert_eq!(who(&world, &vip), "b1");
        }
    }
    // Gone altogether: the connections still go on.
    node.apply("web", &with(web(), 1));
    for vip in vips(80) {
        for _ in 0..10 {
            assert_eq!(who(&world, &vip), "b1");
        }
    }
    expect_whole(running);
}

#[test]
fn udp_leaves_a_backend_that_serves_no_longer() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::two_armed(2);
    let _servers = serve(&world);
    let mut node = Node::new(&world).snat();
    node.apply("web", &with(web(), 0));
    node.start(4);
    for vip in vips(53) {
        let client = UdpClient::new(&world.client, &vip);
        for _ in 0..3 {
            assert_eq!(client.ask("x"), "b0 x");
        }
        node.apply("web", &draining(with(web(), 1), 0));
        let newcomer = || UdpClient::new(&world.client, &vip).ask("x") == "b1 x";
        poll_until("new flows to reach b1", SOON, || newcomer().then_some(()));
        assert_eq!(client.ask("x"), "b0 x", "b0 serves on while it drains");
        node.apply("web", &with(web(), 1));
        poll_until("the flow to move", SOON, || {
            (client.ask("x") == "b1 x").then_some(())
        });
        node.apply("web", &with(web(), 0));
        poll_until("b0 to be back", SOON, || {
            (client.ask("x") == "b0 x").then_some(())
        });
    }
}

#[test]
fn deleting_and_editing_services_breaks_no_connection() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(2);
    let _servers = serve(&world);
    let mut node = Node::new(&world).snat();
    node.apply("web", &with(with(web(), 0), 1));
    node.apply(
        "other",
        &with(service("other").vip("192.0.2.2").tcp(80, 8080), 0),
    );
    node.start(5);
    let running = downloads(&world);
    let other = Download::start(&world.client, "192.0.2.2:80", "/stream/600");

    node.remove("other.yaml");
    node.wait_frontends(4);
    // Another port for new connections.
    let edited = service("web")
        .vip(VIP4)
        .vip(VIP6)
        .tcp(81, 8080)
        .udp(53, 5353);
    node.apply("web", &with(with(edited, 0), 1));
    poll_until("the new port", SOON, || {
        let url = format!("http://{VIP4}:81/");
        let output = world
            .client
            .try_run("curl", ["-sS", "--max-time", "2", &url]);
        output.status.success().then_some(())
    });
    let refused = world
        .client
        .try_run("curl", ["-sS", "--max-time", "2", "http://192.0.2.1:80/"]);
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    assert_eq!(
        other.finish(),
        Ok(6_000_000),
        "a deleted service keeps its connections"
    );
    expect_whole(running);
}

#[test]
fn a_long_transaction_outlives_everything() {
    if !require::kernel_tests() || !require::program("psql") || !require::program("postgres") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(2);
    let _servers = serve(&world);
    let database = Postgres::start(world.backend());
    let mut node = Node::new(&world).snat();
    let postgres = with(service("postgres").vip(VIP4).vip(VIP6).tcp(5432, 5432), 0);
    node.apply("postgres", &postgres);
    node.apply(
        "web",
        &with(with(service("web").vip("192.0.2.2").tcp(80, 8080), 0), 1),
    );
    node.start(3);

    let mut sessions: Vec<(Process, std::process::ChildStdin)> = [VIP4, VIP6]
        .into_iter()
        .map(|vip| {
            let mut psql = world.client.command("psql");
            psql.args([
                "-X",
                "-h",
                vip,
                "-U",
                "postgres",
                "-At",
                "-v",
                "ON_ERROR_STOP=1",
            ]);
            let mut process = Process::spawn(psql.stdin(Stdio::piped()));
            let input = process.input();
            (process, input)
        })
        .collect();
    let say = |sessions: &mut [(Process, std::process::ChildStdin)], what: &str, mark: &str| {
        for (_, input) in sessions.iter_mut() {
            writeln!(input, "{what}\nselect '{mark}' || '!';").expect("psql reads");
        }
        for (process, _) in sessions.iter() {
            poll_until(&format!("psql to say {mark}"), SOON, || {
                let output = process.output();
                assert!(
                    !output.contains("ERROR") && !output.contains("connection"),
                    "{output}"
                );
                output.contains(&format!("{mark}!")).then_some(())
            });
        }
    };
    say(
        &mut sessions,
        "begin; create temp table t (n int) on commit preserve rows;",
        "begun",
    );
    say(
        &mut sessions,
        "insert into t select generate_series(1, 1000);",
        "inserted",
    );

    node.stop();
    say(&mut sessions, "insert into t values (1);", "alone");
    node.start(3);
    say(&mut sessions, "insert into t values (2);", "restarted");
    node.kill();
    say(&mut sessions, "insert into t values (3);", "killed");
    node.start(3);
    node.remove("web.yaml");
    node.wait_frontends(2);
    say(&mut sessions, "insert into t values (4);", "others-changed");
    let drained = draining(
        with(service("postgres").vip(VIP4).vip(VIP6).tcp(5432, 5432), 1),
        0,
    );
    node.apply("postgres", &drained);
    node.wait_log("tables changed");
    say(&mut sessions, "insert into t values (5);", "drained");
    node.remove("postgres.yaml");
    node.wait_frontends(0);
    say(&mut sessions, "insert into t values (6);", "deleted");
    say(
        &mut sessions,
        "commit; select 'rows=' || count(*) from t;",
        "committed",
    );
    for (process, _) in &sessions {
        assert!(
            process.output().contains("rows=1006"),
            "{}",
            process.output()
        );
    }
    drop(sessions);
    drop(database);
}
