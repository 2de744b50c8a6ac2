//! Results on Sail that are retained after the engine has ended: who receives them, and when they end.

use crate::held_streams::{error_class, execute, execute_of, read, reattach, results, sail, until_held};
use test_support::fake_spark::{OPERATION, Shape};

/// The operation id is the client's choice, so another subject may choose the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_subject_does_not_displace_a_stream() {
    const SIZE: usize = 10_000;
    let rig = sail(|_| {}).await;
    let token = rig.token();
    let client = rig.client().await;
    let mut body = execute(&client, &token, Shape::Results(50, SIZE)).await;
    read(&mut body, 1).await;
    drop(body);
    until_held(&rig, 1.0).await;

    let mut other = rig.claims();
    other.sub = "sa|other".parse().unwrap();
    let other = rig.sign(&other);
    let (rpc, body) = execute_of(&other, OPERATION, Shape::Results(2, 10));
    let reply = rig.call(rpc.body(body)).await;
    assert!(reply.body == results(0, 2, 10), "{reply:?}");
    let reply = rig.call(reattach(&other, Some(0))).await;
    assert_eq!(error_class(&reply), "INVALID_HANDLE.OPERATION_NOT_FOUND");

    let reply = rig.call(reattach(&token, None)).await;
    assert!(reply.body == results(0, 50, SIZE), "{reply:?}");
}
