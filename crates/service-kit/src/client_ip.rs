//! Where a call comes from: the other end of its connection, or, if that is a
//! proxy of ours, the address that it names.
//!
//! `x-forwarded-for` is read from its end, which our own proxy wrote; what a
//! client wrote before that is nobody's word and is never reached.

use crate::admission::remote;
use http::request::Parts;
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};

const FORWARDED: &str = "x-forwarded-for";
/// Proxies in a row that are believed.
const MOST_HOPS: usize = 8;

/// The address of who calls. Its port is 0 where a proxy names none.
pub fn origin(call: &Parts, trusted: &[IpNet]) -> Option<SocketAddr> {
    let peer = remote(call)?;
    let mut origin = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    if trusted.is_empty() {
        return Some(origin);
    }
    let lines = call.headers.get_all(FORWARDED).iter().rev();
    let mut named = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    for _ in 0..MOST_HOPS {
        if !trusted.iter().any(|net| net.contains(&origin.ip())) {
            break;
        }
        // One that names nobody, or names them badly, is all that is known.
        match named.next().and_then(address) {
            Some(next) => origin = next,
            None => break,
        }
    }
    Some(origin)
}

/// An address, with or without its port.
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
    use crate::tls::PeerInfo;

    fn of(peer: &str, forwarded: &[&str]) -> String {
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
        origin(&parts, &trusted).unwrap().to_string()
    }

    #[test]
    fn only_proxies_of_ours_are_believed_and_only_their_own_words() {
        // Who calls directly is who calls, whatever they claim.
        assert_eq!(of("192.0.2.7:5", &["203.0.113.9"]), "192.0.2.7:5");
        assert_eq!(of("10.0.0.1:5", &["203.0.113.9"]), "203.0.113.9:0");
        assert_eq!(of("[::ffff:10.0.0.1]:5", &["203.0.113.9:81"]), "203.0.113.9:81");
        assert_eq!(of("[fd00::1]:5", &["[2001:db8::9]:81"]), "[2001:db8::9]:81");
        // The client's own line comes first and counts for nothing.
        assert_eq!(
            of("10.0.0.1:5", &["127.0.0.1, 10.9.9.9, 192.0.2.7"]),
            "192.0.2.7:0"
        );
        assert_eq!(
            of("10.0.0.1:5", &["127.0.0.1", "192.0.2.7,10.0.0.2"]),
            "192.0.2.7:0"
        );
        // Nothing, or nothing that can be read: the last that is known.
        for bad in ["", "unknown", "192.0.2.7 evil", "192.0.2.7, ", "\u{7f}", "1.2.3"] {
            let Ok(_) = http::HeaderValue::from_str(bad) else {
                continue;
            };
            assert_eq!(of("10.0.0.1:5", &[bad]), "10.0.0.1:5", "{bad:?}");
        }
        assert_eq!(of("10.0.0.1:5", &[]), "10.0.0.1:5");
    }

    #[test]
    fn a_long_chain_ends() {
        let chain = "10.0.0.2,".repeat(1000) + "10.0.0.3";
        assert_eq!(of("10.0.0.1:5", &[&chain]), "10.0.0.2:0");
    }
}
