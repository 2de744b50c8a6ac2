//! Durations with units: `"30s"`, `"15min"`, `"1h 30m"`.
//!
//! Use as `#[serde(with = "duration")]`; for an optional field
//! `#[serde(default, with = "duration::option")]`. A bare number is rejected,
//! because its unit is ambiguous.

use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};
use std::fmt;
use std::time::Duration;

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
        humantime::parse_duration(text.trim()).map_err(|_| E::custom(WANTED))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Duration, E> {
        Err(E::custom(WANTED))
    }
}

/// Like the parent module, for `Option<Duration>`.
pub mod option {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    /// Serializes the duration, or nothing.
    pub fn serialize<S: Serializer>(value: &Option<Duration>, ser: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::serialize(value, ser),
            None => ser.serialize_none(),
        }
    }

    /// Deserializes the duration, or nothing.
    pub fn deserialize<'de, D: Deserializer<'de>>(de: D) -> Result<Option<Duration>, D::Error> {
        #[derive(Deserialize)]
        struct Inner(#[serde(with = "super")] Duration);
        Ok(Option::<Inner>::deserialize(de)?.map(|Inner(value)| value))
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use std::time::Duration;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Times {
        #[serde(with = "super")]
        every: Duration,
        #[serde(default, with = "super::option")]
        last: Option<Duration>,
    }

    #[test]
    fn units_are_read_and_written() {
        let times: Times = serde_json::from_str(r#"{"every": " 1h 30m ", "last": "15min"}"#).unwrap();
        assert_eq!(times.every, Duration::from_secs(5400));
        assert_eq!(times.last, Some(Duration::from_secs(900)));
        let text = serde_json::to_string(&times).unwrap();
        assert_eq!(text, r#"{"every":"1h 30m","last":"15m"}"#);
        for absent in [r#"{"every": "1s"}"#, r#"{"every": "1s", "last": null}"#] {
            assert_eq!(serde_json::from_str::<Times>(absent).unwrap().last, None);
        }
    }

    #[test]
    fn bare_numbers_and_other_texts_are_rejected() {
        for wrong in ["30", "-1", "\"30\"", "\"soon\"", "\"\""] {
            for text in [
                format!(r#"{{"every": {wrong}}}"#),
                format!(r#"{{"every": "1s", "last": {wrong}}}"#),
            ] {
                let error = serde_json::from_str::<Times>(&text).unwrap_err().to_string();
                assert!(error.contains("a duration with a unit"), "{text}: {error}");
            }
        }
    }
}
