//! The rows of the table: what was seen, what is wanted, and whether it is kept.

use serde_json::{Value, json};

/// One figure.
pub(crate) struct Row {
    name: &'static str,
    unit: &'static str,
    seen: Vec<f64>,
    /// At most, or at least, so much.
    wanted: Option<(Side, f64)>,
}

/// Which side of the limit is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    AtMost,
    AtLeast,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Rows(Vec<Row>);

impl Rows {
    /// Notes a figure that must be at most `limit`.
    pub(crate) fn at_most(&mut self, name: &'static str, unit: &'static str, seen: f64, limit: f64) {
        self.note(name, unit, seen, Some((Side::AtMost, limit)));
    }

    /// Notes a figure that must be at least `limit`.
    pub(crate) fn at_least(&mut self, name: &'static str, unit: &'static str, seen: f64, limit: f64) {
        self.note(name, unit, seen, Some((Side::AtLeast, limit)));
    }

    /// Notes a figure without a limit.
    pub(crate) fn tell(&mut self, name: &'static str, unit: &'static str, seen: f64) {
        self.note(name, unit, seen, None);
    }

    fn note(&mut self, name: &'static str, unit: &'static str, seen: f64, wanted: Option<(Side, f64)>) {
        match self.0.iter_mut().find(|row| row.name == name) {
            Some(row) => row.seen.push(seen),
            None => self.0.push(Row {
                name,
                unit,
                seen: vec![seen],
                wanted,
            }),
        }
        if let Some(row) = self.0.iter().find(|row| row.name == name) {
            eprintln!("  {}", row.line());
        }
    }

    /// The table for people.
    pub(crate) fn print(&self) {
        println!("{:<58}{:>30}  wanted", "", "min / median / max");
        for row in &self.0 {
            println!("{}", row.line());
        }
    }

    /// The file for machines.
    pub(crate) fn json(&self) -> Value {
        let rows = self.0.iter().map(|row| {
            let [min, median, max] = row.spread();
            let wanted = row.wanted.map(|(side, limit)| json!({"side": format!("{side:?}"), "limit": limit}));
            (
                row.name.to_owned(),
                json!({"unit": row.unit, "min": min, "median": median, "max": max, "wanted": wanted, "kept": row.is_kept()}),
            )
        });
        Value::Object(rows.collect())
    }
}

impl Row {
    fn spread(&self) -> [f64; 3] {
        let mut seen = self.seen.clone();
        seen.sort_by(f64::total_cmp);
        let middle = seen.len() / 2;
        [seen[0], seen[middle], seen[seen.len() - 1]].map(|value| (value * 1000.0).round() / 1000.0)
    }

    fn is_kept(&self) -> Option<bool> {
        let [_, median, _] = self.spread();
        self.wanted.map(|(side, limit)| match side {
            Side::AtMost => median <= limit,
            Side::AtLeast => median >= limit,
        })
    }

    fn line(&self) -> String {
        let [min, median, max] = self.spread();
        let wanted = match self.wanted {
            None => String::new(),
            Some((Side::AtMost, limit)) => format!("<= {limit}"),
            Some((Side::AtLeast, limit)) => format!(">= {limit}"),
        };
        let verdict = match self.is_kept() {
            None => "",
            Some(true) => "  kept",
            Some(false) => "  MISS",
        };
        let seen = format!("{min} / {median} / {max} {}", self.unit);
        format!("{:<58}{seen:>30}  {wanted}{verdict}", self.name)
    }
}
