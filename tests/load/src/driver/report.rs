//! Values of all rounds, the table for people, the file for machines.

use super::peer::Kind;
use super::rows::{Limit, OTHERS, ROWS, Row};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Widths of the table's columns.
const LABEL: usize = 36;
const CELL: usize = 13;

/// What was measured, round by round.
#[derive(Debug, Default)]
pub struct Results(BTreeMap<&'static str, BTreeMap<Kind, Vec<f64>>>);

/// The smallest, middle and largest of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// Middle.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// `None` of nothing.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Self { min, median, max })
    }

    fn json(self) -> Value {
        let round = |value: f64| (value * 1e4).round() / 1e4;
        json!({"min": round(self.min), "median": round(self.median), "max": round(self.max)})
    }
}

/// Does Berth keep to a limit?
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// Which.
    pub limit: Limit,
    /// Berth's value, or its ratio to the peer's.
    pub seen: Spread,
    /// The median does.
    pub pass: bool,
}

impl Results {
    /// One more value.
    pub fn add(&mut self, row: &'static str, kind: Kind, value: f64) {
        self.0
            .entry(row)
            .or_default()
            .entry(kind)
            .or_default()
            .push(value);
    }

    fn values(&self, row: &str, kind: Kind) -> &[f64] {
        self.0
            .get(row)
            .and_then(|kinds| kinds.get(&kind))
            .map_or(&[], Vec::as_slice)
    }

    /// Berth's own values of a row: of the kind that the row is about.
    fn berth(&self, row: &str) -> &[f64] {
        let shipped = self.values(row, Kind::Berth);
        if shipped.is_empty() {
            self.values(row, Kind::BerthPlain)
        } else {
            shipped
        }
    }

    /// Berth's value as a multiple of `other`'s, round by round.
    fn ratio(&self, row: &str, other: Kind) -> Option<Spread> {
        let ratios: Vec<f64> = self
            .berth(row)
            .iter()
            .zip(self.values(row, other))
            .map(|(ours, theirs)| ours / theirs)
            .collect();
        Spread::of(&ratios)
    }

    /// `None` if what the limit speaks of was not measured.
    pub fn judge(&self, row: &Row, limit: Limit) -> Option<Verdict> {
        let (seen, pass) = match limit {
            Limit::AtMost(most) => {
                let seen = Spread::of(self.berth(row.key))?;
                (seen, seen.median <= most)
            }
            Limit::AtMostOf(most, peer) => {
                let seen = self.ratio(row.key, peer)?;
                (seen, seen.median <= most)
            }
            Limit::AtLeastOf(least, peer) => {
                let seen = self.ratio(row.key, peer)?;
                (seen, seen.median >= least)
            }
            Limit::AtLeastBest(least) => {
                let ratios = OTHERS.iter().filter_map(|&peer| self.ratio(row.key, peer));
                let seen = ratios.min_by(|a, b| a.median.total_cmp(&b.median))?;
                (seen, seen.median >= least)
            }
        };
        Some(Verdict { limit, seen, pass })
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let mut columns: Vec<Kind> = self.0.values().flat_map(BTreeMap::keys).copied().collect();
        columns.sort_unstable();
        columns.dedup();
        let mut out = pad("median ± half the spread", LABEL);
        for column in &columns {
            let _ = write!(out, "{:>CELL$}", column.name());
        }
        out.push('\n');
        for row in ROWS {
            let Some(kinds) = self.0.get(row.key) else {
                continue;
            };
            out.push_str(&pad(row.label, LABEL));
            for column in &columns {
                let cell = kinds.get(column).and_then(|values| Spread::of(values));
                let cell = cell.map_or(String::new(), |cell| show(cell, row.digits));
                let _ = write!(out, "{cell:>CELL$}");
            }
            out.truncate(out.trim_end().len());
            out.push('\n');
            for (name, limits, miss) in [("must", row.must, "MISS"), ("stretch", row.stretch, "not yet")] {
                for verdict in limits.iter().filter_map(|&limit| self.judge(row, limit)) {
                    let _ = writeln!(out, "{:>12} {}", name, words(&verdict, miss));
                }
            }
        }
        out
    }

