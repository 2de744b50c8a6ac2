//! Placements of sessions on static servers in Redis.

use super::RedisStore;
use crate::redis::schema::keys::member;
use crate::{Error, Placements};
use async_trait::async_trait;
use session_core::SessionKey;

#[async_trait]
impl Placements for RedisStore {
    async fn place_session(
        &self,
        servers: &[String],
        holder: &SessionKey,
        org_alone: bool,
    ) -> Result<Option<String>, Error> {
        let mut script = self.scripts.place_session.key(self.keys.placements(holder));
        for server in servers {
            script.key(self.keys.server_holders(server));
        }
        script
            .arg(member(holder))
            .arg(if org_alone { holder.org.as_str() } else { "" })
            .arg(servers);
        let reply = self.run(&script).await?;
        let Some(number) = reply.0.first() else {
            return Ok(None);
        };
        let server = number.parse().ok().and_then(|number: usize| {
            let index = number.checked_sub(1)?;
            servers.get(index).cloned()
        });
        server
            .map(Some)
            .ok_or_else(|| Error::Corrupt(format!("a script returned server number {number:?}")))
    }

    async fn remove_placement(&self, server: &str, holder: &SessionKey) -> Result<(), Error> {
        let mut script = self
            .scripts
            .remove_placement
            .key(self.keys.server_holders(server));
        script.key(self.keys.placements(holder));
        let reply = self.run(script.arg(member(holder)).arg(server)).await?;
        reply.done().map(drop)
    }

    async fn list_placements(&self, holder: &SessionKey) -> Result<Vec<String>, Error> {
        let mut cmd = redis::cmd("SMEMBERS");
        cmd.arg(self.keys.placements(holder));
        let mut servers: Vec<String> = self.connections.query(&cmd).await?;
        servers.sort_unstable();
        Ok(servers)
    }
}
