//! Changes of definitions: JSON Merge Patch (RFC 7396) on the present one, at
//! one version.

use super::body::{RequestBody, message};
use super::headers::{IfMatch, changed};
use crate::problem::Problem;
use serde::Serialize;
use serde_json::{Map, Value};
use session_proto::json;

/// The version in `If-Match`, or the field `version` of the patch, which is the
/// same condition.
///
/// # Errors
/// A version that is no number, or two different ones.
pub(super) fn in_header_or_body(condition: IfMatch, patch: &Map<String, Value>) -> Result<IfMatch, Problem> {
    let Some(in_body) = patch.get("version") else {
        return Ok(condition);
    };
    let version = in_body.as_u64().filter(|version| *version > 0);
    let version = version.ok_or_else(|| Problem::field("version", "must be the version of the object"))?;
    match condition.0 {
        Some(in_header) if in_header != version => {
            Err(Problem::field("version", "differs from the header If-Match"))
        }
        Some(_) | None => Ok(IfMatch(Some(version))),
    }
}

/// The definition after a patch. `version` is the present one, which the
/// messages do not have. Fields that Berth sets are cleared.
///
/// # Errors
/// An invalid field, or [`changed`] if `condition` is another version.
pub(super) fn patched<T: RequestBody + Serialize>(
    present: &T,
    version: u64,
    condition: IfMatch,
    mut patch: Map<String, Value>,
) -> Result<T, Problem> {
    if condition.0.is_some_and(|wanted| wanted != version) {
        return Err(changed());
    }
    patch.remove("version");
    let mut merged = json::value(present);
    if let Value::Object(merged) = &mut merged {
        for (field, _) in T::ELSEWHERE {
            merged.remove(*field);
        }
    }
    merge(&mut merged, Value::Object(patch));
    match merged {
        Value::Object(merged) => message(merged),
        _ => Err(Problem::field("body", "must be an object")),
    }
}

/// Merges by RFC 7396. Members of a `provider` are alternatives: another one
/// replaces the present one.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(&name);
            continue;
        }
        let place = target.entry(name.clone()).or_insert(Value::Null);
        if name == "provider" && !same_members(place, &value) {
            *place = Value::Null;
        }
        merge(place, value);
    }
}

fn same_members(one: &Value, other: &Value) -> bool {
    let (Some(one), Some(other)) = (one.as_object(), other.as_object()) else {
        return false;
    };
    other.keys().all(|name| one.contains_key(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn after(target: Value, patch: Value) -> Value {
        let mut target = target;
        merge(&mut target, patch);
        target
    }

    #[test]
    fn a_patch_merges_and_null_removes() {
        let before = json!({"a": 1, "b": {"c": 2, "d": 3}, "e": [1, 2]});
        let merged = after(before, json!({"a": null, "b": {"c": 4}, "e": [3]}));
        assert_eq!(merged, json!({"b": {"c": 4, "d": 3}, "e": [3]}));
        let before = json!({"provider": {"process": {"program": "/x", "python": "/p"}}});
        let same = after(
            before.clone(),
            json!({"provider": {"process": {"program": "/y"}}}),
        );
        assert_eq!(
            same,
            json!({"provider": {"process": {"program": "/y", "python": "/p"}}})
        );
        let other = after(before, json!({"provider": {"static": {"endpoints": []}}}));
        assert_eq!(other, json!({"provider": {"static": {"endpoints": []}}}));
    }
}
