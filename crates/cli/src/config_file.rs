//! The file of contexts: `config.toml` in Berth's folder of settings, or
//! `BERTH_CONFIG`.
//!
//! A context names addresses, a certificate authority and the source of a
//! credential. It contains no secret: keys and tokens are in files of their own.

use crate::private_file;
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Maximum length of a context's name in bytes.
const MAX_NAME_BYTES: usize = 64;

/// All contexts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ConfigFile {
    /// The current context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// Settings under one name. Absent fields have the defaults of the options.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Context {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) manager: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) issuer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) console: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) insecure: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oidc: Option<Oidc>,
}

/// The identity provider of a context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Oidc {
    pub(crate) issuer: String,
    pub(crate) client_id: String,
    #[serde(default = "default_scopes")]
    pub(crate) scopes: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) audience: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resource: Option<String>,
    #[serde(default)]
    pub(crate) token: TokenKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
}

/// Scopes of a sign-in that can be renewed.
pub(crate) fn default_scopes() -> Vec<String> {
    ["openid", "offline_access"].map(str::to_owned).to_vec()
}

/// Which token of the provider Berth accepts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TokenKind {
    /// The access token.
    #[default]
    #[value(name = "access")]
    AccessToken,
    /// The ID token, for providers whose access tokens are opaque.
    #[value(name = "id")]
    IdToken,
}

/// The file of contexts.
pub(crate) fn path() -> Result<PathBuf> {
    match std::env::var_os("BERTH_CONFIG").filter(|path| !path.is_empty()) {
        Some(path) => Ok(path.into()),
        None => Ok(private_file::config_dir()?.join("config.toml")),
    }
}

/// The contexts of this user; none where there is no folder of settings that
/// can be read, as in a container without a home.
pub(crate) fn load_in_use() -> Result<ConfigFile> {
    let named = std::env::var_os("BERTH_CONFIG").is_some_and(|path| !path.is_empty());
    let path = match path() {
        Err(_) if !named => return Ok(ConfigFile::default()),
        path => path?,
    };
    load(&path).or_else(|error| {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        let is_closed = matches!(kind, Some(ErrorKind::PermissionDenied | ErrorKind::NotADirectory));
        if is_closed && !named {
            Ok(ConfigFile::default())
        } else {
            Err(error)
        }
    })
}

/// The contexts of a file; none if there is no file.
pub(crate) fn load(path: &Path) -> Result<ConfigFile> {
    let Some(text) = private_file::read(path)? else {
        return Ok(ConfigFile::default());
    };
    let file: ConfigFile =
        toml::from_str(&text).with_context(|| format!("{} is not a file of contexts", path.display()))?;
    for name in file.contexts.keys() {
        check_name(name).with_context(|| path.display().to_string())?;
    }
    Ok(file)
}

/// Reads, changes and writes the contexts under the lock of the file.
pub(crate) async fn change<T>(path: &Path, change: impl FnOnce(&mut ConfigFile) -> Result<T>) -> Result<T> {
    let _lock = private_file::Lock::of(path).await?;
    let mut file = load(path)?;
    let result = change(&mut file)?;
    let text = toml::to_string(&file).context("encoding the contexts")?;
    private_file::write(path, &text)?;
    Ok(result)
}

/// Checks a context's name, which is a part of a file name.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let good = (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with(['.', '-']);
    if !good {
        bail!(
            "{name:?} cannot name a context: use 1 to {MAX_NAME_BYTES} of letters, digits, '.', '_', '-', beginning with a letter, a digit or '_'"
        );
    }
    Ok(())
}

impl ConfigFile {
    /// A context by name.
    pub(crate) fn context(&self, name: &str) -> Result<&Context> {
        self.contexts.get(name).with_context(|| {
            let names: Vec<&str> = self.contexts.keys().map(String::as_str).collect();
            let known = if names.is_empty() {
                "there is none; `berth context set` creates one".to_owned()
            } else {
                format!("there are {}", names.join(", "))
            };
            format!("there is no context {name:?}: {known}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_context_survives_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        assert_eq!(load(&path).unwrap(), ConfigFile::default());
        let context = Context {
            manager: Some("https://berth.example.org:8081".to_owned()),
            insecure: true,
            oidc: Some(Oidc {
                issuer: "https://login.example.org".to_owned(),
                client_id: "berth-cli".to_owned(),
                scopes: default_scopes(),
                audience: None,
                resource: None,
                token: TokenKind::IdToken,
                ca: None,
            }),
            ..Context::default()
        };
        change(&path, |file| {
            file.contexts.insert("prod".to_owned(), context.clone());
            file.current = Some("prod".to_owned());
            Ok(())
        })
        .await
        .unwrap();
        let loaded = load(&path).unwrap();
        assert_eq!(loaded.context("prod").unwrap(), &context);
        let problem = loaded.context("lab").unwrap_err().to_string();
        assert!(problem.contains("there are prod"), "{problem}");
        // A failed change leaves the file as it is.
        assert!(change(&path, |_| -> Result<()> { bail!("no") }).await.is_err());
        assert_eq!(load(&path).unwrap(), loaded);
    }

    #[test]
    fn what_is_no_file_of_contexts_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        for (text, word) in [
            ("[contexts.a]\nmanger = \"x\"", "manger"),
            ("current = 3", "current"),
            ("[contexts.\"../a\"]\n", "../a"),
        ] {
            std::fs::write(&path, text).unwrap();
            let problem = format!("{:#}", load(&path).unwrap_err());
            assert!(
                problem.contains(word) && problem.contains("config.toml"),
                "{problem}"
            );
        }
    }

    #[test]
    fn names_are_safe_file_names() {
        for good in ["prod", "a.b_c-9", "_x"] {
            check_name(good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "-x", "ä", "a b", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
