//! Each rule of orphan collection, and a store that lost its records.

use super::*;
use crate::fixtures;
use crate::service::Lifecycle;
use compute::{ComputeProvider, SimCompute};
use service_kit::metrics::Registry;
use session_core::machine::{self, Event};
use session_core::time::ManualClock;
use session_core::{Actor, ChangeReason};
use session_store::memory::MemoryStore;
use session_store::prelude::*;

const MINUTE: Duration = Duration::from_secs(60);
const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);

fn create(n: u64, now: Timestamp) -> machine::Transition {
    machine::create(fixtures::new_session(n, &fixtures::cluster(), now), now)
}

fn closed(session: &Session) -> Session {
    let close = Event::Close {
        reason: ChangeReason::CloseRequested,
    };
    let change = machine::apply(session, &close, &Actor::System, START).unwrap();
    change.unwrap().session
}

fn found(session: &Session, generation: u64) -> Found {
    Found {
        key: session.key(),
        generation,
        cluster: session.cluster.clone(),
        install_id: "ours".to_owned(),
        age: MINUTE,
    }
}

/// A snapshot of a store that lost nothing and has been available for long.
fn snapshot(found: Vec<(Found, Option<Session>)>, at: Duration) -> Snapshot {
    let installation = serde_json::json!({
        "id": "ours", "whole_since": START.before(1000 * MINUTE), "seen_at": START, "store_epoch": 1
    });
    Snapshot {
        now: START.after(at),
        at,
        installation: serde_json::from_value(installation).unwrap(),
        store_available_for: 1000 * MINUTE,
        found,
        orgs_with_records: ["acme".parse().unwrap()].into(),
    }
}

/// The number of releases while this snapshot persists for `after`.
fn released(make: impl Fn(Duration) -> Snapshot, after: Duration) -> usize {
    let mut history = History::new();
    let mut at = Duration::ZERO;
    let mut all = 0;
    while at <= after {
        all += decide(&make(at), &mut history).release.len();
        at += GRACE_PERIOD;
    }
    all
}

#[test]
fn required_compute_stays_and_proven_orphans_are_released() {
    let live = create(1, START).session;
    let ended = closed(&live);
    let mut replaced = live.clone();
    replaced.generation = 2;
    let cases = [
        (Some(live.clone()), 1, ComputeState::InUse),
        (Some(live.clone()), 2, ComputeState::NewerThanRecord),
        (Some(ended.clone()), 1, ComputeState::SessionEnded),
        (Some(ended), 2, ComputeState::NewerThanRecord),
        (Some(replaced.clone()), 1, ComputeState::Replaced),
        (Some(replaced), 2, ComputeState::InUse),
        (None, 1, ComputeState::Quarantined),
    ];
    for (record, generation, state) in cases {
        let one = (found(&live, generation), record);
        let plan = decide(&snapshot(vec![one.clone()], MINUTE), &mut History::new());
        assert_eq!(plan.counts, [(state, 1)].into());
        assert!(plan.release.is_empty(), "not within the grace period");
        let proven = matches!(state, ComputeState::SessionEnded | ComputeState::Replaced);
        assert_eq!(plan.repeat, proven);
        let gone = released(|at| snapshot(vec![one.clone()], at), GRACE_PERIOD);
        assert_eq!(gone, usize::from(proven), "{state:?}");
    }
}

#[test]
fn a_session_that_releases_its_compute_is_only_reconciled() {
    let mut session = create(1, START).session;
    session.state = State::IdleReleased { wake_after: START };
    let one = (found(&session, 1), Some(session.clone()));
    let plan = decide(&snapshot(vec![one], MINUTE), &mut History::new());
    assert_eq!((plan.reconcile, plan.release), (vec![session.key()], Vec::new()));
}

#[test]
fn compute_of_another_installation_is_never_released() {
    let session = create(1, START).session;
    for record in [None, Some(closed(&session))] {
        let mut theirs = found(&session, 1);
        theirs.install_id = "theirs".to_owned();
        let one = (theirs, record);
        assert_eq!(released(|at| snapshot(vec![one.clone()], at), 100 * MINUTE), 0);
    }
}

#[test]
fn compute_without_a_record_is_released_after_the_quarantine_if_nothing_was_lost() {
    let session = create(1, START).session;
    // Started a minute before the first snapshot.
    let one = |at: Duration| {
        let mut found = found(&session, 1);
        found.age += at;
        vec![(found, None)]
    };
    let long = QUARANTINE + MINUTE;
    assert_eq!(released(|at| snapshot(one(at), at), QUARANTINE - GRACE_PERIOD), 0);
    assert!(released(|at| snapshot(one(at), at), QUARANTINE) > 0);

    let emptied = |at| Snapshot {
        orgs_with_records: BTreeSet::new(),
        ..snapshot(one(at), at)
    };
    assert_eq!(
        released(emptied, long),
        0,
        "its organization has no record at all"
    );
    let unavailable = |at| Snapshot {
        store_available_for: QUARANTINE - MINUTE,
        ..snapshot(one(at), at)
    };
    assert_eq!(released(unavailable, long), 0, "the store was unavailable");
    let restored = |at| {
        let mut snapshot = snapshot(one(at), at);
        snapshot.installation.whole_since = START;
        snapshot
    };
    assert_eq!(released(restored, long), 0, "older than whole_since");
}

