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

impl SettingsChange {
    /// Parses a request, flag and length included; `None` if it changes no setting. Values with the
    /// caller's `token` are left out: PySpark 3.5 sets the connection string as `spark.remote`.
    pub(crate) fn of(request: &[u8], token: &str) -> Option<Self> {
        let message = payload(request)?;
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
