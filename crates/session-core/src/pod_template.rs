//! The template of an administrator for the pods of a cluster.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A PodTemplateSpec as JSON that is merged over the pods of a cluster. What it may
/// contain is checked with the definition. In definitions it is a table, or a text
/// with JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct PodTemplate(Value);

impl PodTemplate {
    /// Parses JSON.
    ///
    /// # Errors
    /// If it is not a JSON object.
    pub fn parse(json: &str) -> Result<Self, String> {
        match serde_json::from_str(json) {
            Ok(value @ Value::Object(_)) => Ok(Self(value)),
            Ok(_) => Err("must be a JSON object".to_owned()),
            Err(error) => Err(format!("must be JSON: {error}")),
        }
    }

    /// The template.
    pub const fn value(&self) -> &Value {
        &self.0
    }

    /// The template as JSON.
    pub fn to_json(&self) -> String {
        self.0.to_string()
    }
}

impl<'de> Deserialize<'de> for PodTemplate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(json) => Self::parse(&json).map_err(D::Error::custom),
            value @ Value::Object(_) => Ok(Self(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                Err(D::Error::custom("a pod template must be a table"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_a_table_or_json() {
        let table: PodTemplate = serde_json::from_str(r#"{"spec": {"a": 1}}"#).unwrap();
        let text: PodTemplate = serde_json::from_str(r#""{\"spec\": {\"a\": 1}}""#).unwrap();
        assert_eq!(table, text);
        assert_eq!(PodTemplate::parse(&table.to_json()), Ok(table));
        for wrong in ["[]", "1", "\"x\"", "\"[]\""] {
            assert!(serde_json::from_str::<PodTemplate>(wrong).is_err(), "{wrong}");
        }
    }
}
