//! Durations with units in configuration: `"30s"`, `"15min"`, `"1h 30m"`.
//!
//! Use as `#[serde(with = "config::duration")]`; for an optional field
//! `#[serde(default, with = "config::duration::option")]`. A bare number is
//! rejected, because its unit is ambiguous.

use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};
use std::fmt;
use std::time::Duration;

/// Parses a duration with units.
pub fn parse(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim()).map_err(|_| WANTED.to_owned())
}

const WANTED: &str = "must be a duration with a unit, such as \"30s\", \"15min\" or \"1h 30m\"";

/// Serializes with units.
pub fn serialize<S: Serializer>(value: &Duration, ser: S) -> Result<S::Ok, S::Error> {
    ser.collect_str(&humantime::format_duration(*value))
}

/// Deserializes from a text with units.
pub fn deserialize<'de, D: Deserializer<'de>>(de: D) -> Result<Duration, D::Error> {
    de.deserialize_str(Text)
}

struct Text;

impl Visitor<'_> for Text {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration with a unit, such as \"30s\"")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
        parse(text).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Duration, E> {
        Err(E::custom(WANTED))
    }
}

/// Like the parent module, for `Option<Duration>`.
pub mod option {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    /// Writes the duration, or nothing.
    pub fn serialize<S: Serializer>(value: &Option<Duration>, ser: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::serialize(value, ser),
            None => ser.serialize_none(),
        }
    }

    /// Reads the duration, or nothing.
    pub fn deserialize<'de, D: Deserializer<'de>>(de: D) -> Result<Option<Duration>, D::Error> {
        #[derive(Deserialize)]
        struct Inner(#[serde(with = "super")] Duration);
        Ok(Option::<Inner>::deserialize(de)?.map(|Inner(value)| value))
    }
}