    /// How many musts are kept, and which are not.
    pub fn musts(&self) -> (usize, Vec<String>) {
        let (mut kept, mut missed) = (0, Vec::new());
        for row in ROWS {
            for verdict in row.must.iter().filter_map(|&limit| self.judge(row, limit)) {
                if verdict.pass {
                    kept += 1;
                } else {
                    missed.push(format!("{}: {}", row.label.trim(), words(&verdict, "MISS")));
                }
            }
        }
        (kept, missed)
    }

    /// The file for machines.
    pub fn json(&self) -> Value {
        let rows = ROWS.iter().filter_map(|row| {
            let kinds = self.0.get(row.key)?;
            let peers: serde_json::Map<String, Value> = kinds
                .iter()
                .filter_map(|(kind, values)| Some((kind.name().to_owned(), Spread::of(values)?.json())))
                .collect();
            let limits = |limits: &[Limit]| -> Vec<Value> {
                let judged = limits.iter().filter_map(|&limit| self.judge(row, limit));
                judged
                    .map(|verdict| {
                        json!({"limit": verdict.limit.to_string(), "seen": verdict.seen.json(), "pass": verdict.pass})
                    })
                    .collect()
            };
            Some((
                row.key.to_owned(),
                json!({
                    "what": row.label.trim(), "peers": peers,
                    "must": limits(row.must), "stretch": limits(row.stretch),
                }),
            ))
        });
        Value::Object(rows.collect())
    }
}

fn words(verdict: &Verdict, miss: &str) -> String {
    let said = if verdict.pass { "ok" } else { miss };
    match verdict.limit {
        Limit::AtMost(_) => format!("{}: {said}", verdict.limit),
        Limit::AtMostOf(..) | Limit::AtLeastOf(..) | Limit::AtLeastBest(_) => {
            format!(
                "{}: {said}, {:.3} × ({:.3}–{:.3})",
                verdict.limit, verdict.seen.median, verdict.seen.min, verdict.seen.max
            )
        }
    }
}

fn show(cell: Spread, digits: usize) -> String {
    let half = (cell.max - cell.min) / 2.0;
    let percent = if cell.median == 0.0 {
        0.0
    } else {
        half / cell.median.abs() * 100.0
    };
    format!("{:.digits$} ±{percent:.0}%", cell.median)
}

fn pad(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(text.chars().count())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(rows: &[(&'static str, Kind, &[f64])]) -> Results {
        let mut results = Results::default();
        for &(row, kind, values) in rows {
            for &value in values {
                results.add(row, kind, value);
            }
        }
        results
    }

    fn judge(results: &Results, key: &str) -> Vec<bool> {
        let row = ROWS.iter().find(|row| row.key == key).unwrap();
        row.must
            .iter()
            .filter_map(|&limit| results.judge(row, limit))
            .map(|verdict| verdict.pass)
            .collect()
    }

    #[test]
    fn the_middle_is_the_middle() {
        let spread = Spread::of(&[3.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.5, 10.0));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        // The machine slowed down by half in the second round: for everybody.
        let results = results(&[
            ("lat_p50", Kind::Berth, &[40.0, 80.0, 41.0]),
            ("lat_p50", Kind::Envoy, &[100.0, 200.0, 100.0]),
        ]);
        let row = &ROWS[0];
        let verdict = results.judge(row, row.must[0]).unwrap();
        assert!(verdict.pass);
        assert!(verdict.seen.max - verdict.seen.min < 0.02);
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        let few = results(&[("lat_p50", Kind::Berth, &[40.0])]);
        assert_eq!(judge(&few, "lat_p50"), Vec::<bool>::new());
        assert_eq!(few.musts(), (0, Vec::new()));
    }

    #[test]
    fn the_best_peer_is_the_one_to_beat() {
        let results = results(&[
            ("down_mb", Kind::Berth, &[900.0]),
            ("down_mb", Kind::Envoy, &[800.0]),
            ("down_mb", Kind::Haproxy, &[880.0]),
        ]);
        assert_eq!(judge(&results, "down_mb"), [false]);
        let (kept, missed) = results.musts();
        assert_eq!((kept, missed.len()), (0, 1));
        assert!(results.table().contains("MISS"));
    }
}
