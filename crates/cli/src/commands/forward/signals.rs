//! Signals that end `berth connect`, and that `berth exec` passes on.
//!
//! A signal that is ignored when the command starts stays ignored, for it and for its child: `nohup`
//! ignores SIGHUP, and shells without job control ignore SIGINT and SIGQUIT of background jobs.

use crate::Exit;
use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind};

/// Signals of this process, caught from now on.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Option<unix::Signal>,
    terminate: unix::Signal,
    hangup: Option<unix::Signal>,
    quit: Option<unix::Signal>,
    user1: unix::Signal,
    user2: unix::Signal,
}

impl Signals {
    pub(super) fn install() -> Result<Self> {
        let ignored = Ignored::read();
        let catch = |kind| unix::signal(kind).context("catching signals");
        let unless_ignored = |signal, kind| {
            let is_ignored = ignored.contains(signal);
            (!is_ignored).then(|| catch(kind)).transpose()
        };
        Ok(Self {
            interrupt: unless_ignored(Signal::INT, SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: unless_ignored(Signal::HUP, SignalKind::hangup())?,
            quit: unless_ignored(Signal::QUIT, SignalKind::quit())?,
            user1: catch(SignalKind::user_defined1())?,
            user2: catch(SignalKind::user_defined2())?,
        })
    }

    /// Waits for any of the signals.
    pub(super) async fn any(&mut self) -> Signal {
        tokio::select! {
            () = received(&mut self.interrupt) => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            () = received(&mut self.hangup) => Signal::HUP,
            () = received(&mut self.quit) => Signal::QUIT,
            _ = self.user1.recv() => Signal::USR1,
            _ = self.user2.recv() => Signal::USR2,
        }
    }

    /// The result of `work`, or an error with the exit code of the signal that ends it.
    pub(super) async fn unless_stopped<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            signal = self.stop() => {
                let code = u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX);
                Err(Exit { code, text: String::new() }.into())
            }
        }
    }

    /// Waits for a signal that ends a program.
    pub(super) async fn stop(&mut self) -> Signal {
        loop {
            let signal = self.any().await;
            if signal != Signal::USR1 && signal != Signal::USR2 {
                return signal;
            }
        }
    }
}

/// Waits for a signal, for ever if it is ignored.
async fn received(signal: &mut Option<unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// The signals that this process ignores, one bit each.
#[derive(Debug, Clone, Copy)]
struct Ignored(u64);

impl Ignored {
    /// Reads them from the kernel; none where it does not show them (macOS).
    fn read() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self::parse(&status)
    }

    fn parse(status: &str) -> Self {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        Self(mask.unwrap_or(0))
    }

    fn contains(self, signal: Signal) -> bool {
        let bit = u32::try_from(signal.as_raw() - 1).ok();
        bit.and_then(|bit| self.0.checked_shr(bit))
            .is_some_and(|shifted| shifted & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask_of_the_kernel() {
        let ignored = Ignored::parse("Name:\tberth\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001005\n");
        for (signal, expected) in [
            (Signal::HUP, true),
            (Signal::INT, false),
            (Signal::QUIT, true),
            (Signal::PIPE, true),
            (Signal::TERM, false),
        ] {
            assert_eq!(ignored.contains(signal), expected, "{signal:?}");
        }
        assert!(!Ignored::parse("").contains(Signal::HUP));
    }
}
