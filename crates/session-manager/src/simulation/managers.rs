//! Managers without sockets: the real reconciler, report intake, report freshness
//! and orphan collection, on a store and compute with faults.

use super::engines::FaultyCompute;
use super::store::{FaultyStore, Run};
use super::world::World;
use crate::definitions::DefinitionStore;
use crate::lifecycle::activity_reports::ReportIntake;
use crate::lifecycle::reconciler::Reconciler;
use crate::lifecycle::report_freshness::ReportFreshness;
use crate::metrics::Metrics;
use crate::providers::registry::Providers;
use crate::service::Lifecycle;
use compute::ProviderRegistry;
use service_kit::metrics::Registry;
use session_core::ProviderKind;
use session_store::SessionStore;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A running or crashed manager.
#[derive(Debug)]
pub(super) struct Manager {
    pub(super) run: Run,
    pub(super) store: Arc<dyn SessionStore>,
    pub(super) reconciler: Arc<Reconciler>,
    pub(super) reports: Arc<ReportIntake>,
    tasks: Vec<JoinHandle<()>>,
}

impl Manager {
    pub(super) fn start(world: &Arc<World>, name: String) -> Arc<Self> {
        let run = Run::new(world, name);
        world.note(&run.name, format_args!("starts"));
        let store: Arc<dyn SessionStore> = Arc::new(FaultyStore { run: run.clone() });
        let computes = faulty_providers(&run);
        let metrics = Arc::new(Metrics::new(&Registry::new()));
        let freshness = Arc::new(ReportFreshness::new(Arc::clone(&store)));
        let definitions = DefinitionStore::new(Arc::clone(&store));
        let Lifecycle {
            reconciler,
            enqueued,
            reports,
            orphans,
        } = Lifecycle::new(&store, &definitions, &computes, &freshness, &metrics);
        // Never cancelled: managers end by a crash.
        let stop = CancellationToken::new();
        let tasks = vec![
            tokio::spawn(Arc::clone(&reconciler).run(enqueued, stop.clone())),
            tokio::spawn({
                let (reports, stop) = (Arc::clone(&reports), stop.clone());
                async move { reports.run(stop).await }
            }),
            tokio::spawn(crate::service::watch_store(
                Arc::clone(&store),
                freshness,
                |_| {},
                stop.clone(),
            )),
            tokio::spawn(async move { orphans.run(stop).await }),
        ];
        Arc::new(Self {
            run,
            store,
            reconciler,
            reports,
            tasks,
        })
    }

    fn abort_tasks(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn faulty_providers(run: &Run) -> Providers {
    let provider = |as_servers| {
        Arc::new(FaultyCompute {
            run: run.clone(),
            as_servers,
        })
    };
    let registry = ProviderRegistry::default()
        .with(ProviderKind::Static, provider(true))
        .with(ProviderKind::Process, provider(false));
    Providers::new(registry)
}

/// The managers of a world; crashed ones are restarted.
#[derive(Debug)]
pub(super) struct Managers {
    world: Arc<World>,
    running: std::sync::Mutex<Vec<Arc<Manager>>>,
}

impl Managers {
    pub(super) fn start(world: &Arc<World>, count: u64) -> Arc<Self> {
        let running = (0..count).map(|n| Manager::start(world, format!("m{n}.0")));
        Arc::new(Self {
            running: std::sync::Mutex::new(running.collect()),
            world: Arc::clone(world),
        })
    }

    /// A random manager; it may have crashed.
    pub(super) fn any(&self) -> Arc<Manager> {
        let running = self.running.lock().unwrap();
        let n = usize::try_from(self.world.below(running.len() as u64)).unwrap();
        Arc::clone(&running[n])
    }

    pub(super) async fn keep_running(self: Arc<Self>) {
        let mut runs = 0;
        let mut back_at: Vec<Option<Duration>> = vec![None; self.running.lock().unwrap().len()];
        loop {
            tokio::time::sleep(self.world.between(200, 1000)).await;
            for (n, back_at) in back_at.iter_mut().enumerate() {
                let manager = Arc::clone(&self.running.lock().unwrap()[n]);
                let now = self.world.elapsed();
                match *back_at {
                    None if manager.run.is_dead() => {
                        manager.abort_tasks();
                        let down = if self.world.is_calm() {
                            0
                        } else {
                            self.world.below(30_000)
                        };
                        *back_at = Some(now + Duration::from_millis(down));
                    }
                    None if self.world.strikes(8_000) => manager.run.crash("by chance"),
                    Some(at) if now >= at || self.world.is_calm() => {
                        *back_at = None;
                        runs += 1;
                        let manager = Manager::start(&self.world, format!("m{n}.{runs}"));
                        self.running.lock().unwrap()[n] = manager;
                        self.world.state().last_fault = now;
                    }
                    None | Some(_) => {}
                }
            }
        }
    }
}
