//! Usage of sessions and the registered proxies in memory.

use super::{Entry, MemoryStore};
use crate::activity_reports::{MAX_DELTA_NAMES, Proxies, Report, ReportStart, sort_oldest_first};
use crate::{ActivityReports, Error, Loaded, ReportOutcome, first_use};
use async_trait::async_trait;
use session_core::machine::BUSY_LEASE;
use session_core::{
    Activity, Operation, ProxyId, Session, SessionKey, Timestamp, TokenId, TokenUse, Totals, Use,
};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

/// Usage of one session.
#[derive(Default)]
pub(super) struct SessionUse {
    last_activity_at: Option<Timestamp>,
    totals: Totals,
    added: VecDeque<u64>,
    leases: BTreeMap<ProxyId, Lease>,
    tokens: BTreeMap<TokenId, TokenUse>,
    /// Activity that a test sets in place of the reported one.
    pub(super) forced: Option<Activity>,
}

struct Lease {
    until: Timestamp,
    generation: u64,
    open_calls: u32,
    operations: Vec<Operation>,
}

impl SessionUse {
    /// Adds a new usage delta, and the uses of tokens that are `known`. Returns the
    /// tokens that were used for the first time.
    pub(super) fn add(
        &mut self,
        report: &Report,
        known: impl Fn(&TokenId) -> bool,
        now: Timestamp,
    ) -> Vec<TokenId> {
        if let Some(delta) = report.usage_delta
            && !self.added.contains(&delta.name)
        {
            self.totals = self.totals.plus(delta.totals);
            self.added.push_front(delta.name);
            self.added.truncate(MAX_DELTA_NAMES);
        }
        let mut first_used = Vec::new();
        for one in report.token_uses.iter().filter(|one| known(&one.id)) {
            if !self.tokens.contains_key(&one.id) {
                first_used.push(one.id.clone());
            }
            let kept = self.tokens.entry(one.id.clone()).or_insert_with(|| TokenUse {
                first: one.first.min(now),
                ..one.clone()
            });
            kept.last = kept.last.max(one.last).min(now);
        }
        first_used
    }

    /// Starts, renews or ends the lease of the proxy, and updates the last activity.
    pub(super) fn apply_lease(&mut self, report: &Report, generation: u64, now: Timestamp) {
        let is_current = report.generation >= generation;
        let mut at = report
            .last_activity_at
            .filter(|_| is_current)
            .map(|at| at.min(now));
        match report.open_calls {
            Some(open_calls) if is_current && open_calls > 0 => {
                at = Some(now);
                self.leases.retain(|_, lease| lease.until > now);
                let lease = Lease {
                    until: now.after(BUSY_LEASE),
                    generation: report.generation,
                    open_calls,
                    operations: report.operations.clone(),
                };
                self.leases.insert(report.proxy.clone(), lease);
            }
            Some(_) => {
                self.leases.remove(&report.proxy);
            }
            None => {}
        }
        self.last_activity_at = self.last_activity_at.max(at);
    }

    fn leases(&self, generation: u64, now: Timestamp) -> impl Iterator<Item = &Lease> {
        self.leases
            .values()
            .filter(move |lease| lease.until > now && lease.generation >= generation)
    }

    pub(super) fn usage(&self, generation: u64, now: Timestamp) -> Use {
        Use {
            at: now,
            last_activity_at: self.last_activity_at,
            open_calls: self
                .leases(generation, now)
                .fold(0, |sum, lease| sum.saturating_add(lease.open_calls)),
            totals: self.totals,
        }
    }

    pub(super) fn activity(&self, generation: u64, now: Timestamp) -> Activity {
        self.forced
            .unwrap_or_else(|| self.usage(generation, now).activity())
    }

    pub(super) fn operations(&self, generation: u64, now: Timestamp) -> Vec<Operation> {
        let leases = self.leases(generation, now);
        let mut operations: Vec<_> = leases
            .flat_map(|lease| lease.operations.iter().cloned())
            .collect();
        sort_oldest_first(&mut operations);
        operations
    }

    pub(super) fn token_uses(&self, known: impl Fn(&TokenId) -> bool) -> BTreeMap<TokenId, TokenUse> {
        let uses = self.tokens.iter().filter(|(id, _)| known(id));
        uses.map(|(id, one)| (id.clone(), one.clone())).collect()
    }

