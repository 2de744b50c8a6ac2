//! Activity reports to session-manager: every five seconds, and at once when an idle session gets a
//! call, because session-manager could otherwise end it as idle.

use super::usage::{SessionUsage, UsageRegistry};
use crate::metrics::Metrics;
use prost::Message as _;
use service_kit::grpc::MAX_MESSAGE;
use service_kit::service_account_token::ServiceChannel;
use session_core::SessionId;
use session_proto::error::reason_of;
use session_proto::internal::route_service_client::RouteServiceClient;
use session_proto::internal::{ReportActivityRequest, SessionActivity};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic::Code;

const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// Calls that begin within this time share a report.
const GATHER_TIME: Duration = Duration::from_millis(20);
/// Maximum number of sessions in a report.
const MAX_SESSIONS: usize = 1000;
/// Maximum size of a report with more than one session: a quarter of session-manager's limit.
const MAX_REPORT_BYTES: usize = MAX_MESSAGE / 4;
/// Rejected reports before the unsent usage is dropped: isolating one invalid record in a full
/// report takes several.
const MAX_REJECTED_REPORTS: usize = 64;
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends reports until `stop`.
pub(crate) async fn run(
    usages: Arc<UsageRegistry>,
    client: RouteServiceClient<ServiceChannel>,
    proxy_id: String,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut reporter = Reporter {
        client,
        proxy_id,
        metrics,
        sequence: 0,
        listed: HashMap::new(),
        unsent: VecDeque::new(),
    };
    let mut tick = tokio::time::interval(REPORT_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let reporting = async {
        loop {
            let all = tokio::select! {
                _ = tick.tick() => true,
                () = usages.urgent() => false,
            };
            if all {
                usages.sweep();
            } else {
                tokio::time::sleep(GATHER_TIME).await;
            }
            reporter.report(usages.take_changed(), all).await;
        }
    };
    stop.run_until_cancelled(reporting).await;
}

struct Reporter {
    client: RouteServiceClient<ServiceChannel>,
    proxy_id: String,
    metrics: Arc<Metrics>,
    sequence: u64,
    /// Sessions that were busy or used in the last report.
    listed: HashMap<SessionId, Arc<SessionUsage>>,
    /// Taken usage whose delivery is unconfirmed; sent before newer usage.
    unsent: VecDeque<Report>,
}

/// One report.
struct Report {
    sessions: Vec<SessionActivity>,
    /// Set when first sent; session-manager counts the usage of a sequence number once.
    sequence: Option<u64>,
}

impl Report {
    fn new(sessions: Vec<SessionActivity>) -> Self {
        Self {
            sessions,
            sequence: None,
        }
    }

    /// Fills one report; also returns the record that exceeded its limit.
    fn fill(mut next: impl FnMut() -> Option<SessionActivity>) -> (Self, Option<SessionActivity>) {
        let (mut sessions, mut bytes) = (Vec::new(), 0);
        while sessions.len() < MAX_SESSIONS
            && let Some(activity) = next()
        {
            bytes += activity.encoded_len();
            if bytes > MAX_REPORT_BYTES && !sessions.is_empty() {
                return (Self::new(sessions), Some(activity));
            }
            sessions.push(activity);
        }
        (Self::new(sessions), None)
    }
}

/// Whether a report fails each time that it is sent. `RESOURCE_EXHAUSTED` without a Berth reason
/// means that the message is too large.
fn is_final(status: &tonic::Status) -> bool {
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => true,
        Code::ResourceExhausted => reason_of(status).is_none(),
        _ => false,
    }
}

impl Reporter {
    /// Reports changed sessions and, with `all`, every listed session.
    async fn report(&mut self, changed: Vec<Arc<SessionUsage>>, all: bool) {
        let mut batch: HashMap<SessionId, Arc<SessionUsage>> = HashMap::with_capacity(changed.len());
        for usage in changed {
            usage.mark_listed();
            self.listed.insert(usage.session().clone(), Arc::clone(&usage));
            batch.insert(usage.session().clone(), usage);
        }
        let chosen: Vec<Arc<SessionUsage>> = if all {
            self.listed.values().cloned().collect()
        } else {
            batch.values().cloned().collect()
        };
        if !self.send().await {
            // Usage stays uncollected until session-manager can be reached.
            return;
        }
        // An empty report still proves that this proxy is alive.
        let mut left = chosen.iter().map(|usage| usage.take());
        let mut beyond = None;
        loop {
            let (report, carried) = Report::fill(|| beyond.take().or_else(|| left.next()));
            self.unsent.push_back(report);
            let is_sent = self.send().await;
            beyond = carried;
            if !is_sent {
                self.unsent
                    .extend(beyond.map(|activity| Report::new(vec![activity])));
                return;
            }
            if beyond.is_none() && left.len() == 0 {
                break;
            }
        }
        // Sessions already reported as idle are not reported again.
        self.listed.retain(|_, usage| {
            let busy = usage.is_busy();
            if !busy && all {
                usage.mark_unlisted();
            }
            busy || !all
        });
    }

