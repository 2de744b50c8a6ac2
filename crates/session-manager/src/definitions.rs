//! Definitions of clusters, catalogs and organizations, from the configuration or
//! the API. All are read from the store, so that all replicas agree.

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use session_core::{
    Catalog, CatalogName, Cluster, ClusterName, ClusterStatus, Org, OrgId, Quota, Reason, Timestamp,
};
use session_proto::error::Refused;
use session_store::{Definition, DefinitionQuota, Error, Kind, SessionStore};
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

/// A definition with a name and a version.
pub(crate) trait Versioned: Serialize + DeserializeOwned + Clone + PartialEq + Send + Sync {
    const KIND: Kind;
    /// The noun in messages to users.
    const WORD: &'static str;
    /// Limit per organization, for definitions that belong to an organization.
    const QUOTA: Option<DefinitionQuota> = None;
    fn name(&self) -> String;
    fn set_version(&mut self, version: u64);
    fn version(&self) -> u64;
    fn managed_by_config(&self) -> bool;
    /// The definition after its removal from the configuration; none if it is
    /// deleted then.
    fn orphaned(self) -> Option<Self>;
}

/// The methods of [`Versioned`] that are fields in every definition.
macro_rules! version_fields {
    () => {
        fn set_version(&mut self, version: u64) {
            self.version = version;
        }
        fn version(&self) -> u64 {
            self.version
        }
        fn managed_by_config(&self) -> bool {
            self.managed_by_config
        }
    };
}

impl Versioned for Cluster {
    const KIND: Kind = Kind::Cluster;
    const WORD: &'static str = "cluster";

    fn name(&self) -> String {
        self.name.to_string()
    }
    version_fields!();
    /// Draining: its sessions continue, new ones are rejected. The API may delete
    /// it from now on.
    fn orphaned(mut self) -> Option<Self> {
        self.status = ClusterStatus::Draining;
        self.managed_by_config = false;
        Some(self)
    }
}

impl Versioned for Catalog {
    const KIND: Kind = Kind::Catalog;
    const WORD: &'static str = "catalog";
    const QUOTA: Option<DefinitionQuota> = Some(DefinitionQuota {
        entries: (Quota::Catalogs, 1000),
        bytes: (Quota::CatalogBytes, 16 << 20),
    });

    fn name(&self) -> String {
        catalog_key(&self.org, &self.name)
    }
    version_fields!();
    fn orphaned(self) -> Option<Self> {
        None
    }
}

impl Versioned for Org {
    const KIND: Kind = Kind::Org;
    const WORD: &'static str = "organization";

    fn name(&self) -> String {
        self.id.to_string()
    }
    version_fields!();
    fn orphaned(mut self) -> Option<Self> {
        self.managed_by_config = false;
        Some(self)
    }
}

fn catalog_key(org: &OrgId, name: &CatalogName) -> String {
    format!("{org}/{name}")
}

fn read<T: Versioned>(definition: &Definition) -> Result<T, Error> {
    let mut thing: T =
        serde_json::from_str(&definition.json).map_err(|error| Error::Corrupt(error.to_string()))?;
    thing.set_version(definition.version);
    Ok(thing)
}

fn written<T: Versioned>(thing: &T) -> Result<String, Error> {
    let mut thing = thing.clone();
    thing.set_version(0);
    serde_json::to_string(&thing).map_err(|error| Error::Corrupt(error.to_string()))
}

/// A page of catalogs ends with the catalog that exceeds this; clients accept 4 MiB.
const PAGE_BYTES: usize = 1 << 20;
/// Catalogs that one command reads, at most 256 KiB each.
const MAX_READ_TOGETHER: usize = 8;
/// Attempts to write a definition when other replicas write it concurrently.
const MAX_SYNC_ATTEMPTS: usize = 16;

/// Reads and writes definitions.
#[derive(Debug, Clone)]
pub(crate) struct DefinitionStore {
    store: Arc<dyn SessionStore>,
}

impl DefinitionStore {
    pub(crate) fn new(store: Arc<dyn SessionStore>) -> Self {
        Self { store }
    }

    pub(crate) async fn cluster(&self, name: &ClusterName) -> Result<Option<Cluster>, Error> {
        self.get(name.as_str()).await
    }

    pub(crate) async fn catalog(&self, org: &OrgId, name: &CatalogName) -> Result<Option<Catalog>, Error> {
        self.get(&catalog_key(org, name)).await
    }

