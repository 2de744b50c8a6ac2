//! Property values: texts, and references to secrets.

use super::Problems;
use session_core::OrgId;
use session_core::route::Secret;

/// Prefix of the manager's environment variables that properties may refer to.
pub const SECRET_PREFIX: &str = "BERTH_SECRET_";

/// Maximum bytes of a value, well below the kernel's limit of an environment variable.
pub(super) const MAX_VALUE_BYTES: usize = 8192;

/// Replaces a reference by the secret.
///
/// # Errors
/// If the environment variable is not set.
pub(crate) fn resolve(text: &str, secrets: &mut Vec<Secret>) -> Result<String, String> {
    let Some(variable) = secret_reference(text) else {
        return Ok(text.to_owned());
    };
    let value = secret_from_env(variable)?;
    let plain = value.expose().to_owned();
    secrets.push(value);
    Ok(plain)
}

/// Reads a secret from the manager's environment.
///
/// # Errors
/// If the variable is not set.
pub(crate) fn secret_from_env(variable: &str) -> Result<Secret, String> {
    match std::env::var(variable) {
        Ok(value) if !value.is_empty() => Ok(Secret::new(value)),
        Ok(_) | Err(_) => Err(format!(
            "the secret {variable} is not set in the manager's environment"
        )),
    }
}

/// `${BERTH_SECRET_…}` as the whole value.
fn secret_reference(text: &str) -> Option<&str> {
    text.strip_prefix("${")?.strip_suffix('}')
}

pub(crate) fn is_secret_variable(variable: &str) -> bool {
    variable.strip_prefix(SECRET_PREFIX).is_some_and(|rest| {
        !rest.is_empty()
            && rest
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    })
}

/// Organizations write catalogs, so each organization has its own names:
/// `BERTH_SECRET_<ORG>__<NAME>`, where NAME has no double underscore.
pub(super) fn is_secret_of(org: &OrgId, variable: &str) -> bool {
    let own = format!(
        "{SECRET_PREFIX}{}__",
        org.as_str().to_ascii_uppercase().replace('-', "_")
    );
    is_secret_variable(variable)
        && variable
            .strip_prefix(&own)
            .is_some_and(|name| !name.is_empty() && !name.contains("__"))
}

/// Rejects characters that break tables and logs.
pub(super) fn check_printable(problems: &mut Problems, key: &str, text: &str) {
    if !printable::all_printable(text) {
        problems.add(
            key,
            "must not contain control characters, direction marks or characters that cannot be seen",
        );
    }
}

pub(crate) fn check_text(problems: &mut Problems, key: &str, text: &str, may_refer: impl Fn(&str) -> bool) {
    // Values are exact; any printable character of one line is allowed.
    if text.chars().any(char::is_control) {
        problems.add(key, "must not contain control characters");
    }
    if text.len() > MAX_VALUE_BYTES {
        problems.add(key, format!("must not be longer than {MAX_VALUE_BYTES} bytes"));
    }
    match secret_reference(text) {
        Some(variable) if !may_refer(variable) => problems.add(
            key,
            format!(
                "may refer to {SECRET_PREFIX}<NAME> on a cluster and to {SECRET_PREFIX}<ORG>__<NAME> on a catalog, not to {variable}"
            ),
        ),
        Some(_) => {}
        None if text.contains("${") => {
            problems.add(key, "may be one reference to a secret as a whole, not contain one");
        }
        None if (names_a_secret(key) && !is_plain_scalar(text))
            || text.to_ascii_lowercase().contains("password=") =>
        {
            problems.add(key, format!("is a secret: write ${{{SECRET_PREFIX}…}} and set that variable"));
        }
        None => {}
    }
}

fn names_a_secret(key: &str) -> bool {
    let key: String = key
        .to_ascii_lowercase()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    ["password", "secret", "token", "credential", "accesskey", "apikey", "privatekey", "authorization"]
        .iter()
        .any(|word| key.contains(word))
        // The source of a token is not a secret.
        && !["uri", "url", "provider", "endpoint", "enabled"].iter().any(|end| key.ends_with(end))
}

fn is_plain_scalar(text: &str) -> bool {
    matches!(text, "true" | "false") || (text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit()))
}
