//! The JSON form of `berth.v1`, the same for `berth --output json` and REST: [`value`] writes it,
//! [`from_slice`] reads it.
//!
//! Names are those of the protos. Every field is always present. Enums have short names
//! (`"active"`), times are RFC 3339, durations are seconds with an `s` (`"1800s"`), and unset
//! values are `null`.

pub(crate) mod read;

pub use read::{Invalid, from_slice, from_value, parse_duration, parse_timestamp};

use crate::{convert, v1};
use serde::{Serialize, Serializer};
use std::collections::HashMap;

/// Converts a message to JSON, with the members of every object in alphabetical order.
pub fn value(message: &impl Serialize) -> serde_json::Value {
    // Cannot fail: messages are structures of texts and numbers with text keys.
    serde_json::to_value(message).unwrap_or_default()
}

pub(crate) fn enumeration<S: Serializer, E: TryFrom<i32> + Default + Serialize>(
    number: &i32,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    named::<E>(*number).serialize(serializer)
}

pub(crate) fn enumerations<S: Serializer, E: TryFrom<i32> + Default + Serialize>(
    numbers: &[i32],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(numbers.iter().map(|&number| named::<E>(number)))
}

/// Numbers unknown to this release become "unspecified".
fn named<E: TryFrom<i32> + Default>(number: i32) -> E {
    E::try_from(number).unwrap_or_default()
}

pub(crate) fn timestamp<S: Serializer>(
    at: &Option<prost_types::Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let at = at.as_ref().map(|at| convert::from_timestamp(at).to_string());
    at.serialize(serializer)
}

pub(crate) fn duration<S: Serializer>(
    duration: &Option<prost_types::Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let text = duration.as_ref().map(|duration| match duration.nanos {
        0 => format!("{}s", duration.seconds),
        nanos => format!("{}.{:03}s", duration.seconds, nanos / 1_000_000),
    });
    text.serialize(serializer)
}

/// As in the catalog's definition file: a text, or a list of texts.
pub(crate) fn properties<S: Serializer>(
    properties: &HashMap<String, v1::PropertyValue>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(properties.iter().map(|(name, property)| {
        let value = match &property.value {
            Some(v1::property_value::Value::Text(text)) => text.as_str().into(),
            Some(v1::property_value::Value::List(list)) => list.items.as_slice().into(),
            None => serde_json::Value::Null,
        };
        (name, value)
    }))
}

/// An object of texts, as the labels of every other message.
pub(crate) fn labels<S: Serializer>(labels: &Option<v1::Labels>, serializer: S) -> Result<S::Ok, S::Error> {
    labels.as_ref().map(|labels| &labels.labels).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_field_of_a_session_is_there() {
        let session = v1::Session {
            id: "s-1".into(),
            status: v1::SessionStatus::Active.into(),
            labels: [("team".to_owned(), "a".to_owned())].into(),
            created_at: Some(prost_types::Timestamp {
                seconds: 1_800_000_000,
                nanos: 5_000_000,
            }),
            usage: Some(v1::SessionUsage {
                warm_seconds: 7,
                ..v1::SessionUsage::default()
            }),
            policy: Some(v1::SessionPolicy {
                idle_timeout: Some(prost_types::Duration {
                    seconds: 1800,
                    nanos: 0,
                }),
                ..v1::SessionPolicy::default()
            }),
            ..v1::Session::default()
        };
        let json = value(&session);
        assert_eq!(json["status"], "active");
        assert_eq!(json["created_at"], "2027-01-15T08:00:00Z");
        assert_eq!(json["closed_at"], serde_json::Value::Null);
        assert_eq!(json["usage"]["warm_seconds"], 7);
        assert_eq!(json["policy"]["idle_timeout"], "1800s");
        assert_eq!(json["token_epoch"], 0);
        assert_eq!(json["labels"], json!({"team": "a"}));
        assert_eq!(
            json.as_object().map(serde_json::Map::len),
            Some(31),
            "fields of berth.v1.Session"
        );
    }

    #[test]
    fn properties_and_providers_look_as_in_definition_files() {
        let text = |text: &str| v1::PropertyValue {
            value: Some(v1::property_value::Value::Text(text.into())),
        };
        let items = vec!["a".to_owned(), "b".to_owned()];
        let list = v1::PropertyValue {
            value: Some(v1::property_value::Value::List(v1::TextList { items })),
        };
        let catalog = v1::Catalog {
            engine: v1::Engine::Sail.into(),
            properties: [("uri".to_owned(), text("x")), ("list".to_owned(), list)].into(),
            ..v1::Catalog::default()
        };
        let json = value(&catalog);
        assert_eq!(json["engine"], "sail");
        assert_eq!(json["properties"], json!({"uri": "x", "list": ["a", "b"]}));
        let cluster = v1::Cluster {
            status: 99,
            provider: Some(v1::cluster::Provider::Kubernetes(v1::KubernetesProvider {
                namespace: "sessions".to_owned(),
                command: vec!["sail".to_owned()],
                node_selector: [("disk".to_owned(), "ssd".to_owned())].into(),
                ..v1::KubernetesProvider::default()
            })),
            ..v1::Cluster::default()
        };
        let json = value(&cluster);
        assert_eq!(json["status"], "unspecified");
        let pods = &json["provider"]["kubernetes"];
        assert_eq!(pods["namespace"], "sessions");
        assert_eq!(pods["command"], json!(["sail"]));
        assert_eq!(pods["node_selector"], json!({"disk": "ssd"}));
    }
}
