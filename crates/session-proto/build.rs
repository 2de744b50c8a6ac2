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
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for (folder, file) in [
        ("berth/v1/", "berth.v1.bin"),
        ("berth/internal/v1/", "berth.internal.v1.bin"),
    ] {
        let ours = PROTOS.iter().filter(|path| path.starts_with(folder));
        let ours = protox::compile(ours, [&root])?;
        std::fs::write(out.join(file), prost::Message::encode_to_vec(&ours))?;
    }
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
