use std::{os::unix::fs::symlink, time::Duration};

use super::*;

const SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.1.0.1]}]
";

fn service(name: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  creationTimestamp: null\n\
         spec:\n  type: LoadBalancer\n  ports:\n  - port: {port}\n    targetPort: http\n\
         status: {{loadBalancer: {{ingress: [{{ip: 192.0.2.10}}]}}}}\n"
    )
}

fn scope() -> Scope {
    Scope {
        node_name: "edge-1".to_owned(),
        service_proxy_name: None,
    }
}

struct Directory(tempfile::TempDir);

impl Directory {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = Self(tempfile::tempdir().expect("a temporary directory"));
        for (name, text) in files {
            directory.write(name, text);
        }
        directory
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join(name), text).expect("a written file");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.0.path().join(name)).expect("a removed file");
    }

    fn open(&self) -> ManifestSource {
        ManifestSource::new(self.0.path(), scope()).expect("a readable directory")
    }
}

/// Ports by Service name, and the rejections as text.
fn summary(state: &SourceState) -> (Vec<String>, Vec<String>) {
    let services = state.snapshot.services.values().map(|service| {
        let ports: Vec<_> = service.ports.iter().map(|p| p.port.to_string()).collect();
        format!("{} {}", service.name, ports.join(","))
    });
    (
        services.collect(),
        state.rejections.iter().map(ToString::to_string).collect(),
    )
}

fn rescan(source: &mut ManifestSource) -> (Vec<String>, Vec<String>) {
    source.scan(&BTreeSet::new());
    summary(&source.state())
}

#[test]
fn documents_lists_and_json_are_read() {
    let two = format!(
        "# first\n{}---  # second\n{SLICE}...\n---\n# nothing\n",
        service("web", "80")
    );
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n  spec: {ports: [{port: 1, targetPort: 8080}]}\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: ignored}}\n";
    let json = r#"{"apiVersion":"v1","kind":"ServiceList","items":[{"metadata":{"name":"b"},"spec":{"ports":[{"port":2}]}}]}
                  {"apiVersion":"v1","kind":"Service","metadata":{"name":"c"},"spec":{"ports":[{"port":3,"targetPort":"x"}]}}"#;
    let directory = Directory::new(&[
        ("two.yaml", &two),
        ("list.yml", list),
        ("more.json", json),
        (".hidden.yaml", "x: ["),
        ("notes.txt", "x: ["),
    ]);
    let state = directory.open().state();
    assert!(state.complete);
    assert_eq!(state.snapshot.slices.len(), 1);
    let (services, rejections) = summary(&state);
    assert_eq!(
        services,
        [
            "default/a 1",
            "default/b 2",
            "default/c 3",
            "default/web 80"
        ]
    );
    assert_eq!(rejections, Vec::<String>::new());
}

#[test]
fn a_broken_document_keeps_its_last_good_version_and_the_others_go_on() {
    let text = |web: &str, db: &str| format!("{}---\n{}", service("web", web), service("db", db));
    let directory = Directory::new(&[("a.yaml", &text("80", "5432"))]);
    let mut source = directory.open();

    directory.write("a.yaml", &text("eighty", "5433"));
    let (services, rejections) = rescan(&mut source);
    assert_eq!(services, ["default/db 5433", "default/web 80"]);
    assert_eq!(
        rejections,
        [
            "a.yaml document 1 (Service default/web): spec.ports[0].port: invalid type: string \"eighty\", expected i32"
        ]
    );

    directory.write(
        "a.yaml",
        &format!("{}---\n{}", "kind: [Service\n", service("db", "5434")),
    );
    let (services, rejections) = rescan(&mut source);
    assert_eq!(
        services,
        ["default/db 5434", "default/web 80"],
        "identity unknown: all is kept"
    );
    assert_eq!(rejections.len(), 1);
    assert!(
        rejections[0].starts_with("a.yaml document 1: line "),
        "{rejections:?}"
    );

    directory.write("a.yaml", &text("81", "5434"));
    assert_eq!(
        rescan(&mut source).0,
        ["default/db 5434", "default/web 81"],
        "fixed"
    );

    directory.write("a.yaml", &service("db", "5434"));
    assert_eq!(
        rescan(&mut source).0,
        ["default/db 5434"],
        "taken out on purpose"
    );

    directory.write("a.yaml", "kind: [");
    assert_eq!(rescan(&mut source).0, ["default/db 5434"]);
    directory.remove("a.yaml");
    assert_eq!(
        rescan(&mut source),
        (vec![], vec![]),
        "the file is gone, and what it kept"
    );
}

