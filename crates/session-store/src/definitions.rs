//! Definitions: JSON documents by kind and name, with a version.

use crate::{Error, StoreHealth};
use async_trait::async_trait;
use session_core::{OrgId, Quota, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// Things that are defined rather than lived: each is a JSON text under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `session_core::Cluster`, by name.
    Cluster,
    /// `session_core::Catalog`, by `org/name`.
    Catalog,
    /// `session_core::Org`, by name.
    Org,
    /// `session_core::Disabled`: an organization by name, a principal by
    /// `org/principal`.
    Disabled,
    /// What tells this installation from others, under one name.
    Install,
}

impl Kind {
    /// The organization whose share a definition of this name counts for, if
    /// it is one that an organization makes itself.
    pub(crate) fn org_of(self, name: &str) -> Option<&str> {
        match self {
            Self::Catalog | Self::Disabled => name.split_once('/').map(|(org, _)| org),
            Self::Cluster | Self::Org | Self::Install => None,
        }
    }
}

/// How much of a kind one organization may define.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefinitionQuota {
    /// The quota of entries and its limit.
    pub entries: (Quota, u32),
    /// The same of bytes: names and JSON texts together.
    pub bytes: (Quota, u32),
}

/// A stored definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Rises by one with every write, from 1.
    pub version: u64,
    /// The JSON.
    pub json: String,
}

/// Definitions of clusters, catalogs and organizations, and other small documents.
#[async_trait]
pub trait Definitions: StoreHealth {
    /// Writes a definition if its stored version is `expected` (0: there is
    /// none). Returns the new version. Otherwise [`Error::Exists`] if none was
    /// expected, [`Error::NotFound`] if there is none, else [`Error::Conflict`].
    async fn put_definition(&self, kind: Kind, name: &str, expected: u64, json: &str) -> Result<u64, Error>;

    /// [`crate::Definitions::put_definition`] of what an organization defines itself,
    /// within its share: otherwise, unless it takes less room than what it
    /// replaces, [`Error::Quota`], or [`Error::Full`] when memory is short.
    async fn put_definition_within_quota(
        &self,
        kind: Kind,
        name: &str,
        expected: u64,
        json: &str,
        quota: &DefinitionQuota,
    ) -> Result<u64, Error>;

    /// Reads a definition.
    async fn get_definition(&self, kind: Kind, name: &str) -> Result<Option<Definition>, Error>;

    /// Reads several definitions at once, by kind and name, in this order.
    async fn get_definitions(&self, wanted: &[(Kind, String)]) -> Result<Vec<Option<Definition>>, Error>;

    /// The same, and the store's clock as of then.
    async fn get_definitions_and_time(
        &self,
        wanted: &[(Kind, String)],
    ) -> Result<(Vec<Option<Definition>>, Timestamp), Error> {
        Ok((self.get_definitions(wanted).await?, self.now().await?))
    }

    /// Reads all definitions of a kind, by name.
    async fn list_all_definitions(&self, kind: Kind) -> Result<BTreeMap<String, Definition>, Error> {
        let mut all = self.list_definitions(kind, None).await?;
        for org in self.list_orgs_with_definitions(kind).await? {
            all.append(&mut self.list_definitions(kind, Some(&org)).await?);
        }
        Ok(all)
    }

    /// Reads, in pages, those that one organization defined itself (names that
    /// begin with it and a slash); those of nobody's share, if none is given.
    async fn list_definitions(
        &self,
        kind: Kind,
        org: Option<&OrgId>,
    ) -> Result<BTreeMap<String, Definition>, Error>;

    /// The names of the same, in order: to read some of them at a time.
    async fn definition_names(&self, kind: Kind, org: Option<&OrgId>) -> Result<BTreeSet<String>, Error>;

    /// The organizations that have definitions of a kind in their share.
    async fn list_orgs_with_definitions(&self, kind: Kind) -> Result<BTreeSet<OrgId>, Error>;

    /// Removes a definition if its stored version is `expected`.
    async fn delete_definition(&self, kind: Kind, name: &str, expected: u64) -> Result<(), Error>;
}