    /// Sends unsent reports; false if session-manager cannot be reached. A permanently rejected
    /// report is halved until the invalid record is isolated.
    async fn send(&mut self) -> bool {
        let mut rejected = 0;
        while let Some(mut report) = self.unsent.pop_front() {
            let sequence = *report.sequence.get_or_insert_with(|| {
                self.sequence += 1;
                self.sequence
            });
            let request = ReportActivityRequest {
                proxy_id: self.proxy_id.clone(),
                sessions: report.sessions.clone(),
                sequence,
            };
            let sent = tokio::time::timeout(REPORT_TIMEOUT, self.client.report_activity(request)).await;
            match sent {
                Ok(Ok(_)) => continue,
                Ok(Err(status)) if is_final(&status) => {
                    rejected += 1;
                    self.split(report, &status);
                    if rejected >= MAX_REJECTED_REPORTS {
                        tracing::error!("activity reports rejected repeatedly; unsent reports dropped");
                        self.unsent.clear();
                    }
                }
                Ok(Err(status)) => {
                    tracing::debug!(code = ?status.code(), "activity report failed");
                    self.unsent.push_front(report);
                }
                Err(_) => self.unsent.push_front(report),
            }
            self.metrics.control.reports_failed.inc();
            if self
                .unsent
                .front()
                .is_some_and(|report| report.sequence.is_some())
            {
                return false;
            }
        }
        true
    }

    /// Halves a permanently rejected report; drops it if it holds one session.
    fn split(&mut self, report: Report, status: &tonic::Status) {
        let mut first = report.sessions;
        if first.len() > 1 {
            let second = first.split_off(first.len() / 2);
            self.unsent.push_front(Report::new(second));
            self.unsent.push_front(Report::new(first));
            return;
        }
        tracing::error!(
            session = first.first().map(|activity| activity.session_id.as_str()),
            code = ?status.code(),
            message = status.message(),
            "activity report rejected; usage of the session dropped"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity(bytes: usize) -> SessionActivity {
        SessionActivity {
            session_id: "x".repeat(bytes),
            ..SessionActivity::default()
        }
    }

    /// Sessions and bytes of each report, given the size of each session.
    fn reports(sessions: &[usize]) -> Vec<(usize, usize)> {
        let mut left = sessions.iter().map(|bytes| activity(*bytes));
        let mut beyond = None;
        let mut reports = Vec::new();
        loop {
            let (report, carried) = Report::fill(|| beyond.take().or_else(|| left.next()));
            beyond = carried;
            let report = ReportActivityRequest {
                sessions: report.sessions,
                ..ReportActivityRequest::default()
            };
            reports.push((report.sessions.len(), report.encoded_len()));
            if beyond.is_none() && left.len() == 0 {
                return reports;
            }
        }
    }

    #[test]
    fn reports_are_split_by_sessions_and_by_bytes() {
        assert_eq!(
            reports(&[]),
            [(0, 0)],
            "an empty report proves that the proxy is alive"
        );
        let sessions = |reports: &[(usize, usize)]| reports.iter().map(|report| report.0).collect::<Vec<_>>();
        assert_eq!(sessions(&reports(&[10; 2500])), [1000, 1000, 500]);
        let large = reports(&[10_000; 1000]);
        assert_eq!(large.iter().map(|report| report.0).sum::<usize>(), 1000);
        assert!(
            large
                .iter()
                .all(|report| report.1 <= MAX_REPORT_BYTES + 8 * MAX_SESSIONS)
        );
        assert_eq!(sessions(&reports(&[10, 3 * MAX_REPORT_BYTES, 10])), [1, 1, 1]);
    }
}
