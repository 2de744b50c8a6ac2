//! What the driver does to compute: it starts what committed records call for,
//! and looks at what there is.

use super::Reconciler;
use crate::providers::registry::is_on_another_host;
use compute::ComputeSpec;
use service_kit::{child_span, host};
use session_core::machine::{Effect, Observation};
use session_core::{Catalog, Cluster, Session, State, Status};
use session_store::Error;
use tracing::{Instrument as _, Span};

/// The span of one effect on the compute that a spec describes.
macro_rules! compute_span {
    ($name:literal, $spec:expr) => {
        child_span!(
            $name,
            session = %$spec.key.id,
            cluster = %$spec.cluster.name,
            generation = $spec.generation,
            otel.status_code = tracing::field::Empty,
        )
    };
}

impl Reconciler {
    /// Starts what a committed record calls for. Failures are left to the
    /// entry that is still due.
    pub(crate) async fn start(&self, session: &Session, effects: &[Effect]) {
        for effect in effects {
            let outcome = match *effect {
                Effect::Ensure { generation } => match self.spec(session, generation).await {
                    Ok(Ok(spec)) => self.ensure(&spec).await,
                    Ok(Err(_)) | Err(_) => continue,
                },
                Effect::Release { up_to } => match self.bare_spec(session, up_to).await {
                    Some(spec) => self.release(session, &spec).await,
                    None => continue,
                },
            };
            self.note_started(session, effect, outcome);
        }
    }

    /// The same for a new session, on what was read to create it.
    pub(crate) async fn start_new(
        &self,
        session: &Session,
        effects: &[Effect],
        cluster: &Cluster,
        catalog: Option<Catalog>,
    ) {
        let spec = ComputeSpec {
            catalog,
            ..bare_spec_on(cluster, session, session.generation)
        };
        for effect in effects {
            match *effect {
                Effect::Ensure { generation } if generation == spec.generation => {
                    let outcome = self.ensure(&spec).await;
                    self.note_started(session, effect, outcome);
                }
                Effect::Ensure { .. } | Effect::Release { .. } => {
                    self.start(session, std::slice::from_ref(effect)).await;
                }
            }
        }
    }

    async fn ensure(&self, spec: &ComputeSpec) -> Result<(), compute::Error> {
        let span = compute_span!("ensure_compute", spec);
        let made = with_status(self.computes.ensure(spec), span).await;
        self.give_back_if_stale(spec).await;
        made
    }

    fn note_started(&self, session: &Session, effect: &Effect, outcome: Result<(), compute::Error>) {
        self.metrics.started(effect, outcome.is_ok());
        if let Err(error) = outcome {
            tracing::warn!(session = %session.id, ?effect, %error, "an effect could not be started yet");
        }
    }

    /// While compute was asked for, its session may have ended or moved on to
    /// a newer generation, whose change found nothing to release. Also when no
    /// answer came: it may have been made.
    async fn give_back_if_stale(&self, spec: &ComputeSpec) {
        if !spec.cluster.provider.is_dedicated() {
            return;
        }
        let outcome = match self.store.get(&spec.key).await {
            Ok(Some(session)) if session.status().is_terminal() || session.generation > spec.generation => {
                let span = compute_span!("release_compute", spec);
                with_status(self.computes.release(spec), span).await
            }
            Ok(Some(_) | None) => Ok(()),
            Err(error) => Err(compute::Error::Unavailable(error.to_string())),
        };
        if let Err(error) = outcome {
            tracing::warn!(session = %spec.key.id, %error, "compute may be stale; comparing it with the records finds it");
        }
    }

    async fn release(&self, session: &Session, spec: &ComputeSpec) -> Result<(), compute::Error> {
        let span = compute_span!("release_compute", spec);
        with_status(self.release_all(session, spec), span).await
    }

