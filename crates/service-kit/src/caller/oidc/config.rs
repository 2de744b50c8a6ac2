//! Configuration of one identity provider: allowed organizations, and the
//! meaning of claims.

use crate::caller::{ISSUER_ALIAS, TokenRules};
use crate::config::{Problems, Validate, duration};
use crate::polled_document::DocumentConfig;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Maximum of `leeway`.
const MAX_LEEWAY: Duration = Duration::from_secs(60);
/// Maximum of `max_ttl`.
const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Default poll interval of its documents.
const REFRESH_INTERVAL: Duration = Duration::from_secs(300);
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// An identity provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// Prefix of its subjects: `alias|sub`. It must never change.
    pub alias: String,
    /// Required `iss`, also the base of discovery.
    pub issuer: String,
    /// Accepted values of `aud`.
    pub audiences: Vec<String>,
    /// Whether `aud` may contain other audiences. Each of those services could
    /// then use the token here.
    #[serde(default)]
    pub other_audiences: bool,
    /// If not empty, `azp` (else `client_id`, `appid`, `cid`) must be one of
    /// these.
    #[serde(default)]
    pub authorized_parties: Vec<String>,
    /// The organizations of its callers. Tokens with another organization are
    /// rejected.
    pub orgs: BTreeSet<String>,
    /// The organization of all callers, if no claim contains it.
    #[serde(default)]
    pub org: Option<String>,
    /// The claim with the organization.
    #[serde(default)]
    pub org_claim: Option<String>,
    /// Organizations by claim value. If empty, the claim value is the
    /// organization's name.
    #[serde(default)]
    pub org_values: BTreeMap<String, String>,
    /// Roles of all callers.
    #[serde(default)]
    pub roles: BTreeSet<String>,
    /// The claim that lists roles.
    #[serde(default)]
    pub roles_claim: Option<String>,
    /// Roles by claim value. If empty, the claim values are role names.
    #[serde(default)]
    pub role_values: BTreeMap<String, String>,
    /// The claim that lists teams.
    #[serde(default)]
    pub teams_claim: Option<String>,
    /// The claim that lists the teams that the caller administers.
    #[serde(default)]
    pub team_admin_claim: Option<String>,
    /// Subjects whose tokens have no such claims, such as programs, with their
    /// organization and roles.
    #[serde(default)]
    pub subjects: Vec<SubjectConfig>,
    /// Allowed signature algorithms, by JOSE names.
    #[serde(default = "algorithms")]
    pub algorithms: Vec<String>,
    /// Maximum difference between clocks.
    #[serde(with = "duration", default = "leeway")]
    pub leeway: Duration,
    /// Maximum lifetime of a token.
    #[serde(with = "duration", default = "max_ttl")]
    pub max_ttl: Duration,
    /// Its key set. Without a location, discovery finds it.
    #[serde(default = "discovered")]
    pub keys: DocumentConfig,
    /// Time for which the last valid keys are used when reads fail.
    #[serde(with = "duration", default = "keep_keys")]
    pub keep_keys: Duration,
}

/// Organization, roles and teams of one subject, independent of claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubjectConfig {
    /// Its exact `sub`.
    pub sub: String,
    /// Its organization; one of the issuer's.
    pub org: String,
    /// Its roles.
    #[serde(default)]
    pub roles: BTreeSet<String>,
    /// Its teams.
    #[serde(default)]
    pub teams: BTreeSet<String>,
    /// The teams it administers.
    #[serde(default)]
    pub team_admin_of: BTreeSet<String>,
}

fn algorithms() -> Vec<String> {
    ["RS256", "PS256", "ES256"].map(str::to_owned).into()
}

fn leeway() -> Duration {
    Duration::from_secs(30)
}

fn max_ttl() -> Duration {
    Duration::from_secs(24 * 3600)
}

fn discovered() -> DocumentConfig {
    DocumentConfig::new("")
}

