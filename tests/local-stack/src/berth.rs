//! The `berth` command, and the keys that it makes.

use crate::paths::binary;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// The `berth` command with JSON output.
///
/// # Errors
/// When it is not built.
pub fn command(args: &[&str], env: &[(&str, &str)]) -> Result<Command> {
    let mut command = Command::new(binary("berth")?);
    command
        .args(["--output", "json"])
        .args(args)
        .envs(env.iter().copied());
    Ok(command)
}

/// The JSON that the command printed; null if it printed none.
///
/// # Errors
/// When it failed; with its error message.
pub fn json(output: &Output) -> Result<Value> {
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
}

/// Runs the `berth` command to its end and returns its JSON.
///
/// # Errors
/// When it fails; with its error message.
pub fn run(args: &[&str], env: &[(&str, &str)]) -> Result<Value> {
    json(&command(args, env)?.output()?)
}

/// A text field of a JSON object.
///
/// # Errors
/// When the field is missing or no text.
pub fn text(value: &Value, field: &str) -> Result<String> {
    value[field]
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("no text {field:?} in the output of berth"))
}

/// Makes a signing key at `path`.
///
/// # Errors
/// When it cannot be written.
pub fn new_signing_key(path: &Path) -> Result<()> {
    run(&["keys", "signing", &path.display().to_string()], &[]).map(drop)
}

/// Makes a key of the console's cookies in the folder `dir`, which is made too.
///
/// # Errors
/// When it cannot be written.
pub fn new_cookie_key(dir: &Path) -> Result<()> {
    run(&["keys", "rotate", &dir.display().to_string()], &[]).map(drop)
}

/// Makes the key of a service account: an object with `key` and `key_sha256`.
///
/// # Errors
/// When the command fails.
pub fn new_account_key() -> Result<Value> {
    run(&["keys", "service-account"], &[])
}
