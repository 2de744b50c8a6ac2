//! Per-IP limit: connections of each client address, over all workers. Checked once per connection,
//! never per call.

use parking_lot::Mutex;
use service_kit::limiter::address_key;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Number of connections by address; has at most one entry per connection.
#[derive(Debug)]
pub(crate) struct Addresses {
    /// Limit of one address; 0 means no limit.
    most: usize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// The place of one connection; released on drop.
#[derive(Debug)]
pub(crate) struct Place {
    of: Arc<Addresses>,
    address: IpAddr,
}

/// The limit of the address is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

impl Addresses {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            counts: Mutex::default(),
        })
    }

    /// Takes a place for one more connection; `None` if there is no limit.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Option<Place>, Full> {
        if self.most == 0 {
            return Ok(None);
        }
        let address = address_key(address);
        let mut counts = self.counts.lock();
        let count = counts.entry(address).or_insert(0);
        if *count >= self.most {
            return Err(Full);
        }
        *count += 1;
        Ok(Some(Place {
            of: Arc::clone(self),
            address,
        }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.of.counts.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_address_has_its_own_places_and_gets_them_back() {
        let addresses = Addresses::new(2);
        let first = addresses.enter(ip("192.0.2.1")).unwrap();
        let mapped = addresses.enter(ip("::ffff:192.0.2.1")).unwrap();
        assert_eq!(addresses.enter(ip("192.0.2.1")).unwrap_err(), Full);
        let other = addresses.enter(ip("192.0.2.2")).unwrap();
        drop(first);
        let again = addresses.enter(ip("192.0.2.1")).unwrap();
        drop((mapped, other, again));
        assert!(addresses.counts.lock().is_empty());
    }

    #[test]
    fn ipv6_counts_by_64() {
        let addresses = Addresses::new(1);
        let _place = addresses.enter(ip("2001:db8:0:1::1")).unwrap();
        assert!(addresses.enter(ip("2001:db8:0:1:ffff::2")).is_err());
        assert!(addresses.enter(ip("2001:db8:0:2::1")).is_ok());
    }

    #[test]
    fn zero_counts_nothing() {
        let addresses = Addresses::new(0);
        for _ in 0..3 {
            assert!(addresses.enter(ip("192.0.2.1")).unwrap().is_none());
        }
    }
}
