//! Schemas of the OpenAPI document, made from the descriptors of `berth.v1`:
//! the same definitions that the JSON form of messages follows.

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Text of a duration.
const DURATION_PATTERN: &str = r"^[0-9]{1,9}(\.[0-9]{1,9})?s$";

/// Names of schemas for the annotations of handlers.
macro_rules! named {
    ($($name:ident),* $(,)?) => {$(
        #[doc = concat!("The schema `", stringify!($name), "`.")]
        #[derive(Debug)]
        pub(crate) struct $name;

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::Ref::from_schema_name(stringify!($name)).into()
            }
        }

        impl utoipa::ToSchema for $name {
            fn name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
        }
    )*};
}

named!(
    Catalog,
    CatalogBody,
    CatalogPatch,
    Cluster,
    ClusterBody,
    ClusterPatch,
    CreateSessionBody,
    DisableOrgResponse,
    DisablePrincipalBody,
    DisablePrincipalResponse,
    Events,
    ExtendSessionBody,
    InterruptOperationsBody,
    InterruptOperationsResponse,
    IssueSessionTokenBody,
    IssueSessionTokenResponse,
    KeepSessionAliveBody,
    LimitsBody,
    ListAuditRecordsResponse,
    ListCatalogsResponse,
    ListClustersResponse,
    ListOperationsResponse,
    ListOrgsResponse,
    ListSessionEventsResponse,
    ListSessionTokensResponse,
    ListSessionsResponse,
    ListUsageResponse,
    Moment,
    Org,
    OrgBody,
    RevokeAllSessionTokensResponse,
    Seconds,
    Session,
    SessionStatus,
    TestCatalogBody,
    TestCatalogResponse,
    UpdateSessionBody,
    Wait,
);

/// Bodies of requests: the schema, its message, and the fields that are not in
/// the body.
const BODIES: [(&str, &str, &[&str]); 14] = [
    ("CatalogBody", "Catalog", &["managed_by_config", "version"]),
    ("CatalogPatch", "Catalog", &["managed_by_config"]),
    (
        "ClusterBody",
        "Cluster",
        &["managed_by_config", "version", "profiles"],
    ),
    ("ClusterPatch", "Cluster", &["managed_by_config", "profiles"]),
    ("CreateSessionBody", "CreateSessionRequest", &["request_id"]),
    ("DisablePrincipalBody", "DisablePrincipalRequest", &["principal"]),
    ("ExtendSessionBody", "ExtendSessionRequest", &["session_id"]),
    (
        "InterruptOperationsBody",
        "InterruptOperationsRequest",
        &["session_id"],
    ),
    (
        "IssueSessionTokenBody",
        "IssueSessionTokenRequest",
        &["session_id"],
    ),
    ("KeepSessionAliveBody", "KeepSessionAliveRequest", &["session_id"]),
    ("LimitsBody", "Limits", &[]),
    (
        "OrgBody",
        "Org",
        &["disabled", "managed_by_config", "version", "disabled_principals"],
    ),
    ("TestCatalogBody", "TestCatalogRequest", &["name"]),
    (
        "UpdateSessionBody",
        "UpdateSessionRequest",
        &["session_id", "version"],
    ),
];

/// Whether a schema is of a reply, in which every field is present, or of a
/// request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Reply,
    Request,
    /// Fields may be `null`, which sets the default.
    Patch,
}

impl Side {
    /// Name of the schema of a message in messages of this side.
    fn nested(self, message: &str) -> String {
        match self {
            Self::Reply => message.to_owned(),
            Self::Request => format!("{message}Input"),
            Self::Patch => format!("{message}Patch"),
        }
    }
}

/// The descriptors of `berth.v1`.
pub(crate) static FILES: LazyLock<Vec<FileDescriptorProto>> = LazyLock::new(|| {
    let set = FileDescriptorSet::decode(session_proto::PUBLIC_DESCRIPTORS).unwrap_or_default();
    let ours = |file: &FileDescriptorProto| file.package() == "berth.v1";
    set.file.into_iter().filter(ours).collect()
});

