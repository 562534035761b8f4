//! Which addresses are of the public internet, by the special-purpose registries of IANA.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether anyone on the internet can be meant by an address: no private, loopback, link-local,
/// shared, documentation, multicast or reserved one, also not inside an IPv6 one.
pub fn public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => public_v4(v4),
        IpAddr::V6(v6) => public_v6(v6),
    }
}

fn public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127, ..)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            | (224.., ..)
    )
}

fn public_v6(address: Ipv6Addr) -> bool {
    let s = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        // Mapped, and translated by NAT64: the address that is meant lies inside.
        [0, 0, 0, 0, 0, 0xffff, high, low] => v4(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        // 6to4.
        [0x2002, high, low, ..] => v4(high, low),
        // Protocols (Teredo among them), documentation.
        [0x2001, second, ..] => second >= 0x200 && second != 0xdb8,
        [0x3fff, second, ..] => second >= 0x1000,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        let public = |text: &str| public(text.parse().unwrap());
        for yes in ["1.1.1.1", "172.32.0.1", "192.0.1.1", "223.255.255.255", "2606:4700::1111"] {
            assert!(public(yes), "{yes}");
        }
        for yes in ["::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::1", "2001:4860::8888"] {
            assert!(public(yes), "{yes}");
        }
        for no in ["0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254"] {
            assert!(!public(no), "{no}");
        }
        for no in ["172.16.0.1", "192.168.1.1", "198.18.0.1", "224.0.0.1", "255.255.255.255"] {
            assert!(!public(no), "{no}");
        }
        for no in ["::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "fe80::1"] {
            assert!(!public(no), "{no}");
        }
        for no in ["fc00::1", "fd12::1", "ff02::1", "64:ff9b::7f00:1", "2002:a00:1::", "2001::1"] {
            assert!(!public(no), "{no}");
        }
        for no in ["2001:db8::1", "3fff::1", "64:ff9b:1::1", "100::1"] {
            assert!(!public(no), "{no}");
        }
    }
}
