//! What the clients of a session do: three of them concurrently, at all replicas, until it is closed and
//! some time longer.

use super::client::{Client, Known, Places, Recorder};
use super::dice::Dice;
use super::history::{Call, Life, Outcome};
use anyhow::{Result, ensure};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The cluster of a server that all its sessions share; others have compute of their own.
pub(super) const SHARED: &str = "shared";
/// A client that was not answered waits before it calls again: each such call may be done at any
/// time, and an order is searched among all of them.
const AFTER_UNKNOWN_MS: (u64, u64) = (500, 1500);
/// Calls of each client before the close, and after it, and the longest pause between them.
const CALLS: (u64, u64) = (10, 30);
const PAUSE_MS: u64 = 120;
/// The same on compute of its own, which must live long enough to be lost.
const DEDICATED_CALLS: (u64, u64) = (60, 120);
const DEDICATED_PAUSE_MS: u64 = 700;
const CALLS_AFTER: u64 = 12;
/// After the faults every session answers within this time.
const ANSWERS_AGAIN: Duration = Duration::from_secs(90);

/// What everybody shares.
#[derive(Debug)]
pub(super) struct Crowd {
    pub(super) recorder: Arc<Recorder>,
    pub(super) places: Places,
    pub(super) key: String,
    pub(super) seed: u64,
    pub(super) sessions: Mutex<Vec<Arc<Known>>>,
    pub(super) next: AtomicU32,
}

impl Crowd {
    fn client(&self, number: u32) -> Result<Client> {
        Client::new(number, &self.key, &self.places, Arc::clone(&self.recorder))
    }

    /// Lives of sessions, one after the other, until it is over.
    pub(super) async fn sessions_on(self: Arc<Self>, cluster: &'static str, place: u32) -> Result<()> {
        let clients = [
            self.client(place * 3)?,
            self.client(place * 3 + 1)?,
            self.client(place * 3 + 2)?,
        ];
        while !self.recorder.is_over() {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let session = Arc::new(Known::new(number, cluster));
            self.sessions.lock().push(Arc::clone(&session));
            let share = |n: usize| Share {
                client: clients[n].clone(),
                session: Arc::clone(&session),
                dice: Dice::new(self.seed, (u64::from(number) << 8) + n as u64),
            };
            tokio::join!(
                share(0).create_and_close(),
                share(1).create_too(),
                share(2).follow()
            );
        }
        Ok(())
    }

    /// Looks at sessions of the past, which must stay as they are.
    pub(super) async fn look_back(self: Arc<Self>, place: u32) -> Result<()> {
        let client = self.client(1000 + place)?;
        let mut dice = Dice::new(self.seed, 0xB0_0000 + u64::from(place));
        while !self.recorder.is_over() {
            self.recorder.pause(dice.time(20, 100)).await;
            let session = dice.pick(&self.sessions.lock()).cloned();
            let Some(session) = session else { continue };
            let mut share = Share {
                client: client.clone(),
                session,
                dice: dice.clone(),
            };
            let call = share.read();
            share.call(call).await;
            dice = share.dice;
        }
        Ok(())
    }

    /// After the faults: every session is shown by both managers, and both proxies answer or
    /// refuse.
    pub(super) async fn all_answer(self: Arc<Self>, part: usize, of: usize) -> Result<()> {
        let client = self.client(2000 + u32::try_from(part)?)?;
        let sessions: Vec<Arc<Known>> = self.sessions.lock().clone();
        for session in sessions
            .iter()
            .skip(part)
            .step_by(of)
            .filter(|session| session.is_created())
        {
            for replica in 0..2 {
                self.answers(&client, session, replica).await?;
            }
        }
        Ok(())
    }

    async fn answers(&self, client: &Client, session: &Known, replica: usize) -> Result<()> {
        let described = insist(client, session, replica, || Call::Describe).await?;
        let is_live = matches!(&described, Outcome::Record(record) if record.life == Life::Live);
        if is_live && session.tokens().is_empty() {
            insist(client, session, replica, || Call::Issue).await?;
        }
        let Some(token) = session.tokens().pop() else {
            return Ok(());
        };
        let resolve = || Call::Resolve { token: token.clone() };
        insist(client, session, replica, resolve).await?;
        let proxy = u8::try_from(replica)?;
        let spark = || Call::Spark {
            proxy,
            token: token.clone(),
        };
        insist(client, session, replica, spark).await.map(drop)
    }
}

