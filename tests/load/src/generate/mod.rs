//! The load generator: a process of its own on one thread, raw HTTP/2 over TLS
//! or plaintext. It reads jobs, one a line, and answers each with what it found.

mod calls;
mod connection;
mod meter;
mod stream;

use crate::protocol::{Job, Outcome};
use anyhow::Result;
use connection::{Connection, Dialer};
use meter::Meter;
use std::rc::Rc;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::LocalSet;

/// Does jobs until standard input ends.
///
/// # Errors
/// When a line is no job or an answer cannot be written.
pub fn run() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let mut lines = BufReader::with_capacity(1 << 20, tokio::io::stdin()).lines();
        let mut held = Held::default();
        while let Some(line) = lines.next_line().await? {
            let outcome = match held.perform(serde_json::from_str(&line)?).await {
                Ok(outcome) => outcome,
                Err(error) => Outcome {
                    errors: 1,
                    error: Some(format!("{error:#}")),
                    ..Outcome::default()
                },
            };
            println!("{}", serde_json::to_string(&outcome)?);
        }
        Ok(())
    })
}

/// Connections that are kept from one job to another.
#[derive(Default)]
struct Held {
    dialer: Option<Dialer>,
    connections: Vec<Connection>,
}

impl Held {
    async fn perform(&mut self, job: Job) -> Result<Outcome> {
        match job {
            Job::Calls {
                target,
                method,
                callers,
                connections,
                concurrency,
                warmup_ms,
                millis,
                watch,
            } => {
                let meter = Meter::new(watch);
                let load = calls::Closed {
                    dialer: Dialer::new(target)?,
                    method,
                    connections,
                    concurrency,
                };
                load.run(&callers, &meter, warmup_ms, millis).await?;
                Ok(meter.outcome())
            }
            Job::Each {
                target,
                callers,
                concurrency,
                connections,
                watch,
            } => {
                let meter = Meter::new(watch);
                calls::each(&Dialer::new(target)?, &callers, connections, concurrency, &meter).await?;
                Ok(meter.outcome())
            }
            Job::Open {
                target,
                caller,
                rate,
                connections,
                warmup_ms,
                millis,
                watch,
            } => {
                let meter = Meter::new(watch);
                let load = calls::Paced {
                    dialer: Dialer::new(target)?,
                    rate,
                    connections,
                };
                load.run(&caller, &meter, warmup_ms, millis).await?;
                Ok(meter.outcome())
            }
            Job::Connects {
                target,
                caller,
                count,
                watch,
            } => {
                let meter = Meter::new(watch);
                calls::connects(&Dialer::new(target)?, &caller, count, &meter).await?;
                Ok(meter.outcome())
            }
            Job::Stream {
                target,
                caller,
                method,
                shape,
                streams,
                warmup_ms,
                millis,
                watch,
            } => {
                let meter = Rc::new(Meter::new(watch));
                let load = stream::Bulk {
                    method,
                    shape,
                    streams,
                };
                load.run(&Dialer::new(target)?, &caller, &meter, warmup_ms, millis)
                    .await?;
                Ok(meter.outcome())
            }
            Job::Hold { target, count } => {
                let dialer = Dialer::new(target)?;
                for _ in 0..count {
                    self.connections.push(dialer.connect().await?);
                }
                self.dialer = Some(dialer);
                Ok(Outcome {
                    calls: count as u64,
                    ..Outcome::default()
                })
            }
            Job::Touch { caller } => {
                let meter = Meter::new(Vec::new());
                if let Some(dialer) = &self.dialer {
                    meter.start()?;
                    calls::touch(dialer, &self.connections, &caller, &meter).await?;
                    meter.stop()?;
                }
                Ok(meter.outcome())
            }
            Job::Release => {
                self.connections.clear();
                Ok(Outcome::default())
            }
        }
    }
}
