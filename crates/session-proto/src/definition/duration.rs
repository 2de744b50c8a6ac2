//! Durations with units in definitions: `"30s"`, `"15min"`, `"1h 30m"`. A bare
//! number is rejected, because it has no unit. The texts are those of
//! `service_kit::config::duration`, which this crate must not use.

use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};
use std::fmt;
use std::time::Duration;

const WANTED: &str = "must be a duration with a unit, such as \"30s\", \"15min\" or \"1h 30m\"";

/// Writes the duration, or nothing.
pub(super) fn serialize<S: Serializer>(value: &Option<Duration>, ser: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => ser.collect_str(&humantime::format_duration(*value)),
        None => ser.serialize_none(),
    }
}

/// Reads the duration, or nothing.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(de: D) -> Result<Option<Duration>, D::Error> {
    de.deserialize_option(Text)
}

struct Text;

impl<'de> Visitor<'de> for Text {
    type Value = Option<Duration>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration with a unit, such as \"30s\"")
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, de: D) -> Result<Self::Value, D::Error> {
        de.deserialize_str(self)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        let parsed = humantime::parse_duration(text.trim());
        parsed.map(Some).map_err(|_| E::custom(WANTED))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Err(E::custom(WANTED))
    }
}
