//! Bindings in Redis, all in the global hash slot, because a server can serve sessions
//! of several organizations.

use super::{RedisStore, Reply};
use crate::redis::schema::keys::member;
use crate::spark_bindings::{Bind, Binding, BindingState, Bound, SEAL_DURATION, SparkSession};
use crate::{Error, SparkBindings};
use async_trait::async_trait;
use session_core::SessionKey;
use std::time::Duration;

/// Separator of the fields of a binding; ids, addresses and tickets cannot contain it.
const SEPARATOR: char = ' ';

/// Name of a binding among those of its holder.
fn name(spark: &SparkSession) -> String {
    format!("{}{SEPARATOR}{}", spark.id, spark.server)
}

fn parse_state(word: &str) -> Option<BindingState> {
    match word {
        "unready" => Some(BindingState::Unready),
        "ready" => Some(BindingState::Ready),
        "releasing" => Some(BindingState::Releasing),
        _ => None,
    }
}

/// A line of `bindings.lua`.
fn binding(line: &str) -> Result<Binding, Error> {
    let fields: Vec<&str> = line.split(SEPARATOR).collect();
    let parsed = match fields.as_slice() {
        [id, server, generation, state, serial, _preparer, _expires] => (|| {
            Some(Binding {
                spark: SparkSession {
                    server: (*server).to_owned(),
                    id: id.parse().ok()?,
                },
                generation: generation.parse().ok()?,
                state: parse_state(state)?,
                serial: (*serial).to_owned(),
            })
        })(),
        _ => None,
    };
    parsed.ok_or_else(|| Error::Corrupt(format!("{line:?} is not a binding")))
}

/// Verifies that a text can be a field of a line.
fn field(text: &str) -> Result<&str, Error> {
    if text.is_empty() || text.contains(|c: char| c.is_ascii_whitespace()) {
        return Err(Error::Corrupt(format!("{text:?} cannot be part of a binding")));
    }
    Ok(text)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(1 << 52)
}

fn bound(reply: &Reply) -> Result<Bound, Error> {
    let fields: Vec<&str> = reply.0.iter().map(String::as_str).collect();
    match fields.as_slice() {
        ["ready"] => Ok(Bound::Ready),
        ["prepare"] => Ok(Bound::Prepare),
        ["wait"] => Ok(Bound::Wait),
        ["taken"] => Ok(Bound::Taken),
        ["sealed"] => Ok(Bound::Sealed),
        ["release", line] => Ok(Bound::Release(Box::new(binding(line)?))),
        _ => Err(Error::Corrupt(format!("a script answered {fields:?}"))),
    }
}

#[async_trait]
impl SparkBindings for RedisStore {
    async fn bind(&self, bind: &Bind) -> Result<Bound, Error> {
        field(&bind.spark.server)?;
        let mut script = self.scripts.bind.key(self.keys.holders(&bind.spark));
        script
            .key(self.keys.bindings(&bind.holder))
            .key(self.keys.binding_seal(&bind.holder))
            .key(self.keys.reserved_id(&bind.spark));
        script
            .arg(member(&bind.holder))
            .arg(name(&bind.spark))
            .arg(bind.generation)
            .arg(field(&bind.ticket)?)
            .arg(super::sessions::optional(bind.prepare.map(millis)))
            .arg(bind.limit);
        bound(&self.run(&script).await?)
    }

    async fn finish_preparation(
        &self,
        holder: &SessionKey,
        spark: &SparkSession,
        ticket: &str,
        ready: bool,
    ) -> Result<bool, Error> {
        let mut script = self.scripts.finish_preparation.key(self.keys.bindings(holder));
        script.arg(name(spark)).arg(ticket).arg(u8::from(ready));
        let reply = self.run(&script).await?;
        match reply.0.first().map(String::as_str) {
            Some("ok") => Ok(true),
            Some("lost") => Ok(false),
            other => Err(Error::Corrupt(format!("a script answered {other:?}"))),
        }
    }

    async fn list_bindings(&self, holder: &SessionKey) -> Result<Vec<Binding>, Error> {
        let mut cmd = redis::cmd("GET");
        cmd.arg(self.keys.bindings(holder));
        let lines: Option<String> = self.connections.query(&cmd).await?;
        lines.unwrap_or_default().lines().map(binding).collect()
    }

    async fn seal_bindings(&self, holder: &SessionKey, generation: u64) -> Result<(), Error> {
        let mut script = self.scripts.seal_bindings.key(self.keys.binding_seal(holder));
        let reply = self
            .run(script.arg(generation).arg(millis(SEAL_DURATION)))
            .await?;
        reply.done().map(drop)
    }

    async fn unbind(&self, holder: &SessionKey, binding: &Binding, keep: Duration) -> Result<(), Error> {
        let mut script = self.scripts.unbind.key(self.keys.holders(&binding.spark));
        script
            .key(self.keys.bindings(holder))
            .key(self.keys.reserved_id(&binding.spark));
        script
            .arg(name(&binding.spark))
            .arg(&binding.serial)
            .arg(millis(keep));
        self.run(&script).await?.done().map(drop)
    }
}
