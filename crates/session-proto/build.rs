//! Compiles proto/ with protox, so that no protoc need be installed.

use std::path::PathBuf;

const PROTOS: [&str; 8] = [
    "berth/v1/session.proto",
    "berth/v1/cluster.proto",
    "berth/v1/catalog.proto",
    "berth/v1/org.proto",
    "berth/v1/token.proto",
    "berth/internal/v1/route.proto",
    "berth/internal/v1/ledger.proto",
    "spark/connect/base.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(PROTOS, [&root])?;
    let public = protox::compile(
        PROTOS.iter().filter(|path| path.starts_with("berth/v1/")),
        [&root],
    )?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("berth.v1.bin"), prost::Message::encode_to_vec(&public))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
