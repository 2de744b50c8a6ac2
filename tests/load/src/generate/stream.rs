//! Bulk: results that stream down, uploads that stream up.

use super::connection::{Dialer, begin, went_well};
use super::meter::Meter;
use crate::backend::send;
use crate::callers::Caller;
use crate::wire::{self, Method, PATIENCE, Shape};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use std::rc::Rc;
use std::time::Instant;
use tokio::task::JoinSet;

/// Streams of many messages, one call after the other on each.
pub(super) struct Bulk {
    pub(super) method: Method,
    pub(super) shape: Shape,
    pub(super) streams: usize,
}

/// One of the calls, made ready.
struct Call {
    head: Request<()>,
    method: Method,
    shape: Shape,
    /// The whole request, or one message of it.
    message: Bytes,
    index: u64,
    meter: Rc<Meter>,
}

impl Bulk {
    pub(super) async fn run(
        &self,
        dialer: &Dialer,
        caller: &Caller,
        meter: &Rc<Meter>,
        warmup_ms: u64,
        millis: u64,
    ) -> Result<()> {
        let connection = dialer.connect().await?;
        let call = Rc::new(Call {
            head: dialer.head(self.method, caller)?,
            method: self.method,
            shape: self.shape,
            message: wire::request(self.method, caller.index, self.shape),
            index: caller.index,
            meter: Rc::clone(meter),
        });
        let mut running = JoinSet::new();
        let once = millis == 0;
        if once {
            meter.start()?;
        }
        for _ in 0..self.streams {
            let (call, sender) = (Rc::clone(&call), connection.sender.clone());
            running.spawn_local(async move {
                loop {
                    let began = Instant::now();
                    match tokio::time::timeout(PATIENCE, call.make(&sender)).await {
                        Ok(Ok(())) => call.meter.call(began),
                        Ok(Err(error)) => return call.meter.failed(&error),
                        Err(_) => return call.meter.failed(&anyhow::anyhow!("the stream hangs")),
                    }
                    if once || call.meter.is_over() {
                        return;
                    }
                }
            });
        }
        if once {
            while running.join_next().await.is_some() {}
            return meter.stop();
        }
        meter.window(warmup_ms, millis).await?;
        // The last calls come to their end too: they may still go wrong.
        while running.join_next().await.is_some() {}
        Ok(())
    }
}

impl Call {
    async fn make(&self, sender: &SendRequest<Bytes>) -> Result<()> {
        match self.method {
            Method::AddArtifacts => self.up(sender).await,
            Method::Config | Method::Analyze | Method::Execute => self.down(sender).await,
        }
    }

    async fn down(&self, sender: &SendRequest<Bytes>) -> Result<()> {
        let (response, mut upload) = begin(sender, self.head.clone()).await?;
        upload.send_data(self.message.clone(), true)?;
        let (headers, mut body) = response.await?.into_parts();
        let mut got = 0;
        while let Some(data) = body.data().await {
            let data = data?;
            got += data.len();
            self.meter.bytes(data.len());
            body.flow_control().release_capacity(data.len())?;
        }
        went_well(&headers.headers, body.trailers().await?)?;
        let want = self.shape.body_len(self.index);
        ensure!(got == want, "{got} bytes came instead of {want}");
        Ok(())
    }

    async fn up(&self, sender: &SendRequest<Bytes>) -> Result<()> {
        let (response, mut upload) = begin(sender, self.head.clone()).await?;
        for _ in 0..self.shape.count {
            send(&mut upload, self.message.clone())
                .await
                .context("the upload was cut off")?;
            self.meter.bytes(self.message.len());
            if self.meter.is_over() {
                break;
            }
        }
        upload.send_data(Bytes::new(), true)?;
        let (headers, mut body) = response.await?.into_parts();
        while let Some(data) = body.data().await {
            body.flow_control().release_capacity(data?.len())?;
        }
        went_well(&headers.headers, body.trailers().await?)
    }
}