fn keep_keys() -> Duration {
    Duration::from_secs(24 * 3600)
}

impl IssuerConfig {
    /// An issuer with the defaults, whose tokens cannot identify a caller yet.
    pub fn new(
        alias: impl Into<String>,
        issuer: impl Into<String>,
        audiences: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            alias: alias.into(),
            issuer: issuer.into(),
            audiences: audiences.into_iter().collect(),
            other_audiences: false,
            authorized_parties: Vec::new(),
            orgs: BTreeSet::new(),
            org: None,
            org_claim: None,
            org_values: BTreeMap::new(),
            roles: BTreeSet::new(),
            roles_claim: None,
            role_values: BTreeMap::new(),
            teams_claim: None,
            team_admin_claim: None,
            subjects: Vec::new(),
            algorithms: algorithms(),
            leeway: leeway(),
            max_ttl: max_ttl(),
            keys: discovered(),
            keep_keys: keep_keys(),
        }
    }

    /// The requirements for its tokens.
    pub fn rules(&self) -> TokenRules {
        TokenRules {
            issuer: self.issuer.clone(),
            audiences: self.audiences.clone(),
            other_audiences: self.other_audiences,
            authorized_parties: self.authorized_parties.clone(),
            algorithms: self.algorithms.clone(),
            leeway: self.leeway,
            max_ttl: self.max_ttl,
        }
    }

    /// URL of its discovery document.
    pub(super) fn discovery(&self) -> String {
        format!("{}{DISCOVERY}", self.issuer.trim_end_matches('/'))
    }

    /// The configuration of one of its documents, with the settings of its keys.
    pub(super) fn document(&self, location: impl Into<String>) -> DocumentConfig {
        DocumentConfig {
            location: location.into(),
            refresh: Some(self.refresh()),
            ..self.keys.clone()
        }
    }

    /// Location of its key set, unless it is discovered.
    pub(super) fn keys_location(&self) -> Option<&str> {
        Some(self.keys.location.as_str()).filter(|location| !location.is_empty())
    }

    /// The poll interval of its documents.
    pub(super) fn refresh(&self) -> Duration {
        self.keys.refresh.unwrap_or(REFRESH_INTERVAL)
    }

    /// Every role that its configuration grants, with the key.
    pub fn granted_roles(&self) -> impl Iterator<Item = (String, &str)> {
        let everybody = self.roles.iter().map(|role| ("roles".to_owned(), role.as_str()));
        let by_value = self
            .role_values
            .iter()
            .map(|(value, role)| (format!("role_values.{value}"), role.as_str()));
        let by_subject = self.subjects.iter().enumerate().flat_map(|(index, subject)| {
            subject
                .roles
                .iter()
                .map(move |role| (format!("subjects[{index}].roles"), role.as_str()))
        });
        everybody.chain(by_value).chain(by_subject)
    }

    fn validate_locations(&self, problems: &mut Problems) {
        let plain_url = self.issuer.contains("://") && !self.issuer.contains(['?', '#', '@']);
        problems.require(
            plain_url,
            "issuer",
            "must be like https://login.example.org, without user, query and fragment",
        );
        let mut found = Problems::default();
        self.document(self.discovery()).validate(&mut found);
        if plain_url && found.found().iter().any(|problem| problem.key == "location") {
            problems.add(
                "issuer",
                "must be https beyond loopback (or say `keys.insecure = true` to use plaintext)",
            );
        }
        let location = self
            .keys_location()
            .map_or_else(|| self.discovery(), str::to_owned);
        let mut found = Problems::default();
        self.document(location).validate(&mut found);
        let is_discovered = self.keys_location().is_none();
        for problem in found.found() {
            // That of the discovery document is the issuer's.
            if !(is_discovered && problem.key == "location") {
                problems.add(&format!("keys.{}", problem.key), problem.what.clone());
            }
        }
    }

    fn validate_times(&self, problems: &mut Problems) {
        problems.require(self.leeway <= MAX_LEEWAY, "leeway", "must be at most 60s");
        problems.require(
            !self.max_ttl.is_zero() && self.max_ttl <= MAX_TTL,
            "max_ttl",
            "must be more than 0 and at most 7days",
        );
        problems.require(
            self.keys.again_after >= Duration::from_secs(1),
            "keys.again_after",
            "must be at least 1s",
        );
        problems.require(
            self.keep_keys >= self.refresh(),
            "keep_keys",
            "must not be shorter than `keys.refresh`",
        );
    }

    fn validate_orgs(&self, problems: &mut Problems) {
        problems.require(
            !self.orgs.is_empty(),
            "orgs",
            "must list the organizations it may speak for",
        );
        let pinned = |org: &String| self.orgs.contains(org);
        match (&self.org, &self.org_claim) {
            (Some(org), None) => problems.require(pinned(org), "org", "must be one of `orgs`"),
            (None, Some(claim)) => problems.require(!claim.is_empty(), "org_claim", "must not be empty"),
            (None, None) => problems.require(
                !self.subjects.is_empty(),
                "org",
                "is missing: give everybody's organization, or the claim that names it as `org_claim`",
            ),
            (Some(_), Some(_)) => problems.add("org_claim", "contradicts `org`; remove one of them"),
        }
        problems.require(
            self.org_values.is_empty() || self.org_claim.is_some(),
            "org_values",
            "needs `org_claim`",
        );
        problems.require(
            self.org_values.values().all(pinned),
            "org_values",
            "must name only organizations of `orgs`",
        );
        let mut names = BTreeSet::new();
        for (index, subject) in self.subjects.iter().enumerate() {
            let key = format!("subjects[{index}]");
            problems.require(!subject.sub.is_empty(), &format!("{key}.sub"), "is required");
            problems.require(
                names.insert(&subject.sub),
                &format!("{key}.sub"),
                "is there twice",
            );
            problems.require(
                pinned(&subject.org),
                &format!("{key}.org"),
                "must be one of `orgs`",
            );
        }
    }
}

