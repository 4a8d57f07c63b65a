//! Reading addresses and prefixes the way Kubernetes stores them, which is not always canonical.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Reads an address: leading zeros are decimal, letters may be upper case, and an IPv4-mapped IPv6
/// address is the IPv4 address.
///
/// # Errors
///
/// What is wrong with `text`.
pub fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let invalid = || format!("`{text}` is not an IP address");
    if text.contains(':') {
        return parse_v6(text)
            .map(|address| address.to_canonical())
            .ok_or_else(invalid);
    }
    parse_v4(text).map(IpAddr::V4).ok_or_else(invalid)
}

/// Reads a prefix, by the same rules. Blanks around it are ignored, host bits too.
///
/// # Errors
///
/// What is wrong with `text`.
pub fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let invalid = || format!("`{text}` is not a prefix in CIDR notation");
    let (address, length) = text.split_once('/').ok_or_else(invalid)?;
    let length = decimal(length).ok_or_else(invalid)?;
    let mapped = address.contains(':') && matches!(parse_ip(address), Ok(IpAddr::V4(_)));
    let length = if mapped {
        length.checked_sub(96).ok_or_else(invalid)?
    } else {
        length
    };
    let address = parse_ip(address)?;
    IpNet::new(address, length)
        .map(|net| net.trunc())
        .map_err(|_too_long| invalid())
}

/// Why an address cannot be a frontend's or a backend's, if so.
///
/// The API server refuses the same ones; a manifest has not seen the API server.
pub fn unusable(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified() {
        Some("is the unspecified address")
    } else if address.is_loopback() {
        Some("is a loopback address")
    } else if address.is_multicast() {
        Some("is a multicast address")
    } else if link_local {
        Some("is a link-local or broadcast address")
    } else {
        None
    }
}

/// [`parse_ip`] and [`unusable`] in one.
///
/// # Errors
///
/// What is wrong with `text`.
pub fn parse_usable(text: &str) -> Result<IpAddr, String> {
    let address = parse_ip(text)?;
    unusable(address).map_or(Ok(address), |why| Err(format!("`{text}` {why}")))
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = text.split('.').map(decimal);
    let mut next = || octets.next().flatten();
    let address = Ipv4Addr::new(next()?, next()?, next()?, next()?);
    octets.next().is_none().then_some(address)
}

fn parse_v6(text: &str) -> Option<Ipv6Addr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    // An embedded IPv4 address may have leading zeros, which the standard library refuses.
    let (head, tail) = text.rsplit_once(':')?;
    format!("{head}:{}", parse_v4(tail)?).parse().ok()
}

/// A number below 256 of decimal digits, leading zeros ignored.
fn decimal(text: &str) -> Option<u8> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = text.trim_start_matches('0');
    if digits.is_empty() {
        Some(0)
    } else {
        digits.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_kubernetes_stores_them() {
        for (text, expected) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("172.30.0.041", Some("172.30.0.41")),
            ("010.0.000.0255", Some("10.0.0.255")),
            ("2001:DB8::A", Some("2001:db8::a")),
            ("::ffff:192.0.2.7", Some("192.0.2.7")),
            ("::ffff:192.0.2.007", Some("192.0.2.7")),
            ("::FFFF:c000:0207", Some("192.0.2.7")),
            (
                "2001:0db8:0000:0000:0000:0000:0000:0001",
                Some("2001:db8::1"),
            ),
            ("", None),
            ("192.0.2", None),
            ("192.0.2.1.5", None),
            ("192.0.2.256", None),
            ("192.0.2.+1", None),
            ("192.0.2.0x1", None),
            ("192.0.2.1 ", None),
            ("fe80::1%eth0", None),
            ("2001:db8::g", None),
            ("web.example", None),
        ] {
            let parsed = parse_ip(text).ok().map(|a| a.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn prefixes_are_read_as_kubernetes_stores_them() {
        for (text, expected) in [
            ("203.0.113.000/025", Some("203.0.113.0/25")),
            ("  192.0.2.0/24\t", Some("192.0.2.0/24")),
            ("192.0.2.77/24", Some("192.0.2.0/24")),
            ("2001:DB8::/032", Some("2001:db8::/32")),
            ("::ffff:192.0.2.0/120", Some("192.0.2.0/24")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("::ffff:192.0.2.0/24", None),
            ("192.0.2.0", None),
            ("192.0.2.0/33", None),
            ("192.0.2.0/", None),
        ] {
            let parsed = parse_cidr(text).ok().map(|net| net.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn special_addresses_are_no_endpoints_and_no_vips() {
        for text in [
            "0.0.0.0",
            "::",
            "127.0.0.1",
            "::1",
            "224.0.0.1",
            "ff02::1",
            "169.254.1.1",
            "fe80::1",
            "255.255.255.255",
        ] {
            assert!(parse_usable(text).is_err(), "{text}");
        }
        assert!(parse_usable("10.0.0.1").is_ok());
    }
}
