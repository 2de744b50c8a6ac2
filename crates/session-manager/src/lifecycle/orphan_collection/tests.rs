//! Every rule of the comparison, one by one, and on a store that lost its records.

use super::*;
use compute::{ComputeProvider, SimCompute};
use service_kit::metrics::Registry;
use session_core::machine::{self, Event, NewSession};
use session_core::policy::PolicyRequest;
use session_core::time::ManualClock;
use session_core::{Actor, ChangeReason, Cluster, SessionId, SessionPolicy};
use session_store::Create;
use session_store::memory::MemoryStore;
use session_store::prelude::*;

const MINUTE: Duration = Duration::from_secs(60);
const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);

fn cluster() -> Cluster {
    Cluster {
        name: "c".parse().unwrap(),
        status: session_core::ClusterStatus::Active,
        engine: session_core::Engine::Sail,
        engine_version: None,
        client_versions: Vec::new(),
        granted_orgs: BTreeSet::default(),
        provider: session_core::Provider::Process {
            program: "/opt/sail".to_owned(),
            java_home: None,
            properties: BTreeMap::default(),
            python: None,
            driver_memory: None,
        },
        idle_policy: None,
        wake: Default::default(),
        policy: session_core::policy::PolicyRange::default(),
        managed_by_config: false,
        version: 0,
    }
}

