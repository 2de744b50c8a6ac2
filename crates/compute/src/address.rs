//! Network addresses to which Berth may connect.
//!
//! A cluster definition contains host names, and a name can point anywhere, so every
//! result of every resolution is checked again before the connection.

use crate::resolver::{Resolve, SystemResolver};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// Metadata services of clouds outside the link-local addresses.
const METADATA: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Networks and hosts where endpoints may be.
#[derive(Debug, Clone, Default)]
pub struct AllowList {
    nets: Vec<IpNet>,
    hosts: BTreeSet<String>,
    own_ports: BTreeSet<u16>,
    dev: bool,
    resolver: SharedResolver,
}

#[derive(Debug, Clone)]
struct SharedResolver(Arc<dyn Resolve>);

impl Default for SharedResolver {
    fn default() -> Self {
        Self(Arc::new(SystemResolver))
    }
}

/// An allow-list entry that is neither a network nor a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is neither a network (10.0.0.0/8), an address, nor a host name")]
pub struct InvalidEntry(pub String);

/// Reason against a connection, with details for those who may see addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not `host:port`.
    #[error("\"{0}\" is not host:port")]
    Malformed(String),
    /// The name has no address now.
    #[error("{host} cannot be resolved: {cause}")]
    Unresolved {
        /// The name.
        host: String,
        /// Error of the resolver.
        cause: String,
    },
    /// The address is forbidden.
    #[error("{host} ({addr}) may not be used: {why}")]
    Refused {
        /// The name.
        host: String,
        /// Its address.
        addr: SocketAddr,
        /// The violated rule.
        why: &'static str,
    },
}

impl AddressError {
    /// The user message, without the address.
    pub fn public(&self) -> String {
        match self {
            Self::Malformed(_) => "the address of its server is not host:port".to_owned(),
            Self::Unresolved { .. } => "the name of its server cannot be resolved".to_owned(),
            Self::Refused { why, .. } => format!("the address of its server may not be used: {why}"),
        }
    }

    /// Returns whether only a change of the configuration can help.
    pub const fn is_permanent(&self) -> bool {
        match self {
            Self::Malformed(_) | Self::Refused { .. } => true,
            Self::Unresolved { .. } => false,
        }
    }
}

impl AllowList {
    /// Builds a list from networks, addresses and host names (`*.example.org` covers
    /// all subdomains). `own_ports` are the ports on which Berth listens. `dev` permits
    /// loopback, link-local and own ports.
    ///
    /// # Errors
    /// All invalid entries.
    pub fn new<'a>(
        entries: impl IntoIterator<Item = &'a str>,
        own_ports: impl IntoIterator<Item = u16>,
        dev: bool,
    ) -> Result<Self, Vec<InvalidEntry>> {
        let mut list = Self {
            own_ports: own_ports.into_iter().collect(),
            dev,
            ..Self::default()
        };
        let mut invalid = Vec::new();
        for entry in entries {
            if let Ok(net) = entry.parse::<IpNet>() {
                list.nets.push(net);
            } else if let Ok(ip) = entry.parse::<IpAddr>() {
                list.nets.push(IpNet::from(ip));
            } else if is_host_name(entry.strip_prefix("*.").unwrap_or(entry)) {
                list.hosts.insert(entry.to_ascii_lowercase());
            } else {
                invalid.push(InvalidEntry(entry.to_owned()));
            }
        }
        if invalid.is_empty() {
            Ok(list)
        } else {
            Err(invalid)
        }
    }

    /// Replaces the resolver of this machine.
    #[must_use]
    pub fn with_resolver(mut self, resolver: Arc<dyn Resolve>) -> Self {
        self.resolver = SharedResolver(resolver);
        self
    }

    /// Checks whether Berth may connect to `addr`, an address of `host`.
    ///
    /// # Errors
    /// [`AddressError::Refused`] with the rule that forbids it.
    pub fn check(&self, host: &str, addr: SocketAddr) -> Result<(), AddressError> {
        let ip = unwrap_ipv4(addr.ip());
        let refused = |why| {
            Err(AddressError::Refused {
                host: host.to_owned(),
                addr,
                why,
            })
        };
        if ip.is_unspecified() || ip.is_multicast() || is_broadcast(ip) {
            return refused("it is not the address of one machine");
        }
        if !self.dev && ip.is_loopback() {
            return refused("loopback addresses are Berth's own machine");
        }
        if !self.dev && (is_link_local(ip) || METADATA.contains(&ip)) {
            return refused("link-local addresses and their like reach metadata services");
        }
        if !self.dev && self.own_ports.contains(&addr.port()) {
            return refused("the port is one of Berth's own");
        }
        let listed = self.is_listed_host(host) || self.nets.iter().any(|net| net.contains(&ip));
        if listed || (self.dev && ip.is_loopback()) {
            Ok(())
        } else {
            refused("it is not on the allow-list of endpoints")
        }
    }

    /// Resolves `host:port`; all addresses must be allowed.
    ///
    /// # Errors
    /// [`AddressError`] if one address is forbidden.
    pub async fn resolve(&self, host_port: &str) -> Result<Vec<SocketAddr>, AddressError> {
        let (host, port) = split_host_port(host_port)?;
        let unresolved = |cause: String| AddressError::Unresolved {
            host: host.to_owned(),
            cause,
        };
        let addresses = self.resolver.0.resolve(host, port).await;
        let addresses = addresses.map_err(|e| unresolved(e.to_string()))?;
        if addresses.is_empty() {
            return Err(unresolved("no address".to_owned()));
        }
        for addr in &addresses {
            self.check(host, *addr)?;
        }
        Ok(addresses)
    }

    fn is_listed_host(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.hosts.iter().any(|listed| match listed.strip_prefix('*') {
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            None => host == *listed,
        })
    }
}

