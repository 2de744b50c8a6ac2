//! The table of promises: what each client keeps on each engine, and what differs for which reason.

use super::Way;
use anyhow::{Context, Result, bail, ensure};
use e2e::{Engine, repo};
use serde::Deserialize;
use std::collections::BTreeMap;

/// `tests/clients/promises.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    /// What each promise means.
    promises: BTreeMap<String, String>,
    /// What does not hold.
    differs: Vec<Difference>,
}

/// A promise that some clients do not keep.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    promise: String,
    /// On this engine only.
    engine: Option<String>,
    /// In this way only.
    way: Option<String>,
    /// These clients only: names, or beginnings of names with `*`.
    #[serde(default)]
    clients: Vec<String>,
    outcome: Outcome,
    /// A part of what the client says.
    #[serde(default)]
    detail: String,
    reason: String,
}

/// How a promise went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Outcome {
    /// It was kept.
    #[serde(rename = "passed")]
    Passed,
    /// It was not.
    #[serde(rename = "failed")]
    Failed,
    /// The client has no such call.
    #[serde(rename = "not offered")]
    NotOffered,
}

/// What a client program says of one promise.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Tried {
    /// Which.
    pub promise: String,
    /// How it went.
    pub outcome: Outcome,
    /// Why it was not kept.
    pub detail: String,
}

/// Which run of a client it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run<'a> {
    /// Its name in the table.
    pub(super) client: &'a str,
    /// The engine.
    pub(super) engine: Engine,
    /// How it is reached.
    pub(super) way: Way,
}

impl Difference {
    fn concerns(&self, Run { client, engine, way }: Run<'_>, promise: &str) -> bool {
        let named = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => client.starts_with(beginning),
            None => client == pattern,
        };
        self.promise == promise
            && self.engine.as_ref().is_none_or(|name| name == engine.cluster())
            && self.way.as_ref().is_none_or(|name| *name == way.to_string())
            && (self.clients.is_empty() || self.clients.iter().any(named))
    }
}

impl Table {
    /// Reads it.
    pub(super) fn read() -> Result<Self> {
        let path = repo().join("tests/clients/promises.toml");
        let table: Self =
            toml::from_str(&std::fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
        for difference in &table.differs {
            ensure!(
                table.promises.contains_key(&difference.promise),
                "a difference of the unknown promise {:?}",
                difference.promise
            );
            ensure!(
                difference.outcome != Outcome::Passed,
                "a difference of {:?} that passes",
                difference.promise
            );
            let failed = difference.outcome == Outcome::Failed;
            ensure!(
                failed != difference.detail.is_empty(),
                "a difference of {:?}: `failed` has a detail, `not offered` has none",
                difference.promise
            );
        }
        Ok(table)
    }

    /// How many promises there are.
    pub(super) fn len(&self) -> usize {
        self.promises.len()
    }

    /// What a run does not keep, although its client offers it: the promise and the reason.
    pub(super) fn differences(&self, run: Run<'_>) -> Vec<(&str, &str)> {
        self.listed(run, Outcome::Failed)
            .map(|difference| (difference.promise.as_str(), difference.reason.as_str()))
            .collect()
    }

    /// The promises that a client does not offer.
    pub(super) fn not_offered(&self, run: Run<'_>) -> Vec<&str> {
        self.listed(run, Outcome::NotOffered)
            .map(|difference| difference.promise.as_str())
            .collect()
    }

    fn listed<'t>(&'t self, run: Run<'_>, outcome: Outcome) -> impl Iterator<Item = &'t Difference> {
        self.differs.iter().filter(move |difference| {
            difference.outcome == outcome && difference.concerns(run, &difference.promise)
        })
    }

    /// What of `tried` is not as the table has it.
    pub(super) fn judge(&self, run: Run<'_>, tried: &[Tried]) -> Vec<String> {
        let mut wrong = Vec::new();
        for promise in self.promises.keys() {
            let mut lines = tried.iter().filter(|tried| &tried.promise == promise);
            match (lines.next(), lines.next()) {
                (Some(line), None) => wrong.extend(self.judge_one(run, line).err()),
                (None, _) => wrong.push(anyhow::anyhow!("{promise}: nothing was printed")),
                (Some(_), Some(_)) => wrong.push(anyhow::anyhow!("{promise}: printed twice")),
            }
        }
        let unknown = tried
            .iter()
            .filter(|tried| !self.promises.contains_key(&tried.promise));
        wrong.extend(unknown.map(|tried| anyhow::anyhow!("{}: unknown promise", tried.promise)));
        wrong.into_iter().map(|error| error.to_string()).collect()
    }

    fn judge_one(&self, run: Run<'_>, tried: &Tried) -> Result<()> {
        let Tried {
            promise,
            outcome,
            detail,
        } = tried;
        let differs = |difference: &&Difference| difference.concerns(run, promise);
        let mut listed = self.differs.iter().filter(differs);
        let (difference, another) = (listed.next(), listed.next());
        ensure!(another.is_none(), "{promise}: two differences are listed");
        match difference {
            None if *outcome == Outcome::Passed => Ok(()),
            None => bail!("{promise}: {outcome:?}: {detail}"),
            Some(listed) if listed.outcome == *outcome && detail.contains(&listed.detail) => Ok(()),
            Some(listed) => bail!(
                "{promise}: {outcome:?} ({detail}); listed as {:?} ({}): {}",
                listed.outcome,
                listed.detail,
                listed.reason
            ),
        }
    }
}
