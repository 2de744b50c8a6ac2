//! The lists: which suites there are, and which of their tests differ through Berth.

use super::outcome::{Comparison, Outcome, Verdict};
use anyhow::{Context, Result, ensure};
use e2e::{Engine, repo};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};

/// `tests/conformance/suites.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Suites {
    suites: Vec<Suite>,
}

/// A suite of another project.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Suite {
    /// As in `SELECT`.
    pub name: String,
    /// As in docs/clients.md.
    pub title: String,
    /// How Berth is reached.
    pub way: Way,
    /// Per test, in seconds.
    pub limit: u64,
    /// Runs in `make test`, and in `make conformance` only if it is selected.
    #[serde(default)]
    pub in_make_test: bool,
    /// What is run.
    pub runner: Runner,
    /// The engines, and what their runs must reach.
    pub engines: BTreeMap<String, Floor>,
    /// What is not run.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
}

/// What a run must reach, so that an empty run and a run without Berth fail.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Floor {
    /// Tests that pass direct.
    pub min_passed: usize,
    /// Calls that spark-proxy sees.
    pub min_calls: u64,
}

/// How a suite reaches Berth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Way {
    /// A connection string with a token.
    #[serde(rename = "TLS")]
    Tls,
    /// `berth connect` on port 15002, for suites with that address in their code.
    #[serde(rename = "port 15002")]
    Port15002,
    /// `berth connect` on a port of its own, for suites that know neither TLS nor tokens.
    #[serde(rename = "forwarder")]
    Forwarder,
}

/// What a suite is run by.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Runner {
    /// A test program of Go.
    Go {
        /// The folder with it and its release.
        folder: String,
    },
    /// The test programs of a Rust crate.
    Rust {
        /// The folder with its release and, in `tests`, the programs.
        folder: String,
    },
    /// Tests for pytest.
    Pytest(Pytest),
    /// Suites of ScalaTest.
    Scalatest {
        /// The folder with their classes, jars and release, and what they take for Spark's source.
        folder: String,
        /// Classes; one process each.
        arguments: Vec<String>,
    },
}

/// Tests for pytest.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pytest {
    /// The Python.
    pub python: String,
    /// Folders of packages, the first wins. Ids of tests are paths below `root`.
    pub packages: Vec<String>,
    /// The folder with the tests.
    pub root: String,
    /// The module whose version is that of the suite.
    pub release_of: String,
    /// The variable with the connection string.
    pub remote: String,
    /// Which tests; one process each.
    pub arguments: Vec<String>,
    /// More variables; `{installed}` is the folder of what setup.sh installs.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

/// Tests that are not run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LeftOut {
    /// Their id, or its beginning and `*`.
    pub tests: String,
    /// On this engine only.
    pub engine: Option<String>,
    /// Why.
    pub reason: String,
}

impl Suite {
    /// All suites.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub(super) fn all() -> Result<Vec<Self>> {
        let Suites { suites } = read("suites.toml")?;
        for suite in &suites {
            for engine in suite.engines.keys() {
                ensure!(
                    engine_named(engine).is_some(),
                    "{}: unknown engine {engine:?}",
                    suite.name
                );
            }
            ensure!(
                suite.left_out.iter().all(|left_out| !left_out.reason.is_empty()),
                "{}: tests are left out without a reason",
                suite.name
            );
        }
        Ok(suites)
    }

    /// What its run on an engine must reach; none if it does not run there.
    pub(super) fn floor(&self, engine: Engine) -> Option<Floor> {
        self.engines.get(engine.cluster()).copied()
    }

    /// The ids, or their beginnings and `*`, that do not run on an engine.
    pub(super) fn left_out(&self, engine: Engine) -> Vec<&str> {
        let concerns = |left_out: &&LeftOut| {
            let named = left_out.engine.as_deref();
            named.is_none_or(|name| name == engine.cluster())
        };
        let left_out = self.left_out.iter().filter(concerns);
        left_out.map(|left_out| left_out.tests.as_str()).collect()
    }
}

fn engine_named(name: &str) -> Option<Engine> {
    [Engine::Sail, Engine::Spark]
        .into_iter()
        .find(|engine| engine.cluster() == name)
}

/// Whether `pattern` is the id, or its beginning and `*`.
pub(super) fn matches(pattern: &str, id: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => id.starts_with(beginning),
        None => id == pattern,
    }
}

