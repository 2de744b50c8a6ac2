//! Conversion errors that never quote a configured text, because it may be a
//! secret.

use serde::de::{self, Unexpected};
use std::fmt;

/// Kind of error; a missing field is repaired differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Missing(&'static str),
    Other,
}

/// Error of one conversion.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Error {
    pub(super) fault: Fault,
    pub(super) text: String,
}

impl de::Error for Error {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self {
            fault: Fault::Other,
            text: text.to_string(),
        }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("must be {expected}, not {}", Found(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(_: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format_args!(
            "is not a known key; known keys are: {}",
            expected.join(", ")
        ))
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            fault: Fault::Missing(field),
            text: "is required".to_owned(),
        }
    }
}

/// The found value in an error message.
struct Found<'a>(Unexpected<'a>);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unexpected::Str(_) => f.write_str("this text"),
            Unexpected::Bytes(_) => f.write_str("bytes"),
            Unexpected::Map => f.write_str("a table"),
            Unexpected::Seq => f.write_str("a list"),
            Unexpected::Unit => f.write_str("empty"),
            other => other.fmt(f),
        }
    }
}
