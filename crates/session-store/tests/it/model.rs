//! The memory store and Redis under the same random operations: every result and the
//! final state must be equal.

use crate::common;
use crate::common::{
    Draft, FAR, Store, activate, close, principal, redis, request, revoke, revoke_one, touch,
};
use proptest::prelude::*;
use session_core::{Limits, Operation, Session, SessionKey, Status, Timestamp, TokenId, TokenUse, Totals};
use session_store::spark_bindings::{Bind, SparkSession};
use session_store::{Commit, Create, Kind, ListQuery, Report, Scope, TokenRecord, UsageDelta};
use std::collections::BTreeSet;
use std::time::Duration;

const ORGS: [&str; 3] = ["acme", "a", "a-b"];
const OWNERS: [&str; 3] = ["sa|bob", "sa|eve", "idp|x:y"];
const CLUSTERS: [&str; 2] = ["c1", "c2"];
const TEAMS: [Option<&str>; 3] = [None, Some("data"), Some("ml")];
const SERVERS: [&str; 3] = ["a:1", "b:1", "[::1]:1"];
/// Long expired or live for long, so that no result depends on the time.
const MOMENTS: [Option<u64>; 4] = [None, Some(5), Some(70_000), Some(9_000_000_000_000)];

/// One operation. Numbers select an existing object by remainder.
#[derive(Debug, Clone)]
enum Op {
    Create {
        org: usize,
        owner: usize,
        cluster: usize,
        team: usize,
        due: usize,
        request: usize,
        fingerprint: u8,
    },
    Commit {
        session: usize,
        change: usize,
        due: usize,
        stale: bool,
    },
    SetDue {
        session: usize,
        due: usize,
        stale: bool,
    },
    Claim {
        limit: usize,
    },
    Token {
        session: usize,
        token: u64,
        moment: usize,
        stale: bool,
    },
    Place {
        session: usize,
        servers: usize,
        alone: bool,
        leave: bool,
    },
    Bind {
        session: usize,
        spark: u8,
        ticket: u8,
        generation: u64,
        prepare: bool,
    },
    Prepared {
        session: usize,
        spark: u8,
        ticket: u8,
        ready: bool,
    },
    Unbind {
        session: usize,
        which: usize,
        keep: bool,
    },
    Seal {
        session: usize,
        generation: u64,
    },
    Report {
        session: usize,
        proxy: u8,
        calls: Option<u32>,
        last: usize,
        name: u64,
        token: u64,
        stale: bool,
    },
    Quiet {
        session: usize,
        change: usize,
        last: usize,
    },
    Put {
        kind: usize,
        name: u8,
        expected: u64,
    },
    Delete {
        kind: usize,
        name: u8,
        expected: u64,
    },
    List {
        query: usize,
        owner: usize,
        team: usize,
        statuses: u8,
        size: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let n = 0..64_usize;
    prop_oneof![
        6 => (0..3_usize, 0..3_usize, 0..2_usize, 0..3_usize, 1..4_usize, 0..6_usize, 0..2_u8).prop_map(
            |(org, owner, cluster, team, due, request, fingerprint)| Op::Create {
                org, owner, cluster, team, due, request, fingerprint,
            }
        ),
        8 => (n.clone(), 0..6_usize, 0..4_usize, prop::bool::weighted(0.1))
            .prop_map(|(session, change, due, stale)| Op::Commit { session, change, due, stale }),
        2 => (n.clone(), 0..4_usize, prop::bool::weighted(0.1))
            .prop_map(|(session, due, stale)| Op::SetDue { session, due, stale }),
        2 => (0..6_usize).prop_map(|limit| Op::Claim { limit }),
        4 => (n.clone(), 0..20_u64, 1..4_usize, prop::bool::weighted(0.1))
            .prop_map(|(session, token, moment, stale)| Op::Token { session, token, moment, stale }),
        6 => (
            (n.clone(), 0..3_u8, prop::option::weighted(0.8, 0..3_u32), 0..3_usize),
            (0..12_u64, 0..20_u64, prop::bool::weighted(0.1)),
        ).prop_map(|((session, proxy, calls, last), (name, token, stale))| Op::Report {
            session, proxy, calls, last, name, token, stale,
        }),
        3 => (n.clone(), 0..6_usize, 0..3_usize)
            .prop_map(|(session, change, last)| Op::Quiet { session, change, last }),
        2 => (n.clone(), 0..4_usize, any::<bool>(), any::<bool>())
            .prop_map(|(session, servers, alone, leave)| Op::Place { session, servers, alone, leave }),
        4 => (n.clone(), 0..6_u8, 0..3_u8, 1..3_u64, any::<bool>()).prop_map(
            |(session, spark, ticket, generation, prepare)| Op::Bind { session, spark, ticket, generation, prepare }
        ),
        2 => (n.clone(), 0..6_u8, 0..3_u8, any::<bool>())
            .prop_map(|(session, spark, ticket, ready)| Op::Prepared { session, spark, ticket, ready }),
        2 => (n.clone(), 0..3_usize, prop::bool::weighted(0.2))
            .prop_map(|(session, which, keep)| Op::Unbind { session, which, keep }),
        1 => (n, 0..3_u64).prop_map(|(session, generation)| Op::Seal { session, generation }),
        2 => (0..3_usize, 0..3_u8, 0..3_u64).prop_map(|(kind, name, expected)| Op::Put { kind, name, expected }),
        1 => (0..3_usize, 0..3_u8, 0..3_u64)
            .prop_map(|(kind, name, expected)| Op::Delete { kind, name, expected }),
        3 => (0..6_usize, 0..3_usize, 0..3_usize, 0..32_u8, 1..5_usize)
            .prop_map(|(query, owner, team, statuses, size)| Op::List { query, owner, team, statuses, size }),
    ]
}

/// The sessions written so far, in the order of their creation.
#[derive(Default)]
struct World {
    sessions: Vec<Session>,
}

fn kind(n: usize) -> Kind {
    [Kind::Cluster, Kind::Catalog, Kind::Org][n]
}

fn moment(n: usize) -> Option<Timestamp> {
    MOMENTS[n].map(Timestamp::from_millis)
}

fn token_id(n: u64) -> TokenId {
    TokenId::generate(Timestamp::from_millis(n), n)
}

async fn walk(store: &Store, mut query: ListQuery) -> String {
    let mut sessions = Vec::new();
    loop {
        let page = store.list(&query).await.unwrap();
        sessions.extend(page.sessions);
        query.page_token = page.next;
        if query.page_token.is_none() {
            return format!("{sessions:?}");
        }
    }
}

fn list_query(query: usize, owner: usize, team: usize, statuses: u8, page_size: usize) -> ListQuery {
    let pick = |i: usize, status: &Status| (statuses >> i & 1 == 1).then_some(*status);
    let own = Scope::OwnAndTeams {
        owner: principal(OWNERS[owner]),
        teams: TEAMS[team].into_iter().map(str::to_owned).collect(),
    };
    ListQuery {
        scope: if query < 3 { Scope::Org } else { own },
        statuses: Status::ALL
            .iter()
            .enumerate()
            .filter_map(|(i, status)| pick(i, status))
            .collect(),
        owner: (team == 1).then(|| principal(OWNERS[owner])),
        cluster: (owner == 2).then(|| CLUSTERS[team % 2].parse().unwrap()),
        team: TEAMS[team].filter(|_| query.is_multiple_of(2)).map(str::to_owned),
        ..ListQuery::of_org(common::org(ORGS[query % 3]), page_size)
    }
}

/// A valid change of a session.
fn change_of(session: &Session, change: usize) -> Commit {
    if session.status().is_terminal() {
        // An ended session cannot change, so the commit has an old version and must
        // fail.
        let mut old = session.clone();
        old.state = session_core::State::Failed;
        let record = touch(&Draft::default().transition().session).record;
        return Commit {
            session: old,
            record,
            due: None,
        };
    }
    match change {
        0 => close(session),
        1 if session.status() == Status::Pending => activate(session),
        2 => revoke(session),
        3 => revoke_one(session, &token_id(session.version)),
        _ => touch(session),
    }
}

/// Runs one operation; returns its outcome as text.
async fn run(store: &Store, world: &World, op: &Op, fresh: &Create) -> String {
    let session = |n: usize| &world.sessions[n % world.sessions.len()];
    match op {
        Op::Create { .. } => format!("{:?}", store.create(fresh.clone()).await),
        Op::List {
            query,
            owner,
            team,
            statuses,
            size,
        } => walk(store, list_query(*query, *owner, *team, *statuses, *size)).await,
        Op::Claim { limit } => {
            // Equal due times have no order between partitions; claims of all or none
            // are comparable.
            let limit = if *limit == 0 { 0 } else { 1000 };
            let keys = store.claim_due(limit, FAR).await.unwrap();
            format!("{:?}", keys.into_iter().collect::<BTreeSet<SessionKey>>())
        }
        Op::Put {
            kind: k,
            name,
            expected,
        } => {
            let json = format!("{{\"e\":{expected}}}");
            format!(
                "{:?}",
                store
                    .put_definition(kind(*k), &name.to_string(), *expected, &json)
                    .await
            )
        }
        Op::Delete {
            kind: k,
            name,
            expected,
        } => {
            format!(
                "{:?}",
                store
                    .delete_definition(kind(*k), &name.to_string(), *expected)
                    .await
            )
        }
        _ if world.sessions.is_empty() => String::new(),
        Op::Commit {
            session: n,
            change,
            due,
            stale,
        } => {
            let mut commit = Commit {
                due: moment(*due),
                ..change_of(session(*n), *change)
            };
            commit.session.version += u64::from(*stale);
            format!("{:?}", store.commit(commit).await)
        }
        Op::SetDue {
            session: n,
            due,
            stale,
        } => {
            let session = session(*n);
            let version = session.version + u64::from(*stale);
            format!("{:?}", store.set_due(&session.key(), version, moment(*due)).await)
        }
        Op::Token {
            session: n,
            token,
            moment: at,
            stale,
        } => {
            let session = session(*n);
            let token = TokenRecord {
                id: token_id(*token),
                key_id: "k".to_owned(),
                subject: session.owner.clone(),
                epoch: session.token_epoch - u64::from(*stale),
                issued_at: Timestamp::from_millis(token % 5),
                expires_at: moment(*at).unwrap_or_default(),
                address: String::new(),
            };
            format!("{:?}", store.record_token(&session.key(), token, 3).await)
        }
        Op::Report {
            session: n,
            proxy,
            calls,
            last,
            name,
            token,
            stale,
        } => {
            let session = session(*n);
            let at = Timestamp::from_millis(1000 + token);
            let report = Report {
                generation: session.generation - u64::from(*stale),
                open_calls: *calls,
                last_activity_at: moment(*last),
                operations: vec![Operation {
                    spark_session_id: "s".to_owned(),
                    operation_id: name.to_string(),
                    method: "ExecutePlan".to_owned(),
                    started_at: at,
                    user_id: String::new(),
                }],
                usage_delta: (*name > 0).then_some(UsageDelta {
                    name: *name,
                    totals: Totals {
                        rpcs: *name,
                        bytes_in: 1,
                        bytes_out: 2,
                        open_stream_millis: 3,
                    },
                }),
                token_uses: vec![TokenUse {
                    id: token_id(*token),
                    first: at,
                    last: at.after(Duration::from_millis(*name)),
                }],
                ..common::report(&format!("p{proxy}"), 0)
            };
            format!("{:?}", store.apply_report(&session.key(), &report).await)
        }
        Op::Quiet {
            session: n,
            change,
            last,
        } => {
            let commit = change_of(session(*n), *change);
            let seen = moment(*last).unwrap_or_default();
            format!("{:?}", store.commit_if_idle(commit, seen).await)
        }
        Op::Place {
            session: n,
            servers,
            alone,
            leave,
        } => {
            let key = session(*n).key();
            if *leave {
                store.remove_placement(SERVERS[*servers % 3], &key).await.unwrap();
            }
            let servers: Vec<_> = SERVERS[..*servers]
                .iter()
                .map(|name| (*name).to_owned())
                .collect();
            format!(
                "{:?} {:?}",
                store.place_session(&servers, &key, *alone).await,
                store.list_placements(&key).await
            )
        }
        Op::Bind {
            session: n,
            spark,
            ticket,
            generation,
            prepare,
        } => {
            let bind = Bind {
                spark: spark_session(*spark),
                holder: session(*n).key(),
                generation: *generation,
                ticket: ticket.to_string(),
                prepare: prepare.then_some(FAR),
                limit: 3,
            };
            format!("{:?}", store.bind(&bind).await)
        }
        Op::Prepared {
            session: n,
            spark,
            ticket,
            ready,
        } => {
            let (key, spark) = (session(*n).key(), spark_session(*spark));
            let prepared = store
                .finish_preparation(&key, &spark, &ticket.to_string(), *ready)
                .await;
            format!("{prepared:?}")
        }
        Op::Unbind {
            session: n,
            which,
            keep,
        } => {
            let key = session(*n).key();
            let bindings = store.list_bindings(&key).await.unwrap();
            if let Some(binding) = bindings.get(*which) {
                let keep = if *keep { FAR } else { Duration::ZERO };
                store.unbind(&key, binding, keep).await.unwrap();
            }
            format!("{bindings:?}")
        }
        Op::Seal {
            session: n,
            generation,
        } => {
            let key = session(*n).key();
            format!("{:?}", store.seal_bindings(&key, *generation).await)
        }
    }
}

/// Few ids on few servers, so that sessions meet.
fn spark_session(n: u8) -> SparkSession {
    SparkSession {
        server: SERVERS[usize::from(n % 2)].to_owned(),
        id: format!("0b5c2e9e-1f3a-4c6d-8e7f-{:012x}", n / 2).parse().unwrap(),
    }
}

/// All readable state of a store.
async fn dump(store: &Store, world: &World) -> Vec<String> {
    let mut all = Vec::new();
    for session in &world.sessions {
        let key = session.key();
        all.push(format!(
            "{:?} {:?} {:?} {:?} {:?}",
            store.get(&key).await,
            store.events(&key).await,
            store.live_tokens(&key).await,
            store.list_placements(&key).await,
            store.list_bindings(&key).await
        ));
        let mut used = store.usage(std::slice::from_ref(session)).await.unwrap()[0];
        // The stores have different clocks.
        used.last_activity_at = used
            .last_activity_at
            .map(|at| at.min(Timestamp::from_millis(1 << 30)));
        used.at = Timestamp::ZERO;
        all.push(format!(
            "{used:?} {:?} {:?}",
            store.operations(&key).await,
            store.token_uses(&key).await
        ));
    }
    for cluster in CLUSTERS {
        all.push(format!(
            "{:?}",
            store
                .list_live_on_cluster(&cluster.parse().unwrap(), None, 1000)
                .await
        ));
    }
    for n in 0..3 {
        all.push(format!("{:?}", store.list_all_definitions(kind(n)).await));
    }
    all
}

async fn compare(ops: &[Op]) {
    let (memory, redis) = (common::memory(), redis().await);
    let mut world = World::default();
    for (i, op) in ops.iter().enumerate() {
        let fresh = fresh(op);
        let expected = run(&memory, &world, op, &fresh).await;
        let got = run(&redis, &world, op, &fresh).await;
        assert_eq!(got, expected, "operation {i}: {op:?}");
        for session in &mut world.sessions {
            *session = memory.get(&session.key()).await.unwrap().unwrap();
        }
        if memory.get(&fresh.session.key()).await.unwrap().is_some() {
            world.sessions.push(fresh.session);
        }
    }
    assert_eq!(dump(&redis, &world).await, dump(&memory, &world).await);
}

/// The arguments of a create; a new session for every operation.
fn fresh(op: &Op) -> Create {
    let Op::Create {
        org,
        owner,
        cluster,
        team,
        due,
        request: id,
        fingerprint,
    } = op
    else {
        return Draft::default().create();
    };
    let draft = Draft {
        org: ORGS[*org],
        owner: OWNERS[*owner].to_owned(),
        cluster: CLUSTERS[*cluster],
        team: TEAMS[*team],
        ..Draft::default()
    };
    let limits = Limits {
        live_sessions_per_owner: 3,
        live_sessions: 6,
        ..common::plenty()
    };
    let request = if *id < 3 {
        request(&id.to_string(), &fingerprint.to_string())
    } else {
        None
    };
    Create {
        due: moment(*due).unwrap_or_default(),
        request,
        limits,
        ..draft.create()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_time: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_and_redis_return_the_same_results(ops in prop::collection::vec(op(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(120), compare(&ops)).await.expect("it takes too long");
        });
    }
}
