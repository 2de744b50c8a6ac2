//! Calls of the managers' APIs, and how long many of them take.

use anyhow::Result;
use hdrhistogram::Histogram;
use service_kit::caller::NewKey;
use session_proto::v1;
use session_proto::v1::session_service_client::SessionServiceClient;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

#[derive(Clone)]
pub(crate) struct WithKey(String);

impl Interceptor for WithKey {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value = format!("Bearer {}", self.0)
            .parse()
            .map_err(|_| Status::internal("the key"))?;
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

pub(crate) type Sessions = SessionServiceClient<InterceptedService<Channel, WithKey>>;

pub(crate) fn sessions(channel: &Channel, key: &NewKey) -> Sessions {
    SessionServiceClient::with_interceptor(channel.clone(), WithKey(key.key.clone()))
}

pub(crate) async fn list_once(mut sessions: Sessions) -> Result<(), Status> {
    let request = v1::ListSessionsRequest {
        page_size: 1,
        ..Default::default()
    };
    sessions.list_sessions(request).await.map(drop)
}

/// Times in microseconds.
pub(crate) struct Times(pub(crate) Histogram<u64>);

impl Times {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Histogram::new(3)?))
    }

    pub(crate) fn note(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        // It grows by itself: nothing is out of its range.
        let _ = self.0.record(micros);
    }

    pub(crate) fn millis(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Makes calls one after another from `at_once` places for `time`; how many a second.
pub(crate) async fn closed_loop<F, Fut>(at_once: usize, time: Duration, call: F) -> Result<f64>
where
    F: Fn(u64) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Status>> + Send,
{
    let (call, over, next) = (
        Arc::new(call),
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut places = JoinSet::new();
    let begun = Instant::now();
    for _ in 0..at_once {
        let (call, over, next) = (Arc::clone(&call), Arc::clone(&over), Arc::clone(&next));
        places.spawn(async move {
            let mut done = 0_u64;
            while !over.load(Ordering::Relaxed) {
                call(next.fetch_add(1, Ordering::Relaxed)).await?;
                done += 1;
            }
            Ok::<_, Status>(done)
        });
    }
    tokio::time::sleep(time).await;
    over.store(true, Ordering::Relaxed);
    let mut done = 0;
    while let Some(place) = places.join_next().await {
        done += place??;
    }
    Ok(done as f64 / begun.elapsed().as_secs_f64())
}

/// What calls at a fixed rate took.
pub(crate) struct Paced {
    pub(crate) calls: Times,
    /// How late the pacing thread itself woke: time that is the machine's.
    pub(crate) late: Times,
}

/// Makes calls at a fixed rate for `time`, whatever happens. A call's time
/// counts from the moment it was due.
pub(crate) async fn open_loop<F, Fut>(rate: u32, time: Duration, call: F) -> Result<Paced>
where
    F: Fn(u64) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Status>> + Send,
{
    let call = Arc::new(call);
    let runtime = Handle::current();
    let mut late = Times::new()?;
    // By a thread of its own: tokio's timers are a millisecond wide, and would
    // make bursts of what should come one by one.
    let pacing = tokio::task::spawn_blocking(move || {
        let mut running = JoinSet::new();
        let begun = Instant::now();
        let count = u64::from(rate) * time.as_secs();
        for n in 0..count {
            let due = begun + Duration::from_secs_f64(n as f64 / f64::from(rate));
            #[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            late.note(due.elapsed());
            let call = Arc::clone(&call);
            let call = async move {
                call(n).await?;
                Ok::<_, Status>(due.elapsed())
            };
            running.spawn_on(call, &runtime);
        }
        (running, late)
    });
    let (mut running, late) = pacing.await?;
    let mut calls = Times::new()?;
    while let Some(done) = running.join_next().await {
        calls.note(done??);
    }
    Ok(Paced { calls, late })
}
