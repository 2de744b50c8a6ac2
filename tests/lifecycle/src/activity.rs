//! What it costs to know that many sessions are in use.

use crate::rows::Rows;
use crate::stage::{Manager, Stage};
use anyhow::Result;
use session_core::{Clock as _, Session, SystemClock};
use session_proto::convert;
use session_proto::internal::route_service_client::RouteServiceClient;
use session_proto::internal::{ReportActivityRequest, SessionActivity, Usage};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

const PROXIES: usize = 20;
/// As the proxy reports.
const EVERY: Duration = Duration::from_secs(5);
const SESSIONS_A_MESSAGE: usize = 1000;
const WARM_UP: Duration = Duration::from_secs(11);
const TIME: Duration = Duration::from_secs(30);

/// Twenty proxies report calls on all of the sessions.
pub(crate) async fn measure(
    stage: &Stage,
    manager: &Manager,
    sessions: &[Session],
    rows: &mut Rows,
) -> Result<()> {
    let mut proxies = JoinSet::new();
    for (n, share) in sessions.chunks(sessions.len().div_ceil(PROXIES)).enumerate() {
        let client = RouteServiceClient::new(manager.internal.clone());
        proxies.spawn(report(client, n, share.to_vec()));
    }
    tokio::time::sleep(WARM_UP).await;
    let (scripts, cpu, begun) = (stage.scripts_run().await?, manager.cpu()?, Instant::now());
    tokio::time::sleep(TIME).await;
    let passed = begun.elapsed().as_secs_f64();
    let writes = (stage.scripts_run().await? - scripts) / passed;
    rows.at_most(
        "activity of all sessions, 20 proxies: Redis writes",
        "/s",
        writes,
        10_000.0,
    );
    let cores = (manager.cpu()? - cpu) / passed;
    rows.at_most("activity of all sessions: manager CPU", "cores", cores, 1.0);
    let failed = proxies.try_join_next();
    proxies.abort_all();
    match failed {
        Some(ended) => ended?,
        None => Ok(()),
    }
}

async fn report(
    mut client: RouteServiceClient<tonic::transport::Channel>,
    n: usize,
    sessions: Vec<Session>,
) -> Result<()> {
    // Proxies do not all report at the same moment.
    tokio::time::sleep(EVERY.mul_f64(n as f64 / PROXIES as f64)).await;
    let mut tick = tokio::time::interval(EVERY);
    let mut sequence = 0;
    loop {
        tick.tick().await;
        for part in sessions.chunks(SESSIONS_A_MESSAGE) {
            sequence += 1;
            let now = convert::timestamp(SystemClock.now());
            let activity = |session: &Session| SessionActivity {
                session_id: session.id.to_string(),
                org: session.org.to_string(),
                generation: 1,
                open_calls: 1,
                last_activity_at: Some(now),
                usage: Some(Usage {
                    rpcs: 3,
                    bytes_in: 1000,
                    bytes_out: 10_000,
                    open_stream_millis: 5000,
                }),
                ..SessionActivity::default()
            };
            client
                .report_activity(ReportActivityRequest {
                    proxy_id: format!("proxy-{n}"),
                    sequence,
                    sessions: part.iter().map(activity).collect(),
                })
                .await?;
        }
    }
}
