//! A namespace of the API for one test, and what the test does there.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    process::{Command, Output},
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    client::Answer,
    cluster::{Cluster, PATIENCE},
    load::{Load, Protocol, SNAT},
    objects,
};
use crate::netns::{poll, succeed, text};

/// How long Kubernetes' own controllers and kubelets may take: after an outage each waits before it tries again,
/// and then before it lists anew.
pub const CONTROLLERS: Duration = Duration::from_mins(5);

/// A namespace, deleted on drop.
#[derive(Debug)]
pub struct Space<'c> {
    /// Where it is.
    pub cluster: &'c Cluster,
    /// Its name.
    pub name: String,
}

/// An address of each family.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pair {
    /// IPv4.
    pub v4: IpAddr,
    /// IPv6.
    pub v6: IpAddr,
}

impl Pair {
    /// Both with a port.
    pub fn at(self, port: u16) -> [SocketAddr; 2] {
        [self.v4, self.v6].map(|address| SocketAddr::new(address, port))
    }
}

/// Addresses nobody has yet, which the router sends to the edge nodes: of load balancers.
pub fn new_vips() -> Pair {
    static NEXT: AtomicU8 = AtomicU8::new(10);
    pair(
        "192.0.2.",
        "2001:db8:f::",
        NEXT.fetch_add(1, Ordering::Relaxed),
    )
}

/// Addresses nobody has yet, which the router sends to the edge nodes: external IPs.
pub fn new_external_ips() -> Pair {
    static NEXT: AtomicU8 = AtomicU8::new(10);
    pair(
        "203.0.113.",
        "2001:db8:f:1::",
        NEXT.fetch_add(1, Ordering::Relaxed),
    )
}

fn pair(v4: &str, v6: &str, number: u8) -> Pair {
    let address = |prefix: &str| format!("{prefix}{number}").parse().expect("an address");
    Pair {
        v4: address(v4),
        v6: address(v6),
    }
}

impl<'c> Space<'c> {
    /// Makes a namespace.
    pub fn new(cluster: &'c Cluster, name: &str) -> Self {
        cluster.kubectl(["create", "namespace", name]);
        // Pods need it, and another controller makes it.
        let patience = format!("--timeout={}s", CONTROLLERS.as_secs());
        let account = "serviceaccount/default";
        cluster.kubectl(["-n", name, "wait", account, "--for=create", &patience]);
        Self {
            cluster,
            name: name.to_owned(),
        }
    }

    /// Applies an object in it; the API server must accept it.
    pub fn apply(&self, object: &Value) {
        let output = self.try_apply(object);
        assert!(
            output.status.success(),
            "{object:#}\n{}",
            text(&output.stderr)
        );
    }

    /// Applies an object in it, and returns what the API server says.
    pub fn try_apply(&self, object: &Value) -> Output {
        let arguments = ["--namespace", &self.name, "apply", "-f", "-"];
        self.cluster.kubectl_with(arguments, &object.to_string())
    }

