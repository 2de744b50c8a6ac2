//! PROXY protocol, version 2: the client IP behind a load balancer. Peers in
//! `listen.trusted_proxies` must send the header as the first bytes; it is accepted from no other
//! peer.
//!
//! The parser is our own: version 2 over TCP is one page, available crates also accept version 1,
//! and nothing may be read beyond the header.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// First bytes of every header.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Length of signature, version and command, family and protocol, and length.
const FIXED: usize = 16;
/// Maximum length of the rest: addresses, and TLVs that are skipped.
const MAX_REST_BYTES: usize = 1024;

/// Reason for rejecting a header.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyHeaderError {
    /// Version 1, or no header.
    #[error("no PROXY protocol v2 header came first")]
    NotProxy,
    /// Unsupported version or command.
    #[error("a PROXY header of unknown version or command {0:#04x}")]
    Command(u8),
    /// Not TCP over IPv4 or IPv6.
    #[error("a PROXY header for a protocol other than TCP ({0:#04x})")]
    Family(u8),
    /// Too long, or too short for its addresses.
    #[error("a PROXY header of {0} bytes")]
    Length(usize),
    /// The connection ended.
    #[error("the connection ended within the PROXY header: {0}")]
    Io(#[from] std::io::Error),
}

/// Whether this peer must send a header.
pub(crate) fn is_trusted(trusted: &[IpNet], peer: IpAddr) -> bool {
    let peer = peer.to_canonical();
    trusted.iter().any(|net| net.contains(&peer))
}

/// Reads the header and nothing beyond it. `None`: the connection is the proxy's own.
pub(crate) async fn read(io: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, ProxyHeaderError> {
    let mut fixed = [0; FIXED];
    io.read_exact(&mut fixed).await?;
    let (command, family, len) = head(&fixed)?;
    let mut rest = [0; MAX_REST_BYTES];
    let rest = rest.get_mut(..len).ok_or(ProxyHeaderError::Length(len))?;
    io.read_exact(rest).await?;
    match command {
        Command::Local => Ok(None),
        Command::Proxy => source(family, rest).map(Some),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    /// A connection of the proxy itself, for health checks.
    Local,
    /// A forwarded connection.
    Proxy,
}

/// Parses command, family and the length of the rest.
fn head(fixed: &[u8; FIXED]) -> Result<(Command, u8, usize), ProxyHeaderError> {
    let [signature @ .., command, family, high, low] = fixed;
    if *signature != SIGNATURE {
        return Err(ProxyHeaderError::NotProxy);
    }
    let command = match command {
        0x20 => Command::Local,
        0x21 => Command::Proxy,
        other => return Err(ProxyHeaderError::Command(*other)),
    };
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    if len > MAX_REST_BYTES {
        return Err(ProxyHeaderError::Length(len));
    }
    Ok((command, *family, len))
}

/// Parses the source address: source, destination, then both ports. TLVs follow.
fn source(family: u8, rest: &[u8]) -> Result<SocketAddr, ProxyHeaderError> {
    let short = || ProxyHeaderError::Length(rest.len());
    let port = |at: usize| -> Option<u16> { Some(u16::from_be_bytes(*rest.get(at..)?.first_chunk()?)) };
    let (ip, port) = match family {
        0x11 => {
            let ip: [u8; 4] = *rest.first_chunk().ok_or_else(short)?;
            (
                IpAddr::V4(Ipv4Addr::from(ip)),
                port(8).filter(|_| rest.len() >= 12),
            )
        }
        0x21 => {
            let ip: [u8; 16] = *rest.first_chunk().ok_or_else(short)?;
            (
                IpAddr::V6(Ipv6Addr::from(ip)),
                port(32).filter(|_| rest.len() >= 36),
            )
        }
        other => return Err(ProxyHeaderError::Family(other)),
    };
    Ok(SocketAddr::new(ip.to_canonical(), port.ok_or_else(short)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([command, family]);
        header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        header.extend(rest);
        header
    }

    fn v4(port: u16) -> Vec<u8> {
        let mut rest = vec![192, 0, 2, 7, 10, 0, 0, 1];
        rest.extend(port.to_be_bytes());
        rest.extend(8085_u16.to_be_bytes());
        rest
    }

    fn v6(ip: &str) -> Vec<u8> {
        let mut rest = ip.parse::<Ipv6Addr>().unwrap().octets().to_vec();
        rest.extend([0; 16]);
        rest.extend(4711_u16.to_be_bytes());
        rest.extend(8085_u16.to_be_bytes());
        rest
    }

    /// Parse result and the unread bytes.
    async fn parse(bytes: &[u8]) -> (Result<Option<SocketAddr>, ProxyHeaderError>, Vec<u8>) {
        let mut left = bytes;
        let read = read(&mut left).await;
        (read, left.to_vec())
    }

    #[tokio::test]
    async fn headers_of_both_families_and_commands_are_parsed_exactly() {
        let mut with_tlvs = v4(1234);
        with_tlvs.extend([0x04, 0, 3, 1, 2, 3]);
        for (bytes, expected) in [
            (header(0x21, 0x11, &v4(1234)), Some("192.0.2.7:1234")),
            (header(0x21, 0x11, &with_tlvs), Some("192.0.2.7:1234")),
            (header(0x21, 0x21, &v6("2001:db8::9")), Some("[2001:db8::9]:4711")),
            (
                header(0x21, 0x21, &v6("::ffff:192.0.2.7")),
                Some("192.0.2.7:4711"),
            ),
            (header(0x20, 0x00, &[]), None),
            (header(0x20, 0x11, &v4(1)), None),
        ] {
            let mut bytes = bytes;
            bytes.extend(b"PRI * ");
            let (address, left) = parse(&bytes).await;
            assert_eq!(address.unwrap(), expected.map(|text| text.parse().unwrap()));
            assert_eq!(left, b"PRI * ");
        }
    }

    #[tokio::test]
    async fn invalid_headers_are_rejected() {
        let long = vec![0; MAX_REST_BYTES + 1];
        let cut = header(0x21, 0x11, &v4(1));
        for (bytes, problem) in [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n".to_vec(), "no PROXY"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), "no PROXY"),
            (header(0x11, 0x11, &v4(1)), "0x11"),
            (header(0x22, 0x11, &v4(1)), "0x22"),
            (header(0x21, 0x12, &v4(1)), "0x12"),
            (header(0x21, 0x31, &[0; 216]), "0x31"),
            (header(0x21, 0x00, &[]), "0x00"),
            (header(0x21, 0x11, &v4(1)[..11]), "11 bytes"),
            (header(0x21, 0x21, &v6("::1")[..35]), "35 bytes"),
            (header(0x21, 0x11, &long), "1025 bytes"),
            (cut[..20].to_vec(), "ended"),
            (Vec::new(), "ended"),
        ] {
            let error = parse(&bytes).await.0.unwrap_err().to_string();
            assert!(error.contains(problem), "{problem}: {error}");
        }
    }

    #[test]
    fn mapped_addresses_are_trusted_as_ipv4() {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        for (peer, expected) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("2001:db8::1", true),
            ("11.0.0.1", false),
            ("::1", false),
        ] {
            assert_eq!(is_trusted(&trusted, peer.parse().unwrap()), expected, "{peer}");
        }
        assert!(!is_trusted(&[], "10.0.0.1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), signed: bool) {
            let mut whole = if signed { SIGNATURE.to_vec() } else { Vec::new() };
            whole.extend(bytes);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(parse(&whole));
        }
    }
}
