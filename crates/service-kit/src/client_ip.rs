//! Client IP of a call: the peer of its connection, or, if that is a trusted
//! proxy, the address that the proxy reports.
//!
//! `x-forwarded-for` is read from its end, which the trusted proxy wrote; the
//! part before that, which the client wrote, is never used.

use crate::connection::PeerInfo;
use http::request::Parts;
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};

const FORWARDED: &str = "x-forwarded-for";
/// Maximum number of consecutive trusted proxies.
const MAX_HOPS: usize = 8;

/// The peer address of a call's connection.
pub fn peer(call: &Parts) -> Option<SocketAddr> {
    call.extensions.get::<PeerInfo>().map(|peer| peer.remote)
}

/// The client IP of a call. The port is 0 if a proxy reports none.
pub fn of(call: &Parts, trusted: &[IpNet]) -> Option<SocketAddr> {
    let peer = peer(call)?;
    let mut client = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    if trusted.is_empty() {
        return Some(client);
    }
    let lines = call.headers.get_all(FORWARDED).iter().rev();
    let mut named = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    for _ in 0..MAX_HOPS {
        if !trusted.iter().any(|net| net.contains(&client.ip())) {
            break;
        }
        // Without a valid reported address, the last proxy is the client IP.
        match named.next().and_then(address) {
            Some(next) => client = next,
            None => break,
        }
    }
    Some(client)
}

/// Parses an address with or without a port.
fn address(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t']);
    let ip = |text: &str| text.parse::<IpAddr>().ok();
    let found = text.parse().ok().or_else(|| {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        ip(bare.unwrap_or(text)).map(|ip| SocketAddr::new(ip, 0))
    });
    found.map(|found: SocketAddr| SocketAddr::new(found.ip().to_canonical(), found.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, forwarded: &[&str]) -> String {
        let mut request = http::Request::new(());
        for line in forwarded {
            request.headers_mut().append(FORWARDED, line.parse().unwrap());
        }
        let (mut parts, ()) = request.into_parts();
        parts.extensions.insert(PeerInfo {
            usage: Default::default(),
            remote: peer.parse().unwrap(),
            tls: false,
            certificates: [].into(),
        });
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/16".parse().unwrap()];
        of(&parts, &trusted).unwrap().to_string()
    }

    #[test]
    fn only_trusted_proxies_and_only_their_own_part_of_the_header_count() {
        // For a direct call, the header of the client is ignored.
        assert_eq!(client("192.0.2.7:5", &["203.0.113.9"]), "192.0.2.7:5");
        assert_eq!(client("10.0.0.1:5", &["203.0.113.9"]), "203.0.113.9:0");
        assert_eq!(
            client("[::ffff:10.0.0.1]:5", &["203.0.113.9:81"]),
            "203.0.113.9:81"
        );
        assert_eq!(client("[fd00::1]:5", &["[2001:db8::9]:81"]), "[2001:db8::9]:81");
        // The client's own line comes first and is ignored.
        assert_eq!(
            client("10.0.0.1:5", &["127.0.0.1, 10.9.9.9, 192.0.2.7"]),
            "192.0.2.7:0"
        );
        assert_eq!(
            client("10.0.0.1:5", &["127.0.0.1", "192.0.2.7,10.0.0.2"]),
            "192.0.2.7:0"
        );
        // Without a valid address, the last known one is used.
        for bad in ["", "unknown", "192.0.2.7 evil", "192.0.2.7, ", "\u{7f}", "1.2.3"] {
            let Ok(_) = http::HeaderValue::from_str(bad) else {
                continue;
            };
            assert_eq!(client("10.0.0.1:5", &[bad]), "10.0.0.1:5", "{bad:?}");
        }
        assert_eq!(client("10.0.0.1:5", &[]), "10.0.0.1:5");
    }

    #[test]
    fn a_long_chain_ends() {
        let chain = "10.0.0.2,".repeat(1000) + "10.0.0.3";
        assert_eq!(client("10.0.0.1:5", &[&chain]), "10.0.0.2:0");
    }
}