    /// Deletes the uses of tokens that are no longer recorded.
    pub(super) fn retain_tokens(&mut self, known: impl Fn(&TokenId) -> bool) {
        self.tokens.retain(|id, _| known(id));
    }
}

/// The registered proxies: time and sequence number of their last report.
#[derive(Default)]
pub(super) struct ProxyRegistry(HashMap<ProxyId, (Timestamp, u64)>);

impl ProxyRegistry {
    pub(super) fn begin_report(&mut self, proxy: &ProxyId, sequence: u64, now: Timestamp) -> ReportStart {
        self.remove_older(crate::PROXY_RETENTION, now);
        let (_, last) = self.0.entry(proxy.clone()).or_insert((now, 0));
        let fresh = sequence == 0 || sequence > *last;
        *last = sequence.max(*last);
        ReportStart { at: now, fresh }
    }

    pub(super) fn mark_alive(&mut self, proxy: &ProxyId, at: Timestamp) {
        let (last, _) = self.0.entry(proxy.clone()).or_insert((at, 0));
        *last = at.max(*last);
    }

    pub(super) fn count(
        &mut self,
        silent_after: Duration,
        gone_after: Option<Duration>,
        now: Timestamp,
    ) -> Proxies {
        if let Some(gone_after) = gone_after {
            self.remove_older(gone_after, now);
        }
        let silent = self
            .0
            .values()
            .filter(|(at, _)| *at <= now.before(silent_after))
            .count();
        Proxies {
            known: self.0.len() as u64,
            silent: silent as u64,
        }
    }

    fn remove_older(&mut self, after: Duration, now: Timestamp) {
        self.0.retain(|_, (at, _)| now.since(*at) < after);
    }
}

#[async_trait]
impl ActivityReports for MemoryStore {
    async fn apply_report(&self, key: &SessionKey, report: &Report) -> Result<ReportOutcome, Error> {
        let now = self.clock.now();
        let mut state = self.state();
        let Some(entry) = state.entry_mut(key) else {
            return Ok(ReportOutcome::Unknown);
        };
        let tokens = &entry.tokens;
        let first_used = entry.used.add(report, |id| tokens.contains_key(id), now);
        let status = entry.session.status();
        if !status.is_terminal() {
            entry.used.apply_lease(report, entry.session.generation, now);
        }
        for id in first_used {
            state.trail.add(first_use(key, &id, now), now);
        }
        Ok(if status.is_terminal() {
            ReportOutcome::Ended
        } else {
            ReportOutcome::Live(status)
        })
    }

    async fn get_with_activity(&self, key: &SessionKey) -> Result<Option<Loaded>, Error> {
        let now = self.clock.now();
        let state = self.state();
        Ok(state.entry(key).map(|e| Loaded {
            session: e.session.clone(),
            activity: e.used.activity(e.session.generation, now),
            at: now,
        }))
    }

    async fn usage(&self, sessions: &[Session]) -> Result<Vec<Use>, Error> {
        let now = self.clock.now();
        let state = self.state();
        let used = |session: &Session| {
            let entry = state.entry(&session.key())?;
            Some(entry.used.usage(session.generation, now))
        };
        Ok(sessions
            .iter()
            .map(|session| used(session).unwrap_or_default())
            .collect())
    }

    async fn operations(&self, key: &SessionKey) -> Result<Vec<Operation>, Error> {
        let now = self.clock.now();
        let state = self.state();
        let operations = |e: &Entry| e.used.operations(e.session.generation, now);
        Ok(state.entry(key).map(operations).unwrap_or_default())
    }

    async fn begin_proxy_report(&self, proxy: &ProxyId, sequence: u64) -> Result<ReportStart, Error> {
        let now = self.clock.now();
        Ok(self.state().proxies.begin_report(proxy, sequence, now))
    }

    async fn mark_proxy_alive(&self, proxy: &ProxyId, at: Timestamp) -> Result<(), Error> {
        self.state().proxies.mark_alive(proxy, at);
        Ok(())
    }

    async fn count_proxies(
        &self,
        silent_after: Duration,
        gone_after: Option<Duration>,
    ) -> Result<Proxies, Error> {
        let now = self.clock.now();
        Ok(self.state().proxies.count(silent_after, gone_after, now))
    }
}