    /// A place on a shared server goes back after everything the session has
    /// there.
    async fn release_all(&self, session: &Session, spec: &ComputeSpec) -> Result<(), compute::Error> {
        if !session.policy.dedicated {
            let ended = session.closed_at.or(session.idle_since);
            match self.bindings.release(spec, ended).await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => return Err(compute::Error::Unavailable(error.to_string())),
            }
        } else if session.status().is_terminal()
            && let Err(error) = self.store.forget_spark_sessions(&spec.key).await
        {
            // They expire by themselves too.
            tracing::debug!(session = %spec.key.id, %error, "forgetting Spark sessions failed");
        }
        self.computes.release(spec).await
    }

    /// What there is of a session's compute. What it still has on a shared
    /// server counts when that is to go.
    pub(super) async fn observe(&self, session: &Session, cluster: Option<&Cluster>) -> Option<Observation> {
        let seen = self.observe_compute(session, cluster).await?;
        // Whoever has the lease now cannot reach what another host's manager made.
        if session
            .state
            .route()
            .is_some_and(|route| is_on_another_host(route, host::id()))
        {
            return Some(Observation::Missing);
        }
        let to_go = session.status().is_terminal() || matches!(session.state, State::IdleReleased { .. });
        if seen != Observation::Missing || !to_go || session.policy.dedicated {
            return Some(seen);
        }
        match self.bindings.any_left(&session.key(), session.generation).await {
            Ok(false) => Some(seen),
            Ok(true) => Some(Observation::Starting {
                detail: "its Spark sessions are being given back".to_owned(),
            }),
            Err(error) => {
                tracing::warn!(session = %session.id, %error, "its bindings cannot be read");
                None
            }
        }
    }

    async fn observe_compute(&self, session: &Session, cluster: Option<&Cluster>) -> Option<Observation> {
        // A catalog is needed to make compute, not to look at it: taking one
        // away harms no session that has its compute.
        let spec = if session.status() == Status::Pending {
            match self.spec_on(cluster, session, session.generation).await {
                Ok(Ok(spec)) => spec,
                Ok(Err(cause)) => {
                    return Some(Observation::Failed {
                        cause: cause.into(),
                        permanent: true,
                    });
                }
                Err(error) => {
                    tracing::warn!(session = %session.id, %error, "definitions cannot be read");
                    return None;
                }
            }
        } else {
            bare_spec_on(cluster?, session, session.generation)
        };
        match self.computes.observe(&spec).await {
            Ok(observation) => Some(observation),
            Err(error) => {
                tracing::warn!(session = %session.id, %error, "compute cannot be looked at");
                None
            }
        }
    }

    /// What compute of this generation is made from; or why it cannot be.
    async fn spec(&self, session: &Session, generation: u64) -> Result<Result<ComputeSpec, String>, Error> {
        let cluster = self.definitions.cluster(&session.cluster).await?;
        self.spec_on(cluster.as_ref(), session, generation).await
    }

    /// The same, on this cluster, if there still is one.
    async fn spec_on(
        &self,
        cluster: Option<&Cluster>,
        session: &Session,
        generation: u64,
    ) -> Result<Result<ComputeSpec, String>, Error> {
        let Some(cluster) = cluster else {
            return Ok(Err(format!("the cluster {} no longer exists", session.cluster)));
        };
        let catalog = match &session.catalog {
            None => None,
            Some(name) => match self.definitions.catalog(&session.org, name).await? {
                None => return Ok(Err(format!("the catalog {name} no longer exists"))),
                catalog => catalog,
            },
        };
        Ok(Ok(ComputeSpec {
            catalog,
            ..bare_spec_on(cluster, session, generation)
        }))
    }

    async fn bare_spec(&self, session: &Session, generation: u64) -> Option<ComputeSpec> {
        let cluster = self.definitions.cluster(&session.cluster).await.ok()??;
        Some(bare_spec_on(&cluster, session, generation))
    }
}

/// Runs an effect in its span, which records a failure.
async fn with_status<T>(
    effect: impl Future<Output = Result<T, compute::Error>>,
    span: Span,
) -> Result<T, compute::Error> {
    let outcome = effect.instrument(span.clone()).await;
    if outcome.is_err() {
        span.record("otel.status_code", "ERROR");
    }
    outcome
}

