//! The OpenAPI document: paths from the annotations of the handlers, schemas
//! from the protos.

use super::schema;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use utoipa::openapi::path::Paths;

/// Path of every route, after the prefix of the service.
pub(super) const BASE: &str = "/api/v1";
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// The OpenAPI 3.1 document of the REST API, as JSON.
pub fn document() -> Value {
    of(super::routes().1, "")
}

/// The document of these paths behind a prefix.
pub(super) fn of(paths: Paths, prefix: &str) -> Value {
    let mut paths = serde_json::to_value(paths).unwrap_or_default();
    for item in paths.as_object_mut().into_iter().flat_map(Map::values_mut) {
        for operation in METHODS
            .iter()
            .filter_map(|method| item.get_mut(*method).map(std::mem::take).map(|o| (*method, o)))
            .collect::<Vec<_>>()
        {
            let (method, mut operation) = operation;
            complete(&mut operation);
            item[method] = operation;
        }
    }
    let schemas = used(schema::all(), &paths);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Berth",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Warm, private Spark Connect sessions behind one address. Every request needs a service-account key, or a token of your identity provider, as `Authorization: Bearer …`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": format!("{prefix}{BASE}")}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    })
}

/// Adds what all operations have: errors are problems.
fn complete(operation: &mut Value) {
    operation["responses"]["default"] = json!({
        "description": "An error.",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        "headers": {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds until a retry can succeed."}},
    });
    if let Some(body) = operation.get_mut("requestBody") {
        // An empty body is an empty object.
        body["required"] = false.into();
    }
}

/// The schemas that the paths use, directly or by others.
fn used(all: Map<String, Value>, paths: &Value) -> Map<String, Value> {
    let mut found = BTreeSet::new();
    let mut open = references(paths);
    open.push("Problem".to_owned());
    while let Some(name) = open.pop() {
        if let Some(schema) = all.get(&name)
            && found.insert(name)
        {
            open.extend(references(schema));
        }
    }
    all.into_iter().filter(|(name, _)| found.contains(name)).collect()
}

fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(object) => {
            let own = object.get("$ref").and_then(Value::as_str);
            let own = own.and_then(|path| path.rsplit('/').next()).map(str::to_owned);
            own.into_iter()
                .chain(object.values().flat_map(references))
                .collect()
        }
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}
