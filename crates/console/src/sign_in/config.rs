//! Configuration of the sign-in. docs/config.md describes every key.

use http::Uri;
use serde::{Deserialize, Serialize};
use service_kit::config::{Problems, Validate, duration};
use service_kit::polled_document::DocumentConfig;
use session_token::ExternalAlgorithm;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

const MAX_AGE_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(5 * 60)..=Duration::from_secs(7 * 24 * 3600);
/// Maximum of `leeway`.
const MAX_LEEWAY: Duration = Duration::from_secs(60);
const MAX_LABEL_CHARS: usize = 64;
/// Parameters of the authorization request that the console sets itself.
const RESERVED_PARAMETERS: [&str; 11] = [
    "client_id",
    "client_secret",
    "code_challenge",
    "code_challenge_method",
    "nonce",
    "redirect_uri",
    "request",
    "resource",
    "response_mode",
    "response_type",
    "state",
];

/// How browsers sign in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SignInConfig {
    /// Folder of the keys that seal cookies, the same for all replicas. Without
    /// it, sign-ins end with the process.
    pub keys_dir: Option<PathBuf>,
    /// Time after which a person must sign in again: 5 min to 7 days.
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// Whether people can sign in with a service-account key.
    pub service_account_keys: bool,
    /// Identity providers.
    pub providers: Vec<ProviderConfig>,
}

/// Which of the provider's tokens the gRPC APIs receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialToken {
    /// The ID token; session-manager's `oidc` lists the client id among the
    /// audiences.
    IdToken,
    /// The access token, which must be a JWT for session-manager.
    AccessToken,
}

/// An OpenID Connect provider. The same provider is in session-manager's
/// `oidc`, which decides what its tokens mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// Name in addresses: 1 to 32 of a-z, 0-9 and '-'.
    pub id: String,
    /// Text of its button; default: `Sign in with <id>`.
    #[serde(default)]
    pub label: Option<String>,
    /// Its `iss`, also the base of discovery.
    pub issuer: String,
    /// The id of the console at the provider.
    pub client_id: String,
    /// File with the client secret; without it the console is a public client.
    /// Read at every use.
    #[serde(default)]
    pub client_secret_file: Option<PathBuf>,
    /// Requested scopes; `openid` is always requested.
    #[serde(default = "scopes")]
    pub scopes: Vec<String>,
    /// The token that the gRPC APIs receive.
    #[serde(default = "id_token")]
    pub credential: CredentialToken,
    /// The resource of the access token (RFC 8707).
    #[serde(default)]
    pub resource: Option<String>,
    /// Other audiences that ID tokens may have beside the client id.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// More parameters of the authorization request.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// Allowed signature algorithms of ID tokens, by JOSE names.
    #[serde(default = "algorithms")]
    pub algorithms: Vec<String>,
    /// Maximum difference between clocks; at most 60 s.
    #[serde(with = "duration", default = "leeway")]
    pub leeway: Duration,
    /// How its documents are read; `location` stays empty.
    #[serde(default = "discovery")]
    pub discovery: DocumentConfig,
}

fn scopes() -> Vec<String> {
    ["profile", "email"].map(str::to_owned).into()
}

fn id_token() -> CredentialToken {
    CredentialToken::IdToken
}

fn algorithms() -> Vec<String> {
    ["RS256", "PS256", "ES256"].map(str::to_owned).into()
}

fn leeway() -> Duration {
    Duration::from_secs(30)
}

fn discovery() -> DocumentConfig {
    DocumentConfig::new("")
}

impl Default for SignInConfig {
    fn default() -> Self {
        Self {
            keys_dir: None,
            max_age: Duration::from_secs(12 * 3600),
            service_account_keys: true,
            providers: Vec::new(),
        }
    }
}

