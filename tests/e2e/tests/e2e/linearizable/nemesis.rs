//! What breaks. Two of them at the same time: one breaks what stores (session-managers and Redis,
//! one at a time, because a writer that dies during a fail-over may lose what it alone could
//! repeat), the other what serves (proxies, token-issuers, ways, clocks).

use super::client::Recorder;
use super::clock::ProcessClock;
use super::dice::Dice;
use super::rig::{Rig, Ways};
use anyhow::{Context as _, Result, bail, ensure};
use e2e::{LinkMode, Service, wait};
use rustix::process::{Pid, Signal, kill_process};
use std::net::SocketAddr;
use std::time::Duration;
use test_support::redis::Watched;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

const FAIL_OVER: Duration = Duration::from_secs(60);
/// The clocks of two parts may differ by 30 s (docs/security.md).
const JUMP_MS: u64 = 14_000;
/// Now and then nothing breaks for so long, so that the short limits apply.
const CALM: Duration = Duration::from_secs(22);
const BETWEEN_CALMS: Duration = Duration::from_secs(50);

/// What breaks of what stores.
#[derive(Debug, Clone, Copy)]
enum StoreFault {
    KillManager(usize),
    KillBothManagers,
    StopManager(usize),
    KillPrimary,
    StopPrimary,
    StopPrimaryBriefly,
    CutPrimary,
    HandOver,
    StopReplicas,
}

/// What breaks of what serves.
#[derive(Debug, Clone, Copy)]
enum EdgeFault {
    KillProxy(usize),
    StopProxy(usize),
    KillIssuer(usize),
    StopIssuer(usize),
    /// The way of a proxy or a token-issuer to session-manager.
    HoldWay(usize),
    BreakWay(usize),
    Jump,
}

const STORE_FAULTS: [StoreFault; 11] = [
    StoreFault::KillManager(0),
    StoreFault::KillManager(1),
    StoreFault::KillBothManagers,
    StoreFault::StopManager(0),
    StoreFault::StopManager(1),
    StoreFault::KillPrimary,
    StoreFault::StopPrimary,
    StoreFault::StopPrimaryBriefly,
    StoreFault::CutPrimary,
    StoreFault::HandOver,
    StoreFault::StopReplicas,
];

const EDGE_FAULTS: [EdgeFault; 15] = [
    EdgeFault::KillProxy(0),
    EdgeFault::KillProxy(1),
    EdgeFault::StopProxy(0),
    EdgeFault::StopProxy(1),
    EdgeFault::KillIssuer(0),
    EdgeFault::KillIssuer(1),
    EdgeFault::StopIssuer(0),
    EdgeFault::HoldWay(0),
    EdgeFault::HoldWay(1),
    EdgeFault::BreakWay(0),
    EdgeFault::BreakWay(1),
    EdgeFault::HoldWay(2),
    EdgeFault::Jump,
    EdgeFault::Jump,
    EdgeFault::Jump,
];

/// Breaks parts until it is over, then heals them.
pub(super) async fn strike(rig: &mut Rig, recorder: &Recorder, seed: u64) -> Result<()> {
    let Rig {
        stack,
        manager,
        issuer,
        proxy,
        redis,
        ways,
        clocks,
        ..
    } = rig;
    let mut store = Store {
        managers: [&mut stack.manager, &mut manager.service],
        redis,
        ways,
    };
    let mut edge = Edge {
        proxies: [&mut stack.proxy, &mut proxy.0],
        issuers: [&mut stack.issuer, &mut issuer.service],
        ways,
        clocks,
    };
    let (one, other) = (Dice::new(seed, 0xA0_0000), Dice::new(seed, 0xA0_0001));
    tokio::try_join!(
        rounds(recorder, one, &STORE_FAULTS, async |fault, dice| store
            .fault(fault, dice, recorder)
            .await),
        rounds(recorder, other, &EDGE_FAULTS, async |fault, dice| edge
            .fault(fault, dice, recorder)
            .await),
    )?;
    ways.open();
    for (_, clock) in clocks.iter() {
        clock.jump(0)?;
    }
    Ok(())
}

