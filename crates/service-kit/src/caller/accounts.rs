//! Service-account keys.
//!
//! The configuration contains only the SHA-256 of a key. A key has 256 random
//! bits, so a plain hash is sufficient; the lookup compares every configured
//! hash in constant time.

use super::{Caller, CallerError};
use crate::config::{Problems, Validate};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::time::SystemTime;
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

/// Prefix of every key, by which scanners recognize a leaked one.
pub const KEY_PREFIX: &str = "berth_sa_";
/// The issuer alias of service accounts.
pub const ISSUER_ALIAS: &str = "sa";
const RANDOM_BYTES: usize = 32;
const ENCODED: usize = 43;

/// One key of a service account. To rotate, list the account twice with
/// different keys, everything else the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceAccountConfig {
    /// The account's name, the subject of its calls.
    pub name: String,
    /// Its organization.
    pub org: String,
    /// Its roles.
    #[serde(default)]
    pub roles: Vec<String>,
    /// The teams it belongs to.
    #[serde(default)]
    pub teams: Vec<String>,
    /// The teams it administers.
    #[serde(default)]
    pub team_admin_of: Vec<String>,
    /// SHA-256 of the key, 64 hexadecimal digits.
    pub key_sha256: String,
    /// Expiry of the key, RFC 3339.
    #[serde(default, with = "rfc3339", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<SystemTime>,
}

impl ServiceAccountConfig {
    /// The caller that its key authenticates.
    pub fn caller(&self) -> Caller {
        Caller {
            issuer_alias: ISSUER_ALIAS.to_owned(),
            subject: self.name.clone(),
            org: self.org.clone(),
            roles: self.roles.clone(),
            teams: self.teams.clone(),
            team_admin_of: self.team_admin_of.clone(),
        }
    }

    fn digest(&self) -> Option<[u8; 32]> {
        hex::decode(&self.key_sha256).ok()?.try_into().ok()
    }
}

impl Validate for ServiceAccountConfig {
    fn validate(&self, problems: &mut Problems) {
        let named = !self.name.is_empty()
            && self.name.len() <= 128
            && self
                .name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b));
        problems.require(
            named,
            "name",
            "must be 1 to 128 letters, digits, '-', '_', '.' or '@'",
        );
        problems.require(!self.org.is_empty(), "org", "is required");
        problems.require(
            self.digest().is_some(),
            "key_sha256",
            "must be 64 hexadecimal digits",
        );
    }
}

/// Checks the whole list; call it for the field with the accounts.
pub fn validate_accounts(key: &str, accounts: &[ServiceAccountConfig], problems: &mut Problems) {
    problems.check_all(key, accounts);
    let mut keys = HashMap::new();
    let mut names: HashMap<&str, usize> = HashMap::new();
    for (index, account) in accounts.iter().enumerate() {
        if let Some(digest) = account.digest()
            && let Some(first) = keys.insert(digest, index)
        {
            problems.add(
                &format!("{key}[{index}].key_sha256"),
                format!("is the same key as {key}[{first}]"),
            );
        }
        let first = *names.entry(account.name.as_str()).or_insert(index);
        let same = ServiceAccountConfig {
            key_sha256: account.key_sha256.clone(),
            expires_at: account.expires_at,
            ..accounts[first].clone()
        };
        if same != *account {
            problems.add(
                &format!("{key}[{index}].name"),
                format!("is also {key}[{first}], which differs in more than key and expiry"),
            );
        }
    }
}

/// The configured accounts.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    accounts: Vec<Account>,
}

#[derive(Debug, Clone)]
struct Account {
    digest: [u8; 32],
    expires_at: Option<SystemTime>,
    caller: Caller,
}

impl Accounts {
    /// From validated configuration; an account with an invalid hash is
    /// skipped.
    pub fn new(accounts: &[ServiceAccountConfig]) -> Self {
        let accounts = accounts.iter().filter_map(|account| {
            Some(Account {
                digest: account.digest()?,
                expires_at: account.expires_at,
                caller: account.caller(),
            })
        });
        Self {
            accounts: accounts.collect(),
        }
    }

    /// Authenticates a bearer credential. The time is a parameter for tests.
    pub fn authenticate(&self, bearer: &str, now: SystemTime) -> Result<Caller, CallerError> {
        let encoded = bearer
            .strip_prefix(KEY_PREFIX)
            .ok_or(CallerError::NotACredential)?;
        let well_formed = encoded.len() == ENCODED
            && encoded
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !well_formed {
            return Err(CallerError::NotACredential);
        }
        let digest: [u8; 32] = Sha256::digest(bearer.as_bytes()).into();
        let mut found = u32::MAX;
        for (index, account) in (0_u32..).zip(&self.accounts) {
            let equal: Choice = account.digest.ct_eq(&digest);
            found.conditional_assign(&index, equal);
        }
        let account = usize::try_from(found)
            .ok()
            .and_then(|i| self.accounts.get(i))
            .ok_or(CallerError::UnknownKey)?;
        match account.expires_at {
            Some(end) if end <= now => Err(CallerError::KeyExpired),
            _ => Ok(account.caller.clone()),
        }
    }
}

/// A new key with its hash for the configuration.
#[derive(Clone)]
pub struct NewKey {
    /// The key itself; to be shown once.
    pub key: String,
    /// Its `key_sha256`.
    pub sha256: String,
}

/// Generates a random service-account key.
pub fn generate_key() -> NewKey {
    let random: [u8; RANDOM_BYTES] = rand::random();
    let key = format!("{KEY_PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    NewKey {
        sha256: key_sha256(&key),
        key,
    }
}

/// The `key_sha256` of a key.
pub fn key_sha256(key: &str) -> String {
    hex::encode(Sha256::digest(key.as_bytes()))
}

mod rfc3339 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::SystemTime;

    pub(super) fn serialize<S: Serializer>(value: &Option<SystemTime>, ser: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => ser.collect_str(&humantime::format_rfc3339_seconds(*value)),
            None => ser.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(de: D) -> Result<Option<SystemTime>, D::Error> {
        let Some(text) = Option::<String>::deserialize(de)? else {
            return Ok(None);
        };
        humantime::parse_rfc3339(&text)
            .map(Some)
            .map_err(|_| D::Error::custom("must be a time like \"2026-12-31T00:00:00Z\""))
    }
}