/// All schemas by name.
pub(super) fn all() -> Map<String, Value> {
    let mut schemas = BTreeMap::new();
    for file in FILES.iter() {
        for (index, message) in file.message_type.iter().enumerate() {
            let messages = Messages { file, index, message };
            for side in [Side::Reply, Side::Request, Side::Patch] {
                schemas.insert(side.nested(message.name()), messages.schema(side, &[]));
            }
            for (name, of, omitted) in BODIES.iter().filter(|(_, of, _)| *of == message.name()) {
                let side = if name.ends_with("Patch") {
                    Side::Patch
                } else {
                    Side::Request
                };
                debug_assert_eq!(*of, message.name());
                schemas.insert((*name).to_owned(), messages.schema(side, omitted));
            }
        }
        for enumeration in &file.enum_type {
            let prefix = format!("{}_", screaming(enumeration.name()));
            let names = enumeration
                .value
                .iter()
                .map(|value| value.name().trim_start_matches(&prefix).to_ascii_lowercase());
            let names: Vec<_> = names.collect();
            schemas.insert(
                enumeration.name().to_owned(),
                json!({"type": "string", "enum": names}),
            );
        }
    }
    schemas.insert("Problem".to_owned(), problem());
    schemas.insert(
        "Seconds".to_owned(),
        json!({"type": "string", "pattern": DURATION_PATTERN}),
    );
    schemas.insert(
        "Moment".to_owned(),
        json!({"type": "string", "format": "date-time"}),
    );
    schemas.insert("Wait".to_owned(), json!({"type": "string", "enum": ["active"]}));
    schemas.insert(
        "Events".to_owned(),
        json!({"type": "string", "description": "Server-sent events."}),
    );
    schemas.into_iter().collect()
}

/// `SessionStatus` becomes `SESSION_STATUS`.
fn screaming(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_uppercase());
    }
    text
}

fn problem() -> Value {
    json!({
        "type": "object",
        "description": "An error (RFC 9457).",
        "properties": {
            "type": {"type": "string", "description": "Address of the description of the reason."},
            "title": {"type": "string", "description": "The reason in words."},
            "status": {"type": "integer", "description": "The HTTP status."},
            "detail": {"type": "string", "description": "What happened and what to do next."},
            "reason": {"type": "string", "description": "A fixed word for programs."},
            "retry_after": {"type": ["string", "null"], "pattern": DURATION_PATTERN},
            "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "required": ["type", "title", "status", "detail", "reason", "retry_after", "metadata"],
    })
}

/// One message of a file.
struct Messages<'a> {
    file: &'a FileDescriptorProto,
    index: usize,
    message: &'a DescriptorProto,
}

