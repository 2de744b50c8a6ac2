//! The table in docs/clients.md: what the last runs saw, written by those runs.

use super::Trial;
use super::outcome::{Run, Verdict};
use super::suites::Floor;
use anyhow::{Context, Result, ensure};
use e2e::MarkedTable;
use session_core::{Clock as _, SystemClock};
use std::collections::BTreeMap;
use std::fmt;

/// Where it is.
pub(super) const TABLE: MarkedTable = MarkedTable {
    name: "conformance",
    writer: "make conformance",
    head: "| suite | engine | release | tests | passed | failed alike | skipped alike | differ | differed once | calls | date |\n\
           |---|---|---|---|---|---|---|---|---|---|---|\n",
};

/// A suite on one engine.
#[derive(Debug)]
pub(super) struct Row {
    suite: String,
    engine: &'static str,
    release: String,
    tests: usize,
    passed: usize,
    skipped: usize,
    differ: usize,
    reasons: Vec<String>,
    flaky: usize,
    calls: u64,
    date: String,
}

impl Row {
    /// From both runs, the tests that differ as listed, and how many differed at first only.
    pub(super) fn new(
        trial: &Trial<'_>,
        direct: &Run,
        listed: &[(String, &str)],
        flaky: usize,
        calls: u64,
    ) -> Self {
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, reason) in listed {
            *reasons.entry(reason).or_default() += 1;
        }
        let of_listed = |verdict| {
            let of = |id: &String| direct.outcomes.get(id).is_some_and(|of| of.verdict == verdict);
            listed.iter().filter(|(id, _)| of(id)).count()
        };
        let alike = |verdict| direct.count(verdict) - of_listed(verdict);
        Self {
            suite: trial.suite.title.clone(),
            engine: trial.engine.title(),
            release: direct.release.clone(),
            tests: direct.outcomes.len(),
            passed: alike(Verdict::Passed),
            skipped: alike(Verdict::Skipped),
            differ: listed.len(),
            reasons: reasons
                .into_iter()
                .map(|(reason, count)| format!("{count}: {reason}"))
                .collect(),
            flaky,
            calls,
            date: SystemClock.now().to_string().chars().take(10).collect(),
        }
    }

    /// Whether both runs were real ones.
    ///
    /// # Errors
    /// When too little was run.
    pub(super) fn reaches(&self, floor: Option<Floor>, which: &str) -> Result<()> {
        let Floor {
            min_passed,
            min_calls,
        } = floor.context("no floor")?;
        ensure!(
            self.passed >= min_passed,
            "{which}: {} tests passed, at least {min_passed} must",
            self.passed
        );
        ensure!(
            self.calls >= min_calls,
            "{which}: spark-proxy saw {} calls, at least {min_calls} belong to the suite",
            self.calls
        );
        Ok(())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            suite,
            engine,
            release,
            tests,
            passed,
            skipped,
            differ,
            flaky,
            calls,
            date,
            ..
        } = self;
        let failed = tests - passed - skipped - differ;
        let reasons = self.reasons.join("; ");
        let differ = match reasons.is_empty() {
            true => differ.to_string(),
            false => reasons,
        };
        write!(
            f,
            "| {suite} | {engine} | {release} | {tests} | {passed} | {failed} | {skipped} | {differ} | {flaky} | {calls} | {date} |"
        )
    }
}
