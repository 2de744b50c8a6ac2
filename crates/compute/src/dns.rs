//! Cache of the checked addresses of servers.
//!
//! The proxies connect to the addresses in a route and resolve no names, so every route
//! to a named server needs a resolution. Results are cached for a short time, with one
//! resolution per server at a time, so that many routes to a server cost one.

use crate::address::{AddressError, AllowList};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Lifetime of a result. Together with the maximum age of a route for a new connection
/// of a proxy (5 s), this is the delay until a changed name takes effect.
const LIFETIME: Duration = Duration::from_secs(2);
/// Number of servers from which expired ones are removed.
const SWEEP_AT: usize = 256;

type Resolved = Result<Arc<[SocketAddr]>, AddressError>;
type Slot = Arc<tokio::sync::Mutex<Option<(Instant, Resolved)>>>;

/// Checked addresses of servers, none older than [`LIFETIME`].
#[derive(Debug)]
pub(crate) struct AddressCache {
    allow: Arc<AllowList>,
    servers: Mutex<HashMap<String, Slot>>,
}

impl AddressCache {
    pub(crate) fn new(allow: Arc<AllowList>) -> Self {
        Self {
            allow,
            servers: Mutex::default(),
        }
    }

    /// Returns the allowed addresses of `host:port`.
    ///
    /// # Errors
    /// [`AddressError`] if one address is forbidden.
    pub(crate) async fn addresses(&self, server: &str) -> Resolved {
        let slot = self.slot(server);
        let mut cached = slot.lock().await;
        if let Some((at, cached)) = &*cached
            && at.elapsed() < LIFETIME
        {
            return cached.clone();
        }
        let resolved = self.allow.resolve(server).await.map(Arc::from);
        if let Err(error) = &resolved {
            tracing::warn!(server, %error, "address of a server rejected; routes to it have no address");
        }
        *cached = Some((Instant::now(), resolved.clone()));
        resolved
    }

    fn slot(&self, server: &str) -> Slot {
        let mut servers = self.servers.lock();
        if let Some(slot) = servers.get(server) {
            return Arc::clone(slot);
        }
        if servers.len() >= SWEEP_AT {
            servers.retain(|_, slot| {
                let idle = slot
                    .try_lock()
                    .is_ok_and(|cached| cached.as_ref().is_none_or(|(at, _)| at.elapsed() >= LIFETIME));
                !idle
            });
        }
        Arc::clone(servers.entry(server.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestResolver;

    fn checked(names: &TestResolver) -> AddressCache {
        let allow = AllowList::new(["10.0.0.0/8", "fd00::/16"], [], false).unwrap();
        AddressCache::new(Arc::new(allow.with_resolver(Arc::new(names.clone()))))
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_followed_and_many_questions_are_one() {
        let names = TestResolver::default();
        names.set("spark.example.org", &["10.0.0.1", "fd00::1"]);
        let checked = checked(&names);
        let ask = || checked.addresses("spark.example.org:15002");
        let all = futures::future::join_all((0..100).map(|_| ask())).await;
        let expected: Vec<SocketAddr> = vec![
            "10.0.0.1:15002".parse().unwrap(),
            "[fd00::1]:15002".parse().unwrap(),
        ];
        assert!(
            all.iter()
                .all(|resolved| resolved.as_deref().unwrap() == expected)
        );
        assert_eq!(names.count(), 1);

        names.set("spark.example.org", &["10.0.0.2"]);
        tokio::time::advance(LIFETIME).await;
        assert_eq!(*ask().await.unwrap(), ["10.0.0.2:15002".parse().unwrap()]);
        // One bad answer among good ones is enough, and it is over when it is over.
        names.set("spark.example.org", &["10.0.0.2", "169.254.169.254"]);
        tokio::time::advance(LIFETIME).await;
        let refused = ask().await.unwrap_err();
        assert!(matches!(refused, AddressError::Refused { .. }), "{refused}");
        names.set("spark.example.org", &[]);
        tokio::time::advance(LIFETIME).await;
        assert!(matches!(
            ask().await.unwrap_err(),
            AddressError::Unresolved { .. }
        ));
        names.set("spark.example.org", &["10.0.0.3"]);
        tokio::time::advance(LIFETIME).await;
        assert_eq!(*ask().await.unwrap(), ["10.0.0.3:15002".parse().unwrap()]);
        assert_eq!(names.count(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let checked = checked(&TestResolver::default());
        for n in 0..10 * SWEEP_AT {
            let _ = checked.addresses(&format!("h{n}.example.org:1")).await;
            tokio::time::advance(LIFETIME / 64).await;
        }
        assert!(checked.servers.lock().len() <= SWEEP_AT);
    }
}
