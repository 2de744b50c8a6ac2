//! Places and bindings in Redis: all in the global hash slot, because a server
//! may serve sessions of several organizations.

use super::keys::member;
use super::{RedisStore, Reply, decode};
use crate::Error;
use crate::shared::{Bind, Binding, BindingState, Bound, SEAL_MEMORY, SharedServers, SparkSession};
use async_trait::async_trait;
use serde::Deserialize;
use session_core::SessionKey;
use std::collections::HashMap;
use std::time::Duration;

/// Separates id and server in a binding's name; neither the id before it nor an
/// address has it.
const SEPARATOR: char = ' ';

/// The part of a binding's details that is not the scripts' alone.
#[derive(Deserialize)]
struct Details {
    r#gen: u64,
    is: BindingState,
    serial: String,
}

/// A binding among those of its holder.
fn name(spark: &SparkSession) -> String {
    format!("{}{SEPARATOR}{}", spark.id, spark.server)
}

fn binding(name: &str, details: &str) -> Result<Binding, Error> {
    let spark = name.split_once(SEPARATOR).and_then(|(id, server)| {
        Some(SparkSession {
            server: server.to_owned(),
            id: id.parse().ok()?,
        })
    });
    let spark = spark.ok_or_else(|| Error::Corrupt(format!("{name:?} names no binding")))?;
    let Details { r#gen, is, serial } = decode(details)?;
    Ok(Binding {
        spark,
        generation: r#gen,
        state: is,
        serial,
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(1 << 52)
}

fn bound(reply: &Reply) -> Result<Bound, Error> {
    let words: Vec<&str> = reply.0.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["ready"] => Ok(Bound::Ready),
        ["prepare"] => Ok(Bound::Prepare),
        ["wait"] => Ok(Bound::Wait),
        ["taken"] => Ok(Bound::Taken),
        ["sealed"] => Ok(Bound::Sealed),
        ["release", name, details] => Ok(Bound::Release(Box::new(binding(name, details)?))),
        _ => Err(Error::Corrupt(format!("a script answered {words:?}"))),
    }
}

#[async_trait]
impl SharedServers for RedisStore {
    async fn take_place(
        &self,
        servers: &[String],
        holder: &SessionKey,
        org_alone: bool,
    ) -> Result<Option<String>, Error> {
        let mut script = self.scripts.take_place.key(self.keys.places_of(holder));
        for server in servers {
            script.key(self.keys.place(server));
        }
        script
            .arg(member(holder))
            .arg(if org_alone { holder.org.as_str() } else { "" })
            .arg(servers);
        let reply = self.run(&script).await?;
        let Some(number) = reply.0.first() else {
            return Ok(None);
        };
        let place = number.parse().ok().and_then(|number: usize| {
            let index = number.checked_sub(1)?;
            servers.get(index).cloned()
        });
        place
            .map(Some)
            .ok_or_else(|| Error::Corrupt(format!("a script chose place {number:?}")))
    }

    async fn leave_place(&self, server: &str, holder: &SessionKey) -> Result<(), Error> {
        let mut script = self.scripts.leave_place.key(self.keys.place(server));
        script.key(self.keys.places_of(holder));
        let reply = self.run(script.arg(member(holder)).arg(server)).await?;
        reply.done().map(drop)
    }

    async fn places_of(&self, holder: &SessionKey) -> Result<Vec<String>, Error> {
        let mut cmd = redis::cmd("SMEMBERS");
        cmd.arg(self.keys.places_of(holder));
        let mut servers: Vec<String> = self.connections.query(&cmd).await?;
        servers.sort_unstable();
        Ok(servers)
    }

    async fn bind(&self, bind: &Bind) -> Result<Bound, Error> {
        let mut script = self.scripts.bind.key(self.keys.binding(&bind.spark));
        script
            .key(self.keys.binding_order(&bind.holder))
            .key(self.keys.bindings_of(&bind.holder))
            .key(self.keys.binding_seal(&bind.holder));
        script
            .arg(member(&bind.holder))
            .arg(name(&bind.spark))
            .arg(bind.generation)
            .arg(&bind.ticket)
            .arg(super::write::optional(bind.prepare.map(millis)))
            .arg(bind.limit);
        bound(&self.run(&script).await?)
    }

    async fn prepared(
        &self,
        holder: &SessionKey,
        spark: &SparkSession,
        ticket: &str,
        ready: bool,
    ) -> Result<bool, Error> {
        let mut script = self.scripts.prepared.key(self.keys.bindings_of(holder));
        script.arg(name(spark)).arg(ticket).arg(u8::from(ready));
        let reply = self.run(&script).await?;
        match reply.0.first().map(String::as_str) {
            Some("ok") => Ok(true),
            Some("lost") => Ok(false),
            other => Err(Error::Corrupt(format!("a script answered {other:?}"))),
        }
    }

    async fn bindings(&self, holder: &SessionKey) -> Result<Vec<Binding>, Error> {
        let mut pipeline = redis::pipe();
        pipeline
            .atomic()
            .cmd("ZRANGE")
            .arg(self.keys.binding_order(holder))
            .arg(0)
            .arg(-1)
            .cmd("HGETALL")
            .arg(self.keys.bindings_of(holder));
        let (order, details): (Vec<String>, HashMap<String, String>) =
            self.connections.pipeline(&pipeline).await?;
        let with_details = order
            .iter()
            .map(|name| binding(name, details.get(name).map_or("", String::as_str)));
        with_details.collect()
    }

    async fn seal_bindings(&self, holder: &SessionKey, generation: u64) -> Result<(), Error> {
        let mut script = self.scripts.seal.key(self.keys.binding_seal(holder));
        let reply = self.run(script.arg(generation).arg(millis(SEAL_MEMORY))).await?;
        reply.done().map(drop)
    }

    async fn unbind(&self, holder: &SessionKey, binding: &Binding, keep: Duration) -> Result<(), Error> {
        let mut script = self.scripts.unbind.key(self.keys.binding(&binding.spark));
        script
            .key(self.keys.binding_order(holder))
            .key(self.keys.bindings_of(holder));
        script
            .arg(name(&binding.spark))
            .arg(&binding.serial)
            .arg(millis(keep));
        self.run(&script).await?.done().map(drop)
    }
}
