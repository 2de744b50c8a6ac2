//! The rig works: every shape goes through a real spark-proxy without a failure,
//! and a message without the right identity does not pass for one with it.

use load::driver::Rig;
use load::driver::peer::Kind;
use load::driver::scenario::{Effort, Scenario};
use load::protocol::{Job, Target};
use load::wire::Method;
use local_stack::paths::{binary, home};
use std::path::Path;

async fn rig() -> anyhow::Result<Rig> {
    let program = Path::new(env!("CARGO_BIN_EXE_load"));
    Rig::start(program, binary("spark-proxy")?, home()).await
}

#[tokio::test]
async fn every_shape_goes_through_berth() {
    let mut rig = rig().await.unwrap();
    for scenario in Scenario::ALL {
        for &kind in scenario.peers() {
            if kind == Kind::Direct || kind.is_berth() {
                let values = scenario.measure(&mut rig, kind, &Effort::SMOKE).await.unwrap();
                assert!(!values.is_empty(), "{} measures nothing", scenario.name());
            }
        }
    }
    assert_eq!(rig.wrong, Vec::<String>::new());
    let counts = rig.counts().await.unwrap();
    assert!(
        counts.messages > 100,
        "only {} messages were looked at",
        counts.messages
    );
    assert_eq!((counts.strangers, counts.broken), (0, 0));
}

#[tokio::test]
async fn a_message_without_the_right_identity_is_counted() {
    let mut rig = rig().await.unwrap();
    let caller = rig.caller(0).unwrap();
    let count = 3;
    let job = Job::Connects {
        target: Target {
            // Past the proxy, so nobody says who speaks.
            address: rig.kit.backend.asserting[0],
            ca: None,
            anonymous: true,
        },
        caller: caller.clone(),
        count,
        watch: Vec::new(),
    };
    let outcome = rig.load("past the proxy", &job).await.unwrap();
    assert_eq!((outcome.calls, outcome.errors), (count as u64, 0));
    let counts = rig.counts().await.unwrap();
    assert_eq!((counts.messages, counts.strangers), (count as u64, count as u64));

    rig.prove_refusal(Kind::Berth).await.unwrap();
    assert!(rig.prove_refusal(Kind::Direct).await.is_err());

    // And a call that Berth refuses is a failure, not a quick answer.
    let target = rig.peer(Kind::Berth).await.unwrap().target.clone();
    let job = Job::Calls {
        target: Target {
            anonymous: true,
            ..target
        },
        method: Method::Config,
        callers: vec![caller],
        connections: 1,
        concurrency: 1,
        warmup_ms: 0,
        millis: 100,
        watch: Vec::new(),
    };
    let outcome = rig.load("without a token", &job).await.unwrap();
    assert_eq!(outcome.calls, 0);
    assert!(outcome.error.unwrap().contains("gRPC status 16"));
    assert_eq!(rig.wrong.len(), 1);
}
