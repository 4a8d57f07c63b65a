//! Section J: which endpoints are in which set.

use serde_json::{Value, json};

use super::fixture::{node, plan_of, service, sets, slice, with_metadata};

/// A case, tried in both families. Endpoints are numbers instead of addresses.
struct Case {
    zone: Option<&'static str>,
    spec: Value,
    annotation: &'static str,
    endpoints: &'static [&'static str],
    cluster: &'static str,
    local: &'static str,
    any: bool,
}

impl Case {
    /// Policy `Cluster` both ways; expects nothing.
    fn new(spec: Value, endpoints: &'static [&'static str]) -> Self {
        Self {
            zone: Some("a"),
            spec,
            annotation: "",
            endpoints,
            cluster: "",
            local: "",
            any: true,
        }
    }

    fn zone(self, zone: Option<&'static str>) -> Self {
        Self { zone, ..self }
    }

    fn annotation(self, annotation: &'static str) -> Self {
        Self { annotation, ..self }
    }

    /// Numbers of the endpoints expected in the cluster set.
    fn cluster(self, cluster: &'static str) -> Self {
        Self { cluster, ..self }
    }

    /// Numbers of the endpoints expected in the local set.
    fn local(self, local: &'static str) -> Self {
        Self { local, ..self }
    }

    /// Nothing is usable anywhere.
    fn without_any(self) -> Self {
        Self { any: false, ..self }
    }

    fn check(&self) {
        for (family, cluster_ip, prefix) in [
            ("IPv4", "10.0.0.1", "10.1.0."),
            ("IPv6", "2001:db8:5::1", "2001:db8:9::"),
        ] {
            let mut spec = self.spec.clone();
            spec["clusterIPs"] = json!([cluster_ip]);
            spec["ipFamilies"] = json!([family]);
            let key = "service.kubernetes.io/topology-mode";
            let web = with_metadata(service("web", spec), "annotations", key, self.annotation);
            let endpoints: Vec<_> = self
                .endpoints
                .iter()
                .map(|text| format!("{prefix}{text}"))
                .collect();
            let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
            let node = lb_userspace::node::NodeConfig {
                zone: self.zone.map(str::to_owned),
                ..node()
            };
            let plan = plan_of(&[web, slice("web_1", &["http:80"], &endpoints)], &node);
            assert_eq!(plan.rejected, vec![], "{family}");
            let found = sets(&plan.tables, &format!("web:http/TCP/{family}"));
            let expected = |numbers: &str| {
                let full = |n: &str| format!("{prefix}{n}").parse().expect("an address");
                let full = |n| std::net::SocketAddr::new(full(n), 80).to_string();
                let full: Vec<_> = numbers.split_whitespace().map(full).collect();
                full.join(" ")
            };
            assert_eq!(found.cluster, expected(self.cluster), "cluster, {family}");
            assert_eq!(found.local, expected(self.local), "local, {family}");
            assert_eq!(found.any, self.any, "{family}");
            for both in [&found.cluster, &found.local] {
                let kept = |e: &str| found.members.split(' ').any(|member| member == e);
                assert!(both.split_whitespace().all(kept), "{family}: {found:?}");
            }
        }
    }
}

/// A Service for the inside only.
fn internal() -> Value {
    json!({"ports": [{"name": "http", "port": 80}]})
}

/// A Service for the outside too.
fn external() -> Value {
    json!({"type": "NodePort", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]})
}

/// The same with a policy `Local` for each word: `internal`, `external`.
fn local(mut spec: Value, words: &str) -> Value {
    for word in words.split(' ') {
        spec[format!("{word}TrafficPolicy")] = "Local".into();
    }
    spec
}

/// One of each zone, each hinted for its own, and one more of zone a.
const HINTED: &[&str] = &["1 zone=a", "2 zone=b", "3 zone=c", "4 zone=a"];
/// The same; the first two run here.
const HINTED_HERE: &[&str] = &[
    "1 zone=a on=edge-1",
    "2 zone=b on=edge-1",
    "3 zone=c on=other",
    "4 zone=a on=other",
];

macro_rules! rows {
    ($($name:ident: $case:expr;)+) => {
        $(#[test]
        fn $name() {
            $case.check();
        })+
    };
}