fn create(n: u64, now: Timestamp) -> machine::Transition {
    let policy = SessionPolicy::resolve(&cluster(), &PolicyRequest::default()).unwrap();
    machine::create(
        NewSession {
            id: SessionId::generate(now, n),
            org: "acme".parse().unwrap(),
            owner: "sa|ada".parse().unwrap(),
            name: None,
            team: None,
            labels: BTreeMap::default(),
            cluster: "c".parse().unwrap(),
            catalog: None,
            policy,
        },
        now,
    )
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

/// A whole store that this manager has had for long.
fn sight(found: Vec<(Found, Option<Session>)>, at: Duration) -> Sight {
    let install = serde_json::json!({
        "id": "ours", "whole_since": START.before(1000 * MINUTE), "seen_at": START, "store_epoch": 1
    });
    Sight {
        now: START.after(at),
        at,
        install: serde_json::from_value(install).unwrap(),
        calm: 1000 * MINUTE,
        found,
        peopled: ["acme".parse().unwrap()].into(),
    }
}

/// What is given back after this much time of the same sight.
fn released(make: impl Fn(Duration) -> Sight, after: Duration) -> usize {
    let mut memory = Memory::new();
    let mut at = Duration::ZERO;
    let mut all = 0;
    while at <= after {
        all += decide(&make(at), &mut memory).release.len();
        at += PATIENCE;
    }
    all
}

#[test]
fn what_a_record_wants_stays_and_what_is_proven_superfluous_goes() {
    let live = create(1, START).session;
    let ended = closed(&live);
    let mut replaced = live.clone();
    replaced.generation = 2;
    let cases = [
        (Some(live.clone()), 1, Standing::Wanted),
        (Some(live.clone()), 2, Standing::Ahead),
        (Some(ended.clone()), 1, Standing::Ended),
        (Some(ended), 2, Standing::Ahead),
        (Some(replaced.clone()), 1, Standing::Replaced),
        (Some(replaced), 2, Standing::Wanted),
        (None, 1, Standing::Unknown),
    ];
    for (record, generation, standing) in cases {
        let one = (found(&live, generation), record);
        let plan = decide(&sight(vec![one.clone()], MINUTE), &mut Memory::new());
        assert_eq!(plan.counts, [(standing, 1)].into());
        assert!(plan.release.is_empty(), "not at first sight");
        let proven = matches!(standing, Standing::Ended | Standing::Replaced);
        assert_eq!(plan.soon, proven);
        let gone = released(|at| sight(vec![one.clone()], at), PATIENCE);
        assert_eq!(gone, usize::from(proven), "{standing:?}");
    }
}

#[test]
fn a_session_that_gives_its_compute_back_itself_is_only_looked_at() {
    let mut session = create(1, START).session;
    session.state = State::IdleReleased { wake_after: START };
    let one = (found(&session, 1), Some(session.clone()));
    let plan = decide(&sight(vec![one], MINUTE), &mut Memory::new());
    assert_eq!((plan.look, plan.release), (vec![session.key()], Vec::new()));
}

#[test]
fn what_another_installation_made_is_never_touched() {
    let session = create(1, START).session;
    for record in [None, Some(closed(&session))] {
        let mut theirs = found(&session, 1);
        theirs.install_id = "theirs".to_owned();
        let one = (theirs, record);
        assert_eq!(released(|at| sight(vec![one.clone()], at), 100 * MINUTE), 0);
    }
}

#[test]
fn without_a_record_it_goes_after_the_quarantine_and_only_while_nothing_was_lost() {
    let session = create(1, START).session;
    // Made a minute before the first sight.
    let one = |at: Duration| {
        let mut found = found(&session, 1);
        found.age += at;
        vec![(found, None)]
    };
    let long = QUARANTINE + MINUTE;
    assert_eq!(released(|at| sight(one(at), at), QUARANTINE - PATIENCE), 0);
    assert!(released(|at| sight(one(at), at), QUARANTINE) > 0);

    let emptied = |at| Sight {
        peopled: BTreeSet::new(),
        ..sight(one(at), at)
    };
    assert_eq!(
        released(emptied, long),
        0,
        "its organization has no record at all"
    );
    let away = |at| Sight {
        calm: QUARANTINE - MINUTE,
        ..sight(one(at), at)
    };
    assert_eq!(released(away, long), 0, "the store was away");
    let restored = |at| {
        let mut sight = sight(one(at), at);
        sight.install.whole_since = START;
        sight
    };
    assert_eq!(released(restored, long), 0, "it is older than the store's memory");
}

#[test]
fn a_record_that_comes_back_ends_the_quarantine() {
    let session = create(1, START).session;
    let mut memory = Memory::new();
    let mut at = Duration::ZERO;
    while at <= 10 * QUARANTINE {
        // Every tenth minute the record is there.
        let minute = at.as_secs() / 60;
        let record = minute.is_multiple_of(10).then(|| session.clone());
        let mut one = found(&session, 1);
        one.age += at;
        assert!(
            decide(&sight(vec![(one, record)], at), &mut memory)
                .release
                .is_empty()
        );
        at += MINUTE;
    }
}

#[test]
fn a_mass_deletion_stops_and_calls_for_a_human() {
    let many = |ended: u64, all: u64| {
        let mut each = Vec::new();
        for n in 0..all {
            let live = create(n, START).session;
            let record = if n < ended { closed(&live) } else { live.clone() };
            each.push((found(&live, 1), Some(record)));
        }
        let mut memory = Memory::new();
        decide(&sight(each.clone(), Duration::ZERO), &mut memory);
        decide(&sight(each, PATIENCE), &mut memory)
    };
    for (ended, all, braked) in [
        (3, 3, false),
        (4, 4, true),
        (10, 100, false),
        (11, 100, true),
        (20, 1000, false),
        (21, 1000, true),
    ] {
        let plan = many(ended, all);
        let count = usize::try_from(ended).unwrap();
        assert_eq!(plan.braked, braked.then_some(count), "{ended} of {all}");
        assert_eq!(plan.release.len(), if braked { 0 } else { count });
    }
}

/// A manager's reconcile on a memory store and stepped compute.
struct World {
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
    sim: SimCompute,
    freshness: Arc<ReportFreshness>,
    reconcile: OrphanCollector,
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
        let (reconciler, _) = Reconciler::new(
            Arc::clone(&shared),
            definitions.clone(),
            computes.clone(),
            Arc::clone(&freshness),
            Arc::clone(&metrics),
        );
        let reconcile = OrphanCollector::new(
            shared,
            definitions,
            computes,
            reconciler,
            Arc::clone(&freshness),
            metrics,
        );
        Self {
            clock,
            store,
            sim,
            freshness,
            reconcile,
        }
    }

    async fn define(&self) {
        let json = serde_json::to_string(&cluster()).unwrap();
        let kind = session_store::Kind::Cluster;
        self.store.put_definition(kind, "c", 0, &json).await.unwrap();
        let install = self.reconcile.identity.confirm().await.unwrap().unwrap();
        self.sim.install(&install.id);
        self.freshness.found().await;
    }

    async fn create(&self, n: u64) -> Session {
        let change = create(n, self.store.now().await.unwrap());
        let created = self.store.create(Create {
            session: change.session,
            record: change.record,
            due: START,
            request: None,
            limits: session_core::Limits::default(),
        });
        created.await.unwrap().session
    }

    async fn make(&self, session: &Session) {
        let spec = ComputeSpec {
            key: session.key(),
            generation: 1,
            cluster: cluster(),
            catalog: None,
        };
        self.sim.ensure(&spec).await.unwrap();
    }

    async fn pass(&self, minutes: u64) {
        for _ in 0..minutes {
            self.reconcile.pass().await.unwrap();
            self.clock.advance(MINUTE);
            tokio::time::advance(MINUTE).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_orphan_goes_and_its_neighbour_stays() {
    let world = World::new().await;
    world.pass(2).await;
    let wanted = world.create(1).await;
    world.make(&wanted).await;
    // Made from a record that was never there.
    let orphan = create(2, START).session;
    world.make(&orphan).await;
    world.pass(14).await;
    assert_eq!(world.sim.live().len(), 2);
    world.pass(3).await;
    assert_eq!(world.sim.live(), [(wanted.key(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lost_everything_kills_nothing() {
    let world = World::new().await;
    world.pass(2).await;
    let sessions = [world.create(1).await, world.create(2).await];
    for session in &sessions {
        world.make(session).await;
    }
    world.pass(20).await;
    // The same manager finds an empty store, and new sessions in it.
    let mut emptied = World::on(
        Arc::clone(&world.clock),
        Arc::new(MemoryStore::new(Arc::clone(&world.clock) as _)),
        world.sim.clone(),
    );
    emptied.reconcile.identity = world.reconcile.identity;
    emptied
        .reconcile
        .identity
        .moved_to(Arc::clone(&emptied.store) as _);
    emptied.define().await;
    emptied.create(3).await;
    emptied.pass(60).await;
    assert_eq!(
        emptied.sim.live().len(),
        2,
        "made before the store's memory begins"
    );

    // Another manager that never knew the old store takes it for another's.
    let fresh = World::on(
        Arc::clone(&world.clock),
        Arc::new(MemoryStore::new(Arc::clone(&world.clock) as _)),
        world.sim.clone(),
    );
    fresh.create(4).await;
    fresh.pass(60).await;
    assert_eq!(fresh.sim.live().len(), 2, "labelled by another installation");
}
