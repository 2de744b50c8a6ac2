//! Spark session settings that clients change, as far as they are stored for later compute.

use crate::grpc::payload;
use prost::Message as _;
use session_proto::spark::ConfigRequest;
use session_proto::spark::config_request::operation::OpType;
use std::collections::HashMap;

/// Setting that holds the client's connection string, token included.
const CONNECTION_STRING: &str = "spark.remote";

/// Settings that a `Config` request changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SettingsChange {
    pub(crate) set: HashMap<String, String>,
    pub(crate) unset: Vec<String>,
}

/// The part of a [`ConfigRequest`] that tells whether it changes settings. Clients read settings before
/// and after every query; decoding all of it would cost each of these calls 2700 instructions.
#[derive(Clone, PartialEq, prost::Message)]
struct ChangeOnly {
    #[prost(message, optional, tag = "3")]
    operation: Option<OperationOnly>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OperationOnly {
    #[prost(message, optional, tag = "1")]
    set: Option<()>,
    #[prost(message, optional, tag = "6")]
    unset: Option<()>,
}

impl ChangeOnly {
    fn may_change_settings(message: &[u8]) -> bool {
        Self::decode(message)
            .ok()
            .and_then(|request| request.operation)
            .is_some_and(|operation| operation.set.is_some() || operation.unset.is_some())
    }
}

impl SettingsChange {
    /// Parses a request, flag and length included; `None` if it changes no setting. Values with the
    /// caller's `token` are left out: PySpark 3.5 sets the connection string as `spark.remote`.
    pub(crate) fn of(request: &[u8], token: &str) -> Option<Self> {
        let message = payload(request)?;
        if !ChangeOnly::may_change_settings(message) {
            return None;
        }
        let mut change = match ConfigRequest::decode(message).ok()?.operation?.op_type? {
            OpType::Set(set) => Self {
                set: set
                    .pairs
                    .into_iter()
                    .filter_map(|pair| Some((pair.key, pair.value?)))
                    .collect(),
                unset: Vec::new(),
            },
            OpType::Unset(unset) => Self {
                set: HashMap::new(),
                unset: unset.keys,
            },
            OpType::Get(_)
            | OpType::GetWithDefault(_)
            | OpType::GetOption(_)
            | OpType::GetAll(_)
            | OpType::IsModifiable(_) => return None,
        };
        change
            .set
            .retain(|name, value| name != CONNECTION_STRING && !holds_token(value, token));
        (!change.set.is_empty() || !change.unset.is_empty()).then_some(change)
    }
}

fn holds_token(value: &str, token: &str) -> bool {
    value.contains(token) || value.contains(";token=")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::framed;
    use session_proto::spark::config_request::{GetAll, GetWithDefault, IsModifiable, Operation, Set, Unset};
    use session_proto::spark::{ConfigRequest, KeyValue};

    fn change(operation: OpType) -> Option<SettingsChange> {
        let request = ConfigRequest {
            session_id: "9d4b5b0e-6f0c-4a38-8f3d-3a2c7d9f5f11".to_owned(),
            operation: Some(Operation {
                op_type: Some(operation),
            }),
            ..ConfigRequest::default()
        };
        SettingsChange::of(&framed(&request), "the-token")
    }

    fn pair(key: &str, value: &str) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: Some(value.to_owned()),
        }
    }

    #[test]
    fn only_set_and_unset_change_settings() {
        let set = |pairs| {
            change(OpType::Set(Set {
                pairs,
                ..Set::default()
            }))
        };
        let changed = set(vec![
            pair("a", "1"),
            pair(CONNECTION_STRING, "sc://x"),
            pair("b", "x the-token"),
        ]);
        assert_eq!(changed.unwrap().set, [("a".to_owned(), "1".to_owned())].into());
        assert_eq!(set(vec![pair("b", "sc://x/;token=y")]), None);
        let unset = OpType::Unset(Unset {
            keys: vec!["a".to_owned()],
        });
        assert_eq!(change(unset).unwrap().unset, ["a"]);
        let read = GetWithDefault {
            pairs: vec![pair("a", "1")],
        };
        assert_eq!(change(OpType::GetWithDefault(read)), None);
        assert_eq!(change(OpType::GetAll(GetAll::default())), None);
        assert_eq!(change(OpType::IsModifiable(IsModifiable::default())), None);
    }
}
