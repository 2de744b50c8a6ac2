//! Embeds the built front end, `web/dist`, with a gzip form of every file, and
//! a Brotli form where the build of the front end made one (`name.br`).
//!
//! Without `web/dist` the table is empty; the program then says how to build it.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let dist = root.join("web/dist");
    println!("cargo:rerun-if-changed=build.rs");
    // A path that does not exist would run this at every build, so without a
    // built front end its folder is watched.
    let watched = if dist.is_dir() { "web/dist" } else { "web" };
    if root.join(watched).is_dir() {
        println!("cargo:rerun-if-changed={watched}");
    }
    let mut files = Vec::new();
    if dist.is_dir() {
        list(&dist, &mut files)?;
    }
    files.sort();
    let mut table = String::from("[\n");
    for (index, file) in files.iter().enumerate() {
        let name = file
            .strip_prefix(&dist)?
            .to_str()
            .ok_or("a file name is not UTF-8")?;
        let zipped = out.join(format!("{index}.gz"));
        let mut encoder = GzEncoder::new(std::fs::File::create(&zipped)?, Compression::best());
        encoder.write_all(&std::fs::read(file)?)?;
        encoder.finish()?;
        let brotli = PathBuf::from(format!("{}.br", file.display()));
        let brotli = if brotli.is_file() {
            format!("Some(include_bytes!({:?}))", brotli)
        } else {
            "None".to_owned()
        };
        writeln!(
            table,
            "    Embedded {{ path: {name:?}, plain: include_bytes!({file:?}), gzip: include_bytes!({zipped:?}), brotli: {brotli} }},"
        )?;
    }
    table.push(']');
    std::fs::write(out.join("assets.rs"), table)?;
    Ok(())
}

/// Whether the file is one of the front end, not a compressed form or a stamp.
fn is_asset(path: &Path) -> bool {
    let is_hidden = path
        .file_name()
        .is_none_or(|name| name.to_string_lossy().starts_with('.'));
    !is_hidden
        && path
            .extension()
            .is_none_or(|ending| ending != "br" && ending != "gz")
}

/// Every asset below `dir`.
fn list(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else if is_asset(&path) {
            files.push(path);
        }
    }
    Ok(())
}
