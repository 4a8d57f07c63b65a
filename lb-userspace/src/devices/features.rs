//! Which devices XDP may redirect to, from the `netdev` family of generic netlink (Linux 6.3).
//!
//! A veth says so only while its peer can take frames (GRO or an XDP program there); without, every
//! redirected frame would vanish uncounted.

use std::{collections::BTreeSet, io};

use rtnetlink::sys::protocols::NETLINK_GENERIC;

use crate::netlink::{self, attributes, put_attribute, u16_at, u32_at, u64_at};

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
/// `NETDEV_XDP_ACT_NDO_XMIT`.
const NDO_XMIT: u64 = 1 << 2;
/// `struct genlmsghdr`.
const GENERIC_HEADER: usize = 4;

/// The numbers this kernel gave the family.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Family {
    /// Message type.
    id: u16,
    /// Multicast group of changes.
    pub(super) changes: Option<u32>,
}

/// Interface indices of the devices XDP may redirect to.
///
/// # Errors
///
/// If the kernel has no such family or does not answer.
pub fn redirectable() -> io::Result<BTreeSet<u32>> {
    ask(family()?)
}

/// Looks the family up.
pub(super) fn family() -> io::Result<Family> {
    let mut payload = vec![CTRL_CMD_GETFAMILY, 1, 0, 0];
    put_attribute(&mut payload, CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let answers = netlink::request(NETLINK_GENERIC, GENL_ID_CTRL, 0, &payload)?;
    let answer = answers.first().ok_or(io::ErrorKind::NotFound)?;
    parse_family(answer.payload.get(GENERIC_HEADER..).unwrap_or_default())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

pub(super) fn ask(family: Family) -> io::Result<BTreeSet<u32>> {
    let payload = [NETDEV_CMD_DEV_GET, 1, 0, 0];
    let answers = netlink::request(NETLINK_GENERIC, family.id, netlink::DUMP, &payload)?;
    let devices = answers.iter().filter_map(|answer| {
        let (ifindex, features) = parse_device(answer.payload.get(GENERIC_HEADER..)?);
        (features & NDO_XMIT != 0).then_some(ifindex)
    });
    Ok(devices.collect())
}

fn parse_family(bytes: &[u8]) -> Option<Family> {
    let (mut id, mut changes) = (None, None);
    for (kind, value) in attributes(bytes) {
        match kind {
            CTRL_ATTR_FAMILY_ID => id = Some(u16_at(value, 0)),
            CTRL_ATTR_MCAST_GROUPS => {
                changes = attributes(value).find_map(|(_, group)| management_group(group));
            }
            _ => {}
        }
    }
    Some(Family { id: id?, changes })
}

fn management_group(group: &[u8]) -> Option<u32> {
    let value = |wanted| {
        attributes(group)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, v)| v)
    };
    if value(CTRL_ATTR_MCAST_GRP_NAME)? != b"mgmt\0" {
        return None;
    }
    Some(u32_at(value(CTRL_ATTR_MCAST_GRP_ID)?, 0))
}

fn parse_device(bytes: &[u8]) -> (u32, u64) {
    let (mut ifindex, mut features) = (0, 0);
    for (kind, value) in attributes(bytes) {
        match kind {
            NETDEV_A_DEV_IFINDEX => ifindex = u32_at(value, 0),
            NETDEV_A_DEV_XDP_FEATURES => features = u64_at(value, 0),
            _ => {}
        }
    }
    (ifindex, features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_s_numbers_are_read_out_of_nested_attributes() {
        let mut group = Vec::new();
        put_attribute(&mut group, CTRL_ATTR_MCAST_GRP_NAME, b"mgmt\0");
        put_attribute(&mut group, CTRL_ATTR_MCAST_GRP_ID, &9_u32.to_ne_bytes());
        let mut other = Vec::new();
        put_attribute(&mut other, CTRL_ATTR_MCAST_GRP_NAME, b"page-pool\0");
        put_attribute(&mut other, CTRL_ATTR_MCAST_GRP_ID, &8_u32.to_ne_bytes());
        let mut groups = Vec::new();
        put_attribute(&mut groups, 1, &other);
        put_attribute(&mut groups, 2, &group);
        let mut bytes = Vec::new();
        put_attribute(&mut bytes, CTRL_ATTR_FAMILY_NAME, b"netdev\0");
        put_attribute(&mut bytes, CTRL_ATTR_FAMILY_ID, &0x21_u16.to_ne_bytes());
        put_attribute(&mut bytes, CTRL_ATTR_MCAST_GROUPS, &groups);
        assert_eq!(
            parse_family(&bytes),
            Some(Family {
                id: 0x21,
                changes: Some(9)
            })
        );
    }

    #[test]
    fn a_device_answers_with_its_features() {
        let mut bytes = Vec::new();
        put_attribute(&mut bytes, NETDEV_A_DEV_IFINDEX, &5_u32.to_ne_bytes());
        put_attribute(
            &mut bytes,
            NETDEV_A_DEV_XDP_FEATURES,
            &0x23_u64.to_ne_bytes(),
        );
        assert_eq!(parse_device(&bytes), (5, 0x23));
    }
}
