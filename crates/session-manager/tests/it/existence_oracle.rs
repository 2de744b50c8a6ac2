//! A rejected call takes the same work whether the session exists or not: the same
//! store calls, by kind and number, for every RPC with a session id.

use crate::support::Manager;
use crate::support::recording::Calls;
use session_core::access::{Rpc, Rule};
use session_core::{Clock as _, Reason, SessionId, SystemClock};
use session_proto::error::reason_of;
use session_proto::internal as ledger;
use session_proto::v1::{self, SessionStatus};
use std::time::Duration;
use tonic::Status;

/// "You have no access to this, or it does not exist."
fn is_refusal(outcome: &Result<(), Status>) -> bool {
    outcome
        .as_ref()
        .is_err_and(|status| reason_of(status) == Some(Reason::NotAuthorized))
}

/// The store calls of one RPC of `bob`: the minimum of many runs, because background
/// tasks call the store too.
async fn work(manager: &Manager, id: &str, rpc: Rpc) -> Calls {
    let mut least: Option<Calls> = None;
    for _ in 0..25 {
        let before = manager.recording.calls();
        let outcome = about(manager, id, rpc).await;
        assert!(is_refusal(&outcome), "{rpc:?}: {outcome:?}");
        let mut made = manager.recording.calls();
        made.retain(|method, count| {
            *count -= before.get(method).copied().unwrap_or_default();
            *count > 0
        });
        let kept = least.get_or_insert_with(|| made.clone());
        kept.retain(|method, count| {
            *count = made.get(method).copied().unwrap_or_default().min(*count);
            *count > 0
        });
    }
    least.unwrap()
}

/// Every RPC with a session id.
fn of_a_session() -> impl Iterator<Item = Rpc> {
    Rpc::ALL.iter().copied().filter(|rpc| {
        let named = matches!(rpc.rule(), Rule::OnSession(_) | Rule::ServiceForCaller(_));
        // Those of token-issuer call the ledger's.
        (named && rpc.service() != "TokenService") || *rpc == Rpc::WatchSessions
    })
}

/// `bob` calls the RPC with this session id.
async fn about(manager: &Manager, id: &str, rpc: Rpc) -> Result<(), Status> {
    let session_id = id.to_owned();
    let (mut sessions, mut ledger) = (manager.sessions("bob"), manager.ledger("bob"));
    let soon = SystemClock.now().after(Duration::from_secs(1800));
    let at = Some(session_proto::convert::timestamp(soon));
    macro_rules! call {
        ($client:ident . $method:ident ( $message:expr )) => {
            $client.$method($message).await.map(drop)
        };
    }
    match rpc {
        Rpc::DescribeSession => {
            call!(sessions.describe_session(v1::DescribeSessionRequest {
                session_id,
                wait_ready: None
            }))
        }
        Rpc::UpdateSession => call!(sessions.update_session(v1::UpdateSessionRequest {
            session_id,
            name: Some("named".to_owned()),
            labels: None,
            version: 0,
        })),
        Rpc::ExtendSession => {
            call!(sessions.extend_session(v1::ExtendSessionRequest {
                session_id,
                expires_at: at
            }))
        }
        Rpc::KeepSessionAlive => {
            call!(sessions.keep_session_alive(v1::KeepSessionAliveRequest {
                session_id,
                until: at
            }))
        }
        Rpc::WarmSession => call!(sessions.warm_session(v1::WarmSessionRequest { session_id })),
        Rpc::CloseSession => call!(sessions.close_session(v1::CloseSessionRequest { session_id })),
        Rpc::WatchSessions => call!(sessions.watch_sessions(v1::WatchSessionsRequest { session_id })),
        Rpc::ListSessionEvents => {
            call!(sessions.list_session_events(v1::ListSessionEventsRequest { session_id }))
        }
        Rpc::ListOperations => call!(sessions.list_operations(v1::ListOperationsRequest { session_id })),
        Rpc::InterruptOperations => {
            call!(sessions.interrupt_operations(v1::InterruptOperationsRequest {
                session_id,
                operation_ids: Vec::new(),
            }))
        }
        Rpc::RecordToken => call!(ledger.record_token(ledger::RecordTokenRequest {
            session_id,
            ..Default::default()
        })),
        Rpc::ListTokens => call!(ledger.list_tokens(ledger::ListTokensRequest { session_id })),
        Rpc::Revoke => call!(ledger.revoke(ledger::RevokeRequest {
            session_id,
            token_id: "t-01jdq8f2mxk7w3v9c5ba".to_owned(),
        })),
        Rpc::RevokeAll => call!(ledger.revoke_all(ledger::RevokeAllRequest { session_id })),
        other => panic!("{other:?} speaks of a session and has no call here"),
    }
}

#[tokio::test]
async fn a_foreign_session_takes_the_same_work_as_a_missing_one() {
    let manager = Manager::start_with("[limits]\ncalls_per_second_per_principal = 0\n").await;
    let key = manager.active("ada").await;
    // A session of another organization, and a missing one.
    let foreign = manager.create_in("umbrella", "eve").await;
    let nobodys = SessionId::generate(SystemClock.now(), 7).to_string();
    manager.until_status(&key, SessionStatus::Active).await;
    for rpc in of_a_session() {
        let none = work(&manager, &nobodys, rpc).await;
        assert!(!none.is_empty(), "{rpc:?}: nothing was recorded");
        for theirs in [&key, &foreign] {
            let done = work(&manager, theirs.id.as_str(), rpc).await;
            assert_eq!(done, none, "{rpc:?} on {}", theirs.org);
        }
    }
    manager.stop().await;
}
