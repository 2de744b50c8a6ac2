//! Definitions: JSON documents by kind and name, with a version.

use crate::{Error, StoreHealth};
use async_trait::async_trait;
use session_core::{OrgId, Quota, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// Kinds of definitions; each definition is a JSON text under a name.
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
    /// Id of this installation, under one name.
    InstallationId,
}

impl Kind {
    /// The organization whose quota includes a definition of this name; `None` for
    /// kinds that organizations do not create.
    pub(crate) fn org_of(self, name: &str) -> Option<&str> {
        match self {
            Self::Catalog | Self::Disabled => name.split_once('/').map(|(org, _)| org),
            Self::Cluster | Self::Org | Self::InstallationId => None,
        }
    }
}

/// Quota of one organization for one kind.
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
    /// Increases by one with every write, from 1.
    pub version: u64,
    /// The JSON.
    pub json: String,
}

/// Definitions of clusters, catalogs and organizations, and other small documents.
#[async_trait]
pub trait Definitions: StoreHealth {
    /// Writes a definition if its stored version is `expected` (0: none exists).
    /// Returns the new version. Otherwise [`Error::Exists`] if none was expected,
    /// [`Error::NotFound`] if none exists, else [`Error::Conflict`].
    async fn put_definition(&self, kind: Kind, name: &str, expected: u64, json: &str) -> Result<u64, Error>;

    /// [`crate::Definitions::put_definition`] for a definition that an organization
    /// creates, within its quota. Unless the new text is not larger than the stored
    /// one: [`Error::Quota`], or [`Error::Full`] when memory is short.
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

    /// [`crate::Definitions::get_definitions`] with the time of the store.
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

    /// Reads, in pages, the definitions that one organization created (names that start
    /// with it and a slash); without `org`, the definitions of no organization.
    async fn list_definitions(
        &self,
        kind: Kind,
        org: Option<&OrgId>,
    ) -> Result<BTreeMap<String, Definition>, Error>;

    /// The names that [`crate::Definitions::list_definitions`] returns, in order.
    async fn definition_names(&self, kind: Kind, org: Option<&OrgId>) -> Result<BTreeSet<String>, Error>;

    /// The organizations that created definitions of a kind.
    async fn list_orgs_with_definitions(&self, kind: Kind) -> Result<BTreeSet<OrgId>, Error>;

    /// Removes a definition if its stored version is `expected`.
    async fn delete_definition(&self, kind: Kind, name: &str, expected: u64) -> Result<(), Error>;
}