/// Each fault in turn, in an order of the dice.
async fn rounds<F: Copy>(
    recorder: &Recorder,
    mut dice: Dice,
    faults: &[F],
    mut strike: impl AsyncFnMut(F, &mut Dice) -> Result<()>,
) -> Result<()> {
    let mut deck: Vec<F> = Vec::new();
    let mut calm_at = BETWEEN_CALMS;
    while !recorder.is_over() {
        recorder.pause(dice.time(500, 3000)).await;
        // Both have their calm at the same time.
        if Duration::from_micros(recorder.now()) > calm_at {
            recorder.pause(CALM).await;
            calm_at += BETWEEN_CALMS + CALM;
        }
        if recorder.is_over() {
            break;
        }
        if deck.is_empty() {
            deck = faults.to_vec();
            dice.shuffle(&mut deck);
        }
        if let Some(fault) = deck.pop() {
            strike(fault, &mut dice).await?;
        }
    }
    Ok(())
}

fn signal(service: &Service, signal: Signal) -> Result<()> {
    let pid = service.pid().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(Pid::from_raw).context("a service that runs")?;
    Ok(kill_process(pid, signal)?)
}

async fn kill(service: &mut Service, away: Duration, recorder: &Recorder) -> Result<()> {
    service.kill9().await?;
    recorder.pause(away).await;
    service.start_ready().await
}

async fn stop(service: &Service, time: Duration, recorder: &Recorder) -> Result<()> {
    signal(service, Signal::STOP)?;
    recorder.pause(time).await;
    signal(service, Signal::CONT)?;
    service.ready().await
}

/// What stores.
struct Store<'a> {
    managers: [&'a mut Service; 2],
    redis: &'a mut Watched,
    ways: &'a Ways,
}

