use super::*;
use crate::activity::UsageRegistry;
use session_core::time::ManualClock;
use session_core::{Clock as _, Timestamp, TokenId};

fn spark_session(number: usize) -> SparkSessionId {
    format!("{number:08x}-89ab-cdef-0123-456789abcdef")
        .parse()
        .unwrap()
}

fn version(version: u64) -> RouteVersion {
    RouteVersion {
        store_epoch: 1,
        version,
    }
}

#[test]
fn a_binding_is_of_one_version_of_the_route() {
    let mut bound = BoundSparkSessions::default();
    for number in [3, 1, 2, 1] {
        bound.insert(version(2), spark_session(number));
    }
    assert_eq!(bound.ids.len(), 3);
    for number in 1..=3 {
        assert!(bound.contains(version(2), &spark_session(number)));
    }
    assert!(!bound.contains(version(2), &spark_session(4)));
    assert!(!bound.contains(version(3), &spark_session(1)), "a newer route");
    bound.insert(version(1), spark_session(4));
    assert!(
        !bound.contains(version(1), &spark_session(4)),
        "of an older route"
    );
    bound.insert(version(3), spark_session(4));
    assert_eq!(bound.ids, [spark_session(4)], "the older ones are gone");
}

#[test]
fn recorded_bindings_are_bounded() {
    let mut bound = BoundSparkSessions::default();
    for number in 0..3 * MAX_BOUND {
        bound.insert(version(1), spark_session(number));
        assert!(bound.contains(version(1), &spark_session(number)));
        assert!(bound.ids.len() <= MAX_BOUND);
    }
}

/// Without its record, an operation of which a client returns would be run again.
#[tokio::test(start_paused = true)]
async fn a_session_is_kept_while_clients_may_return_for_operations_on_sail() {
    let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1)));
    let claims = Claims {
        iss: String::new(),
        aud: String::new(),
        sub: "sa|ada".parse().unwrap(),
        org: "acme".parse().unwrap(),
        sid: SessionId::generate(clock.now(), 7),
        epoch: 1,
        iat: 0,
        nbf: 0,
        exp: 0,
        jti: TokenId::generate(clock.now(), 1),
    };
    let usage = UsageRegistry::new(clock, 0).of(&claims);
    let session = Session::new(claims.sid.clone(), Arc::clone(&usage));
    let unused = Duration::from_secs(1800);
    tokio::time::advance(unused).await;
    assert!(session.can_be_removed(unused));
    let operations = &usage.sail_operations;
    drop(
        operations
            .begin(1, &spark_session(1), "operation", &claims.sub)
            .unwrap(),
    );
    assert!(!session.can_be_removed(unused));
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert!(session.can_be_removed(unused));
}

/// A proxy keeps these for every session that made a call. Each limit is a size of the allocator,
/// less two counts of references: one more byte costs 32 or 16 for each session.
#[test]
fn what_is_kept_for_each_session_is_small() {
    let sizes = [
        ("Session", size_of::<Session>(), 240),
        ("SessionUsage", size_of::<SessionUsage>(), 240),
        ("SparkSessions", size_of::<SparkSessions>(), 80),
        ("CachedRoute", size_of::<CachedRoute>(), 40),
        ("Route", size_of::<Route>(), 208),
        ("Backend", size_of::<Backend>(), 208),
    ];
    for (name, size, max) in sizes {
        println!("{name}: {size} bytes");
        assert!(size <= max, "{name} has {size} bytes");
    }
}