    /// Runs kubectl in it, with words separated by blanks; it must succeed.
    pub fn kubectl(&self, words: &str) -> String {
        let output = self.try_kubectl(words);
        assert!(
            output.status.success(),
            "kubectl {words}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Runs kubectl in it, with words separated by blanks.
    pub fn try_kubectl(&self, words: &str) -> Output {
        let words: Vec<_> = words.split(' ').collect();
        let script = [&["--namespace", &self.name][..], &words].concat();
        self.cluster.kubectl_words(&script)
    }

    /// Merges a patch into an object, such as `service/web`.
    pub fn patch(&self, object: &str, patch: &Value) {
        let patch = patch.to_string();
        let arguments = [
            "-n",
            &self.name,
            "patch",
            object,
            "--type=merge",
            "-p",
            &patch,
        ];
        self.cluster.kubectl(arguments);
    }

    /// Writes the addresses a load balancer's status shows.
    pub fn set_ingress(&self, service: &str, ingress: &Value) {
        let patch = json!({"status": {"loadBalancer": {"ingress": ingress}}}).to_string();
        self.cluster.kubectl([
            "-n",
            &self.name,
            "patch",
            "service",
            service,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ]);
    }

    /// Applies a Service of type LoadBalancer, gives it new addresses and returns these.
    pub fn load_balancer(&self, name: &str, spec: &Value) -> Pair {
        self.apply(&objects::service(name, "LoadBalancer", spec));
        let vips = new_vips();
        self.set_ingress(name, &json!([{"ip": vips.v4}, {"ip": vips.v6}]));
        vips
    }

    /// A Deployment with a LoadBalancer Service of its name, ready and served.
    pub fn web(&self, name: &str, replicas: u32) -> Pair {
        self.apply(&objects::deployment(name, replicas));
        let vips = self.load_balancer(name, &json!({}));
        self.wait_rolled_out(name);
        self.wait_balanced(name, vips);
        vips
    }

    /// Waits until Sluice, no other balancer of the node, sends clients to every pod of a Deployment: a slice may
    /// name the last of them a second after all are ready.
    pub fn wait_balanced(&self, name: &str, vips: Pair) {
        let pods = self.pods(name);
        self.wait_ours(&vips.at(80));
        for server in vips.at(80) {
            self.wait_heard(server, &pods);
        }
    }

    /// Waits until Sluice answers: what comes later goes by it too.
    pub fn wait_ours(&self, servers: &[SocketAddr]) {
        for server in servers {
            self.wait_answer(*server, |answer| {
                answer.as_ref().is_ok_and(|it| {
                    let peer = it.peer.ip().to_string();
                    SNAT.contains(&peer.as_str())
                })
            });
        }
    }

    /// Waits until each of `pods` has answered.
    pub fn wait_heard(&self, server: SocketAddr, pods: &[String]) {
        let mut silent: BTreeSet<_> = pods.iter().collect();
        self.wait_answer(server, |answer| {
            if let Ok(answer) = answer {
                silent.remove(&answer.pod);
            }
            silent.is_empty()
        });
    }

    /// Waits until a Deployment is as it should be.
    pub fn wait_rolled_out(&self, name: &str) {
        let patience = CONTROLLERS.as_secs();
        self.kubectl(&format!(
            "rollout status deployment/{name} --timeout={patience}s"
        ));
    }

    /// Waits until the outside client gets answers, once Kubernetes itself has endpoints to offer: after an
    /// outage of the API server its controllers take their time.
    pub fn wait_served(&self, servers: &[SocketAddr]) {
        let offered = poll(CONTROLLERS, || {
            let slices = self.kubectl("get endpointslices -o json");
            let slices: Value = serde_json::from_str(&slices).expect("JSON");
            // Those of a slice made just now are null, which no JSON path can filter.
            let lists = slices["items"].as_array().into_iter().flatten();
            let mut endpoints = lists.filter_map(|it| it["endpoints"].as_array()).flatten();
            endpoints
                .any(|endpoint| endpoint["conditions"]["ready"] == true)
                .then_some(())
        });
        assert!(offered.is_some(), "no ready endpoint in any EndpointSlice");
        for server in servers {
            self.wait_answer(*server, Result::is_ok);
        }
    }

    /// Waits until the outside client's connections are refused.
    pub fn wait_refused(&self, server: SocketAddr) {
        self.wait_answer(server, |answer| {
            let error = answer.as_ref().err();
            error.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        });
    }

    /// Waits until an attempt of the outside client ends as wanted.
    pub fn wait_answer(
        &self,
        server: SocketAddr,
        mut wanted: impl FnMut(&io::Result<Answer>) -> bool,
    ) {
        let client = self.cluster.client();
        let mut last = None;
        let done = poll(CONTROLLERS, || {
            let answer = client.ask(server);
            let done = wanted(&answer);
            last = Some(answer);
            done.then_some(())
        });
        assert!(done.is_some(), "{server}: at last {last:?}");
    }

    /// Clients outside that ask at both families by HTTP and UDP, see [`Self::web`].
    pub fn load(&self, vips: Pair) -> Load {
        let tcp = vips.at(80).map(|server| (Protocol::Tcp, server));
        let udp = vips.at(53).map(|server| (Protocol::Udp, server));
        Load::start(&self.cluster.client(), &[tcp, udp].concat())
    }

    /// Names of the pods labelled `app: NAME` that are not being deleted.
    pub fn pods(&self, name: &str) -> Vec<String> {
        let selector = format!("--selector=app={name}");
        self.cluster.pods(&self.name, &selector)
    }

    /// Lets the test servers of some pods go before everything else on the machine: their nodes would have
    /// processors of their own.
    pub fn let_go_first(&self, pods: &[String]) {
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        let is_one = |process: &fs::DirEntry| {
            let read = |file| fs::read(process.path().join(file)).unwrap_or_default();
            let environment = read("environ");
            let variable = |name: &str| {
                let mut all = environment.split(|byte| *byte == 0);
                all.find_map(|one| one.strip_prefix(name.as_bytes()))
            };
            // Another test's pod may have the same name, and may still be on its way out.
            read("comm") == b"pod-server\n"
                && variable("POD_NAMESPACE=") == Some(self.name.as_bytes())
                && variable("POD_NAME=")
                    .is_some_and(|name| pods.iter().any(|pod| pod.as_bytes() == name))
        };
        let found: Vec<_> = processes.filter(is_one).collect();
        assert_eq!(found.len(), pods.len(), "processes of {pods:?}");
        for process in found {
            let number = process.file_name().display().to_string();
            // A pod's control group has no share of real-time priorities.
            let group = "/sys/fs/cgroup/cpu/cgroup.procs";
            fs::write(group, &number).unwrap_or_else(|e| panic!("{number} to {group}: {e}"));
            let options = ["--fifo", "--all-tasks", "--pid", "1"];
            succeed(Command::new("chrt").args(options).arg(number));
        }
    }

    /// A pod's IPv4 address.
    pub fn pod_ip(&self, pod: &str) -> IpAddr {
        let ip = self.kubectl(&format!("get pod {pod} -o jsonpath={{.status.podIP}}"));
        ip.parse().unwrap_or_else(|e| panic!("{pod}: {ip:?}: {e}"))
    }

    /// A field of an object, by a JSON path such as `{.spec.clusterIP}`.
    pub fn field(&self, object: &str, path: &str) -> String {
        self.kubectl(&format!("get {object} -o jsonpath={path}"))
    }

    /// Sends a request without an answer's body to a pod, by its own address.
    pub fn tell(&self, pod: &str, path: &str) {
        let server = SocketAddr::new(self.pod_ip(pod), objects::HTTP);
        let (status, _) = self
            .cluster
            .client()
            .http("POST", server, path)
            .unwrap_or_else(|e| panic!("{pod} {path}: {e}"));
        assert_eq!(status, 200, "{pod} {path}");
    }

    /// Waits for an Event about an object whose message has these words; returns the message.
    pub fn wait_event(&self, object: &str, words: &str) -> String {
        let selector = format!("involvedObject.name={object}");
        let template = "jsonpath={range .items[*]}{.type} {.reason}: {.message}{\"\\n\"}{end}";
        let mut seen = String::new();
        let found = poll(PATIENCE, || {
            let about = ["--field-selector", &selector, "-o", template];
            let arguments = [&["-n", &self.name, "get", "events"][..], &about].concat();
            seen = text(&self.cluster.kubectl_words(&arguments).stdout);
            let line = seen.lines().find(|line| line.contains(words));
            line.map(str::to_owned)
        });
        found
            .unwrap_or_else(|| panic!("no Event about {object} with {words:?}; there are:\n{seen}"))
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        // Its contents end on their own; a test that needs them gone waits itself.
        let output = self
            .cluster
            .try_kubectl(["delete", "namespace", &self.name, "--wait=false"]);
        if !output.status.success() {
            eprintln!("namespace {}: {}", self.name, text(&output.stderr));
        }
    }
}