impl Store<'_> {
    async fn fault(&mut self, fault: StoreFault, dice: &mut Dice, recorder: &Recorder) -> Result<()> {
        let mut begun = recorder.now();
        let mut loses = false;
        match fault {
            StoreFault::KillManager(n) => kill(self.managers[n], dice.time(100, 2000), recorder).await?,
            StoreFault::KillBothManagers => {
                for manager in &mut self.managers {
                    manager.kill9().await?;
                }
                recorder.pause(dice.time(100, 1500)).await;
                for manager in &mut self.managers {
                    manager.start_ready().await?;
                }
            }
            StoreFault::StopManager(n) => stop(self.managers[n], dice.time(1000, 9000), recorder).await?,
            StoreFault::StopReplicas => {
                let primary = self.redis.primary().await?;
                self.stand_still(|n| n != primary, true).await?;
                recorder.pause(dice.time(500, 3000)).await;
                self.stand_still(|n| n != primary, false).await?;
                self.all_replicas_follow().await?;
            }
            StoreFault::StopPrimaryBriefly => {
                let primary = self.redis.primary().await?;
                self.stand_still(|n| n == primary, true).await?;
                // Shorter than what the sentinels take for a death.
                recorder.pause(dice.time(100, 600)).await;
                self.stand_still(|n| n == primary, false).await?;
            }
            StoreFault::KillPrimary
            | StoreFault::StopPrimary
            | StoreFault::CutPrimary
            | StoreFault::HandOver => {
                self.all_replicas_follow().await?;
                begun = recorder.now();
                loses = true;
                self.fail_over(fault).await?;
            }
        }
        recorder.fault(format!("{fault:?}"), begun, loses);
        if loses {
            // No writer dies before it has repeated what was lost.
            recorder.pause(Duration::from_secs(3)).await;
        }
        Ok(())
    }

    async fn stand_still(&mut self, which: impl Fn(usize) -> bool, still: bool) -> Result<()> {
        for (n, server) in self.redis.servers.iter_mut().enumerate() {
            if which(n) {
                server.stand_still(still).await?;
            }
        }
        Ok(())
    }

    /// Another server becomes the primary, and the former one its replica.
    async fn fail_over(&mut self, fault: StoreFault) -> Result<()> {
        let old = self.redis.primary().await?;
        let is_killed = matches!(fault, StoreFault::KillPrimary);
        match fault {
            StoreFault::KillPrimary => self.redis.servers[old].kill9()?,
            StoreFault::StopPrimary => self.redis.servers[old].stand_still(true).await?,
            StoreFault::CutPrimary => self.ways.redis[old].set(LinkMode::Still),
            StoreFault::HandOver => {
                // Refused for some seconds after another fail-over.
                let answer = self.redis.fail_over().await?;
                if !answer.starts_with("+OK") {
                    return Ok(());
                }
            }
            StoreFault::KillManager(_)
            | StoreFault::KillBothManagers
            | StoreFault::StopManager(_)
            | StoreFault::StopPrimaryBriefly
            | StoreFault::StopReplicas => bail!("no fail-over"),
        }
        let new = wait::until("another primary", FAIL_OVER, async || {
            match self.redis.primary().await {
                Ok(new) if new != old => Ok(new),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
        // The former primary comes back and takes itself for the primary, for a moment.
        self.redis.servers[old].stand_still(false).await?;
        self.ways.redis[old].set(LinkMode::Open);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let [old, new] = self.redis.servers.get_disjoint_mut([old, new])?;
        if is_killed {
            old.restart().await?;
        }
        old.follow(new).await?;
        self.all_replicas_follow().await
    }

    /// Waits until both replicas have all that the primary wrote so far. Creates and names are not
    /// waited for (docs/known-limits.md): those of the fail-over itself may be lost.
    async fn all_replicas_follow(&self) -> Result<()> {
        wait::until("two replicas", FAIL_OVER, async || {
            let primary = self.redis.primary().await.map_err(|error| error.to_string())?;
            let address = self.redis.servers[primary].address();
            replicated(address).await.map_err(|error| format!("{error:#}"))
        })
        .await
    }
}

async fn replicated(primary: SocketAddr) -> Result<()> {
    let exchange = async {
        let mut tcp = TcpStream::connect(primary).await?;
        tcp.write_all(b"SET linearizable:probe 1\r\nWAIT 2 3000\r\n")
            .await?;
        let mut replies = BufReader::new(tcp).lines();
        let written = replies.next_line().await?;
        let followed = replies.next_line().await?;
        ensure!(
            written.as_deref() == Some("+OK") && followed.as_deref() == Some(":2"),
            "{written:?} {followed:?}"
        );
        Ok(())
    };
    tokio::time::timeout(Duration::from_secs(5), exchange)
        .await
        .context("no answer")?
}

/// What serves.
struct Edge<'a> {
    proxies: [&'a mut Service; 2],
    issuers: [&'a mut Service; 2],
    ways: &'a Ways,
    clocks: &'a [(&'static str, ProcessClock)],
}

impl Edge<'_> {
    async fn fault(&mut self, fault: EdgeFault, dice: &mut Dice, recorder: &Recorder) -> Result<()> {
        let begun = recorder.now();
        let time = dice.time(1000, 9000);
        let mut what = format!("{fault:?} {time:.1?}");
        match fault {
            EdgeFault::KillProxy(n) => kill(self.proxies[n], dice.time(100, 2000), recorder).await?,
            EdgeFault::StopProxy(n) => stop(self.proxies[n], time, recorder).await?,
            EdgeFault::KillIssuer(n) => kill(self.issuers[n], dice.time(100, 2000), recorder).await?,
            EdgeFault::StopIssuer(n) => stop(self.issuers[n], time, recorder).await?,
            EdgeFault::HoldWay(n) => {
                what += Ways::NAMES[n];
                self.ways.managers[n].set(LinkMode::Still);
                recorder.pause(time).await;
                self.ways.managers[n].set(LinkMode::Open);
            }
            EdgeFault::BreakWay(n) => {
                what += Ways::NAMES[n];
                self.ways.managers[n].set(LinkMode::Broken);
                recorder.pause(time).await;
                self.ways.managers[n].set(LinkMode::Open);
            }
            EdgeFault::Jump => {
                let (name, clock) = dice.pick(self.clocks).context("a clock")?;
                let far = i64::try_from(dice.between(0, 2 * JUMP_MS))? - i64::try_from(JUMP_MS)?;
                clock.jump(far)?;
                what = format!("{name}'s clock jumps to {far} ms");
                recorder.pause(Duration::from_millis(500)).await;
            }
        }
        recorder.fault(what, begun, false);
        Ok(())
    }
}
