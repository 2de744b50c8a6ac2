//! Shutdown: signals, tracked tasks, drain with a time limit.
//!
//! The first SIGTERM or SIGINT stops the service; tasks have the drain time to
//! finish; a second signal, or the end of that time, forces the end. A critical
//! task that ends unexpectedly stops the service, and [`Shutdown::finish`] then
//! returns an error so that `main` exits non-zero.

use futures::FutureExt as _;
use parking_lot::Mutex;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Time for forced tasks to end.
const FORCED: Duration = Duration::from_secs(1);

/// Shutdown of one service. Clones are handles to the same shutdown.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    stop: CancellationToken,
    force: CancellationToken,
    tasks: TaskTracker,
    background: TaskTracker,
    crash: Arc<Mutex<Option<Crashed>>>,
}

/// A critical task ended before the shutdown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{task} {how}")]
pub struct Crashed {
    /// The task's name.
    pub task: &'static str,
    /// Outcome of the task, as the rest of a sentence.
    pub how: String,
}

impl Shutdown {
    /// A shutdown that only [`Self::stop`] triggers: for tests and embedded
    /// use.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also triggered by SIGTERM and SIGINT; a second signal forces. For
    /// `main`.
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Self::new();
        let handle = shutdown.clone();
        tokio::spawn(async move {
            let mut next = async || tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} };
            next().await;
            tracing::info!("shutdown signal received; a second one skips the drain");
            handle.stop();
            next().await;
            tracing::warn!("second shutdown signal received; drain skipped");
            handle.force();
        });
        Ok(shutdown)
    }

    /// Stops all tasks gracefully.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Stops all tasks without a drain.
    pub fn force(&self) {
        self.stop.cancel();
        self.force.cancel();
    }

    /// Cancelled when the service must stop accepting work and drain.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Cancelled when the drain has ended and remaining tasks must end.
    pub fn forced(&self) -> CancellationToken {
        self.force.clone()
    }

    /// The tracker of the tasks for which the drain waits.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Runs a task for which the drain waits.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Runs a required task: if it fails, panics, or ends before the shutdown,
    /// the service stops with an error. The drain waits for it, so it must end
    /// after [`Self::stopping`].
    pub fn spawn_critical<F, E>(&self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<anyhow::Error> + 'static,
    {
        self.tasks.spawn(self.clone().watch(name, task));
    }

    /// Like [`Self::spawn_critical`], for a task that runs until the end, such
    /// as the admin port: the drain does not wait for it, and it must end at
    /// [`Self::forced`].
    pub fn spawn_background<F, E>(&self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<anyhow::Error> + 'static,
    {
        self.background.spawn(self.clone().watch(name, task));
    }

    async fn watch<F, E>(self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>>,
        E: Into<anyhow::Error> + 'static,
    {
        let how = match AssertUnwindSafe(task).catch_unwind().await {
            Ok(Ok(())) if self.stop.is_cancelled() => return,
            Ok(Ok(())) => "ended by itself".to_owned(),
            Ok(Err(error)) => format!("failed: {:#}", error.into()),
            Err(_) => "panicked".to_owned(),
        };
        let crashed = Crashed { task: name, how };
        tracing::error!(task = name, "critical task {}", crashed.how);
        self.crash.lock().get_or_insert(crashed);
        self.stop.cancel();
    }

    /// Waits for the stop and then for the tasks, at most `drain` long. The
    /// error is the first critical task that crashed.
    pub async fn finish(&self, drain: Duration) -> Result<(), Crashed> {
        self.stop.cancelled().await;
        self.tasks.close();
        self.background.close();
        tokio::select! {
            () = self.tasks.wait() => {}
            () = self.force.cancelled() => {}
            () = tokio::time::sleep(drain) => {
                tracing::warn!(tasks = self.tasks.len(), "drain timed out");
            }
        }
        self.force.cancel();
        let all = async { tokio::join!(self.tasks.wait(), self.background.wait()) };
        if tokio::time::timeout(FORCED, all).await.is_err() {
            tracing::warn!(
                tasks = self.tasks.len() + self.background.len(),
                "tasks still running after forced stop"
            );
        }
        match self.crash.lock().take() {
            Some(crashed) => Err(crashed),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.stop.is_cancelled(), self.force.is_cancelled()) {
            (false, _) => "running",
            (true, false) => "draining",
            (true, true) => "ending",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tasks_get_the_drain_time_and_then_are_forced() {
        let shutdown = Shutdown::new();
        let forced = shutdown.forced();
        shutdown.spawn(async move { forced.cancelled().await });
        shutdown.stop();
        let begin = tokio::time::Instant::now();
        assert_eq!(shutdown.finish(Duration::from_secs(150)).await, Ok(()));
        assert_eq!(begin.elapsed(), Duration::from_secs(150));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_skips_ahead() {
        let shutdown = Shutdown::new();
        shutdown.spawn(std::future::pending::<()>());
        shutdown.force();
        let begin = tokio::time::Instant::now();
        assert_eq!(shutdown.finish(Duration::from_secs(150)).await, Ok(()));
        assert!(begin.elapsed() <= FORCED);
    }

    #[tokio::test]
    async fn a_crashed_critical_task_stops_the_service_with_an_error() {
        let limit = Duration::from_secs(5);
        let shutdown = Shutdown::new();
        shutdown.spawn_critical("the pump", async {
            Err(anyhow::anyhow!("burst").context("no pressure"))
        });
        let crashed = shutdown.finish(limit).await.unwrap_err();
        assert_eq!(crashed.to_string(), "the pump failed: no pressure: burst");

        let shutdown = Shutdown::new();
        shutdown.spawn_critical("the pump", async { Ok::<_, std::io::Error>(()) });
        assert_eq!(shutdown.finish(limit).await.unwrap_err().how, "ended by itself");

        let shutdown = Shutdown::new();
        let stopping = shutdown.stopping();
        shutdown.spawn_critical("the pump", async move {
            stopping.cancelled().await;
            Ok::<_, std::io::Error>(())
        });
        shutdown.stop();
        assert_eq!(shutdown.finish(limit).await, Ok(()));
    }

    #[tokio::test]
    async fn a_panic_is_a_crash() {
        let shutdown = Shutdown::new();
        shutdown.spawn_critical("the pump", async {
            assert!(shutdown_is_safe(), "boom");
            Ok::<_, std::io::Error>(())
        });
        assert_eq!(
            shutdown.finish(Duration::from_secs(5)).await.unwrap_err().how,
            "panicked"
        );
    }

    fn shutdown_is_safe() -> bool {
        false
    }
}
