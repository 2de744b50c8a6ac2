//! The OpenAPI document.

/// The OpenAPI 3.1 document of the REST API, as JSON.
pub fn document() -> serde_json::Value {
    serde_json::json!({"openapi": "3.1.0"})
}