    /// An organization; one without a definition has the default limits.
    pub(crate) async fn org(&self, id: &OrgId) -> Result<Org, Error> {
        let defined = self.get(id.as_str()).await?;
        Ok(defined.unwrap_or_else(|| Org::undefined(id.clone())))
    }

    pub(crate) async fn get<T: Versioned>(&self, name: &str) -> Result<Option<T>, Error> {
        self.store
            .get_definition(T::KIND, name)
            .await?
            .map(|found| read(&found))
            .transpose()
    }

    /// Reads several definitions with one command, by kind and name.
    pub(crate) async fn get_many(&self, wanted: &[(Kind, String)]) -> Result<ResolvedDefinitions, Error> {
        Ok(ResolvedDefinitions {
            remaining: self.store.get_definitions(wanted).await?.into_iter(),
        })
    }

    /// What the creation of a session depends on: the organization, the cluster if
    /// it exists, and the store's time.
    pub(crate) async fn load_for_create(
        &self,
        org: &OrgId,
        cluster: &ClusterName,
    ) -> Result<(Org, Option<Cluster>, Timestamp), Error> {
        let wanted = [(Kind::Org, org.to_string()), (Kind::Cluster, cluster.to_string())];
        let (found, now) = self.store.get_definitions_and_time(&wanted).await?;
        let mut found = ResolvedDefinitions {
            remaining: found.into_iter(),
        };
        let defined = found.next()?;
        Ok((
            defined.unwrap_or_else(|| Org::undefined(org.clone())),
            found.next()?,
            now,
        ))
    }

    /// All definitions of a kind, by name.
    pub(crate) async fn all<T: Versioned>(&self) -> Result<Vec<T>, Error> {
        self.store
            .list_all_definitions(T::KIND)
            .await?
            .values()
            .map(read)
            .collect()
    }

    /// The definitions of one organization, by name; without an organization,
    /// those that belong to none.
    pub(crate) async fn all_of_org<T: Versioned>(&self, org: Option<&OrgId>) -> Result<Vec<T>, Error> {
        let found = self.store.list_definitions(T::KIND, org).await?;
        found.values().map(read).collect()
    }

    /// Up to `limit` catalogs of an organization after `after`, by name, and
    /// whether more follow. Fewer if they are large.
    pub(crate) async fn catalogs_after(
        &self,
        org: &OrgId,
        after: Option<&CatalogName>,
        limit: usize,
    ) -> Result<(Vec<Catalog>, bool), Error> {
        let after = after.map_or(Bound::Unbounded, |name| Bound::Excluded(catalog_key(org, name)));
        let all = self.store.definition_names(Kind::Catalog, Some(org)).await?;
        let mut names = all.range((after, Bound::Unbounded)).peekable();
        let (mut catalogs, mut bytes) = (Vec::new(), 0);
        while catalogs.len() < limit && bytes < PAGE_BYTES && names.peek().is_some() {
            let room = (limit - catalogs.len()).min(MAX_READ_TOGETHER);
            let wanted: Vec<_> = names
                .by_ref()
                .take(room)
                .map(|name| (Kind::Catalog, name.clone()))
                .collect();
            // Catalogs deleted in the meantime are omitted.
            for found in self.store.get_definitions(&wanted).await?.into_iter().flatten() {
                bytes += found.json.len();
                catalogs.push(read(&found)?);
            }
        }
        Ok((catalogs, names.peek().is_some()))
    }

    /// Organizations with definitions of a kind, and none for those that belong to
    /// no organization. Callers read them one at a time: all together may be large.
    pub(crate) async fn owning_orgs<T: Versioned>(&self) -> Result<Vec<Option<OrgId>>, Error> {
        let orgs = self.store.list_orgs_with_definitions(T::KIND).await?;
        Ok(std::iter::once(None).chain(orgs.into_iter().map(Some)).collect())
    }

    async fn put<T: Versioned>(&self, thing: &T, expected: u64) -> Result<u64, Error> {
        let (name, json) = (thing.name(), written(thing)?);
        match &T::QUOTA {
            None => self.store.put_definition(T::KIND, &name, expected, &json).await,
            Some(quota) => {
                let put = self
                    .store
                    .put_definition_within_quota(T::KIND, &name, expected, &json, quota);
                put.await
            }
        }
    }