#[test]
fn an_emptied_file_withdraws_nothing_and_a_comment_does() {
    let directory = Directory::new(&[("a.yaml", &service("web", "80"))]);
    let mut source = directory.open();
    directory.write("a.yaml", "");
    let (services, rejections) = rescan(&mut source);
    assert_eq!(services, ["default/web 80"]);
    assert_eq!(
        rejections,
        ["a.yaml: is empty; remove the file to withdraw its objects"]
    );
    directory.write("a.yaml", "# withdrawn\n");
    assert_eq!(rescan(&mut source), (vec![], vec![]));
}

#[test]
fn the_first_file_wins_a_duplicate() {
    let directory = Directory::new(&[
        ("b.yaml", &service("web", "81")),
        ("a.yaml", &service("web", "80")),
    ]);
    let mut source = directory.open();
    let expected = "b.yaml document 1 (Service default/web): metadata.name: is also defined in a.yaml document 1, which is used";
    assert_eq!(
        summary(&source.state()),
        (vec!["default/web 80".to_owned()], vec![expected.to_owned()])
    );
    directory.remove("a.yaml");
    assert_eq!(
        rescan(&mut source),
        (vec!["default/web 81".to_owned()], vec![])
    );
}

#[test]
fn objects_that_cannot_be_are_named() {
    for (name, text, expected) in [
        (
            "no kind",
            "metadata: {name: x}",
            "document 1: is not a Kubernetes object",
        ),
        (
            "a scalar",
            "hello",
            "document 1: is not a Kubernetes object",
        ),
        (
            "no name",
            "{apiVersion: v1, kind: Service, spec: {}}",
            "metadata.name: is missing",
        ),
        (
            "a bad name",
            "{apiVersion: v1, kind: Service, metadata: {name: a/b:c}, spec: {}}",
            "metadata.name: `default/a/b:c` is not a namespace",
        ),
        (
            "an old version",
            "{apiVersion: discovery.k8s.io/v1beta1, kind: EndpointSlice, metadata: {name: x}}",
            "(EndpointSlice default/x): apiVersion: `discovery.k8s.io/v1beta1` is not supported",
        ),
        (
            "bad items",
            "{apiVersion: v1, kind: List, items: 3}",
            "document 1: items: is not a list",
        ),
        (
            "a tab",
            "apiVersion: v1\nkind:\tx\n\t- y",
            "document 1: line",
        ),
    ] {
        let directory = Directory::new(&[("x.yaml", text)]);
        let (services, rejections) = summary(&directory.open().state());
        assert_eq!(services, Vec::<String>::new(), "{name}");
        assert_eq!(rejections.len(), 1, "{name}: {rejections:?}");
        assert!(rejections[0].contains(expected), "{name}: {rejections:?}");
    }
}

#[test]
fn a_directory_that_goes_away_keeps_its_last_good_state() {
    let directory = Directory::new(&[("a.yaml", &service("web", "80"))]);
    let mut source = directory.open();
    let path = directory.0.path().to_owned();
    fs::rename(&path, path.with_extension("away")).expect("a renamed directory");
    let (services, rejections) = rescan(&mut source);
    assert_eq!(services, ["default/web 80"]);
    assert!(rejections[0].contains("cannot be read"), "{rejections:?}");
    fs::rename(path.with_extension("away"), &path).expect("a renamed directory");
    assert_eq!(rescan(&mut source).1, Vec::<String>::new());
    assert!(matches!(
        ManifestSource::new("/nonexistent", scope()),
        Err(ManifestError::Directory { .. })
    ));
}

