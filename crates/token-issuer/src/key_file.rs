//! One key file: a private key in PKCS#8 PEM.

use anyhow::{Context as _, Result};
use session_token::Signer;
use std::io::Read as _;
use std::path::Path;

/// Limit of the size of a key file.
const MAX_KEY_BYTES: u64 = 64 * 1024;

/// Reads one private key.
pub(crate) fn read_key(file: &Path) -> Result<Signer> {
    if file.as_os_str().is_empty() {
        anyhow::bail!("is required");
    }
    let mut pem = String::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(MAX_KEY_BYTES).read_to_string(&mut pem))
        .context("cannot be read")?;
    Signer::from_pkcs8_pem(&pem).context("is not a P-256 key in PKCS#8 PEM")
}
