//! Definitions in memory.

use super::MemoryStore;
use super::State;
use crate::{Definition, DefinitionQuota, Definitions, Error, Kind};
use async_trait::async_trait;
use session_core::OrgId;
use std::collections::{BTreeMap, BTreeSet};

#[async_trait]
impl Definitions for MemoryStore {
    async fn put_definition(&self, kind: Kind, name: &str, expected: u64, json: &str) -> Result<u64, Error> {
        let mut state = self.state();
        let key = (kind, name.to_owned());
        check_definition(state.definitions.get(&key), expected)?;
        let version = expected + 1;
        state.definitions.insert(
            key,
            Definition {
                version,
                json: json.to_owned(),
            },
        );
        Ok(version)
    }

    async fn put_definition_within_quota(
        &self,
        kind: Kind,
        name: &str,
        expected: u64,
        json: &str,
        quota: &DefinitionQuota,
    ) -> Result<u64, Error> {
        {
            let state = self.state();
            let stored = state.definitions.get(&(kind, name.to_owned()));
            check_definition(stored, expected)?;
            let before = stored.map_or(0, |stored| name.len() + stored.json.len());
            let after = name.len() + json.len();
            if let Some(org) = kind.org_of(name)
                && after > before
            {
                let sizes: Vec<usize> = state
                    .definitions_of(kind, Some(org))
                    .map(|(name, stored)| name.len() + stored.json.len())
                    .collect();
                let bytes = sizes.iter().sum::<usize>() + after - before;
                let over = match (stored, quota.entries, quota.bytes) {
                    (None, (entries, limit), _) if sizes.len() >= limit as usize => Some((entries, limit)),
                    (_, _, (of_bytes, limit)) if bytes > limit as usize => Some((of_bytes, limit)),
                    _ => None,
                };
                if let Some((quota, limit)) = over {
                    return Err(Error::Quota {
                        quota,
                        limit,
                        retry_after: None,
                    });
                }
            }
        }
        self.put_definition(kind, name, expected, json).await
    }

    async fn get_definition(&self, kind: Kind, name: &str) -> Result<Option<Definition>, Error> {
        Ok(self.state().definitions.get(&(kind, name.to_owned())).cloned())
    }

    async fn get_definitions(&self, wanted: &[(Kind, String)]) -> Result<Vec<Option<Definition>>, Error> {
        let state = self.state();
        let stored = |one| state.definitions.get(one).cloned();
        Ok(wanted.iter().map(stored).collect())
    }

    async fn list_definitions(
        &self,
        kind: Kind,
        org: Option<&OrgId>,
    ) -> Result<BTreeMap<String, Definition>, Error> {
        let state = self.state();
        let found = state.definitions_of(kind, org.map(OrgId::as_str));
        Ok(found
            .map(|(name, definition)| (name.clone(), definition.clone()))
            .collect())
    }

    async fn definition_names(&self, kind: Kind, org: Option<&OrgId>) -> Result<BTreeSet<String>, Error> {
        let state = self.state();
        let found = state.definitions_of(kind, org.map(OrgId::as_str));
        Ok(found.map(|(name, _)| name.clone()).collect())
    }

    async fn list_orgs_with_definitions(&self, kind: Kind) -> Result<BTreeSet<OrgId>, Error> {
        let state = self.state();
        let names = state.definitions.keys().filter(|(stored, _)| *stored == kind);
        let orgs = names.filter_map(|(_, name)| kind.org_of(name)?.parse().ok());
        Ok(orgs.collect())
    }

    async fn delete_definition(&self, kind: Kind, name: &str, expected: u64) -> Result<(), Error> {
        let mut state = self.state();
        let key = (kind, name.to_owned());
        let stored = state.definitions.get(&key).ok_or(Error::NotFound)?;
        if stored.version != expected {
            return Err(Error::Conflict);
        }
        state.definitions.remove(&key);
        Ok(())
    }
}

impl State {
    /// The definitions of an organization, or those of no organization.
    pub(super) fn definitions_of<'a>(
        &'a self,
        kind: Kind,
        org: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a String, &'a Definition)> {
        self.definitions
            .iter()
            .filter(move |((stored, name), _)| *stored == kind && kind.org_of(name) == org)
            .map(|((_, name), definition)| (name, definition))
    }
}

fn check_definition(stored: Option<&Definition>, expected: u64) -> Result<(), Error> {
    match stored.map_or(0, |definition| definition.version) {
        version if version == expected => Ok(()),
        0 => Err(Error::NotFound),
        _ if expected == 0 => Err(Error::Exists),
        _ => Err(Error::Conflict),
    }
}
