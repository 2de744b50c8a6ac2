//! The clients: many small calls, long streams, sessions that come and go, connections that idle,
//! browsers' reads, and notebooks with PySpark.

use super::api::{Api, Held, Places};
use super::tally::Tally;
use anyhow::{Context as _, Result, ensure};
use e2e::{Client, http};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// One of this number of small calls is a query.
const QUERY_EVERY: u64 = 25;
const CONNECTION_LIFE: Duration = Duration::from_secs(30);
const STREAM_ROWS: i64 = 1_000_000;
/// A notebook is closed and opened again.
const NOTEBOOK_LIFE: Duration = Duration::from_secs(600);
/// Browsers try again by themselves.
const TRIES: usize = 3;

/// A session, however often its making fails: each failure counts.
async fn session(api: &Api, tally: &Tally) -> Option<Held> {
    while !tally.is_over() {
        if let Some(held) = api.create(tally).await {
            return Some(held);
        }
    }
    None
}

/// This number of small calls a second on one session, at times on a new connection, so that both
/// proxies have some.
pub(super) async fn calls(tally: Arc<Tally>, places: Places, rate: f64) -> Result<()> {
    let mut api = Api::new(&places)?;
    let Some(mut held) = session(&api, &tally).await else {
        return Ok(());
    };
    let mut ticks = interval(Duration::from_secs_f64(1.0 / rate));
    // What a restart delayed is made good afterwards.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for n in 1_u64.. {
        if tally.is_over() {
            break;
        }
        ticks.tick().await;
        if n % (rate * CONNECTION_LIFE.as_secs_f64()) as u64 == 0 {
            api = Api::new(&places)?;
        }
        api.renew(&tally, &mut held).await;
        if n % QUERY_EVERY == 0 {
            let query = async || api.rows(&held, "SELECT 1", Duration::ZERO).await;
            if let Some(rows) = tally.with_retries("query", query).await
                && rows != 1
            {
                tally.failed("query", &format!("{rows} rows"));
            }
        } else {
            tally
                .with_retries("call", async || api.version(&held).await)
                .await;
        }
    }
    api.close(&tally, &held).await;
    Ok(())
}

/// Long results, each read to its end and counted.
pub(super) async fn streams(tally: Arc<Tally>, places: Places) -> Result<()> {
    let api = Api::new(&places)?;
    let Some(mut held) = session(&api, &tally).await else {
        return Ok(());
    };
    let sql = format!("SELECT id FROM range({STREAM_ROWS})");
    while !tally.is_over() {
        api.renew(&tally, &mut held).await;
        let read = async || api.rows(&held, &sql, tally.plan.stream).await;
        match tally.with_retries("stream", read).await {
            Some(STREAM_ROWS) => tally.did("streams"),
            Some(rows) => tally.failed("stream", &format!("{rows} rows")),
            None => {}
        }
    }
    api.close(&tally, &held).await;
    Ok(())
}

/// Sessions that live for a few calls.
pub(super) async fn lives(tally: Arc<Tally>, places: Places) -> Result<()> {
    let api = Api::new(&places)?;
    while !tally.is_over() {
        let Some(held) = api.create(&tally).await else {
            continue;
        };
        for _ in 0..3 {
            tally
                .with_retries("first calls", async || api.version(&held).await)
                .await;
        }
        if api.close(&tally, &held).await.is_some() {
            tally.did("sessions");
        }
        tally.pause(Duration::from_millis(500)).await;
    }
    Ok(())
}

/// A connection with a call now and then.
pub(super) async fn idle(tally: Arc<Tally>, places: Places) -> Result<()> {
    let api = Api::new(&places)?;
    let Some(mut held) = session(&api, &tally).await else {
        return Ok(());
    };
    while !tally.is_over() {
        api.renew(&tally, &mut held).await;
        tally
            .with_retries("a call after idling", async || api.version(&held).await)
            .await;
        tally.pause(tally.plan.idle).await;
    }
    api.close(&tally, &held).await;
    Ok(())
}

/// Reads of the REST API.
pub(super) async fn reads(tally: Arc<Tally>, console: SocketAddr, key: String) -> Result<()> {
    let headers = format!("authorization: Bearer {key}\r\n");
    while !tally.is_over() {
        let mut last = String::new();
        for _ in 0..TRIES {
            last = match http::get(console, "/api/v1/sessions?page_size=5", &headers).await {
                Ok(answer) if answer.starts_with("HTTP/1.1 200") => String::new(),
                Ok(answer) => answer.lines().next().unwrap_or("an empty answer").to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if last.is_empty() {
                break;
            }
            tally.retried(&format!("REST: {last}"));
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        tally.called();
        if last.is_empty() {
            tally.did("reads");
        } else {
            tally.failed("a read of the console", &last);
        }
        tally.pause(Duration::from_millis(250)).await;
    }
    Ok(())
}

/// How a notebook connects.
#[derive(Debug)]
pub(super) enum Way {
    /// With a token of its own, over TLS.
    Direct { places: Places, ca: PathBuf },
    /// Through `berth connect`, which renews the token.
    Forwarded { url: String },
}

/// A notebook with PySpark: a statement a second, and now and then a new process.
pub(super) async fn notebook(tally: Arc<Tally>, client: Client, dir: PathBuf, way: Way) -> Result<()> {
    std::fs::create_dir_all(&dir)?;
    while !tally.is_over() {
        match &way {
            Way::Forwarded { url } => one_notebook(&tally, client, &dir, url, None).await?,
            Way::Direct { places, ca } => {
                let api = Api::new(places)?;
                let Some(held) = session(&api, &tally).await else {
                    break;
                };
                let life = NOTEBOOK_LIFE * 3;
                let Some(issued) = api.issue(&tally, &held.id, life).await else {
                    continue;
                };
                one_notebook(&tally, client, &dir, &issued.connection_url, Some(ca)).await?;
                api.close(&tally, &held).await;
            }
        }
    }
    Ok(())
}

async fn one_notebook(
    tally: &Tally,
    client: Client,
    dir: &Path,
    url: &str,
    ca: Option<&PathBuf>,
) -> Result<()> {
    let opened = client.repl(dir, url, ca.map(PathBuf::as_path)).await;
    let mut repl = opened.with_context(|| format!("{client:?} does not connect"))?;
    let begun = tally.elapsed();
    while !tally.is_over() && tally.elapsed() < begun + NOTEBOOK_LIFE {
        let answer = repl.sql("SELECT count(*) FROM range(1000)").await?;
        tally.called();
        if answer["rows"][0][0] == 1000 {
            tally.did("statements");
        } else {
            tally.failed("PySpark", &answer.to_string());
        }
        tally.pause(Duration::from_secs(1)).await;
    }
    ensure!(repl.stop().await?, "stop() raised an error");
    Ok(())
}