/// Enough to look at compute and to give it back.
fn bare_spec_on(cluster: &Cluster, session: &Session, generation: u64) -> ComputeSpec {
    ComputeSpec {
        key: session.key(),
        generation,
        cluster: cluster.clone(),
        catalog: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definitions::DefinitionStore;
    use crate::lifecycle::report_freshness::ReportFreshness;
    use crate::metrics::Metrics;
    use crate::providers::registry::Providers;
    use compute::{ProviderRegistry, SimCompute};
    use service_kit::metrics::Registry;
    use session_core::SessionKey;
    use session_core::machine::{self, NewSession, Transition};
    use session_core::policy::{PolicyRange, PolicyRequest};
    use session_core::time::ManualClock;
    use session_core::{
        Activity, ClusterStatus, Engine, Limits, Provider, ProviderKind, Route, SessionId, SessionPolicy,
        Timestamp,
    };
    use session_store::memory::MemoryStore;
    use session_store::prelude::*;
    use session_store::{Commit, Create, Kind, SessionStore};
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;
    use tokio::sync::mpsc;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn cluster() -> Cluster {
        Cluster {
            name: "c".parse().unwrap(),
            status: ClusterStatus::Active,
            engine: Engine::Sail,
            engine_version: None,
            client_versions: Vec::new(),
            granted_orgs: BTreeSet::default(),
            provider: Provider::Process {
                program: "/opt/sail".to_owned(),
                java_home: None,
                properties: BTreeMap::default(),
                python: None,
                driver_memory: None,
            },
            idle_policy: None,
            wake: Default::default(),
            policy: PolicyRange::default(),
            managed_by_config: false,
            version: 0,
        }
    }

    fn reconciler(
        store: &Arc<MemoryStore>,
        sim: &SimCompute,
    ) -> (Arc<Reconciler>, mpsc::Receiver<SessionKey>) {
        reconciler_with(store, sim.registry())
    }

    fn reconciler_with(
        store: &Arc<MemoryStore>,
        providers: ProviderRegistry,
    ) -> (Arc<Reconciler>, mpsc::Receiver<SessionKey>) {
        let shared: Arc<dyn SessionStore> = Arc::clone(store) as _;
        Reconciler::new(
            Arc::clone(&shared),
            DefinitionStore::new(Arc::clone(&shared)),
            Providers::new(providers),
            Arc::new(ReportFreshness::new(shared).with_settable_clock()),
            Arc::new(Metrics::new(&Registry::new())),
        )
    }

    async fn create(store: &MemoryStore, n: u64) -> Session {
        let json = serde_json::to_string(&cluster()).unwrap();
        // There already after the first.
        let _ = store.put_definition(Kind::Cluster, "c", 0, &json).await;
        let new = NewSession {
            id: SessionId::generate(NOW, n),
            org: "acme".parse().unwrap(),
            owner: "sa|ada".parse().unwrap(),
            name: None,
            team: None,
            labels: BTreeMap::default(),
            cluster: "c".parse().unwrap(),
            catalog: None,
            policy: SessionPolicy::resolve(&cluster(), &PolicyRequest::default()).unwrap(),
        };
        let Transition { session, record, .. } = machine::create(new, NOW);
        let create = Create {
            session,
            record,
            due: NOW,
            request: None,
            limits: Limits::default(),
        };
        store.create(create).await.unwrap().session
    }

    /// What a look that sees this decides, committed.
    async fn after(store: &MemoryStore, session: &Session, seen: Observation) -> Session {
        let step = machine::step(session, Some(&seen), Activity::Unknown, NOW);
        let Transition { session, record, .. } = step.transition.unwrap();
        let commit = Commit {
            session: session.clone(),
            record,
            due: step.due,
        };
        store.commit(commit).await.unwrap();
        session
    }

    #[tokio::test]
    async fn compute_that_is_stale_when_it_is_made_goes_at_once() {
        let clock = Arc::new(ManualClock::at(NOW));
        let store = Arc::new(MemoryStore::new(clock));
        let sim = SimCompute::new();
        sim.forget_releases();
        let (reconciler, _kicked) = reconciler(&store, &sim);
        let first = create(&store, 1).await;
        let ensure = [Effect::Ensure { generation: 1 }];
        reconciler.start(&first, &ensure).await;
        assert_eq!(sim.live(), [(first.key(), 1)], "it is wanted");
        let route = Route {
            endpoint: "127.0.0.1:1".to_owned(),
            tls_server_name: None,
            credential: None,
            engine: Engine::Sail,
            engine_version: "1".to_owned(),
            dedicated: true,
            host: None,
        };
        let active = after(&store, &first, Observation::Ready { route }).await;
        sim.vanish(&first.key(), 1);
        let second = after(&store, &active, Observation::Missing).await;
        assert_eq!(second.generation, 2);
        // Another manager's request for the first generation comes only now.
        reconciler.start(&first, &ensure).await;
        assert_eq!((sim.made(&first.key(), 1), sim.live()), (2, Vec::new()));
    }

    /// Collects the names and fields of all spans.
    #[derive(Clone, Default)]
    struct Spans(Arc<parking_lot::Mutex<Vec<String>>>);

    impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Spans {
        fn on_new_span(
            &self,
            span: &tracing::span::Attributes<'_>,
            _: &tracing::span::Id,
            _: tracing_subscriber::layer::Context<'_, S>,
        ) {
            let mut text = span.metadata().name().to_owned();
            span.record(
                &mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                    text.push_str(&format!(" {field}={value:?}"));
                },
            );
            self.0.lock().push(text);
        }
    }

    #[tokio::test]
    async fn compute_calls_have_spans_inside_a_sampled_trace_only() {
        use tracing_subscriber::layer::SubscriberExt as _;
        let spans = Spans::default();
        let subscriber = tracing_subscriber::registry().with(spans.clone());
        let _default = tracing::subscriber::set_default(subscriber);
        let store = Arc::new(MemoryStore::new(Arc::new(ManualClock::at(NOW))));
        let (reconciler, _kicked) = reconciler(&store, &SimCompute::new());
        let session = create(&store, 1).await;
        let effects = [Effect::Ensure { generation: 1 }, Effect::Release { up_to: 1 }];
        reconciler.start(&session, &effects).await;
        assert_eq!(*spans.0.lock(), Vec::<String>::new(), "not sampled");
        let trace = tracing::info_span!(target: service_kit::telemetry::SPANS, "trace");
        reconciler.start(&session, &effects).instrument(trace).await;
        let fields = format!("session={} cluster=c generation=1", session.id);
        assert_eq!(
            *spans.0.lock(),
            [
                "trace".to_owned(),
                format!("ensure_compute {fields}"),
                format!("release_compute {fields}"),
            ]
        );
    }

    #[tokio::test]
    async fn the_provisioning_time_is_observed_when_compute_is_ready() {
        let store = MemoryStore::new(Arc::new(ManualClock::at(NOW)));
        let made = create(&store, 1).await;
        let ready = Observation::Ready { route: route_on("h") };
        let later = NOW.after(Duration::from_secs(7));
        let step = machine::step(&made, Some(&ready), Activity::Unknown, later);
        let active = step.transition.unwrap().session;
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        metrics.provisioned(&made, &active);
        metrics.provisioned(&active, &active);
        let text = registry.render();
        for sample in [
            "_sum{phase=\"provisioning\"} 7",
            "_count{phase=\"provisioning\"} 1",
            "_count{phase=\"warming\"} 0",
        ] {
            let line = format!("session_manager_provisioning_duration_seconds{sample}");
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
    }

    #[tokio::test]
    async fn a_sweep_leaves_those_alone_whose_compute_is_there() {
        let store = Arc::new(MemoryStore::new(Arc::new(ManualClock::at(NOW))));
        let sim = SimCompute::new();
        let (reconciler, mut enqueued) = reconciler(&store, &sim);
        let ensure = [Effect::Ensure { generation: 1 }];
        let mut sessions = Vec::new();
        for n in 1..=3 {
            let session = create(&store, n).await;
            reconciler.start(&session, &ensure).await;
            sessions.push(session.key());
        }
        let mut swept = async || {
            let there = reconciler.computes.local().await.unwrap();
            reconciler.sweep_once(&there).await.unwrap();
            std::iter::from_fn(|| enqueued.try_recv().ok()).collect::<Vec<_>>()
        };
        assert_eq!(swept().await, []);
        sim.vanish(&sessions[1], 1);
        assert_eq!(swept().await, sessions[1..2]);
    }

    #[tokio::test]
    async fn a_manager_without_the_process_provider_decides_nothing_about_its_compute() {
        let store = Arc::new(MemoryStore::new(Arc::new(ManualClock::at(NOW))));
        let sim = SimCompute::new();
        let (with, _kicked) = reconciler(&store, &sim);
        let (without, _kicked_too) = reconciler_with(&store, sim.servers_only());
        let made = create(&store, 1).await;
        with.start(&made, &[Effect::Ensure { generation: 1 }]).await;
        let route = Route {
            endpoint: "127.0.0.1:1".to_owned(),
            tls_server_name: None,
            credential: None,
            engine: Engine::Sail,
            engine_version: "1".to_owned(),
            dedicated: true,
            host: None,
        };
        sim.ready(&made.key(), 1, route.clone());
        let active = after(&store, &made, Observation::Ready { route }).await;
        without.look(&active.key()).await;
        let seen = store.get(&active.key()).await.unwrap().unwrap();
        assert_eq!((seen.generation, seen.status()), (1, Status::Active));
        assert_eq!(sim.live(), [(active.key(), 1)]);
        assert!(without.computes.local().await.is_none(), "it is not its to tell");
        // Its own manager still sees a loss.
        sim.vanish(&active.key(), 1);
        with.look(&active.key()).await;
        let seen = store.get(&active.key()).await.unwrap().unwrap();
        assert_eq!(seen.generation, 2);
    }

    /// A provider under a lease.
    #[derive(Debug)]
    struct Fenced(SimCompute, AtomicU64);

    #[async_trait::async_trait]
    impl compute::ComputeProvider for Fenced {
        fn capabilities(&self) -> compute::Capabilities {
            self.0.capabilities()
        }
        fn fence(&self) -> u64 {
            self.1.load(Ordering::Relaxed)
        }
        async fn ensure(&self, spec: &ComputeSpec) -> Result<(), compute::Error> {
            self.0.ensure(spec).await
        }
        async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, compute::Error> {
            self.0.observe(spec).await
        }
        async fn release(&self, spec: &ComputeSpec) -> Result<(), compute::Error> {
            self.0.release(spec).await
        }
        async fn inventory(&self) -> Result<Vec<compute::Found>, compute::Error> {
            self.0.inventory().await
        }
        fn watch(&self) -> futures::stream::BoxStream<'static, compute::ComputeChanged> {
            self.0.watch()
        }
    }

    fn route_on(host: &str) -> Route {
        Route {
            endpoint: "127.0.0.1:1".to_owned(),
            tls_server_name: None,
            credential: None,
            engine: Engine::Sail,
            engine_version: "1".to_owned(),
            dedicated: true,
            host: Some(host.to_owned()),
        }
    }

    /// Two managers, each of which believes that it has the lease.
    #[tokio::test]
    async fn a_manager_whose_lease_passed_on_decides_nothing_from_what_it_sees() {
        let store = Arc::new(MemoryStore::new(Arc::new(ManualClock::at(NOW))));
        let manager = |fence| {
            let sim = SimCompute::new();
            let fenced = Fenced(sim.clone(), AtomicU64::new(fence));
            let providers = sim.servers_only().with(ProviderKind::Process, Arc::new(fenced));
            (reconciler_with(&store, providers).0, sim)
        };
        let ((old, olds), (new, news)) = (manager(5), manager(6));
        let made = create(&store, 1).await;
        let key = made.key();
        for reconciler in [&old, &new] {
            reconciler.start(&made, &[Effect::Ensure { generation: 1 }]).await;
        }
        let read = async || store.get(&key).await.unwrap().unwrap();

        news.ready(&key, 1, route_on(host::id()));
        new.look(&key).await;
        assert_eq!(
            (read().await.status(), read().await.compute_fence),
            (Status::Active, 6)
        );
        let before = read().await;
        olds.vanish(&key, 1);
        old.look(&key).await;
        assert_eq!(
            read().await,
            before,
            "its compute is gone, which is nobody's loss"
        );
        news.vanish(&key, 1);
        new.look(&key).await;
        assert_eq!((read().await.generation, read().await.compute_fence), (2, 6));
    }

    #[tokio::test]
    async fn compute_on_the_loopback_of_another_host_is_lost_to_this_one() {
        let store = Arc::new(MemoryStore::new(Arc::new(ManualClock::at(NOW))));
        let sim = SimCompute::new();
        let (reconciler, _kicked) = reconciler(&store, &sim);
        let made = create(&store, 1).await;
        reconciler.start(&made, &[Effect::Ensure { generation: 1 }]).await;
        let route = route_on("another");
        sim.ready(&made.key(), 1, route.clone());
        let active = after(&store, &made, Observation::Ready { route: route.clone() }).await;
        let target = reconciler.computes.target(&cluster(), &route);
        assert!(target.unwrap_err().text.contains("another host"));
        reconciler.look(&active.key()).await;
        let seen = store.get(&active.key()).await.unwrap().unwrap();
        assert_eq!((seen.generation, seen.status()), (2, Status::Pending));
    }
}
