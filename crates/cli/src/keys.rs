//! Key generation: random bytes and files, without a server.

use anyhow::{Context, Result};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes a new signing key, readable by its owner only. Returns its `kid`.
pub(crate) fn write_signing_key(file: &Path) -> Result<String> {
    let pem = session_token::generate_key_pem()?;
    let kid = session_token::Signer::from_pkcs8_pem(&pem)?.kid().to_owned();
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut out| out.write_all(pem.as_bytes()))
        .with_context(|| format!("writing {}", file.display()))?;
    Ok(kid)
}