#[test]
fn a_record_that_reappears_ends_the_quarantine() {
    let session = create(1, START).session;
    let mut history = History::new();
    let mut at = Duration::ZERO;
    while at <= 10 * QUARANTINE {
        // The record exists every tenth minute.
        let minute = at.as_secs() / 60;
        let record = minute.is_multiple_of(10).then(|| session.clone());
        let mut one = found(&session, 1);
        one.age += at;
        assert!(
            decide(&snapshot(vec![(one, record)], at), &mut history)
                .release
                .is_empty()
        );
        at += MINUTE;
    }
}

#[test]
fn a_pass_with_too_many_orphans_is_halted() {
    let many = |ended: u64, all: u64| {
        let mut each = Vec::new();
        for n in 0..all {
            let live = create(n, START).session;
            let record = if n < ended { closed(&live) } else { live.clone() };
            each.push((found(&live, 1), Some(record)));
        }
        let mut history = History::new();
        decide(&snapshot(each.clone(), Duration::ZERO), &mut history);
        decide(&snapshot(each, GRACE_PERIOD), &mut history)
    };
    for (ended, all, halted) in [
        (3, 3, false),
        (4, 4, true),
        (10, 100, false),
        (11, 100, true),
        (20, 1000, false),
        (21, 1000, true),
    ] {
        let plan = many(ended, all);
        let count = usize::try_from(ended).unwrap();
        assert_eq!(plan.halted, halted.then_some(count), "{ended} of {all}");
        assert_eq!(plan.release.len(), if halted { 0 } else { count });
    }
}

/// Orphan collection of a manager on a memory store and simulated compute.
struct World {
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
    sim: SimCompute,
    freshness: Arc<ReportFreshness>,
    orphans: OrphanCollector,
}

impl World {
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::at(START));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let sim = SimCompute::new();
        sim.forget_releases();
        let world = Self::on(clock, store, sim);
        world.define().await;
        world
    }

    fn on(clock: Arc<ManualClock>, store: Arc<MemoryStore>, sim: SimCompute) -> Self {
        let shared: Arc<dyn SessionStore> = Arc::clone(&store) as _;
        let computes = Providers::new(sim.registry());
        let freshness = Arc::new(ReportFreshness::new(Arc::clone(&shared)).with_settable_clock());
        let metrics = Arc::new(Metrics::new(&Registry::new()));
        let definitions = DefinitionStore::new(Arc::clone(&shared));
        let lifecycle = Lifecycle::new(&shared, &definitions, &computes, &freshness, &metrics);
        Self {
            clock,
            store,
            sim,
            freshness,
            orphans: lifecycle.orphans,
        }
    }

    async fn define(&self) {
        fixtures::define(&self.store, &fixtures::cluster()).await;
        let installation = self.orphans.identity.confirm().await.unwrap().unwrap();
        self.sim.install(&installation.id);
        self.freshness.store_available().await;
    }

    async fn create(&self, n: u64) -> Session {
        let now = self.store.now().await.unwrap();
        let new = fixtures::new_session(n, &fixtures::cluster(), now);
        fixtures::create(&self.store, new, now).await
    }

    async fn make(&self, session: &Session) {
        let spec = ComputeSpec {
            key: session.key(),
            generation: 1,
            cluster: fixtures::cluster(),
            catalog: None,
        };
        self.sim.ensure(&spec).await.unwrap();
    }

    async fn pass(&self, minutes: u64) {
        for _ in 0..minutes {
            self.orphans.pass().await.unwrap();
            self.clock.advance(MINUTE);
            tokio::time::advance(MINUTE).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_orphan_is_released_and_other_compute_stays() {
    let world = World::new().await;
    world.pass(2).await;
    let wanted = world.create(1).await;
    world.make(&wanted).await;
    // Started for a record that never existed.
    let orphan = create(2, START).session;
    world.make(&orphan).await;
    world.pass(14).await;
    assert_eq!(world.sim.live().len(), 2);
    world.pass(3).await;
    assert_eq!(world.sim.live(), [(wanted.key(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn the_loss_of_all_records_releases_nothing() {
    let world = World::new().await;
    world.pass(2).await;
    let sessions = [world.create(1).await, world.create(2).await];
    for session in &sessions {
        world.make(session).await;
    }
    world.pass(20).await;
    // The store of the same manager is emptied and gets new sessions.
    let mut emptied = World::on(
        Arc::clone(&world.clock),
        Arc::new(MemoryStore::new(Arc::clone(&world.clock) as _)),
        world.sim.clone(),
    );
    emptied.orphans.identity = world.orphans.identity;
    emptied
        .orphans
        .identity
        .replace_store(Arc::clone(&emptied.store) as _);
    emptied.define().await;
    emptied.create(3).await;
    emptied.pass(60).await;
    assert_eq!(emptied.sim.live().len(), 2, "started before whole_since");

    // For a new manager on an empty store the compute is another installation's.
    let fresh = World::on(
        Arc::clone(&world.clock),
        Arc::new(MemoryStore::new(Arc::clone(&world.clock) as _)),
        world.sim.clone(),
    );
    fresh.create(4).await;
    fresh.pass(60).await;
    assert_eq!(fresh.sim.live().len(), 2, "labelled by another installation");
}