/// One client's part in the life of a session.
struct Share {
    client: Client,
    session: Arc<Known>,
    dice: Dice,
}

impl Share {
    /// Creates the session, uses it, and perhaps closes it.
    async fn create_and_close(mut self) {
        // Compute of its own takes memory until the end.
        let closes = self.session.cluster != SHARED || self.dice.percent(75);
        self.create().await;
        self.use_it(closes).await;
    }

    /// May send the same create again.
    async fn create_too(mut self) {
        if self.dice.percent(40) {
            self.create().await;
        }
        self.follow().await;
    }

    /// Uses the session once it is there.
    async fn follow(mut self) {
        while !self.session.is_created() && !self.client.recorder().is_over() {
            self.client.recorder().pause(Duration::from_millis(20)).await;
        }
        self.use_it(false).await;
    }

    async fn create(&mut self) {
        while !self.client.recorder().is_over() {
            let name = format!("n{}", self.session.number);
            if let Some(Outcome::Record(_)) = self.call(Call::Create { name }).await {
                return;
            }
        }
    }

    async fn use_it(&mut self, closes: bool) {
        let (calls, pause) = if self.session.cluster == SHARED {
            (CALLS, PAUSE_MS)
        } else {
            (DEDICATED_CALLS, DEDICATED_PAUSE_MS)
        };
        let calls = self.dice.between(calls.0, calls.1);
        for n in 0..calls + CALLS_AFTER {
            if self.client.recorder().is_over() {
                return;
            }
            let call = if closes && n == calls {
                Call::Close
            } else {
                self.any_call(n)
            };
            self.call(call).await;
            self.client.recorder().pause(self.dice.time(5, pause)).await;
        }
    }

    fn any_call(&mut self, n: u64) -> Call {
        let token = self.dice.pick(&self.session.tokens()).cloned();
        match (self.dice.below(100), token) {
            (0..9, _) => Call::Rename {
                name: format!("n{}-{n}-{}", self.session.number, self.dice.below(1_000_000)),
            },
            (9..13, Some(token)) => Call::Revoke { token },
            (13..15, Some(_)) => Call::RevokeAll,
            (15..23, _) | (_, None) => Call::Issue,
            _ => self.read(),
        }
    }

    fn read(&mut self) -> Call {
        let token = self.dice.pick(&self.session.tokens()).cloned();
        match (self.dice.below(3), token) {
            (0, _) | (_, None) => Call::Describe,
            (1, Some(token)) => Call::Resolve { token },
            // The number of the proxy is that of the replica.
            (_, Some(token)) => Call::Spark { proxy: 0, token },
        }
    }

    async fn call(&mut self, mut call: Call) -> Option<Outcome> {
        let replica = self.dice.below(2);
        if let Call::Spark { proxy, .. } = &mut call {
            *proxy = u8::from(replica == 1);
        }
        let outcome = self.client.call(&self.session, replica, call).await;
        let pause = match &outcome {
            Some(Outcome::Unknown(_)) => self.dice.time(AFTER_UNKNOWN_MS.0, AFTER_UNKNOWN_MS.1),
            Some(Outcome::Failed(_)) => self.dice.time(50, 200),
            Some(
                Outcome::Record(_)
                | Outcome::Issued { .. }
                | Outcome::AllRevoked { .. }
                | Outcome::Done
                | Outcome::Answered { .. }
                | Outcome::Refused(_),
            )
            | None => Duration::ZERO,
        };
        self.client.recorder().pause(pause).await;
        outcome
    }
}

/// Calls until the answer tells something.
async fn insist(
    client: &Client,
    session: &Known,
    replica: usize,
    call: impl Fn() -> Call,
) -> Result<Outcome> {
    let begun = Instant::now();
    loop {
        let outcome = client.call(session, replica, call()).await;
        let tells = !matches!(outcome, Some(Outcome::Unknown(_) | Outcome::Failed(_)) | None);
        match outcome {
            Some(outcome) if tells => return Ok(outcome),
            other => ensure!(
                begun.elapsed() < ANSWERS_AGAIN,
                "session {}: {:?} at {replica} for {ANSWERS_AGAIN:?}: {other:?}",
                session.number,
                call()
            ),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
