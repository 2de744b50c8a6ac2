//! The store in Redis.
//!
//! Every write is one Lua script: precondition, record, indexes, due entry,
//! quota, history and the partition's stream of changes change together or not
//! at all. An organization's keys share one hash slot ([`keys`]), so the same
//! scripts run on one server and on Redis Cluster. Time is Redis `TIME`.

mod activity_reports;
mod audit_trail;
mod change_feed;
mod connection;
mod due_queue;
mod index_queries;
mod options;
mod retention;
mod safety;
mod schema;
mod scripts;
mod session_index;
mod sessions;
mod spark_bindings;
mod spark_sessions;
mod tokens;

use crate::{
    Commit, Create, Created, Definition, DefinitionQuota, Error, Feed, FeedProgress, Heard, Kind, ListQuery,
    Loaded, Page, Proxies, Report, Reported, RequestId, SessionStore, TOKEN_MEMORY, TokenRecord, Tombstones,
};
use async_trait::async_trait;
use connection::{Connections, Failure};
use futures::stream::BoxStream;
pub use options::{ConnectError, Credentials, Options, TlsFiles};
use redis::{Pipeline, Value, from_redis_value};
use safety::epoch::Epoch;
use safety::monitor::Watch;
use safety::replication::Replication;
use schema::keys::{Keys, Slot};
use scripts::{Call, Reply, Scripts};
use serde::de::DeserializeOwned;
use session_core::{
    ClusterName, EventRecord, Operation, OrgId, PrincipalId, ProxyId, Session, SessionKey, Status, Timestamp,
    TokenId, TokenUse, Use,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::Duration;

/// Can `url` name a store, and `options` be used with it? Opens nothing, so that
/// a configuration can be checked before anything is.
///
/// # Errors
/// [`ConnectError::Url`], [`ConnectError::Prefix`] or [`ConnectError::Tls`].
pub fn check(url: &str, options: &Options) -> Result<(), ConnectError> {
    if url == crate::MEMORY {
        return Ok(());
    }
    Keys::new(&options.prefix).ok_or(ConnectError::Prefix)?;
    connection::check(url, options)
}

/// Sessions in Redis.
#[derive(Clone)]
pub struct RedisStore {
    connections: Arc<Connections>,
    keys: Arc<Keys>,
    scripts: Arc<Scripts>,
    epoch: Arc<Epoch>,
    replication: Arc<Replication>,
    audit_length: usize,
    /// Where the next claim of due sessions begins.
    next_partition: Arc<AtomicU8>,
    /// Ends with the last of those that callers hold.
    _watch: Option<Arc<Watch>>,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl RedisStore {
    /// Connects to the Redis at `url` and checks that it keeps what it is
    /// given. The URL is one of
    /// - `redis://[user:password@]host[:port][/db]`: one server;
    /// - `redis-sentinel://[user:password@]host[:port],.../name[?db=N]`: the
    ///   server that the sentinels call by that name;
    /// - `redis-cluster://[user:password@]host[:port],...`: a cluster, found
    ///   through any of these;
    ///
    /// or the same with `rediss` in place of `redis` for TLS.
    ///
    /// # Errors
    /// [`ConnectError`] says which of these it was.
    pub async fn connect(url: &str, options: &Options) -> Result<Self, ConnectError> {
        let keys = Arc::new(Keys::new(&options.prefix).ok_or(ConnectError::Prefix)?);
        let connections = Arc::new(Connections::open(url, options).await?);
        let scripts = Arc::new(Scripts::new());
        let epoch = Epoch::new(Arc::clone(&connections), Arc::clone(&keys), Arc::clone(&scripts));
        let store = Self {
            connections,
            keys,
            scripts,
            epoch: Arc::new(epoch),
            replication: Arc::default(),
            audit_length: options.audit_length,
            next_partition: Arc::default(),
            _watch: None,
        };
        store.epoch.current().await.map_err(ConnectError::Unavailable)?;
        let _watch = Some(Arc::new(Watch::begin(store.clone())));
        Ok(Self { _watch, ..store })
    }

    async fn run(&self, call: &Call<'_>) -> Result<Reply, Error> {
        self.connections.run(call).await.map(Reply)
    }

    /// Writes a definition, so far without a quota.
    fn put_of(&self, kind: Kind, name: &str, expected: u64, json: &str) -> Call<'_> {
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

    fn reads_of(&self, wanted: &[(Kind, String)]) -> Pipeline {
        let mut pipeline = redis::pipe();
        for (kind, name) in wanted {
            let key = self.keys.definitions(*kind, kind.org_of(name));
            pipeline.cmd("HGET").arg(key).arg(name);
        }
        pipeline
    }

    /// Takes members that name no session out of an index: nobody could ever
    /// settle them, and they must not hold up the others.
    async fn drop_strays(&self, index: &str, strays: &[String]) -> Result<(), Error> {
        tracing::error!(index, ?strays, "entries that name no session are dropped");
        let mut cmd = redis::cmd("ZREM");
        self.connections.query::<()>(cmd.arg(index).arg(strays)).await
    }
}

fn encode<T: serde::Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Corrupt(error.to_string()))
}

