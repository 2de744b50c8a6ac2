//! Small calls: closed loop, fixed rate, one per caller, one per connection.

use super::connection::{Connection, Dialer, Prepared};
use super::meter::Meter;
use crate::callers::Caller;
use crate::wire::Method;
use anyhow::{Context as _, Result};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// A closed loop: as many calls at once as asked for, each next one when one ends.
pub(super) struct Closed {
    pub(super) dialer: Dialer,
    pub(super) method: Method,
    pub(super) connections: usize,
    pub(super) concurrency: usize,
}

impl Closed {
    pub(super) async fn run(
        &self,
        callers: &[Caller],
        meter: &Meter,
        warmup_ms: u64,
        millis: u64,
    ) -> Result<()> {
        let calls = callers
            .iter()
            .map(|caller| self.dialer.unary(self.method, caller))
            .collect::<Result<Vec<Prepared>>>()?;
        let connections = self.dialer.connect_many(self.connections).await?;
        let next = Cell::new(0);
        let one = async |connection: &Connection| {
            while !meter.is_over() {
                let call = &calls[next.get() % calls.len()];
                next.set(next.get() + 1);
                let began = Instant::now();
                match call.call_in_time(&connection.sender).await {
                    Ok(()) => meter.call(began),
                    Err(error) => {
                        meter.failed(&error);
                        // What is broken may be broken for good: no hot loop.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        };
        let all = connections
            .iter()
            .flat_map(|connection| std::iter::repeat_n(connection, self.concurrency))
            .map(&one);
        let (_, window) = tokio::join!(join_all(all), meter.window(warmup_ms, millis));
        window
    }
}

/// Runs futures at once, on this task's own waker: cheap for a few dozen.
async fn join_all(futures: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut pending: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        pending.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if pending.is_empty() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

/// Each caller once.
pub(super) async fn each(
    dialer: &Dialer,
    callers: &[Caller],
    connections: usize,
    concurrency: usize,
    meter: &Meter,
) -> Result<()> {
    let connections = dialer.connect_many(connections).await?;
    let next = Cell::new(0);
    let one = async |connection: &Connection| {
        while let Some(caller) = callers.get(next.get()) {
            next.set(next.get() + 1);
            let began = Instant::now();
            let called = match dialer.unary(Method::Config, caller) {
                Ok(call) => call.call_in_time(&connection.sender).await,
                Err(error) => Err(error),
            };
            match called {
                Ok(()) => meter.call(began),
                Err(error) => meter.failed(&error),
            }
        }
    };
    meter.start()?;
    join_all(
        connections
            .iter()
            .flat_map(|connection| std::iter::repeat_n(connection, concurrency))
            .map(&one),
    )
    .await;
    meter.stop()
}

/// One call on each connection, a few at once.
pub(super) async fn touch(
    dialer: &Dialer,
    connections: &[Connection],
    caller: &Caller,
    meter: &Meter,
) -> Result<()> {
    let call = dialer.unary(Method::Config, caller)?;
    for connection in connections {
        let began = Instant::now();
        match call.call_in_time(&connection.sender).await {
            Ok(()) => meter.call(began),
            Err(error) => meter.failed(&error),
        }
    }
    Ok(())
}

/// New connections, one call on each.
pub(super) async fn connects(dialer: &Dialer, caller: &Caller, count: usize, meter: &Meter) -> Result<()> {
    let call = dialer.unary(Method::Config, caller)?;
    meter.start()?;
    for _ in 0..count {
        let began = Instant::now();
        let done = async { call.call_in_time(&dialer.connect().await?.sender).await };
        match done.await {
            Ok(()) => meter.call(began),
            Err(error) => meter.failed(&error),
        }
    }
    meter.stop()
}

/// Calls at a fixed rate, whether or not earlier ones have ended.
pub(super) struct Paced {
    pub(super) dialer: Dialer,
    pub(super) rate: u64,
    pub(super) connections: usize,
}

impl Paced {
    pub(super) async fn run(
        &self,
        caller: &Caller,
        meter: &Meter,
        warmup_ms: u64,
        millis: u64,
    ) -> Result<()> {
        let call = Rc::new(self.dialer.unary(Method::Config, caller)?);
        let connections = self.dialer.connect_many(self.connections).await?;
        let done = Rc::new(std::cell::RefCell::new(Vec::new()));
        let mut running = JoinSet::new();
        let interval = Duration::from_nanos(1_000_000_000 / self.rate);
        let total = self.rate * (warmup_ms + millis) / 1000;
        let first = self.rate * warmup_ms / 1000;
        let mut pace = Pace::new(interval)?;
        let (mut sent, mut due) = (0, pace.began + interval);
        while sent < total {
            for _ in 0..pace.tick().await? {
                if sent == first {
                    meter.start()?;
                }
                let sender = connections[usize::try_from(sent)? % connections.len()]
                    .sender
                    .clone();
                let (call, done) = (Rc::clone(&call), Rc::clone(&done));
                running.spawn_local(async move {
                    let result = call.call_in_time(&sender).await;
                    done.borrow_mut().push((due, Instant::now(), result));
                });
                sent += 1;
                due += interval;
            }
            record(meter, &done);
        }
        while running.join_next().await.is_some() {
            record(meter, &done);
        }
        record(meter, &done);
        meter.stop()
    }
}

type Done = std::cell::RefCell<Vec<(Instant, Instant, Result<()>)>>;

fn record(meter: &Meter, done: &Done) {
    for (due, ended, result) in done.borrow_mut().drain(..) {
        match result {
            Ok(()) => meter.paced_call(due, ended),
            Err(error) => meter.failed(&error),
        }
    }
}

/// Ticks that are exact to microseconds; tokio's own are to a millisecond.
struct Pace {
    ticks: mpsc::UnboundedReceiver<u64>,
    began: Instant,
}

impl Pace {
    fn new(interval: Duration) -> Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        let every = Timespec::try_from(interval).ok().context("an interval")?;
        let (sender, ticks) = mpsc::unbounded_channel();
        timerfd_settime(
            &timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec {
                it_interval: every,
                it_value: every,
            },
        )?;
        let began = Instant::now();
        // A thread that sleeps in the kernel; it ends when nobody listens.
        std::thread::spawn(move || {
            let mut count = [0; 8];
            while rustix::io::read(&timer, &mut count).is_ok()
                && sender.send(u64::from_ne_bytes(count)).is_ok()
            {}
        });
        Ok(Self { ticks, began })
    }

    /// How many ticks are due, at least one.
    async fn tick(&mut self) -> Result<u64> {
        self.ticks.recv().await.context("the clock stopped")
    }
}
