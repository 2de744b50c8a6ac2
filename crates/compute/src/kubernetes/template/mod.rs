//! The template of an administrator, merged over the pods of a cluster.
//!
//! ```text
//! rules ─ what a template may contain      walk ─ paths and errors
//! merge ─ how it is merged into a pod
//! ```
//!
//! The rules are a list of what is allowed: the isolation of a session must not
//! depend on a complete list of dangerous fields. What remains is checked again by
//! the types of Kubernetes, so that a misspelt field is an error and not ignored.

mod merge;
mod rules;
mod walk;

use crate::properties::Problems;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use merge::merge;
use serde_json::Value;
use session_core::{Engine, KubernetesPods, PodTemplate};
use walk::Path;

/// The longest template, as JSON in bytes.
const MAX_BYTES: usize = 32 * 1024;
/// A template of more problems is wrong as a whole.
const MAX_PROBLEMS: usize = 16;

/// Adds every field of a template that a cluster must not have, by its path.
pub(super) fn check(engine: Engine, pods: &KubernetesPods, template: &PodTemplate, problems: &mut Problems) {
    let root = Path::root("pod_template");
    let value = template.value();
    let bytes = template.to_json().len();
    if bytes > MAX_BYTES {
        root.add(
            problems,
            format!("has {bytes} bytes; at most {MAX_BYTES} are allowed"),
        );
        return;
    }
    let mut found = walk::Found::new(MAX_PROBLEMS);
    rules::check(engine, pods, value, &root, &mut found);
    if found.is_empty() {
        check_types(value, &root, &mut found);
    }
    for (path, problem) in found.into_problems() {
        problems.add(path, problem);
    }
}

/// Adds what Kubernetes has no field for, or has with another type.
fn check_types(template: &Value, root: &Path, found: &mut walk::Found) {
    let typed = serde_json::from_value::<PodTemplateSpec>(template.clone()).and_then(serde_json::to_value);
    match typed {
        Ok(typed) => add_unknown(template, &typed, root, found),
        Err(error) => found.add(root, format!("is not a PodTemplateSpec: {error}")),
    }
}

/// Adds the fields that were lost in the types.
fn add_unknown(template: &Value, typed: &Value, path: &Path, found: &mut walk::Found) {
    match (template, typed) {
        (Value::Object(fields), Value::Object(typed)) => {
            for (name, value) in fields {
                let path = path.field(name);
                match typed.get(name) {
                    Some(typed) => add_unknown(value, typed, &path, found),
                    None => found.add(&path, "is not a field of Kubernetes"),
                }
            }
        }
        (Value::Array(items), Value::Array(typed)) => {
            for (index, (item, typed)) in items.iter().zip(typed).enumerate() {
                add_unknown(item, typed, &path.item(index), found);
            }
        }
        _ => {}
    }
}

/// The pod with the template merged over it.
///
/// # Errors
/// If the result is not a pod, which [`check`] excludes.
pub(super) fn apply(pod: Pod, template: &PodTemplate) -> Result<Pod, serde_json::Error> {
    let mut json = serde_json::to_value(pod)?;
    merge(&mut json, template.value());
    serde_json::from_value(json)
}

#[cfg(test)]
mod tests;
