//! Sluice and kube-proxy on the same node: each serves its own sources.

use std::{collections::BTreeSet, net::IpAddr};

use lb_tests::{
    kubernetes::{client::Answer, cluster::PATIENCE, load::SNAT, objects, say, space::Space},
    netns::{poll_until, text},
};

use crate::take;

#[test]
fn pods_of_the_edge_node_go_by_kube_proxy_while_clients_go_by_sluice() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "coexist");
    space.apply(&objects::pod("local", "edge1"));
    let vips = space.web("web", 2);
    space.kubectl("wait --for=condition=Ready pod/local --timeout=60s");
    let pods: BTreeSet<_> = space.pods("web").into_iter().collect();
    let own = space.field("pod/local", "{.status.podIPs[*].ip}");
    let own: Vec<IpAddr> = own
        .split(' ')
        .map(|ip| ip.parse().expect("an IP"))
        .collect();

    let load = space.load(vips);
    let cluster_ips = space.field("service/web", "{.spec.clusterIPs[*]}");
    for address in cluster_ips.split(' ') {
        let host = if address.contains(':') {
            format!("[{address}]")
        } else {
            address.to_owned()
        };
        let words = format!("exec local -- /pod-server get -n 20 http://{host}:80/");
        // kube-proxy may hear of the pods later than we do; until then it refuses.
        let printed = poll_until("every pod's answer by kube-proxy", PATIENCE, || {
            let output = space.try_kubectl(&words);
            if !output.status.success() {
                return None;
            }
            let printed = text(&output.stdout);
            let all = pods.iter().all(|pod| printed.contains(pod.as_str()));
            all.then_some(printed)
        });
        let answers: Vec<_> = printed
            .lines()
            .map(|line| Answer::parse(line).expect("an answer"))
            .collect();
        assert_eq!(answers.len(), 20, "{printed}");
        let answered: BTreeSet<_> = answers.iter().map(|answer| answer.pod.clone()).collect();
        assert_eq!(answered, pods, "{address}");
        // kube-proxy keeps a pod's address; we would not.
        assert!(
            answers.iter().all(|answer| own.contains(&answer.peer.ip())),
            "{printed}"
        );
    }
    for (server, snat) in vips.at(80).into_iter().zip(SNAT) {
        for answer in cluster.client().ask_times(server, 20) {
            let answer = answer.unwrap_or_else(|e| panic!("{server}: {e}"));
            assert_eq!(answer.peer.ip().to_string(), snat, "{answer:?}");
        }
    }
    load.wait_more(200, PATIENCE);
    let tally = load.end();
    say(&format!("clients beside kube-proxy: {tally}"));
    tally.assert_unharmed("beside kube-proxy");
}
