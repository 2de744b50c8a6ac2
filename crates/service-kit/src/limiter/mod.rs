//! Limiters by key: events per time ([`RateLimiter`]) and concurrent holders
//! ([`ConcurrencyLimiter`]). A limit of zero means no limit.

mod concurrency;
mod rate;

pub use concurrency::{ConcurrencyLimiter, Permit};
pub use rate::RateLimiter;

use std::net::{IpAddr, Ipv6Addr};

/// The limiter key of an address: IPv4 whole, IPv6 by its /64, because one
/// customer usually has a whole /64.
pub fn address_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_customer_is_one_address() {
        let key = |text: &str| address_key(text.parse().unwrap());
        assert_eq!(key("2001:db8:1:2:3::4"), key("2001:db8:1:2:ffff::1"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
    }
}
