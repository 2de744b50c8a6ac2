//! Names whose addresses change: the proxy connects to the addresses that session-manager checked,
//! whatever the local resolver returns.

use crate::common::{Rig, within};
use session_core::Reason;
use session_proto::internal::Route;
use std::net::{Ipv4Addr, SocketAddr};
use test_support::fake_spark::FakeSpark;
use tonic::Code;

/// `localhost:<port>` as the machine resolves it, and two servers at the same port of other
/// addresses.
struct Named {
    trap: FakeSpark,
    good: FakeSpark,
    moved: FakeSpark,
    port: u16,
}

impl Named {
    async fn start() -> Self {
        let at = |last, port| SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), port));
        for _ in 0..100 {
            let good = FakeSpark::start_at(at(2, 0)).await.unwrap();
            let port = good.address().port();
            // The port may be in use at another address.
            if let Ok(trap) = FakeSpark::start_at(at(1, port)).await
                && let Ok(moved) = FakeSpark::start_at(at(3, port)).await
            {
                return Self {
                    trap,
                    good,
                    moved,
                    port,
                };
            }
        }
        panic!("no port is free at three addresses");
    }

    /// Sets the route that session-manager returns after it resolved the name.
    fn route(&self, rig: &Rig, addresses: &[String]) -> Route {
        let mut route = rig.route();
        if let Some(backend) = &mut route.backend {
            backend.endpoint = format!("localhost:{}", self.port);
            backend.engine = "sail".to_owned();
            backend.addresses = addresses.to_vec();
        }
        route
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_checked_addresses_are_connected_and_changes_apply() {
    let rig = Rig::with(|config| config.listen.workers = 1).await;
    let named = Named::start().await;
    let resolved: Vec<_> = tokio::net::lookup_host(("localhost", named.port))
        .await
        .unwrap()
        .collect();
    assert!(
        resolved.contains(&named.trap.address()),
        "the local resolution finds the wrong server"
    );

    // The first two addresses have no listener; one is IPv6.
    let dead = ["127.0.0.9", "[::1]"].map(|ip| format!("{ip}:{}", named.port));
    let good = named.good.address().to_string();
    rig.routes
        .set(named.route(&rig, &[dead[0].clone(), dead[1].clone(), good]));
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    assert_eq!(named.good.seen().requests.len(), 1);

    // The server moved: version and generation are unchanged; only the next connection fails.
    rig.routes
        .set(named.route(&rig, &[named.moved.address().to_string()]));
    named.good.stop();
    within("calls follow the name", async {
        while rig.call(rig.rpc()).await.code() != Code::Ok {}
    })
    .await;
    assert!(!named.moved.seen().requests.is_empty());

    // The name now has a forbidden address: session-manager returns none.
    rig.routes.set(named.route(&rig, &[]));
    assert_eq!(
        rig.call(rig.rpc()).await.code(),
        Code::Ok,
        "open connections continue"
    );
    named.moved.stop();
    within("the connection is gone", async {
        loop {
            let reply = rig.call(rig.rpc()).await;
            if reply.code() == Code::Unavailable {
                reply.refused(Reason::BackendUnavailable);
                return;
            }
        }
    })
    .await;

    assert_eq!(
        named.trap.seen().connections,
        0,
        "the local resolution is not used"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_not_resolved_while_session_manager_is_unreachable() {
    let rig = Rig::with(|config| config.listen.workers = 1).await;
    let named = Named::start().await;
    rig.routes
        .set(named.route(&rig, &[named.good.address().to_string()]));
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    rig.routes.go_away();
    assert_eq!(
        rig.call(rig.rpc()).await.code(),
        Code::Ok,
        "open connections continue"
    );
    named.good.stop();
    within("the connection is gone", async {
        while rig.call(rig.rpc()).await.code() == Code::Ok {}
    })
    .await;
    for _ in 0..3 {
        assert_ne!(rig.call(rig.rpc()).await.code(), Code::Ok);
    }
    assert_eq!(named.trap.seen().connections, 0);
    assert_eq!(named.moved.seen().connections, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_address_makes_the_route_invalid() {
    let rig = Rig::with(|config| config.listen.workers = 1).await;
    let named = Named::start().await;
    for bad in ["localhost:1", "127.0.0.1", "", "127.0.0.1:x"] {
        rig.routes.set(named.route(&rig, &[bad.to_owned()]));
        rig.call(rig.rpc()).await.refused(Reason::ControlPlaneUnavailable);
    }
    assert_eq!(named.trap.seen().connections, 0);
}
