//! A text that no output contains.
//!
//! A stored record needs the text itself; its field says so with
//! `#[serde(serialize_with = "secret::serialize_exposed")]`, or if it is optional with
//! `#[serde(with = "secret::exposed")]`.

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Replaces every secret in output.
pub const MASK: &str = "********";

/// A secret text, masked in `Debug` and when it is serialized.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself; must not reach any output.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn masked(&self) -> &'static str {
        if self.0.is_empty() { "" } else { MASK }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.masked())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, ser: S) -> Result<S::Ok, S::Error> {
        ser.serialize_str(self.masked())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret::new(text))
            }

            fn visit_i64<E: Error>(self, _: i64) -> Result<Secret, E> {
                Err(E::custom("must be a text in quotes"))
            }

            fn visit_u64<E: Error>(self, _: u64) -> Result<Secret, E> {
                Err(E::custom("must be a text in quotes"))
            }

            fn visit_f64<E: Error>(self, _: f64) -> Result<Secret, E> {
                Err(E::custom("must be a text in quotes"))
            }
        }

        de.deserialize_str(Text)
    }
}

/// Serializes the text of a secret itself, for records in the state store.
///
/// # Errors
/// Those of the serializer.
pub fn serialize_exposed<S: Serializer>(secret: &Secret, ser: S) -> Result<S::Ok, S::Error> {
    ser.serialize_str(&secret.0)
}

/// Serialization of an optional secret as its text, for records in the state
/// store.
pub mod exposed {
    use super::Secret;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Serializes the text itself, or nothing.
    pub fn serialize<S: Serializer>(secret: &Option<Secret>, ser: S) -> Result<S::Ok, S::Error> {
        secret.as_ref().map(Secret::expose).serialize(ser)
    }

    /// Deserializes the text, or nothing.
    pub fn deserialize<'de, D: Deserializer<'de>>(de: D) -> Result<Option<Secret>, D::Error> {
        Option::deserialize(de)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Record {
        masked: Secret,
        #[serde(default, serialize_with = "serialize_exposed")]
        needed: Secret,
        #[serde(default, skip_serializing_if = "Option::is_none", with = "exposed")]
        stored: Option<Secret>,
    }

    #[test]
    fn only_an_exposed_field_is_serialized_as_its_text() {
        let text = r#"{"masked":"hunter2","needed":"hunter1","stored":"hunter3"}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!(record.masked.expose(), "hunter2");
        assert_eq!(
            serde_json::to_string(&record).unwrap(),
            r#"{"masked":"********","needed":"hunter1","stored":"hunter3"}"#
        );
        let shown = format!("{record:?}");
        assert!(!shown.contains("hunter"), "{shown}");
        let none: Record = serde_json::from_str(r#"{"masked":""}"#).unwrap();
        assert_eq!(none.stored, None);
        assert_eq!(
            serde_json::to_string(&none).unwrap(),
            r#"{"masked":"","needed":""}"#
        );
    }

    #[test]
    fn only_texts_are_secrets() {
        let error = serde_json::from_str::<Secret>("5").unwrap_err().to_string();
        assert!(error.contains("a text"), "{error}");
    }
}
