//! Compiles proto/ with protox, so that no protoc need be installed, and gives
//! the messages of `berth.v1` their one JSON form.

use prost_types::FileDescriptorProto;
use prost_types::field_descriptor_proto::{Label, Type};
use std::path::PathBuf;
use tonic_prost_build::Builder;

const PROTOS: [&str; 9] = [
    "berth/v1/session.proto",
    "berth/v1/cluster.proto",
    "berth/v1/catalog.proto",
    "berth/v1/org.proto",
    "berth/v1/token.proto",
    "berth/v1/audit.proto",
    "berth/internal/v1/route.proto",
    "berth/internal/v1/ledger.proto",
    "spark/connect/base.proto",
];
/// The package whose messages people and programs see as JSON.
const PUBLIC: &str = "berth.v1";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(PROTOS, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for (folder, file) in [
        ("berth/v1/", "berth.v1.bin"),
        ("berth/internal/v1/", "berth.internal.v1.bin"),
    ] {
        let ours = PROTOS.iter().filter(|path| path.starts_with(folder));
        let ours = protox::compile(ours, [&root])?;
        std::fs::write(out.join(file), prost::Message::encode_to_vec(&ours))?;
    }
    let public = descriptors.file.iter().filter(|file| file.package() == PUBLIC);
    let builder = public.fold(tonic_prost_build::configure(), with_json);
    builder.compile_fds(descriptors)?;
    Ok(())
}

/// Derives serde's `Serialize` and `Deserialize`: names as in the proto, enums
/// by their short names, times and durations as text. Every field is written;
/// any may be absent when read, and none may be unknown.
fn with_json(builder: Builder, file: &FileDescriptorProto) -> Builder {
    let derive = "#[derive(::serde::Serialize, ::serde::Deserialize)] #[serde(rename_all = \"snake_case\")]";
    let package = file.package();
    let named = file.message_type.iter().map(|message| message.name());
    let named = named.chain(file.enum_type.iter().map(|enumeration| enumeration.name()));
    let builder = named.fold(builder, |builder, name| {
        let path = format!(".{package}.{name}");
        builder
            .type_attribute(&path, derive)
            .message_attribute(&path, "#[serde(default, deny_unknown_fields)]")
    });
    let fields = file
        .message_type
        .iter()
        .flat_map(|message| message.field.iter().map(move |field| (message.name(), field)));
    fields.fold(builder, |builder, (message, field)| {
        let enumeration = field.type_name().rsplit('.').next().unwrap_or_default();
        let (write, read) = match (field.r#type(), field.type_name()) {
            (Type::Enum, _) => {
                let many = if field.label() == Label::Repeated { "s" } else { "" };
                let function = format!("enumeration{many}::<_, crate::v1::{enumeration}>");
                (function.clone(), function)
            }
            (_, ".google.protobuf.Timestamp") => same("timestamp"),
            (_, ".google.protobuf.Duration") => same("duration"),
            (_, ".berth.v1.Labels") => same("labels"),
            _ if (message, field.name()) == ("Catalog", "properties") => same("properties"),
            _ => return builder,
        };
        builder.field_attribute(
            format!(".{package}.{message}.{}", field.name()),
            format!(
                "#[serde(serialize_with = \"crate::json::{write}\", deserialize_with = \"crate::json::read::{read}\")]"
            ),
        )
    })
}

fn same(function: &str) -> (String, String) {
    (function.to_owned(), function.to_owned())
}
