//! Effects and observations of compute: starts the effects of committed records,
//! and observes compute.

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
    /// Starts the effects of a committed record. After a failure, the session's due
    /// entry repeats them.
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

    /// The same for a new session, with the definitions that its creation read.
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
        let ensured = with_status(self.computes.ensure(spec), span).await;
        self.release_if_stale(spec).await;
        ensured
    }

    fn note_started(&self, session: &Session, effect: &Effect, outcome: Result<(), compute::Error>) {
        self.metrics.started(effect, outcome.is_ok());
        if let Err(error) = outcome {
            tracing::warn!(session = %session.id, ?effect, %error, "starting an effect failed; it is retried");
        }
    }

    /// Releases compute whose session ended or was replaced while it was started:
    /// that change found nothing to release. Also after an error, because the
    /// compute may have been started.
    async fn release_if_stale(&self, spec: &ComputeSpec) {
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
            tracing::warn!(session = %spec.key.id, %error, "checking for stale compute failed; orphan collection finds it");
        }
    }

    async fn release(&self, session: &Session, spec: &ComputeSpec) -> Result<(), compute::Error> {
        let span = compute_span!("release_compute", spec);
        with_status(self.release_all(session, spec), span).await
    }

    /// Releases compute; a place on a shared server only after the session's Spark
    /// sessions there have ended.
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
            // They also expire.
            tracing::debug!(session = %spec.key.id, %error, "deleting Spark session settings failed");
        }
        self.computes.release(spec).await
    }

    /// Observes a session's compute; none if that failed. While a shared server is
    /// being released, remaining bindings count as compute.
    pub(super) async fn observe(&self, session: &Session, cluster: Option<&Cluster>) -> Option<Observation> {
        let observed = self.observe_compute(session, cluster).await?;
        // The present leader cannot reach compute on another host.
        if session
            .state
            .route()
            .is_some_and(|route| is_on_another_host(route, host::id()))
        {
            return Some(Observation::Missing);
        }
        let leaving = session.status().is_terminal() || matches!(session.state, State::IdleReleased { .. });
        if observed != Observation::Missing || !leaving || session.policy.dedicated {
            return Some(observed);
        }
        match self.bindings.any_left(&session.key(), session.generation).await {
            Ok(false) => Some(observed),
            Ok(true) => Some(Observation::Starting {
                cause: "its Spark sessions are being released".into(),
            }),
            Err(error) => {
                tracing::warn!(session = %session.id, %error, "reading Spark session bindings failed");
                None
            }
        }
    }

    async fn observe_compute(&self, session: &Session, cluster: Option<&Cluster>) -> Option<Observation> {
        // The catalog is needed only to start compute: its deletion does not affect a
        // session that has compute.
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
                    tracing::warn!(session = %session.id, %error, "reading definitions failed");
                    return None;
                }
            }
        } else {
            bare_spec_on(cluster?, session, session.generation)
        };
        match self.computes.observe(&spec).await {
            Ok(observation) => Some(observation),
            Err(error) => {
                tracing::warn!(session = %session.id, %error, "observing compute failed");
                None
            }
        }
    }

    /// The specification of compute of this generation; or why there is none.
    async fn spec(&self, session: &Session, generation: u64) -> Result<Result<ComputeSpec, String>, Error> {
        let cluster = self.definitions.cluster(&session.cluster).await?;
        self.spec_on(cluster.as_ref(), session, generation).await
    }

    /// The same for a cluster that was read already, if it exists.
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
        if let Err(unknown) = cluster.with_profile(session.profile.as_ref()) {
            let name = session
                .profile
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default();
            return Ok(Err(format!("the profile {name} no longer exists: it {unknown}")));
        }
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

/// Runs an effect in its span and records a failure there.
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