impl Messages<'_> {
    fn schema(&self, side: Side, omitted: &[&str]) -> Value {
        let mut properties = Map::new();
        for (index, field) in self.message.field.iter().enumerate() {
            if omitted.contains(&field.name()) {
                continue;
            }
            let in_oneof = field.oneof_index.filter(|_| !field.proto3_optional());
            if let Some(oneof) = in_oneof {
                self.add_alternative(&mut properties, side, oneof, field);
                continue;
            }
            let mut schema = self.field(side, field);
            if let (Some(text), Some(schema)) =
                (self.comment(&[4, self.index, 2, index]), schema.as_object_mut())
            {
                schema.insert("description".to_owned(), text.into());
            }
            properties.insert(field.name().to_owned(), schema);
        }
        let mut schema = json!({"type": "object", "additionalProperties": false});
        if let Some(text) = self.comment(&[4, self.index]) {
            schema["description"] = text.into();
        }
        if side == Side::Reply {
            schema["required"] = properties.keys().cloned().collect();
        }
        schema["properties"] = Value::Object(properties);
        schema
    }

    /// A oneof is one property: an object with one of its members, or null.
    fn add_alternative(
        &self,
        properties: &mut Map<String, Value>,
        side: Side,
        oneof: i32,
        field: &FieldDescriptorProto,
    ) {
        let declared = usize::try_from(oneof)
            .ok()
            .and_then(|oneof| self.message.oneof_decl.get(oneof));
        let name = declared.map_or("", |oneof| oneof.name()).to_owned();
        let schema = properties
            .entry(name)
            .or_insert_with(|| json!({"oneOf": [{"type": "null"}]}));
        let alternative = json!({
            "type": "object",
            "properties": {field.name(): self.single(side, field)},
            "required": [field.name()],
            "additionalProperties": false,
        });
        if let Some(alternatives) = schema["oneOf"].as_array_mut() {
            alternatives.push(alternative);
        }
    }

    fn field(&self, side: Side, field: &FieldDescriptorProto) -> Value {
        if (self.message.name(), field.name()) == ("Catalog", "properties") {
            let texts = json!({"type": "array", "items": {"type": "string"}});
            return nullable_in_patch(
                side,
                json!({"type": "object", "additionalProperties": {"oneOf": [{"type": "string"}, texts]}}),
            );
        }
        if let Some(entry) = self.map_entry(field) {
            let value = entry.field.iter().find(|field| field.name() == "value");
            let value = value.map_or(json!({"type": "string"}), |value| self.single(side, value));
            return nullable_in_patch(side, json!({"type": "object", "additionalProperties": value}));
        }
        if field.label() == Label::Repeated {
            let items = self.single(side, field);
            return nullable_in_patch(side, json!({"type": "array", "items": items}));
        }
        let single = self.single(side, field);
        let is_optional = field.proto3_optional() || field.r#type() == Type::Message;
        if is_optional {
            nullable(single)
        } else {
            nullable_in_patch(side, single)
        }
    }

    fn map_entry(&self, field: &FieldDescriptorProto) -> Option<&DescriptorProto> {
        let name = field.type_name().rsplit('.').next()?;
        let entries = self.message.nested_type.iter();
        let mut entries =
            entries.filter(|nested| nested.options.as_ref().is_some_and(|options| options.map_entry()));
        entries.find(|entry| entry.name() == name)
    }

    /// One value of a field.
    fn single(&self, side: Side, field: &FieldDescriptorProto) -> Value {
        let name = field.type_name().rsplit('.').next().unwrap_or_default();
        match (field.r#type(), field.type_name()) {
            (_, ".google.protobuf.Timestamp") => json!({"type": "string", "format": "date-time"}),
            (_, ".google.protobuf.Duration") => json!({"type": "string", "pattern": DURATION_PATTERN}),
            (_, ".berth.v1.Labels") => json!({"type": "object", "additionalProperties": {"type": "string"}}),
            (Type::Enum, _) => json!({"$ref": format!("#/components/schemas/{name}")}),
            (Type::Message, _) => json!({"$ref": format!("#/components/schemas/{}", side.nested(name))}),
            (Type::Bool, _) => json!({"type": "boolean"}),
            (Type::Uint32, _) => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
            (Type::Uint64, _) => json!({"type": "integer", "minimum": 0, "maximum": u64::MAX}),
            (Type::Int32, _) => json!({"type": "integer", "minimum": i32::MIN, "maximum": i32::MAX}),
            _ => json!({"type": "string"}),
        }
    }

    /// The comment of the proto at this path, as one paragraph.
    fn comment(&self, path: &[usize]) -> Option<String> {
        let info = self.file.source_code_info.as_ref()?;
        let is_here = |at: &[i32]| {
            at.iter()
                .map(|part| usize::try_from(*part).ok())
                .eq(path.iter().copied().map(Some))
        };
        let location = info.location.iter().find(|location| is_here(&location.path))?;
        let words: Vec<_> = location.leading_comments().split_whitespace().collect();
        (!words.is_empty()).then(|| words.join(" "))
    }
}

fn nullable(schema: Value) -> Value {
    match schema.get("type").cloned() {
        Some(Value::String(kind)) => {
            let mut schema = schema;
            schema["type"] = json!([kind, "null"]);
            schema
        }
        _ => json!({"oneOf": [schema, {"type": "null"}]}),
    }
}

fn nullable_in_patch(side: Side, schema: Value) -> Value {
    match side {
        Side::Patch => nullable(schema),
        Side::Reply | Side::Request => schema,
    }
}
