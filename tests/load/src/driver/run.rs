//! One measurement in the making, and those that take several steps.

use super::Rig;
use super::peer::Kind;
use super::scenario::{Effort, Values};
use crate::callers::Caller;
use crate::proc;
use crate::protocol::{Job, Outcome, Target};
use crate::wire::{Method, Shape};
use anyhow::Result;
use std::time::Duration;

const MIB: usize = 1 << 20;
/// After a start or a change, before memory is looked at.
const SETTLE: Duration = Duration::from_millis(300);
/// The sessions of the scenario `sessions`, and of the warm part of `routes`.
const SESSIONS: u64 = 100;

/// One measurement.
pub(super) struct Run<'r> {
    pub(super) rig: &'r mut Rig,
    pub(super) what: String,
    pub(super) target: Target,
    pub(super) caller: Caller,
    pub(super) watch: Vec<Vec<u32>>,
    kind: Kind,
    effort: Effort,
}

impl<'r> Run<'r> {
    pub(super) async fn new(rig: &'r mut Rig, kind: Kind, effort: &Effort, what: String) -> Result<Self> {
        let caller = rig.caller(0)?;
        let peer = rig.peer(kind).await?;
        let target = peer.target.clone();
        let mut watch = vec![peer.pids.clone()];
        watch.extend(rig.helpers());
        Ok(Self {
            rig,
            what,
            target,
            caller,
            watch,
            kind,
            effort: *effort,
        })
    }

    /// The peer as new, and its memory at rest, in MiB.
    async fn restart(&mut self) -> Result<f64> {
        let peer = self.rig.fresh_peer(self.kind).await?;
        (self.target, self.watch[0]) = (peer.target.clone(), peer.pids.clone());
        tokio::time::sleep(SETTLE).await;
        self.rss()
    }

    fn rss(&self) -> Result<f64> {
        proc::rss_mib(&self.watch[0])
    }

    fn calls_of(&self, callers: Vec<Caller>, connections: usize, concurrency: usize) -> Job {
        Job::Calls {
            target: self.target.clone(),
            method: Method::Config,
            callers,
            connections,
            concurrency,
            warmup_ms: self.effort.warmup_ms,
            millis: self.effort.millis,
            watch: self.watch.clone(),
        }
    }

    /// Small calls in a closed loop.
    pub(super) async fn calls(&mut self, connections: usize, concurrency: usize) -> Result<Outcome> {
        let job = self.calls_of(vec![self.caller.clone()], connections, concurrency);
        self.rig.load(&self.what, &job).await
    }

    fn stream_of(&self, method: Method, shape: Shape, millis: u64) -> Job {
        Job::Stream {
            target: self.target.clone(),
            caller: self.caller.clone(),
            method,
            shape,
            streams: 1,
            warmup_ms: self.effort.warmup_ms,
            millis,
            watch: self.watch.clone(),
        }
    }

    /// Bulk on one stream; calls of `count` messages follow one another.
    pub(super) async fn stream(&mut self, method: Method, size: usize, count: usize) -> Result<Outcome> {
        let job = self.stream_of(method, Shape { count, size }, self.effort.millis);
        self.rig.load(&self.what, &job).await
    }

    /// CPU seconds of the proxy, if there is one.
    pub(super) fn proxy_cpu(&self, got: &Outcome) -> Option<f64> {
        (self.kind != Kind::Direct)
            .then(|| got.cpu.first().copied())
            .flatten()
    }

    /// MB/s, and CPU seconds per GB.
    pub(super) fn bulk(&self, got: &Outcome, rate: &'static str, cost: &'static str) -> Values {
        let bytes = got.bytes as f64;
        let mut values = vec![(rate, bytes / 1e6 / got.seconds)];
        values.extend(self.proxy_cpu(got).map(|cpu| (cost, cpu * 1e9 / bytes)));
        values
    }

    /// Memory at rest, with idle connections, and at most while a big result streams.
    pub(super) async fn memory(&mut self) -> Result<Values> {
        let rest = self.restart().await?;
        proc::reset_peak(&self.watch[0])?;
        let shape = Shape {
            count: self.effort.stream_bytes / MIB,
            size: MIB,
        };
        let job = self.stream_of(Method::Execute, shape, 0);
        self.rig.load(&self.what, &job).await?;
        let peak = proc::peak_mib(&self.watch[0])?;

        // Warm: the first connection of all pays for what all share.
        self.restart().await?;
        let warm = Job::Connects {
            target: self.target.clone(),
            caller: self.caller.clone(),
            count: 5,
            watch: Vec::new(),
        };
        self.rig.load(&self.what, &warm).await?;
        let before = self.rss()?;
        let count = self.effort.idle;
        let hold = Job::Hold {
            target: self.target.clone(),
            count,
        };
        self.rig.load(&self.what, &hold).await?;
        tokio::time::sleep(SETTLE).await;
        let held = self.rss()?;
        let touch = Job::Touch {
            caller: self.caller.clone(),
        };
        self.rig.load(&self.what, &touch).await?;
        tokio::time::sleep(SETTLE).await;
        let touched = self.rss()?;
        self.rig.load(&self.what, &Job::Release).await?;
        let each = |now: f64| (now - before) * 1024.0 / count as f64;
        Ok(vec![
            ("mem_rest", rest),
            ("mem_idle", each(held)),
            ("mem_used", each(touched)),
            ("mem_peak", peak),
        ])
    }