impl Validate for IssuerConfig {
    fn validate(&self, problems: &mut Problems) {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let named = !self.alias.is_empty() && self.alias.len() <= 32 && self.alias.bytes().all(plain);
        problems.require(named, "alias", "must be 1 to 32 of a-z, 0-9 and '-'");
        problems.require(
            self.alias != ISSUER_ALIAS,
            "alias",
            "is taken by service accounts; choose another",
        );
        self.validate_locations(problems);
        problems.require(
            !self.audiences.is_empty() && self.audiences.iter().all(|audience| !audience.is_empty()),
            "audiences",
            "must list what its tokens for Berth have in `aud`",
        );
        problems.require(
            !self.algorithms.is_empty(),
            "algorithms",
            "must list at least one",
        );
        self.validate_times(problems);
        problems.require(
            self.role_values.is_empty() || self.roles_claim.is_some(),
            "role_values",
            "needs `roles_claim`",
        );
        self.validate_orgs(problems);
    }
}

/// Checks the whole list; call it for the field with the issuers. `roles` are
/// those that an issuer may grant.
pub fn validate_issuers(key: &str, issuers: &[IssuerConfig], roles: &[&str], problems: &mut Problems) {
    problems.check_all(key, issuers);
    let (mut aliases, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (index, issuer) in issuers.iter().enumerate() {
        let key = format!("{key}[{index}]");
        problems.require(
            aliases.insert(&issuer.alias),
            &format!("{key}.alias"),
            "is there twice",
        );
        problems.require(
            names.insert(&issuer.issuer),
            &format!("{key}.issuer"),
            "is there twice",
        );
        for (field, role) in issuer.granted_roles() {
            if !roles.contains(&role) {
                let may = roles.join(", ");
                problems.add(
                    &format!("{key}.{field}"),
                    format!("{role:?} is not a role that an issuer may grant: use {may}"),
                );
            }
        }
    }
}