impl ProviderConfig {
    /// A provider with the defaults.
    pub fn new(id: impl Into<String>, issuer: impl Into<String>, client_id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            label: None,
            issuer: issuer.into(),
            client_id: client_id.into(),
            client_secret_file: None,
            scopes: scopes(),
            credential: id_token(),
            resource: None,
            audiences: Vec::new(),
            parameters: BTreeMap::new(),
            algorithms: algorithms(),
            leeway: leeway(),
            discovery: discovery(),
        }
    }

    /// Text of its button.
    pub(crate) fn label(&self) -> String {
        let default = || format!("Sign in with {}", self.id);
        self.label.clone().unwrap_or_else(default)
    }

    /// The configuration of one of its documents.
    pub(crate) fn document(&self, location: impl Into<String>) -> DocumentConfig {
        DocumentConfig {
            location: location.into(),
            ..self.discovery.clone()
        }
    }

    /// URL of its discovery document.
    pub(crate) fn discovery_url(&self) -> String {
        format!(
            "{}/.well-known/openid-configuration",
            self.issuer.trim_end_matches('/')
        )
    }

    fn validate_texts(&self, problems: &mut Problems) {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let named = !self.id.is_empty() && self.id.len() <= 32 && self.id.bytes().all(plain);
        problems.require(named, "id", "must be 1 to 32 of a-z, 0-9 and '-'");
        problems.require(
            self.id != "key",
            "id",
            "is taken by service-account keys; choose another",
        );
        let label = self.label();
        problems.require(
            !label.is_empty()
                && label.chars().count() <= MAX_LABEL_CHARS
                && !label.contains(char::is_control),
            "label",
            "must have 1 to 64 characters",
        );
        problems.require(!self.client_id.is_empty(), "client_id", "is required");
        let is_scope = |scope: &String| !scope.is_empty() && scope.bytes().all(|b| b.is_ascii_graphic());
        problems.require(
            self.scopes.iter().all(is_scope),
            "scopes",
            "must be words without spaces",
        );
        for name in self.parameters.keys() {
            if RESERVED_PARAMETERS.contains(&name.as_str()) || name == "scope" {
                problems.add(&format!("parameters.{name}"), "is set by the console; remove it");
            }
        }
        for algorithm in &self.algorithms {
            if algorithm.parse::<ExternalAlgorithm>().is_err() {
                let known: Vec<&str> = ExternalAlgorithm::ALL.iter().map(|one| one.as_str()).collect();
                problems.add(
                    "algorithms",
                    format!("{algorithm:?} is not accepted: use {}", known.join(", ")),
                );
            }
        }
        problems.require(
            !self.algorithms.is_empty(),
            "algorithms",
            "must list at least one",
        );
        problems.require(self.leeway <= MAX_LEEWAY, "leeway", "must be at most 60s");
    }
}

impl Validate for ProviderConfig {
    fn validate(&self, problems: &mut Problems) {
        self.validate_texts(problems);
        let plain_url = self.issuer.contains("://") && !self.issuer.contains(['?', '#', '@']);
        problems.require(
            plain_url,
            "issuer",
            "must be like https://login.example.org, without user, query and fragment",
        );
        problems.require(
            self.discovery.location.is_empty(),
            "discovery.location",
            "must be empty: it is below the issuer",
        );
        let mut found = Problems::default();
        self.document(self.discovery_url()).validate(&mut found);
        for problem in found.found() {
            if problem.key != "location" {
                problems.add(&format!("discovery.{}", problem.key), problem.what.clone());
            } else if plain_url {
                problems.add(
                    "issuer",
                    "must be https beyond loopback (or say `discovery.insecure = true` to use plaintext)",
                );
            }
        }
        if let Some(file) = &self.client_secret_file {
            let readable = std::fs::read_to_string(file).is_ok_and(|text| !text.trim().is_empty());
            problems.require(
                readable,
                "client_secret_file",
                "cannot be read or is empty: put the client secret into it",
            );
        }
    }
}

impl SignInConfig {
    /// Checks the section. `public` is the configured address of the console.
    pub(crate) fn validate_at(&self, public: Option<&str>, problems: &mut Problems) {
        problems.check_all("providers", &self.providers);
        let (mut ids, mut issuers) = (BTreeSet::new(), BTreeSet::new());
        for (index, provider) in self.providers.iter().enumerate() {
            let key = format!("providers[{index}].id");
            problems.require(ids.insert(&provider.id), &key, "is there twice");
            let key = format!("providers[{index}].issuer");
            let client = (&provider.issuer, &provider.client_id);
            problems.require(issuers.insert(client), &key, "is there twice with this client_id");
        }
        problems.require(
            MAX_AGE_RANGE.contains(&self.max_age),
            "max_age",
            "must be 5m to 7days",
        );
        if let Some(dir) = &self.keys_dir
            && let Err(error) = super::keys::CookieKeys::open(Some(dir))
        {
            problems.add("keys_dir", format!("{error:#}"));
        }
        if !self.providers.is_empty() {
            problems.require(
                public.is_some_and(|url| url.parse::<Uri>().is_ok()),
                "providers",
                "need `public.url`, to which they redirect the browser",
            );
            problems.require(
                self.keys_dir.is_some(),
                "keys_dir",
                "is required with providers; make a key with `berth keys rotate DIR`",
            );
        }
    }
}
