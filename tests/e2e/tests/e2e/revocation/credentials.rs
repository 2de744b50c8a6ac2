//! Credentials of the APIs that can be taken away: a service-account key, a role, and a key of an
//! identity provider.

use anyhow::{Context as _, Result};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use local_stack::berth::{self, text};
use parking_lot::Mutex;
use serde_json::{Value, json};
use session_core::{Clock as _, SystemClock};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const ISSUER: &str = "http://127.0.0.1:9/realm";

/// The files that session-manager follows.
#[derive(Debug)]
pub(super) struct Credentials {
    dir: TempDir,
    granted: Mutex<Granted>,
}

#[derive(Debug, Default)]
struct Granted {
    /// The digest of the key of `temp`, if it has one.
    temp: Option<String>,
    /// The digest of the key of `chief`, if it was made.
    chief: Option<String>,
    /// Whether `chief` is an admin of the organization.
    is_admin: bool,
    /// Keys of the provider, as its key set has them; the first one stays.
    published: Vec<Value>,
}

impl Credentials {
    /// Files without credentials.
    pub(super) fn new() -> Result<Self> {
        let credentials = Self {
            dir: tempfile::Builder::new().prefix("berth-credentials-").tempdir()?,
            granted: Mutex::default(),
        };
        let (_, stays) = new_key("stays")?;
        credentials.change(|state| state.published.push(stays))?;
        Ok(credentials)
    }

    /// session-manager's configuration: root keys, then tables.
    pub(super) fn config(&self) -> String {
        format!(
            "service_accounts_file = \"{}\"\n[[oidc]]\nalias = \"corp\"\nissuer = \"{ISSUER}\"\n\
             audiences = [\"berth\"]\norgs = [\"acme\"]\norg = \"acme\"\nroles = [\"member\"]\n\
             keys.location = \"{}\"\nkeys.refresh = \"500ms\"\nkeys.again_after = \"1s\"\n",
            self.accounts().display(),
            self.key_set().display()
        )
    }

    fn accounts(&self) -> PathBuf {
        self.dir.path().join("accounts.toml")
    }

    fn key_set(&self) -> PathBuf {
        self.dir.path().join("jwks.json")
    }

    /// Gives the account `temp` a key.
    pub(super) fn grant_key(&self) -> Result<String> {
        let made = berth::new_account_key()?;
        let digest = text(&made, "key_sha256")?;
        self.change(|state| state.temp = Some(digest))?;
        text(&made, "key")
    }

    /// Removes the account `temp`.
    pub(super) fn remove_key(&self) -> Result<()> {
        self.change(|state| state.temp = None)
    }

    /// Makes the account `chief`, with a new key, an admin of the organization.
    pub(super) fn grant_role(&self) -> Result<String> {
        let made = berth::new_account_key()?;
        let digest = text(&made, "key_sha256")?;
        self.change(|state| {
            state.chief = Some(digest);
            state.is_admin = true;
        })?;
        text(&made, "key")
    }

    /// Makes `chief` a member only.
    pub(super) fn remove_role(&self) -> Result<()> {
        self.change(|state| state.is_admin = false)
    }

    /// Publishes another key of the provider; returns a token of `corp|ada` that it signed.
    pub(super) fn grant_provider_key(&self) -> Result<String> {
        let kid = uuid::Uuid::new_v4().to_string();
        let (key, published) = new_key(&kid)?;
        self.change(|state| state.published.push(published))?;
        let now = SystemClock.now().as_secs();
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": kid});
        let claims = json!({"iss": ISSUER, "aud": "berth", "sub": "ada", "iat": now, "exp": now + 3600});
        let part = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = key.sign(&SystemRandom::new(), message.as_bytes())?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Withdraws all keys of the provider but the one that stays.
    pub(super) fn remove_provider_key(&self) -> Result<()> {
        self.change(|state| state.published.truncate(1))
    }

    /// Changes the files.
    fn change(&self, change: impl FnOnce(&mut Granted)) -> Result<()> {
        let mut state = self.granted.lock();
        change(&mut state);
        let mut accounts = String::new();
        let admin = if state.is_admin { ", \"org-admin\"" } else { "" };
        for (name, digest, more) in [("temp", &state.temp, ""), ("chief", &state.chief, admin)] {
            if let Some(digest) = digest {
                write!(
                    accounts,
                    "[[service_accounts]]\nname = \"{name}\"\norg = \"acme\"\nroles = [\"member\"{more}]\n\
                     key_sha256 = \"{digest}\"\n"
                )?;
            }
        }
        replace(&self.accounts(), &accounts)?;
        replace(&self.key_set(), &json!({"keys": state.published}).to_string())
    }
}

/// Replaces a file in one step.
fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    Ok(std::fs::rename(&new, path)?)
}

/// A key of the provider, and how its key set has it.
fn new_key(kid: &str) -> Result<(EcdsaKeyPair, Value)> {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    let public = key.public_key().as_ref().to_vec();
    let (x, y) = public
        .get(1..)
        .and_then(|point| point.split_at_checked(32))
        .context("a point")?;
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let published = json!({
        "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid, "x": part(x), "y": part(y),
    });
    Ok((key, published))
}