/// Splits `host:port`; IPv6 hosts are in brackets.
///
/// # Errors
/// [`AddressError::Malformed`].
pub fn split_host_port(text: &str) -> Result<(&str, u16), AddressError> {
    let malformed = || AddressError::Malformed(text.to_owned());
    let (host, port) = text.rsplit_once(':').ok_or_else(malformed)?;
    let port = port
        .parse::<u16>()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(malformed)?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) if v6.parse::<Ipv6Addr>().is_ok() => v6,
        Some(_) => return Err(malformed()),
        None if host.parse::<Ipv4Addr>().is_ok() || is_host_name(host) => host,
        None => return Err(malformed()),
    };
    Ok((host, port))
}

fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let text = text.strip_suffix('.').unwrap_or(text);
    text.len() <= 253 && text.split('.').all(label)
}

/// Unwraps an IPv4 address in an IPv6 address: mapped, compatible, NAT64, 6to4.
fn unwrap_ipv4(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip.to_canonical() else {
        return ip.to_canonical();
    };
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => v4(high, low),
        _ => IpAddr::V6(v6),
    }
}

fn is_broadcast(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.is_broadcast())
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str], dev: bool) -> AllowList {
        AllowList::new(entries.iter().copied(), [8081], dev).unwrap()
    }

    fn allowed(list: &AllowList, host: &str, addr: &str) -> bool {
        list.check(host, addr.parse().unwrap()).is_ok()
    }

    #[test]
    fn only_listed_networks_and_hosts_pass() {
        let list = list(
            &[
                "10.1.0.0/16",
                "192.0.2.7",
                "spark.example.org",
                "*.lake.example.org",
            ],
            false,
        );
        assert!(allowed(&list, "anything", "10.1.2.3:15002"));
        assert!(allowed(&list, "anything", "[::ffff:10.1.2.3]:15002"));
        assert!(!allowed(&list, "anything", "10.2.2.3:15002"));
        assert!(allowed(&list, "anything", "192.0.2.7:15002"));
        assert!(allowed(&list, "Spark.Example.org.", "203.0.113.9:15002"));
        assert!(allowed(&list, "a.lake.example.org", "203.0.113.9:15002"));
        assert!(!allowed(&list, "lake.example.org", "203.0.113.9:15002"));
        assert!(!allowed(&list, "xlake.example.org", "203.0.113.9:15002"));
        assert!(!allowed(
            &AllowList::default(),
            "spark.example.org",
            "203.0.113.9:15002"
        ));
    }

    #[test]
    fn dangerous_answers_are_refused_even_for_listed_hosts() {
        let list = list(&["0.0.0.0/0", "::/0", "spark.example.org"], false);
        for addr in [
            "127.0.0.1:15002",
            "127.8.9.1:15002",
            "[::1]:15002",
            "[::ffff:127.0.0.1]:15002",
            "169.254.169.254:80",
            "[fe80::1]:15002",
            "[::7f00:1]:15002",
            "[64:ff9b::a9fe:a9fe]:80",
            "[2002:7f00:1::]:15002",
            "[fd00:ec2::254]:80",
            "100.100.100.200:80",
            "192.0.0.192:80",
            "0.0.0.0:15002",
            "224.0.0.1:15002",
            "255.255.255.255:15002",
            "10.0.0.1:8081",
        ] {
            assert!(!allowed(&list, "spark.example.org", addr), "{addr}");
        }
        assert!(allowed(&list, "spark.example.org", "10.0.0.1:15002"));
    }

    #[test]
    fn dev_permits_loopback_but_not_the_unlisted() {
        let list = list(&[], true);
        assert!(allowed(&list, "localhost", "127.0.0.1:8081"));
        assert!(allowed(&list, "localhost", "[::1]:15002"));
        assert!(!allowed(&list, "x", "10.0.0.1:15002"));
    }

    #[test]
    fn every_bad_entry_is_named() {
        let bad = AllowList::new(["10.0.0.0/33", "a b", "ok.example"], [], false).unwrap_err();
        assert_eq!(
            bad,
            [InvalidEntry("10.0.0.0/33".into()), InvalidEntry("a b".into())]
        );
    }

    #[test]
    fn host_and_port_are_parsed_strictly() {
        assert_eq!(split_host_port("a.b:1"), Ok(("a.b", 1)));
        assert_eq!(split_host_port("[::1]:15002"), Ok(("::1", 15002)));
        for text in [
            "a",
            "a:",
            "a:0",
            "a:65536",
            ":1",
            "::1:5",
            "a/b:1",
            "u@h:1",
            "[x]:1",
            "http://a:1",
        ] {
            assert!(split_host_port(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn names_are_checked_by_what_they_resolve_to() {
        let refused = list(&["localhost"], false)
            .resolve("localhost:15002")
            .await
            .unwrap_err();
        assert!(refused.is_permanent(), "{refused}");
        assert!(
            refused.to_string().contains("localhost (127.0.0.1:15002)"),
            "{refused}"
        );
        assert_eq!(
            refused.public(),
            "the address of its server may not be used: loopback addresses are Berth's own machine"
        );
        assert!(list(&[], true).resolve("localhost:15002").await.is_ok());
    }
}
