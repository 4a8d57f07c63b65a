//! What else on the node translates addresses: a masquerade, a kube-proxy.
//!
//! Seen by what they leave in netfilter, asked for without any tool: nftables (and iptables on top of
//! it) by nfnetlink. The older iptables keeps its rules where only its own tools read them; there the
//! existence of its `nat` table must do.

use std::{fs, io};

use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use crate::netlink;

pub mod conntrack;

/// `NFNL_SUBSYS_NFTABLES`, and what to list.
const NFTABLES: u16 = 10 << 8;
const GET_TABLE: u16 = NFTABLES | 1;
const GET_CHAIN: u16 = NFTABLES | 4;
const GET_RULE: u16 = NFTABLES | 7;

/// What was found, or must be assumed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Netfilter {
    /// Something masquerades: it picks ports of the node's addresses by itself.
    pub masquerade: bool,
    /// kube-proxy's tables or chains are there.
    pub kube_proxy: bool,
    /// They may be: nobody tells whose the rules of the older iptables are.
    pub perhaps_kube_proxy: bool,
}

impl Netfilter {
    /// What must be assumed where nothing can be found out.
    pub const UNKNOWN: Self = Self {
        masquerade: true,
        kube_proxy: true,
        perhaps_kube_proxy: true,
    };
}

/// Looks at the rules of this network namespace.
///
/// # Errors
///
/// If they cannot be read, or change all the time. A kernel without nftables has none.
pub fn inspect() -> io::Result<Netfilter> {
    let (tables, chains) = (list(GET_TABLE)?, list(GET_CHAIN)?);
    let rules = list(GET_RULE)?;
    let legacy = legacy_tables();
    Ok(judge(&tables, &chains, &rules, &legacy))
}

/// Judges by names alone: an answer is a few fields and many names.
fn judge(tables: &[Vec<u8>], chains: &[Vec<u8>], rules: &[Vec<u8>], legacy: &str) -> Netfilter {
    let any = |answers: &[Vec<u8>], name: &[u8]| {
        answers
            .iter()
            .any(|answer| answer.windows(name.len()).any(|window| window == name))
    };
    let legacy_nat = legacy.lines().any(|table| table == "nat");
    let kube_proxy = any(tables, b"kube-proxy\0") || any(chains, b"KUBE-SERVICES\0");
    Netfilter {
        // `masq` is the expression of nftables, MASQUERADE the target of iptables on top of it.
        masquerade: any(rules, b"masq\0") || any(rules, b"MASQUERADE") || legacy_nat,
        kube_proxy,
        perhaps_kube_proxy: kube_proxy || legacy_nat,
    }
}

/// Everything of a kind, in all families. Empty without nftables.
fn list(kind: u16) -> io::Result<Vec<Vec<u8>>> {
    // struct nfgenmsg: family (unspecified), version, resource id.
    match netlink::request(NETLINK_NETFILTER, kind, netlink::DUMP, &[0; 4]) {
        Ok(answers) => Ok(answers.into_iter().map(|answer| answer.payload).collect()),
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whether the kernel says that it has no nftables, or none of a kind.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT)
    )
}

/// Names of the tables of the older iptables, one a line.
fn legacy_tables() -> String {
    let read = |path| match fs::read_to_string(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => String::new(),
        result => result.unwrap_or_default(),
    };
    read("/proc/net/ip_tables_names") + &read("/proc/net/ip6_tables_names")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn translators_are_known_by_their_names() {
        let answer = |text: &str| vec![text.as_bytes().to_vec()];
        let none = Netfilter::default();
        let masquerade = Netfilter {
            masquerade: true,
            ..none
        };
        let kube_proxy = Netfilter {
            kube_proxy: true,
            perhaps_kube_proxy: true,
            ..none
        };
        for (name, tables, chains, rules, legacy, expected) in [
            ("nothing", "", "", "", "filter\n", none),
            (
                "nftables masquerade",
                "nat\0",
                "postrouting\0",
                "..masq\0..",
                "",
                masquerade,
            ),
            (
                "iptables-nft masquerade",
                "nat\0",
                "",
                "..target\0MASQUERADE\0",
                "",
                masquerade,
            ),
            (
                "legacy nat",
                "",
                "",
                "",
                "filter\nnat\n",
                Netfilter {
                    perhaps_kube_proxy: true,
                    ..masquerade
                },
            ),
            (
                "kube-proxy, nftables",
                "kube-proxy\0",
                "",
                "",
                "",
                kube_proxy,
            ),
            (
                "kube-proxy, iptables",
                "nat\0",
                "KUBE-SERVICES\0",
                "",
                "",
                kube_proxy,
            ),
            (
                "a name that only begins so",
                "kube-proxy-x\0",
                "KUBE-SERVICES-X\0",
                "",
                "",
                none,
            ),
        ] {
            let found = judge(&answer(tables), &answer(chains), &answer(rules), legacy);
            assert_eq!(found, expected, "{name}");
        }
    }
}