    /// What a call costs with a token that was never seen, beyond one that was.
    pub(super) async fn new_tokens(&mut self) -> Result<Values> {
        let seen = vec![self.caller.clone(); usize::try_from(self.effort.tokens)?];
        let new = self
            .rig
            .callers(std::iter::repeat_n(0, usize::try_from(self.effort.tokens)?))?;
        let seen = self.each(seen).await?;
        let new = self.each(new).await?;
        Ok(vec![("new_token_cpu", new - seen)])
    }

    /// CPU microseconds a call, each of these callers calling once.
    async fn each(&mut self, callers: Vec<Caller>) -> Result<f64> {
        let job = Job::Each {
            target: self.target.clone(),
            callers,
            concurrency: 16,
            connections: 4,
            watch: self.watch.clone(),
        };
        let got = self.rig.load(&self.what, &job).await?;
        Ok(self.proxy_cpu(&got).unwrap_or(0.0) * 1e6 / got.calls as f64)
    }

    async fn cost_of(&mut self, callers: Vec<Caller>) -> Result<f64> {
        let job = self.calls_of(callers, 4, 16);
        let got = self.rig.load(&self.what, &job).await?;
        Ok(self.proxy_cpu(&got).unwrap_or(0.0) * 1e6 / got.calls as f64)
    }

    /// What a call costs when 100 sessions take turns, beside when one does.
    pub(super) async fn sessions(&mut self) -> Result<Values> {
        self.rig.add_sessions(0, SESSIONS);
        let callers = self.rig.callers(0..SESSIONS)?;
        // Routes, tokens and backend connections are not what is measured.
        self.each(callers.clone()).await?;
        self.each(callers.clone()).await?;
        let one = self.cost_of(vec![self.caller.clone()]).await?;
        let many = self.cost_of(callers).await?;
        Ok(vec![("sessions_cpu", many), ("sessions_ratio", many / one)])
    }

    /// What a call costs when very many routes are known, beside when few are.
    pub(super) async fn routes(&mut self) -> Result<Values> {
        self.restart().await?;
        let one = vec![self.caller.clone()];
        let few = self.cost_of(one.clone()).await?;
        let few = few.min(self.cost_of(one.clone()).await?);
        // Beyond the sessions that have compute of their own, this one included.
        let known = SESSIONS..SESSIONS + self.effort.routes;
        self.rig.add_sharing_sessions(known.start, known.end);
        let callers = self.rig.callers(known)?;
        self.each(callers).await?;
        let many = self.cost_of(one.clone()).await?;
        let many = many.min(self.cost_of(one).await?);
        let values = vec![("routes_ratio", many / few), ("routes_mib", self.rss()?)];
        self.restart().await?;
        Ok(values)
    }

    /// Small calls one at a time, alone and beside a download that never pauses.
    pub(super) async fn mixed(&mut self) -> Result<Values> {
        let alone = self.calls(1, 1).await?;
        let small = self.calls_of(vec![self.caller.clone()], 1, 1);
        let shape = Shape { count: 64, size: MIB };
        let big = self.stream_of(Method::Execute, shape, self.effort.millis);
        let (beside, _) = self.rig.load_beside(&self.what, &small, &big).await?;
        Ok(vec![
            ("mixed_p99", beside.p99),
            ("mixed_ratio", beside.p99 / alone.p99),
        ])
    }

    /// The same load with and without idle connections beside it.
    pub(super) async fn idle_beside(&mut self) -> Result<Values> {
        let alone = self.calls(4, 16).await?;
        let hold = Job::Hold {
            target: self.target.clone(),
            count: self.effort.idle_beside,
        };
        self.rig.aside(&self.what, &hold).await?;
        let beside = self.calls(4, 16).await?;
        self.rig.aside(&self.what, &Job::Release).await?;
        let cost = |got: &Outcome| self.proxy_cpu(got).unwrap_or(0.0) / got.calls as f64;
        Ok(vec![("beside_ratio", cost(&beside) / cost(&alone))])
    }
}
