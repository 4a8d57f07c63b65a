//! Bits of the wire types as words.

use lb_common::{
    config::config_flag,
    conntrack::flag,
    device::device_flag,
    service::{address_role, backend_flag, frontend_flag, member_flag, service_flag, source_class},
};

/// Names of [`frontend_flag`].
pub const FRONTEND: &[(u32, &str)] = &[
    (frontend_flag::INTERNAL, "internal"),
    (frontend_flag::SOURCE_RANGES, "source-ranges"),
];

/// Names of [`service_flag`]; `LIVE` goes without saying.
pub const SERVICE: &[(u32, &str)] = &[
    (service_flag::EXTERNAL_LOCAL, "external-local"),
    (service_flag::INTERNAL_LOCAL, "internal-local"),
    (service_flag::KEEP_SOURCE, "keep-source"),
    (service_flag::HAS_ENDPOINTS, "has-endpoints"),
    (service_flag::LIVE, ""),
];

/// Names of [`backend_flag`]; `LIVE` goes without saying.
pub const BACKEND: &[(u32, &str)] = &[
    (backend_flag::LIVE as u32, ""),
    (backend_flag::LOCAL as u32, "local"),
    (backend_flag::HOST as u32, "host"),
];

/// Names of [`member_flag`].
pub const MEMBER: &[(u32, &str)] = &[
    (member_flag::CLUSTER, "cluster"),
    (member_flag::LOCAL, "local"),
    (member_flag::SERVING, "serving"),
];

/// Names of [`address_role`].
pub const ADDRESS: &[(u32, &str)] = &[
    (address_role::VIP, "vip"),
    (address_role::NODE_PORT, "node-port"),
    (address_role::SNAT, "snat"),
];

/// Names of [`source_class`].
pub const SOURCE_CLASS: &[(u32, &str)] = &[
    (source_class::POD, "pod"),
    (source_class::NODE, "node"),
    (source_class::LOCAL_POD, "local-pod"),
    (source_class::SERVICE_NETWORK, "service-network"),
];

/// Names of [`flag`], the bits of a flow entry.
pub const ENTRY: &[(u32, &str)] = &[
    (flag::REVERSE, "reverse"),
    (flag::FULL_NAT, "full-nat"),
    (flag::HOST, "host"),
    (flag::LOCAL, "local"),
    (flag::PASS, "pass"),
];

/// Names of [`device_flag`].
pub const DEVICE: &[(u32, &str)] = &[
    (device_flag::REDIRECT as u32, "redirect"),
    (device_flag::NO_ETHERNET as u32, "no-ethernet"),
];

/// Names of [`config_flag`].
pub const CONFIG: &[(u32, &str)] = &[
    (config_flag::DIRECT_BACKEND_ACCESS, "direct-backend-access"),
    (config_flag::DROP_UNALLOCATED, "drop-unallocated"),
];

/// The words for the set bits of `bits`, in the order of `names`; unknown bits in hexadecimal.
pub fn words(bits: u32, names: &[(u32, &str)]) -> Vec<String> {
    let known = names.iter().filter(|(bit, _)| bits & bit != 0);
    let mut words: Vec<String> = known
        .filter(|(_, name)| !name.is_empty())
        .map(|&(_, name)| name.into())
        .collect();
    let unknown = names.iter().fold(bits, |rest, (bit, _)| rest & !bit);
    if unknown != 0 {
        words.push(format!("{unknown:#x}"));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_bits() {
        let cases = [
            ("none", 0, MEMBER, ""),
            ("one", member_flag::LOCAL, MEMBER, "local"),
            ("all", 7, MEMBER, "cluster local serving"),
            ("live is silent", service_flag::LIVE, SERVICE, ""),
            (
                "an unknown bit shows",
                1 << 9 | 1,
                FRONTEND,
                "internal 0x200",
            ),
        ];
        for (name, bits, names, expected) in cases {
            assert_eq!(words(bits, names).join(" "), expected, "{name}");
        }
    }
}
