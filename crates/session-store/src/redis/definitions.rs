//! Definitions in Redis.

use super::RedisStore;
use super::from_redis_time;
use super::schema::keys::Slot;
use super::scripts::{Call, Reply};
use crate::{Definition, DefinitionQuota, Definitions, Error, Kind};
use async_trait::async_trait;
use redis::{Pipeline, Value, from_redis_value};
use session_core::{OrgId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

#[async_trait]
impl Definitions for RedisStore {
    async fn put_definition(&self, kind: Kind, name: &str, expected: u64, json: &str) -> Result<u64, Error> {
        let script = self.put_script(kind, name, expected, json);
        written_version(self.run(&script).await?)
    }

    async fn put_definition_within_quota(
        &self,
        kind: Kind,
        name: &str,
        expected: u64,
        json: &str,
        quota: &DefinitionQuota,
    ) -> Result<u64, Error> {
        let short = self.is_short_of_memory(Slot::Global).await;
        let mut script = self.put_script(kind, name, expected, json);
        let ((_, entries), (_, bytes)) = (quota.entries, quota.bytes);
        script.arg(entries).arg(bytes).arg(u8::from(short));
        let reply = self.run(&script).await?;
        let (quota, limit) = match reply.fields().as_slice() {
            ["over", "memory"] => return Err(Error::Full),
            ["over", "entries"] => quota.entries,
            ["over", "bytes"] => quota.bytes,
            _ => return written_version(reply),
        };
        Err(Error::Quota {
            quota,
            limit,
            retry_after: None,
        })
    }

    async fn get_definition(&self, kind: Kind, name: &str) -> Result<Option<Definition>, Error> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.keys.definitions(kind, kind.org_of(name))).arg(name);
        let stored: Option<String> = self.connections.query(&cmd).await?;
        stored.map(|stored| decode_definition(&stored)).transpose()
    }

    async fn get_definitions(&self, wanted: &[(Kind, String)]) -> Result<Vec<Option<Definition>>, Error> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let stored: Vec<Option<String>> = self.connections.pipeline(&self.read_pipeline(wanted)).await?;
        decode_definitions(stored)
    }

    async fn get_definitions_and_time(
        &self,
        wanted: &[(Kind, String)],
    ) -> Result<(Vec<Option<Definition>>, Timestamp), Error> {
        let mut pipeline = self.read_pipeline(wanted);
        pipeline.cmd("TIME");
        let mut answers: Vec<Value> = self.connections.pipeline(&pipeline).await?;
        let now = answers.pop().unwrap_or(Value::Nil);
        let corrupt = |error: redis::ParsingError| Error::Corrupt(error.to_string());
        let stored = from_redis_value(Value::Array(answers)).map_err(corrupt)?;
        let now = from_redis_value(now).map_err(corrupt)?;
        Ok((decode_definitions(stored)?, from_redis_time(now)))
    }

    async fn list_definitions(
        &self,
        kind: Kind,
        org: Option<&OrgId>,
    ) -> Result<BTreeMap<String, Definition>, Error> {
        let key = self.keys.definitions(kind, org.map(OrgId::as_str));
        let mut all = BTreeMap::new();
        let mut cursor = 0_u64;
        loop {
            let mut cmd = redis::cmd("HSCAN");
            cmd.arg(&key).arg(cursor).arg("COUNT").arg(page_size(kind));
            let (next, page): (u64, Vec<(String, String)>) = self.connections.query(&cmd).await?;
            for (name, stored) in page {
                all.insert(name, decode_definition(&stored)?);
            }
            if next == 0 {
                return Ok(all);
            }
            cursor = next;
        }
    }

    async fn definition_names(&self, kind: Kind, org: Option<&OrgId>) -> Result<BTreeSet<String>, Error> {
        let mut cmd = redis::cmd("HKEYS");
        cmd.arg(self.keys.definitions(kind, org.map(OrgId::as_str)));
        self.connections.query(&cmd).await
    }

    async fn list_orgs_with_definitions(&self, kind: Kind) -> Result<BTreeSet<OrgId>, Error> {
        let mut cmd = redis::cmd("HKEYS");
        cmd.arg(self.keys.definition_bytes(kind));
        let orgs: Vec<String> = self.connections.query(&cmd).await?;
        let parse = |org: &String| {
            let parsed = org.parse();
            parsed.map_err(|_| Error::Corrupt(format!("{org:?} is not an organization")))
        };
        orgs.iter().map(parse).collect()
    }

    async fn delete_definition(&self, kind: Kind, name: &str, expected: u64) -> Result<(), Error> {
        let org = kind.org_of(name);
        let mut script = self.scripts.delete_definition.prepare_invoke();
        script
            .key(self.keys.definitions(kind, org))
            .key(self.keys.definition_bytes(kind));
        script.arg(name).arg(expected).arg(org.unwrap_or_default());
        self.run(&script).await?.done().map(drop)
    }
}

impl RedisStore {
    /// The script that writes a definition, without arguments of a quota.
    fn put_script(&self, kind: Kind, name: &str, expected: u64, json: &str) -> Call<'_> {
        let org = kind.org_of(name);
        let mut script = self.scripts.put_definition.prepare_invoke();
        script
            .key(self.keys.definitions(kind, org))
            .key(self.keys.definition_bytes(kind));
        script
            .arg(name)
            .arg(expected)
            .arg(json)
            .arg(org.unwrap_or_default());
        script
    }

    fn read_pipeline(&self, wanted: &[(Kind, String)]) -> Pipeline {
        let mut pipeline = redis::pipe();
        for (kind, name) in wanted {
            let key = self.keys.definitions(*kind, kind.org_of(name));
            pipeline.cmd("HGET").arg(key).arg(name);
        }
        pipeline
    }
}

fn decode_definition(stored: &str) -> Result<Definition, Error> {
    let parsed = stored.split_once(' ').and_then(|(version, json)| {
        Some(Definition {
            version: version.parse().ok()?,
            json: json.to_owned(),
        })
    });
    parsed.ok_or_else(|| Error::Corrupt("a definition has no version".to_owned()))
}

/// Page size of `HSCAN`: small for kinds with large definitions.
fn page_size(kind: Kind) -> usize {
    match kind {
        Kind::Catalog => 8,
        Kind::Cluster | Kind::Org | Kind::Disabled | Kind::InstallationId => 256,
    }
}

fn written_version(reply: Reply) -> Result<u64, Error> {
    let fields = reply.done()?;
    let version = fields.first().and_then(|version| version.parse().ok());
    version.ok_or_else(|| Error::Corrupt(format!("a definition's version is {fields:?}")))
}

fn decode_definitions(stored: Vec<Option<String>>) -> Result<Vec<Option<Definition>>, Error> {
    let read = |stored: Option<String>| stored.map(|stored| decode_definition(&stored)).transpose();
    stored.into_iter().map(read).collect()
}
