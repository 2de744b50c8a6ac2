//! Strategic merge of a template into a pod, as Kubernetes merges its patches: objects
//! field by field, lists by the name of their items, everything else is replaced. Items
//! of lists without a name are added.

use super::super::layout::CONTAINER;
use serde_json::{Map, Value, json};

/// Merges a checked template over a pod, both as JSON.
pub(super) fn merge(pod: &mut Value, template: &Value) {
    merge_into(pod, template);
    for list in ["containers", "initContainers"] {
        let containers = pod
            .pointer_mut(&format!("/spec/{list}"))
            .and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if list == "initContainers" || container["name"] != CONTAINER {
                restrict(container);
            }
        }
    }
}

/// The field by which Kubernetes tells items of a list apart.
fn merge_key(list: &str) -> Option<&'static str> {
    match list {
        "containers" | "env" | "imagePullSecrets" | "initContainers" | "volumes" => Some("name"),
        "hostAliases" => Some("ip"),
        "ports" => Some("containerPort"),
        "volumeMounts" => Some("mountPath"),
        _ => None,
    }
}

fn merge_into(base: &mut Value, over: &Value) {
    let (Value::Object(base), Value::Object(over)) = (&mut *base, over) else {
        over.clone_into(base);
        return;
    };
    for (name, value) in over {
        merge_field(base, name, value);
    }
}

fn merge_field(base: &mut Map<String, Value>, name: &str, value: &Value) {
    match (base.get_mut(name), value) {
        (Some(Value::Array(items)), Value::Array(more)) => {
            for item in more {
                merge_item(items, merge_key(name), item);
            }
        }
        (Some(present), value) => merge_into(present, value),
        (None, value) => {
            base.insert(name.to_owned(), value.clone());
        }
    }
}

fn merge_item(items: &mut Vec<Value>, key: Option<&str>, item: &Value) {
    let same = key.and_then(|key| {
        let wanted = item.get(key)?;
        items.iter_mut().find(|present| present.get(key) == Some(wanted))
    });
    match same {
        Some(present) => merge_into(present, item),
        None => items.push(item.clone()),
    }
}

/// Gives a container of the template the restrictions of the engine's container.
fn restrict(container: &mut Value) {
    let Some(fields) = container.as_object_mut() else {
        return;
    };
    fields
        .entry("imagePullPolicy")
        .or_insert_with(|| json!("IfNotPresent"));
    let context = fields.entry("securityContext").or_insert_with(|| json!({}));
    if let Some(context) = context.as_object_mut() {
        context.entry("readOnlyRootFilesystem").or_insert(json!(true));
        context.insert("allowPrivilegeEscalation".to_owned(), json!(false));
        context.insert("capabilities".to_owned(), json!({"drop": ["ALL"]}));
    }
}