rows! {
    conformance_j01_zone_hints_that_match: Case::new(internal(), HINTED).cluster("1 4");
    conformance_j03_external_local_is_not_filtered:
        Case::new(local(external(), "external"), HINTED_HERE).cluster("1 4").local("1 2");
    conformance_j04_internal_local_is_not_filtered:
        Case::new(local(external(), "internal"), HINTED_HERE).cluster("1 4").local("1 2");
    conformance_j05_a_node_without_labels:
        Case::new(internal(), HINTED).zone(None).cluster("1 2 3 4");
    conformance_j06_a_node_with_an_empty_zone:
        Case::new(internal(), &["1 zone=", "2 zone=a"]).zone(Some("")).cluster("1 2");
    conformance_j07_a_zone_nobody_is_hinted_for:
        Case::new(internal(), HINTED).zone(Some("d")).cluster("1 2 3 4");
    conformance_j08_the_zones_subset:
        Case::new(internal(), HINTED).zone(Some("b")).cluster("2");
    conformance_j09_an_unready_endpoint_of_the_zone:
        Case::new(internal(), &["1 zone=a", "2 zone=b", "3 zone=a unready"]).cluster("1");
    conformance_j10_only_unready_endpoints_in_the_zone:
        Case::new(internal(), &["1 zone=a unready", "2 zone=b", "3 zone=c"]).cluster("2 3");
    conformance_j11_one_endpoint_without_a_hint:
        Case::new(internal(), &["1 zone=a", "2 zone=b", "3", "4 zone=a"]).cluster("1 2 3 4");
    conformance_j12_several_zones_in_one_hint:
        Case::new(internal(), &["1 zone=a", "2 zone=b zone=a", "3 zone=c zone=b", "4 zone=c"])
            .cluster("1 2");
    conformance_j13_hints_and_localness_disagree:
        Case::new(
            local(external(), "external"),
            &["1 zone=a on=edge-1", "2 zone=b on=edge-1", "3 zone=a on=other", "4 zone=b on=other"],
        )
        .cluster("1 3")
        .local("1 2");
    conformance_j14_internal_local_without_endpoints:
        Case::new(local(internal(), "internal"), &[]).without_any();
    conformance_j15_internal_local_all_elsewhere:
        Case::new(local(internal(), "internal"), &["1 on=other", "2 on=other"]);
    conformance_j16_internal_local_all_here:
        Case::new(local(internal(), "internal"), &["1 on=edge-1", "2 on=edge-1"]).local("1 2");
    conformance_j17_internal_local_some_here:
        Case::new(local(internal(), "internal"), &["1 on=edge-1", "2 on=other"]).local("1");
    conformance_j18_none_ready:
        Case::new(internal(), &["1 unready", "2 unready"]).without_any();
    conformance_j19_some_ready: Case::new(internal(), &["1", "2 unready"]).cluster("1");
    conformance_j20_all_terminating:
        Case::new(internal(), &["1 unready terminating", "2 unready terminating"]).cluster("1 2");
    conformance_j21_internal_local_external_cluster:
        Case::new(local(external(), "internal"), &["1 on=edge-1", "2 on=other"])
            .cluster("1 2")
            .local("1");
    conformance_j22_internal_cluster_external_local:
        Case::new(local(external(), "external"), &["1 on=edge-1", "2 on=other"])
            .cluster("1 2")
            .local("1");
    conformance_j23_both_local:
        Case::new(local(external(), "internal external"), &["1 on=edge-1", "2 on=other"])
            .cluster("1 2")
            .local("1");
    conformance_j24_both_local_all_elsewhere:
        Case::new(local(external(), "internal external"), &["1 on=other", "2 on=other"])
            .cluster("1 2");
    conformance_j25_both_local_all_elsewhere_and_terminating:
        Case::new(
            local(external(), "internal external"),
            &["1 on=other unready terminating", "2 on=other unready terminating"],
        )
        .cluster("1 2");
    conformance_j26_external_local_some_terminating:
        Case::new(
            local(external(), "external"),
            &[
                "1 on=edge-1 unready terminating",
                "2 on=edge-1 unready deaf terminating",
                "3 on=other",
                "4 on=other unready terminating",
            ],
        )
        .cluster("3")
        .local("1");
    conformance_j27_external_local_on_an_internal_service:
        Case::new(local(internal(), "external"), &["1 on=edge-1", "2 on=other"]).cluster("1 2");
    conformance_j28_internal_local_on_an_internal_service:
        Case::new(local(internal(), "internal"), &["1 on=edge-1", "2 on=other", "3 on=other"])
            .local("1");
    conformance_j29_hints_for_this_node_come_first:
        Case::new(
            internal(),
            &[
                "1 zone=b fornode=edge-1",
                "2 zone=a fornode=other",
                "3 zone=a fornode=other fornode=edge-1",
            ],
        )
        .cluster("1 3");
}

#[test]
fn conformance_j02_the_old_annotation_is_ignored() {
    for annotation in ["", "disabled", "Disabled", "auto", "AUTO", "invalid"] {
        Case::new(internal(), HINTED)
            .annotation(annotation)
            .cluster("1 4")
            .check();
    }
}

#[test]
fn conformance_j30_hints_for_nodes_that_do_not_apply() {
    for (endpoints, cluster) in [
        // One has no hint for a node: the hints for zones count.
        (
            &[
                "1 zone=a fornode=edge-1",
                "2 zone=b fornode=other",
                "3 zone=a",
            ][..],
            "1 3",
        ),
        // None is for this node.
        (
            &[
                "1 zone=a fornode=x",
                "2 zone=b fornode=y",
                "3 zone=a fornode=x",
            ],
            "1 3",
        ),
        // Nor are there hints for zones.
        (&["1 fornode=x", "2 fornode=y"], "1 2"),
        // An unready endpoint's hint is not asked for, nor followed.
        (&["1 fornode=edge-1", "2 fornode=other", "3 unready"], "1"),
        (&["1 fornode=edge-1 unready", "2 fornode=other"], "2"),
    ] {
        Case::new(internal(), endpoints).cluster(cluster).check();
    }
}
