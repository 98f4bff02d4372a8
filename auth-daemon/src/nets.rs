//! `allow_nets`: addresses a user may come from.
//!
//! Format: a list separated by commas or blanks of addresses, CIDR networks, and `local` for "the client told no
//!         address". Without an address and without `local` nobody gets in: a client that hides the address must not
//!         be a way around the list.
//! Trust:  the list is the administrator's, the address is what the client program told.
//! Never:  admit an address by an entry that is not understood.

use std::net::IpAddr;

/// Whether a list admits an address.
pub(crate) fn admits(list: &str, address: Option<IpAddr>) -> bool {
    let mut entries = list.split([',', ' ', '\t']).filter(|entry| !entry.is_empty());
    match address.map(|address| address.to_canonical()) {
        Some(address) => entries.any(|entry| matches(entry, address)),
        None => entries.any(|entry| entry.eq_ignore_ascii_case("local")),
    }
}

/// Entries that make no sense match nothing.
fn matches(entry: &str, address: IpAddr) -> bool {
    let (network, bits) = match entry.split_once('/') {
        Some((network, bits)) => (network, Some(bits)),
        None => (entry, None),
    };
    let Ok(parsed) = network.trim_matches(['[', ']']).parse::<IpAddr>() else { return false };
    let network = parsed.to_canonical();
    let Ok(bits) = bits.map(str::parse::<u32>).transpose() else { return false };
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            // `::ffff:10.0.0.0/104` counts the 96 bits before.
            let bits = match (bits, parsed.is_ipv6()) {
                (Some(bits), true) => bits.checked_sub(96),
                (bits, _) => Some(bits.unwrap_or(32)),
            };
            bits.is_some_and(|bits| {
                bits <= 32 && prefix_equal(network.to_bits().into(), address.to_bits().into(), bits, 32)
            })
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let bits = bits.unwrap_or(128);
            bits <= 128 && prefix_equal(network.to_bits(), address.to_bits(), bits, 128)
        }
        _ => false,
    }
}

fn prefix_equal(left: u128, right: u128, bits: u32, width: u32) -> bool {
    (left ^ right).checked_shr(width - bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let cases = [
            ("192.168.0.0/24", Some("192.168.0.7"), true),
            ("192.168.0.0/24", Some("192.168.1.7"), false),
            ("192.168.0.0/24", Some("::ffff:192.168.0.7"), true),
            ("::ffff:192.168.0.0/120", Some("192.168.0.7"), true),
            ("10.0.0.1,  2001:db8::/32", Some("2001:db8:1::1"), true),
            ("10.0.0.1 2001:db8::/32", Some("10.0.0.1"), true),
            ("10.0.0.1", Some("10.0.0.2"), false),
            ("0.0.0.0/0", Some("10.0.0.2"), true),
            ("::/0", Some("10.0.0.2"), false),
            ("0.0.0.0/33", Some("10.0.0.2"), false),
            ("nonsense,10.0.0.0/x,10.0.0.2", Some("10.0.0.2"), true),
            ("local", None, true),
            ("10.0.0.0/8,local", None, true),
            ("10.0.0.0/8", None, false),
            ("0.0.0.0/0", None, false),
            ("local", Some("10.0.0.1"), false),
            ("", Some("10.0.0.1"), false),
            ("", None, false),
        ];
        for (list, address, want) in cases {
            let address = address.map(|text| text.parse().unwrap());
            assert_eq!(admits(list, address), want, "{list} {address:?}");
        }
    }
}
