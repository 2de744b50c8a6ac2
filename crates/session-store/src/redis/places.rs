//! Places on shared servers in Redis.

use super::RedisStore;
use crate::redis::schema::keys::member;
use crate::{Error, Places};
use async_trait::async_trait;
use session_core::SessionKey;

#[async_trait]
impl Places for RedisStore {
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
}