    /// Creates a definition. Returns it as stored.
    ///
    /// # Errors
    /// [`Reason::AlreadyExists`], or a store error.
    pub(crate) async fn create<T: Versioned>(&self, mut thing: T) -> Result<T, Refused> {
        let version = self.put(&thing, 0).await.map_err(|error| match error {
            Error::Conflict | Error::Exists => Refused::new(
                Reason::AlreadyExists,
                format!("A {} named {} exists already.", T::WORD, thing.name()),
            ),
            other => crate::error::store(other),
        })?;
        thing.set_version(version);
        Ok(thing)
    }

    /// Replaces the stored definition of the same version.
    ///
    /// # Errors
    /// [`Reason::Conflict`] if the version differs, or a store error.
    pub(crate) async fn replace<T: Versioned>(&self, mut thing: T) -> Result<T, Refused> {
        let version = self
            .put(&thing, thing.version())
            .await
            .map_err(|error| changed_meanwhile::<T>(error, &thing.name()))?;
        thing.set_version(version);
        Ok(thing)
    }

    pub(crate) async fn delete<T: Versioned>(&self, thing: &T) -> Result<(), Refused> {
        self.store
            .delete_definition(T::KIND, &thing.name(), thing.version())
            .await
            .map_err(|error| changed_meanwhile::<T>(error, &thing.name()))
    }

    /// Applies the configuration to the stored definitions. Declared ones are
    /// written and are read-only in the API; those no longer declared are drained
    /// (clusters), deleted (catalogs) or left to the API (organizations).
    /// Idempotent; every replica runs it.
    pub(crate) async fn sync<T: Versioned>(&self, declared: &[T]) -> anyhow::Result<()> {
        let names: BTreeSet<String> = declared.iter().map(Versioned::name).collect();
        for thing in declared {
            self.sync_one(thing.name(), Some(thing)).await?;
        }
        let reading = || format!("reading every {}", T::WORD);
        for org in self.owning_orgs::<T>().await.with_context(reading)? {
            for stored in self.all_of_org::<T>(org.as_ref()).await.with_context(reading)? {
                if stored.managed_by_config() && !names.contains(&stored.name()) {
                    self.sync_one::<T>(stored.name(), None).await?;
                }
            }
        }
        Ok(())
    }

    /// Retries after a conflict: other replicas apply the same configuration.
    async fn sync_one<T: Versioned>(&self, name: String, declared: Option<&T>) -> anyhow::Result<()> {
        for _ in 0..MAX_SYNC_ATTEMPTS {
            let stored: Option<T> = self.get(&name).await?;
            let version = stored.as_ref().map_or(0, Versioned::version);
            let wanted = match (declared, stored.clone()) {
                (Some(declared), _) => Some(declared.clone()),
                (None, Some(stored)) => stored.orphaned(),
                (None, None) => return Ok(()),
            };
            let outcome = match &wanted {
                Some(wanted) if stored.as_ref().is_some_and(|stored| same(stored, wanted)) => return Ok(()),
                Some(wanted) => self
                    .store
                    .put_definition(T::KIND, &name, version, &written(wanted)?)
                    .await
                    .map(|_| ()),
                None => self.store.delete_definition(T::KIND, &name, version).await,
            };
            match outcome {
                Ok(()) => {
                    tracing::info!(
                        kind = T::WORD,
                        name,
                        removed = wanted.is_none(),
                        "configured definition applied"
                    );
                    return Ok(());
                }
                Err(Error::Conflict | Error::Exists | Error::NotFound) => {}
                Err(error) => return Err(error).with_context(|| format!("writing {} {name}", T::WORD)),
            }
        }
        anyhow::bail!("{} {name} keeps changing while it is written", T::WORD)
    }
}

/// The definitions that one command read, in the requested order.
pub(crate) struct ResolvedDefinitions {
    remaining: std::vec::IntoIter<Option<Definition>>,
}

impl ResolvedDefinitions {
    /// The next definition, if it exists.
    pub(crate) fn next<T: Versioned>(&mut self) -> Result<Option<T>, Error> {
        self.remaining.next().flatten().as_ref().map(read).transpose()
    }
}

fn same<T: Versioned>(stored: &T, wanted: &T) -> bool {
    let mut wanted = wanted.clone();
    wanted.set_version(stored.version());
    *stored == wanted
}

fn changed_meanwhile<T: Versioned>(error: Error, name: &str) -> Refused {
    match error {
        Error::Conflict | Error::NotFound => Refused::new(
            Reason::Conflict,
            format!(
                "The {} {name} was changed meanwhile. Read it again and repeat the change.",
                T::WORD
            ),
        ),
        Error::Exists => Refused::field(
            "version",
            "is missing: read the definition first, and send it back changed",
        ),
        other => crate::error::store(other),
    }
}