/// Waits until the watched state has `expected` services.
async fn wait_for(
    receiver: &mut tokio::sync::watch::Receiver<Arc<SourceState>>,
    expected: &[&str],
) {
    let arrived = async {
        while summary(&receiver.borrow_and_update()).0 != expected {
            receiver.changed().await.expect("the thread lives");
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(4), arrived).await;
    assert!(
        done.is_ok(),
        "still {:?}, not {expected:?}",
        summary(&receiver.borrow())
    );
}

#[tokio::test]
async fn changes_of_every_kind_are_noticed() {
    let directory = Directory::new(&[("a.yaml", &service("web", "80"))]);
    let path = directory.0.path().to_owned();
    let mut receiver = ManifestSource::watch(&path, scope()).expect("a watched directory");
    assert!(receiver.borrow().complete);
    wait_for(&mut receiver, &["default/web 80"]).await;

    directory.write("a.yaml", &service("web", "81"));
    wait_for(&mut receiver, &["default/web 81"]).await;

    directory.write(".new", &service("web", "82"));
    fs::rename(path.join(".new"), path.join("a.yaml")).expect("an atomic rename");
    wait_for(&mut receiver, &["default/web 82"]).await;

    directory.remove("a.yaml");
    wait_for(&mut receiver, &[]).await;

    // As kubelet does it: files are links through `..data`, which is swapped.
    for (version, port) in [("..1", "90"), ("..2", "91")] {
        fs::create_dir(path.join(version)).expect("a directory");
        fs::write(path.join(version).join("c.yaml"), service("web", port)).expect("a file");
    }
    symlink("..1", path.join("..data")).expect("a link");
    symlink("..data/c.yaml", path.join("c.yaml")).expect("a link");
    wait_for(&mut receiver, &["default/web 90"]).await;
    symlink("..2", path.join("..data_tmp")).expect("a link");
    fs::rename(path.join("..data_tmp"), path.join("..data")).expect("a swapped link");
    wait_for(&mut receiver, &["default/web 91"]).await;
}

#[tokio::test]
async fn a_file_is_not_read_while_it_is_being_written() {
    use std::io::Write as _;
    let text = format!("{}---\n{}", service("db", "1"), service("web", "80"));
    let directory = Directory::new(&[("a.yaml", &text)]);
    let mut receiver =
        ManifestSource::watch(directory.0.path(), scope()).expect("a watched directory");
    let mut file = fs::File::create(directory.0.path().join("a.yaml")).expect("a file");
    file.write_all(service("db", "2").as_bytes())
        .expect("half of it");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        summary(&receiver.borrow()).0.len(),
        2,
        "half a file withdraws nothing"
    );
    write!(file, "---\n{}", service("web", "81")).expect("the other half");
    drop(file);
    wait_for(&mut receiver, &["default/db 2", "default/web 81"]).await;
}

#[test]
fn the_own_node_and_the_service_networks_are_read() {
    let node = |name: &str| {
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, \
             labels: {{topology.kubernetes.io/zone: {name}}}}}}}"
        )
    };
    let cidr = |name: &str, network: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, \
             metadata: {{name: {name}}}, spec: {{cidrs: [{network}]}}}}"
        )
    };
    let list = format!(
        "{{apiVersion: v1, kind: NodeList, items: [{}, {}]}}",
        node("edge-1"),
        node("edge-2")
    );
    let directory = Directory::new(&[
        ("a.yaml", &list),
        ("b.yaml", &cidr("a", "10.0.0.0/16")),
        ("c.yaml", &cidr("b", "2001:db8:1::/112")),
        ("d.yaml", &cidr("c", "10.0.0.0")),
    ]);
    let state = directory.open().state();
    assert_eq!(
        state.node.as_ref().and_then(|node| node.zone.as_deref()),
        Some("edge-1")
    );
    let networks = state.snapshot.service_networks.iter();
    let networks: Vec<_> = networks.map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/16", "2001:db8:1::/112"]);
    assert_eq!(
        summary(&state).1,
        [
            "d.yaml document 1 (ServiceCIDR c): spec.cidrs[0]: `10.0.0.0` is not a prefix in CIDR notation"
        ]
    );
}