/// A specification without catalog, which suffices to observe and release compute. That
/// needs no size, so a profile that no longer exists does not matter.
fn bare_spec_on(cluster: &Cluster, session: &Session, generation: u64) -> ComputeSpec {
    ComputeSpec {
        key: session.key(),
        generation,
        cluster: cluster
            .with_profile(session.profile.as_ref())
            .unwrap_or_else(|_| cluster.clone()),
        catalog: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definitions::DefinitionStore;
    use crate::fixtures::{self, NOW, cluster, route};
    use crate::lifecycle::report_freshness::ReportFreshness;
    use crate::metrics::Metrics;
    use crate::providers::registry::Providers;
    use compute::{ProviderRegistry, SimCompute};
    use service_kit::metrics::Registry;
    use session_core::machine::{self, Transition};
    use session_core::time::ManualClock;
    use session_core::{Activity, ProviderKind, Route, SessionKey};
    use session_store::memory::MemoryStore;
    use session_store::prelude::*;
    use session_store::{Commit, SessionStore};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;
    use tokio::sync::mpsc;

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
        fixtures::define(store, &cluster()).await;
        fixtures::create(store, fixtures::new_session(n, &cluster(), NOW), NOW).await
    }

    /// Commits what a reconciliation with this observation decides.
    async fn after(store: &MemoryStore, session: &Session, observed: Observation) -> Session {
        let step = machine::step(session, Some(&observed), Activity::Unknown, NOW);
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
    async fn compute_that_is_stale_when_started_is_released_at_once() {
        let clock = Arc::new(ManualClock::at(NOW));
        let store = Arc::new(MemoryStore::new(clock));
        let sim = SimCompute::new();
        sim.forget_releases();
        let (reconciler, _queue) = reconciler(&store, &sim);
        let first = create(&store, 1).await;
        let ensure = [Effect::Ensure { generation: 1 }];
        reconciler.start(&first, &ensure).await;
        assert_eq!(sim.live(), [(first.key(), 1)], "in use");
        let active = after(&store, &first, Observation::Ready { route: route() }).await;
        sim.vanish(&first.key(), 1);
        let second = after(&store, &active, Observation::Missing).await;
        assert_eq!(second.generation, 2);
        // Another manager ensures the first generation only now.
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
        let (reconciler, _queue) = reconciler(&store, &SimCompute::new());
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
    async fn a_sweep_enqueues_only_sessions_without_compute() {
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
        let (with, _queue) = reconciler(&store, &sim);
        let (without, _queue_without) = reconciler_with(&store, sim.servers_only());
        let made = create(&store, 1).await;
        with.start(&made, &[Effect::Ensure { generation: 1 }]).await;
        sim.ready(&made.key(), 1, route());
        let active = after(&store, &made, Observation::Ready { route: route() }).await;
        without.reconcile(&active.key()).await;
        let seen = store.get(&active.key()).await.unwrap().unwrap();
        assert_eq!((seen.generation, seen.status()), (1, Status::Active));
        assert_eq!(sim.live(), [(active.key(), 1)]);
        assert!(without.computes.local().await.is_none(), "not the leader");
        // The manager with the provider still detects the loss.
        sim.vanish(&active.key(), 1);
        with.reconcile(&active.key()).await;
        let seen = store.get(&active.key()).await.unwrap().unwrap();
        assert_eq!(seen.generation, 2);
    }

    /// A provider with a fencing number.
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
            host: Some(host.to_owned()),
            ..route()
        }
    }

    /// Two managers that both consider themselves the leader.
    #[tokio::test]
    async fn a_manager_that_lost_its_lease_decides_nothing_from_its_observations() {
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
        new.reconcile(&key).await;
        assert_eq!(
            (read().await.status(), read().await.compute_fence),
            (Status::Active, 6)
        );
        let before = read().await;
        olds.vanish(&key, 1);
        old.reconcile(&key).await;
        assert_eq!(
            read().await,
            before,
            "the loss of its own compute does not matter"
        );
        news.vanish(&key, 1);
        new.reconcile(&key).await;
        assert_eq!((read().await.generation, read().await.compute_fence), (2, 6));
    }

    #[tokio::test]
    async fn compute_on_another_host_s_loopback_is_missing_here() {
        let store = Arc::new(MemoryStore::new(Arc::new(ManualClock::at(NOW))));
        let sim = SimCompute::new();
        let (reconciler, _queue) = reconciler(&store, &sim);
        let made = create(&store, 1).await;
        reconciler.start(&made, &[Effect::Ensure { generation: 1 }]).await;
        let route = route_on("another");
        sim.ready(&made.key(), 1, route.clone());
        let active = after(&store, &made, Observation::Ready { route: route.clone() }).await;
        let target = reconciler.computes.target(&cluster(), &route);
        assert!(target.unwrap_err().text.contains("another host"));
        reconciler.reconcile(&active.key()).await;
        let seen = store.get(&active.key()).await.unwrap().unwrap();
        assert_eq!((seen.generation, seen.status()), (2, Status::Pending));
    }
}