fn decode<T: DeserializeOwned>(json: &str) -> Result<T, Error> {
    serde_json::from_str(json).map_err(|error| Error::Corrupt(error.to_string()))
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

/// Definitions that one page asks for: few of those that can be large.
fn page_of(kind: Kind) -> usize {
    match kind {
        Kind::Catalog => 8,
        Kind::Cluster | Kind::Org | Kind::Disabled | Kind::Install => 256,
    }
}

fn written_version(reply: Reply) -> Result<u64, Error> {
    let words = reply.done()?;
    let version = words.first().and_then(|version| version.parse().ok());
    version.ok_or_else(|| Error::Corrupt(format!("a definition's version is {words:?}")))
}

fn decode_definitions(stored: Vec<Option<String>>) -> Result<Vec<Option<Definition>>, Error> {
    let read = |stored: Option<String>| stored.map(|stored| decode_definition(&stored)).transpose();
    stored.into_iter().map(read).collect()
}

/// What `TIME` answers.
fn moment((seconds, micros): (u64, u64)) -> Timestamp {
    Timestamp::from_millis(seconds * 1000 + micros / 1000)
}

/// A moment as a score. Scores are doubles: exact up to 2^53, some 285 000 years.
fn score(at: Timestamp) -> u64 {
    at.as_millis().min(1 << 53)
}

#[async_trait]
impl SessionStore for RedisStore {
    async fn now(&self) -> Result<Timestamp, Error> {
        self.connections.query(&redis::cmd("TIME")).await.map(moment)
    }

    async fn create(&self, create: Create) -> Result<Created, Error> {
        self.write_new(create).await
    }

    async fn repeated(
        &self,
        org: &OrgId,
        owner: &PrincipalId,
        request: &RequestId,
    ) -> Result<Option<Session>, Error> {
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.keys.request(org, owner, &request.id))
            .arg("fingerprint")
            .arg("record");
        let (fingerprint, record): (Option<String>, Option<String>) = self.connections.query(&cmd).await?;
        let Some(record) = record else { return Ok(None) };
        match self.read_record(&record).await? {
            Some(_) if fingerprint.as_ref() != Some(&request.fingerprint) => Err(Error::RequestIdReused),
            stored => Ok(stored),
        }
    }

    async fn get(&self, key: &SessionKey) -> Result<Option<Session>, Error> {
        self.read_record(&self.keys.record(key)).await
    }

    async fn load(&self, key: &SessionKey) -> Result<Option<Loaded>, Error> {
        self.read_with_use(key).await
    }

    async fn commit(&self, commit: Commit) -> Result<(), Error> {
        if safety::replication::needs_replica(&commit) {
            return self.commit_replicated(commit, None).await;
        }
        self.write_any(&commit, None).await
    }

    async fn commit_quiet(&self, commit: Commit, last_activity_at: Timestamp) -> Result<(), Error> {
        if safety::replication::needs_replica(&commit) {
            return self.commit_replicated(commit, Some(last_activity_at)).await;
        }
        self.write_any(&commit, Some(last_activity_at)).await
    }

    async fn report(&self, key: &SessionKey, report: &Report) -> Result<Reported, Error> {
        self.take_report(key, report).await
    }

    async fn uses(&self, sessions: &[Session]) -> Result<Vec<Use>, Error> {
        self.read_uses(sessions).await
    }

    async fn operations(&self, key: &SessionKey) -> Result<Vec<Operation>, Error> {
        self.read_operations(key).await
    }

    async fn token_uses(&self, key: &SessionKey) -> Result<BTreeMap<TokenId, TokenUse>, Error> {
        let tokens = self.read_tokens(key, Duration::ZERO).await?;
        let uses = tokens.into_iter().filter_map(|(_, used)| used);
        Ok(uses.map(|used| (used.id.clone(), used)).collect())
    }

    async fn proxy_reported(&self, proxy: &ProxyId, sequence: u64) -> Result<Heard, Error> {
        self.note_proxy(proxy, sequence).await
    }

    async fn proxy_spoke(&self, proxy: &ProxyId, at: Timestamp) -> Result<(), Error> {
        self.note_proxy_lived(proxy, at).await
    }

    async fn proxies(&self, silent_after: Duration, gone_after: Option<Duration>) -> Result<Proxies, Error> {
        self.count_proxies(silent_after, gone_after).await
    }

    async fn set_due(&self, key: &SessionKey, version: u64, due: Option<Timestamp>) -> Result<(), Error> {
        self.move_due(key, version, due).await
    }

    async fn claim_due(&self, limit: usize, lease: Duration) -> Result<Vec<SessionKey>, Error> {
        self.take_due(limit, lease).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, Error> {
        self.read_page(query).await
    }

    async fn live_on_cluster(
        &self,
        cluster: &ClusterName,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> Result<Vec<SessionKey>, Error> {
        self.find_on_cluster(cluster, after, limit).await
    }

    async fn orgs_on_cluster(&self, cluster: &ClusterName) -> Result<BTreeSet<OrgId>, Error> {
        self.find_orgs_on_cluster(cluster).await
    }

    async fn counts(&self, org: &OrgId) -> Result<BTreeMap<Status, u64>, Error> {
        self.count_by_status(org).await
    }

    async fn oldest_due(&self) -> Result<Option<Timestamp>, Error> {
        self.first_due().await
    }

    async fn events(&self, key: &SessionKey) -> Result<Vec<EventRecord>, Error> {
        self.read_history(&self.keys.record(key)).await
    }

    fn changes_with_progress(&self, progress: &FeedProgress) -> BoxStream<'static, Feed> {
        change_feed::changes(&self.connections, &self.keys, &self.epoch, progress)
    }

    async fn record_token(&self, key: &SessionKey, token: TokenRecord, limit: u32) -> Result<(), Error> {
        let recorded = self.add_token(key, &token, limit, &[]).await;
        if !matches!(recorded, Err(Error::Quota { .. })) {
            return recorded;
        }
        // Only at the limit is it worth telling revoked tokens from live ones.
        let Some(session) = self.get(key).await? else {
            return Err(Error::NotFound);
        };
        let revoked: Vec<_> = session.revoked_tokens.keys().map(TokenId::as_str).collect();
        if revoked.is_empty() {
            return recorded;
        }
        self.add_token(key, &token, limit, &revoked).await
    }

    async fn tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error> {
        let tokens = self.read_tokens(key, Duration::ZERO).await?;
        let mut tokens: Vec<_> = tokens.into_iter().map(|(token, _)| token).collect();
        TokenRecord::sort_oldest_first(&mut tokens);
        Ok(tokens)
    }

    async fn recent_tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error> {
        let tokens = self.read_tokens(key, TOKEN_MEMORY).await?;
        let mut tokens: Vec<_> = tokens.into_iter().map(|(token, _)| token).collect();
        TokenRecord::sort_oldest_first(&mut tokens);
        Ok(tokens)
    }

    async fn lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<Option<u64>, Error> {
        let mut script = self.scripts.acquire_lease.key(self.keys.lease(name));
        script.key(self.keys.lease_fence());
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let reply = self.run(script.arg(owner).arg(millis)).await?;
        match reply.words()[..] {
            ["ok", fence] => match fence.parse() {
                Ok(fence) => Ok(Some(fence)),
                Err(_) => Err(Error::Corrupt(format!("{fence:?} is no fencing number"))),
            },
            _ => Ok(None),
        }
    }

    async fn put_definition(&self, kind: Kind, name: &str, expected: u64, json: &str) -> Result<u64, Error> {
        let script = self.put_of(kind, name, expected, json);
        written_version(self.run(&script).await?)
    }

    async fn put_definition_within(
        &self,
        kind: Kind,
        name: &str,
        expected: u64,
        json: &str,
        quota: &DefinitionQuota,
    ) -> Result<u64, Error> {
        let short = self.is_short_of_memory(Slot::Global).await;
        let mut script = self.put_of(kind, name, expected, json);
        let ((_, entries), (_, bytes)) = (quota.entries, quota.bytes);
        script.arg(entries).arg(bytes).arg(u8::from(short));
        let reply = self.run(&script).await?;
        let (quota, limit) = match reply.words().as_slice() {
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

    async fn definition(&self, kind: Kind, name: &str) -> Result<Option<Definition>, Error> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.keys.definitions(kind, kind.org_of(name))).arg(name);
        let stored: Option<String> = self.connections.query(&cmd).await?;
        stored.map(|stored| decode_definition(&stored)).transpose()
    }

    async fn some_definitions(&self, wanted: &[(Kind, String)]) -> Result<Vec<Option<Definition>>, Error> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let stored: Vec<Option<String>> = self.connections.pipeline(&self.reads_of(wanted)).await?;
        decode_definitions(stored)
    }

    async fn some_definitions_now(
        &self,
        wanted: &[(Kind, String)],
    ) -> Result<(Vec<Option<Definition>>, Timestamp), Error> {
        let mut pipeline = self.reads_of(wanted);
        pipeline.cmd("TIME");
        let mut answers: Vec<Value> = self.connections.pipeline(&pipeline).await?;
        let now = answers.pop().unwrap_or(Value::Nil);
        let corrupt = |error: redis::ParsingError| Error::Corrupt(error.to_string());
        let stored = from_redis_value(Value::Array(answers)).map_err(corrupt)?;
        let now = from_redis_value(now).map_err(corrupt)?;
        Ok((decode_definitions(stored)?, moment(now)))
    }

    async fn definitions_of(
        &self,
        kind: Kind,
        org: Option<&OrgId>,
    ) -> Result<BTreeMap<String, Definition>, Error> {
        let key = self.keys.definitions(kind, org.map(OrgId::as_str));
        let mut all = BTreeMap::new();
        let mut cursor = 0_u64;
        loop {
            let mut cmd = redis::cmd("HSCAN");
            cmd.arg(&key).arg(cursor).arg("COUNT").arg(page_of(kind));
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

    async fn orgs_with_definitions(&self, kind: Kind) -> Result<BTreeSet<OrgId>, Error> {
        let mut cmd = redis::cmd("HKEYS");
        cmd.arg(self.keys.definition_bytes(kind));
        let orgs: Vec<String> = self.connections.query(&cmd).await?;
        let parse = |org: &String| {
            let parsed = org.parse();
            parsed.map_err(|_| Error::Corrupt(format!("{org:?} is no organization")))
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

    async fn trim_ended(&self, keep: &Tombstones, limit: usize) -> Result<usize, Error> {
        self.trim(keep, limit).await
    }

    async fn epoch(&self) -> Result<u64, Error> {
        self.epoch.current().await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.connections.ping().await.map_err(Failure::into_error)
    }
}
