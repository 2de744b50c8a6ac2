//! The stored sign-in of a context: `tokens/NAME.json`, mode 0600.

use crate::config_file::Oidc;
use crate::private_file;
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use session_core::Timestamp;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Tokens of one sign-in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredLogin {
    /// Issuer that the tokens are from; a changed context must not send them to
    /// another one.
    pub(crate) issuer: String,
    pub(crate) client_id: String,
    /// The token for Berth.
    pub(crate) token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refresh_token: Option<String>,
    /// Seconds since the Unix epoch.
    pub(crate) obtained_at: u64,
    /// Seconds since the Unix epoch.
    pub(crate) expires_at: u64,
}

impl StoredLogin {
    /// Whether this provider gave it to this client.
    pub(crate) fn is_of(&self, oidc: &Oidc) -> bool {
        self.issuer == oidc.issuer && self.client_id == oidc.client_id
    }
}

impl fmt::Debug for StoredLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredLogin")
            .field("issuer", &self.issuer)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Longest time before its expiry at which a token is renewed.
const MAX_RENEWAL_LEAD: Duration = Duration::from_secs(60);

impl StoredLogin {
    /// Whether the token can still be used.
    pub(crate) fn is_valid(&self, now: Timestamp) -> bool {
        now.as_secs() < self.expires_at
    }

    /// Whether the token should be renewed: in the last minute of its life, and
    /// in the last fifth of a short one.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        let life = self.expires_at.saturating_sub(self.obtained_at);
        let lead = (life / 5).min(MAX_RENEWAL_LEAD.as_secs());
        now.as_secs() + lead >= self.expires_at
    }
}

/// The file of a context's sign-in.
pub(crate) fn path(context: &str) -> Result<PathBuf> {
    let name = if context.is_empty() { "default" } else { context };
    Ok(private_file::config_dir()?
        .join("tokens")
        .join(format!("{name}.json")))
}

/// The stored sign-in of a context, if any.
pub(crate) fn load(context: &str) -> Result<Option<StoredLogin>> {
    let path = path(context)?;
    let Some(text) = private_file::read_secret(&path)? else {
        return Ok(None);
    };
    // The error of the parser could quote a token.
    let login = serde_json::from_str(&text).ok();
    let login =
        login.with_context(|| format!("{} is damaged: sign in again with `berth login`", path.display()))?;
    Ok(Some(login))
}

/// Replaces the stored sign-in of a context. The caller holds the lock.
pub(crate) fn save(context: &str, login: &StoredLogin) -> Result<()> {
    let text = serde_json::to_string(login).context("encoding the sign-in")?;
    private_file::write(&path(context)?, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_it_expires() {
        let login = |life: u64| StoredLogin {
            issuer: "i".to_owned(),
            client_id: "c".to_owned(),
            token: "secret-token".to_owned(),
            refresh_token: Some("secret-refresh".to_owned()),
            obtained_at: 1000,
            expires_at: 1000 + life,
        };
        let at = |secs: u64| Timestamp::from_millis(secs * 1000);
        assert!(!login(3600).is_due(at(4539)));
        assert!(login(3600).is_due(at(4540)));
        assert!(!login(10).is_due(at(1007)));
        assert!(login(10).is_due(at(1008)));
        assert!(login(10).is_valid(at(1009)));
        assert!(!login(10).is_valid(at(1010)));
        let shown = format!("{:?}", login(10));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
