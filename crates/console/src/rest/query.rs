//! Parameters of a query. An unknown one is an error: a filter with a typing
//! error must not be ignored.

use crate::problem::Problem;
use axum::extract::{FromRequestParts, Query as Pairs};
use http::request::Parts;
use prost_types::{Duration, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use session_proto::json as proto_json;
use std::collections::HashMap;

/// The parameters of a request.
#[derive(Debug)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let pairs = Pairs::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Pairs(pairs) = pairs.map_err(|_| Problem::field("query", "is not valid"))?;
        Ok(Self { pairs })
    }
}

impl Query {
    /// Accepts these parameters and no others.
    ///
    /// # Errors
    /// An unknown parameter.
    pub(crate) fn only(self, known: &[&str]) -> Result<Self, Problem> {
        let unknown = self
            .pairs
            .iter()
            .find(|(name, _)| !known.contains(&name.as_str()));
        match unknown {
            None => Ok(self),
            Some((name, _)) if known.is_empty() => {
                Err(Problem::field(name, "is not a parameter: this request has none"))
            }
            Some((name, _)) => Err(Problem::field(
                name,
                format!(
                    "is not a parameter of this request, expected one of {}",
                    known.join(", ")
                ),
            )),
        }
    }

    fn single(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self.pairs.iter().filter(|(known, _)| known == name);
        let first = values.next().map(|(_, value)| value.as_str());
        match values.next() {
            None => Ok(first),
            Some(_) => Err(Problem::field(name, "occurs more than once")),
        }
    }

    /// A text; empty without the parameter.
    ///
    /// # Errors
    /// If it occurs twice.
    pub(crate) fn text(&self, name: &str) -> Result<String, Problem> {
        Ok(self.single(name)?.unwrap_or_default().to_owned())
    }

    /// A number; 0 without the parameter.
    ///
    /// # Errors
    /// If it is not a number in `range`.
    pub(crate) fn number(&self, name: &str, range: std::ops::RangeInclusive<i32>) -> Result<i32, Problem> {
        let Some(text) = self.single(name)? else {
            return Ok(0);
        };
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| {
            Problem::field(
                name,
                format!("must be a number from {} to {}", range.start(), range.end()),
            )
        })
    }

    /// A flag; false without the parameter.
    ///
    /// # Errors
    /// If it is neither `true` nor `false`.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.single(name)? {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Problem::field(name, "must be true or false")),
        }
    }

    /// A duration like `60s`.
    ///
    /// # Errors
    /// If it has another form.
    pub(crate) fn duration(&self, name: &str) -> Result<Option<Duration>, Problem> {
        let parse = |text| {
            let problem = "must be a duration in seconds like 60s";
            proto_json::parse_duration(text).ok_or_else(|| Problem::field(name, problem))
        };
        self.single(name)?.map(parse).transpose()
    }

    /// A time like `2026-12-31T18:00:00Z`.
    ///
    /// # Errors
    /// If it has another form.
    pub(crate) fn time(&self, name: &str) -> Result<Option<Timestamp>, Problem> {
        let parse = |text| {
            let problem = "must be a time like 2026-12-31T18:00:00Z";
            proto_json::parse_timestamp(text).ok_or_else(|| Problem::field(name, problem))
        };
        self.single(name)?.map(parse).transpose()
    }

    /// Texts: repeated, or separated by commas.
    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        let values = self.pairs.iter().filter(|(known, _)| known == name);
        let values = values.flat_map(|(_, value)| value.split(','));
        values
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// Enum values by their short names: repeated, or separated by commas.
    ///
    /// # Errors
    /// A name that does not exist.
    pub(crate) fn enums<E: DeserializeOwned + Serialize + Into<i32>>(
        &self,
        name: &str,
    ) -> Result<Vec<i32>, Problem> {
        let values = self.pairs.iter().filter(|(known, _)| known == name);
        let values = values.flat_map(|(_, value)| value.split(','));
        let parse = |text: &str| {
            let value: Result<E, _> = proto_json::from_value(&Value::String(text.to_owned()));
            value
                .map(Into::into)
                .map_err(|invalid| Problem::field(name, invalid.problem))
        };
        values.filter(|value| !value.is_empty()).map(parse).collect()
    }

    /// Pairs like `labels=team=data`, repeated.
    ///
    /// # Errors
    /// A value without `=`, or a key that occurs twice.
    pub(crate) fn pairs(&self, name: &str) -> Result<HashMap<String, String>, Problem> {
        let mut found = HashMap::new();
        for (_, value) in self.pairs.iter().filter(|(known, _)| known == name) {
            let pair = value.split_once('=').filter(|(key, _)| !key.is_empty());
            let (key, value) = pair.ok_or_else(|| Problem::field(name, "must be like key=value"))?;
            if found.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(Problem::field(name, format!("has {} twice", json!(key))));
            }
        }
        Ok(found)
    }
}
