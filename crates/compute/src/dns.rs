//! Checked addresses of servers, cached for a moment.
//!
//! The proxies dial the addresses that a route names and resolve nothing
//! themselves, so every route to a named server needs a look-up. They are kept
//! for a moment, and asked for by one caller at a time, so that many routes to
//! one server cost one.

use crate::address::{AddressError, AllowList};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// For how long an answer is used again. Together with the age that a proxy
/// allows a route to which it makes a new connection (5 s), this is how late a
/// change of a name is seen.
const KEPT: Duration = Duration::from_secs(2);
/// So many servers are remembered before old ones are looked for.
const MANY: usize = 256;

type Known = Result<Arc<[SocketAddr]>, AddressError>;
type Slot = Arc<tokio::sync::Mutex<Option<(Instant, Known)>>>;

/// Checked addresses of servers, none older than a moment.
#[derive(Debug)]
pub(crate) struct Checked {
    allow: Arc<AllowList>,
    servers: Mutex<HashMap<String, Slot>>,
}

impl Checked {
    pub(crate) fn new(allow: Arc<AllowList>) -> Self {
        Self {
            allow,
            servers: Mutex::default(),
        }
    }

    /// What may be dialled for `host:port` now.
    ///
    /// # Errors
    /// [`AddressError`]; one forbidden answer is enough.
    pub(crate) async fn addresses(&self, server: &str) -> Known {
        let slot = self.slot(server);
        let mut known = slot.lock().await;
        if let Some((at, known)) = &*known
            && at.elapsed() < KEPT
        {
            return known.clone();
        }
        let found = self.allow.resolve(server).await.map(Arc::from);
        if let Err(error) = &found {
            tracing::warn!(server, %error, "a server may not be dialled, so routes to it name no address");
        }
        *known = Some((Instant::now(), found.clone()));
        found
    }

    fn slot(&self, server: &str) -> Slot {
        let mut servers = self.servers.lock();
        if let Some(slot) = servers.get(server) {
            return Arc::clone(slot);
        }
        if servers.len() >= MANY {
            servers.retain(|_, slot| {
                let idle = slot
                    .try_lock()
                    .is_ok_and(|known| known.as_ref().is_none_or(|(at, _)| at.elapsed() >= KEPT));
                !idle
            });
        }
        Arc::clone(servers.entry(server.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Names;

    fn checked(names: &Names) -> Checked {
        let allow = AllowList::new(["10.0.0.0/8", "fd00::/16"], [], false).unwrap();
        Checked::new(Arc::new(allow.with_lookup(Arc::new(names.clone()))))
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_followed_and_many_questions_are_one() {
        let names = Names::default();
        names.set("spark.example.org", &["10.0.0.1", "fd00::1"]);
        let checked = checked(&names);
        let ask = || checked.addresses("spark.example.org:15002");
        let all = futures::future::join_all((0..100).map(|_| ask())).await;
        let expected: Vec<SocketAddr> = vec![
            "10.0.0.1:15002".parse().unwrap(),
            "[fd00::1]:15002".parse().unwrap(),
        ];
        assert!(all.iter().all(|found| found.as_deref().unwrap() == expected));
        assert_eq!(names.asked(), 1);

        names.set("spark.example.org", &["10.0.0.2"]);
        tokio::time::advance(KEPT).await;
        assert_eq!(*ask().await.unwrap(), ["10.0.0.2:15002".parse().unwrap()]);
        // One bad answer among good ones is enough, and it is over when it is over.
        names.set("spark.example.org", &["10.0.0.2", "169.254.169.254"]);
        tokio::time::advance(KEPT).await;
        let refused = ask().await.unwrap_err();
        assert!(matches!(refused, AddressError::Refused { .. }), "{refused}");
        names.set("spark.example.org", &[]);
        tokio::time::advance(KEPT).await;
        assert!(matches!(
            ask().await.unwrap_err(),
            AddressError::Unresolved { .. }
        ));
        names.set("spark.example.org", &["10.0.0.3"]);
        tokio::time::advance(KEPT).await;
        assert_eq!(*ask().await.unwrap(), ["10.0.0.3:15002".parse().unwrap()]);
        assert_eq!(names.asked(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let checked = checked(&Names::default());
        for n in 0..10 * MANY {
            let _ = checked.addresses(&format!("h{n}.example.org:1")).await;
            tokio::time::advance(KEPT / 64).await;
        }
        assert!(checked.servers.lock().len() <= MANY);
    }
}
