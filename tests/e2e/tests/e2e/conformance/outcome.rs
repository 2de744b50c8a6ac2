//! How tests went, and which of them went another way through Berth.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How a test went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// It passed.
    Passed,
    /// It failed, or took too long.
    Failed,
    /// The suite does not run it here, or expects that it fails.
    Skipped,
    /// It began, and its process died.
    Started,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Started => "died",
        })
    }
}

/// The outcome of a test.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// How it went.
    pub verdict: Verdict,
    /// The kind of the error, where the suite has kinds.
    pub error: String,
    /// A part of its text, for people.
    pub detail: String,
}

impl Outcome {
    fn is_like(&self, other: &Self) -> bool {
        self.verdict == other.verdict && self.error == other.error
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verdict, error, .. } = self;
        if error.is_empty() {
            write!(f, "{verdict}")
        } else {
            write!(f, "{verdict} ({error})")
        }
    }
}

/// What one run of a suite saw.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// The suite's release.
    pub release: String,
    /// The outcomes by the tests' ids.
    pub outcomes: BTreeMap<String, Outcome>,
}

impl Run {
    /// How many tests went so.
    pub(super) fn count(&self, verdict: Verdict) -> usize {
        let outcomes = self.outcomes.values();
        outcomes.filter(|outcome| outcome.verdict == verdict).count()
    }

    /// For the terminal.
    pub(super) fn summary(&self) -> String {
        let [passed, failed, skipped, died] = [
            Verdict::Passed,
            Verdict::Failed,
            Verdict::Skipped,
            Verdict::Started,
        ]
        .map(|verdict| self.count(verdict));
        format!("{passed} passed, {failed} failed, {skipped} skipped, {died} died")
    }
}

/// A test that went another way.
#[derive(Debug)]
pub(super) struct Comparison {
    /// Direct to the engine; none if it was not run.
    pub direct: Option<Outcome>,
    /// Through Berth.
    pub berth: Option<Outcome>,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |outcome: &Option<Outcome>| match outcome {
            Some(outcome) => format!("{outcome}: {}", outcome.detail),
            None => "not run".to_owned(),
        };
        write!(
            f,
            "\n    direct: {}\n    through Berth: {}",
            show(&self.direct),
            show(&self.berth)
        )
    }
}

/// The tests that went another way through Berth, in how they ended or in the kind of their error.
pub(super) fn differing(direct: &Run, berth: &Run) -> BTreeMap<String, Comparison> {
    let ids = direct.outcomes.keys().chain(berth.outcomes.keys());
    let compared = ids.map(|id| {
        let of = |run: &Run| run.outcomes.get(id).cloned();
        let (direct, berth) = (of(direct), of(berth));
        (id.clone(), Comparison { direct, berth })
    });
    compared
        .filter(|(_, Comparison { direct, berth })| match (direct, berth) {
            (Some(direct), Some(berth)) => !direct.is_like(berth),
            _ => true,
        })
        .collect()
}

/// Every way in which a test ended so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    direct: BTreeSet<String>,
    berth: BTreeSet<String>,
}

impl Seen {
    /// One more run each way. A test that was not run again ends as nothing.
    pub(super) fn add(&mut self, direct: Option<&Outcome>, berth: Option<&Outcome>) {
        let ended = |outcome: Option<&Outcome>| outcome.map(ToString::to_string).unwrap_or_default();
        self.direct.insert(ended(direct));
        self.berth.insert(ended(berth));
    }

    /// Whether it never ended through Berth as it did direct.
    pub(super) fn always_differs(&self) -> bool {
        self.direct.is_disjoint(&self.berth)
    }
}

#[test]
fn a_test_that_ends_now_so_and_now_so_does_not_differ() {
    let ended = |verdict| Outcome {
        verdict,
        error: String::new(),
        detail: String::new(),
    };
    let (passed, failed) = (ended(Verdict::Passed), ended(Verdict::Failed));
    let mut seen = Seen::default();
    seen.add(Some(&passed), Some(&failed));
    assert!(seen.always_differs());
    seen.add(Some(&passed), Some(&failed));
    assert!(seen.always_differs());
    seen.add(Some(&failed), Some(&failed));
    assert!(!seen.always_differs());
}

#[test]
fn what_differs_is_found() {
    let run = |outcomes: &[(&str, Verdict, &str)]| Run {
        outcomes: outcomes
            .iter()
            .map(|&(id, verdict, error)| {
                let (error, detail) = (error.to_owned(), String::new());
                (
                    id.to_owned(),
                    Outcome {
                        verdict,
                        error,
                        detail,
                    },
                )
            })
            .collect(),
        ..Run::default()
    };
    let direct = run(&[
        ("alike", Verdict::Passed, ""),
        ("fails alike", Verdict::Failed, "AssertionError"),
        ("another error", Verdict::Failed, "AssertionError"),
        ("fails", Verdict::Passed, ""),
        ("lost", Verdict::Passed, ""),
    ]);
    let berth = run(&[
        ("alike", Verdict::Passed, ""),
        ("fails alike", Verdict::Failed, "AssertionError"),
        ("another error", Verdict::Failed, "TimeoutError"),
        ("fails", Verdict::Failed, ""),
        ("new", Verdict::Passed, ""),
    ]);
    let found = differing(&direct, &berth);
    let ids: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(ids, ["another error", "fails", "lost", "new"]);
}