/// `tests/conformance/differences.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Differences {
    #[serde(default)]
    differs: Vec<Difference>,
}

/// Tests whose outcome through Berth is another one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    suite: String,
    engine: String,
    test: String,
    direct: String,
    berth: String,
    reason: String,
}

impl Difference {
    fn concerns(&self, suite: &Suite, engine: Engine) -> bool {
        self.suite == suite.name && self.engine == engine.cluster()
    }

    fn is(&self, id: &str, comparison: &Comparison) -> bool {
        let like = |listed: &str, outcome: &Option<Outcome>| match outcome {
            None => listed == "not run",
            Some(outcome) => listed == outcome.to_string() || listed == outcome.verdict.to_string(),
        };
        matches(&self.test, id)
            && like(&self.direct, &comparison.direct)
            && like(&self.berth, &comparison.berth)
    }
}

impl Differences {
    /// Reads the list.
    ///
    /// # Errors
    /// When it cannot be read, or an entry has no reason.
    pub(super) fn read() -> Result<Self> {
        let list: Self = read("differences.toml")?;
        let unexplained = list.differs.iter().find(|entry| entry.reason.is_empty());
        ensure!(unexplained.is_none(), "no reason in {unexplained:?}");
        Ok(list)
    }

    /// Fails if an entry is of no suite, or of an engine where its suite does not run.
    ///
    /// # Errors
    /// With the entry.
    pub(super) fn concern_only(&self, suites: &[Suite]) -> Result<()> {
        let known = |entry: &Difference| {
            let mut suites = suites.iter();
            suites.any(|suite| suite.name == entry.suite && suite.engines.contains_key(&entry.engine))
        };
        let unknown = self.differs.iter().find(|entry| !known(entry));
        ensure!(unknown.is_none(), "of no suite or engine: {unknown:?}");
        Ok(())
    }

    /// Takes what is listed out of `differing`. Returns the reasons, by test, and the entries that no
    /// test is an example of any more.
    pub(super) fn take_listed(
        &self,
        suite: &Suite,
        engine: Engine,
        differing: &mut BTreeMap<String, Comparison>,
    ) -> (Vec<(String, &str)>, Vec<&str>) {
        let mut listed = Vec::new();
        let mut used = BTreeSet::new();
        let entries = || {
            let entries = self.differs.iter().enumerate();
            entries.filter(|(_, entry)| entry.concerns(suite, engine))
        };
        differing.retain(|id, comparison| {
            let found = entries().find(|(_, entry)| entry.is(id, comparison));
            if let Some((at, entry)) = found {
                used.insert(at);
                listed.push((id.clone(), entry.reason.as_str()));
            }
            found.is_none()
        });
        let unused = entries().filter(|(at, _)| !used.contains(at));
        (listed, unused.map(|(_, entry)| entry.test.as_str()).collect())
    }
}

fn read<T: DeserializeOwned>(name: &str) -> Result<T> {
    let path = repo().join("tests/conformance").join(name);
    toml::from_str(&std::fs::read_to_string(&path)?).with_context(|| path.display().to_string())
}

#[test]
fn a_listed_difference_is_taken_and_a_stale_entry_is_reported() -> Result<()> {
    let list: Differences = toml::from_str(
        r#"
        [[differs]]
        suite = "go"
        engine = "sail"
        test = "TestA*"
        direct = "passed"
        berth = "failed"
        reason = "known"

        [[differs]]
        suite = "go"
        engine = "sail"
        test = "TestB"
        direct = "passed"
        berth = "failed"
        reason = "was mended"
        "#,
    )?;
    let suites = Suite::all()?;
    let suite = suites.iter().find(|suite| suite.name == "go").context("go")?;
    list.concern_only(&suites)?;
    let ended = |verdict| {
        let (error, detail) = (String::new(), String::new());
        Some(Outcome {
            verdict,
            error,
            detail,
        })
    };
    let differs = || Comparison {
        direct: ended(Verdict::Passed),
        berth: ended(Verdict::Failed),
    };
    let mut differing = BTreeMap::from([
        ("TestAll".to_owned(), differs()),
        ("TestOther".to_owned(), differs()),
    ]);
    let (listed, unused) = list.take_listed(suite, Engine::Sail, &mut differing);
    assert_eq!(listed, [("TestAll".to_owned(), "known")]);
    assert_eq!(unused, ["TestB"]);
    assert_eq!(differing.keys().collect::<Vec<_>>(), ["TestOther"]);
    Ok(())
}
