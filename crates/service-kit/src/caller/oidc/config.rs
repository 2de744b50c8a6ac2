//! One identity provider: whom it may speak for, and where its tokens say what.

use crate::caller::{ISSUER_ALIAS, TokenRules};
use crate::config::{Problems, Validate, duration};
use crate::polled_document::DocumentConfig;
use crate::tls::ClientTlsFiles;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The longest difference of clocks that is put up with.
const MOST_LEEWAY: Duration = Duration::from_secs(60);
/// The longest life of a token that can be allowed.
const MOST_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// An identity provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// Stands before its subjects: `alias|sub`. Never change it.
    pub alias: String,
    /// Its exact `iss`, under which it is discovered too.
    pub issuer: String,
    /// What its tokens for us have in `aud`.
    pub audiences: Vec<String>,
    /// May `aud` name others beside? Each of them could then use the token here.
    #[serde(default)]
    pub other_audiences: bool,
    /// If not empty, `azp` (else `client_id`, `appid`,
    /// `cid`) must be one of these.
    #[serde(default)]
    pub authorized_parties: Vec<String>,
    /// The organizations it may speak for. It can name no other.
    pub orgs: BTreeSet<String>,
    /// The one organization of everybody, if no claim says it.
    #[serde(default)]
    pub org: Option<String>,
    /// The claim that names the organization.
    #[serde(default)]
    pub org_claim: Option<String>,
    /// What the claim says, and which organization that is. If empty, the
    /// claim is the organization's name.
    #[serde(default)]
    pub org_values: BTreeMap<String, String>,
    /// Roles that everybody has.
    #[serde(default)]
    pub roles: BTreeSet<String>,
    /// The claim that lists roles.
    #[serde(default)]
    pub roles_claim: Option<String>,
    /// What the claim says, and which role that is. If empty, the claim lists
    /// roles by their names.
    #[serde(default)]
    pub role_values: BTreeMap<String, String>,
    /// The claim that lists teams.
    #[serde(default)]
    pub teams_claim: Option<String>,
    /// The claim that lists the teams somebody administers.
    #[serde(default)]
    pub team_admin_claim: Option<String>,
    /// Programs and others whose tokens carry no claims: what they are is said here.
    #[serde(default)]
    pub subjects: Vec<SubjectConfig>,
    /// What tokens may be signed with, by JOSE names.
    #[serde(default = "algorithms")]
    pub algorithms: Vec<String>,
    /// How far clocks may differ.
    #[serde(with = "duration", default = "leeway")]
    pub leeway: Duration,
    /// The longest life of a token.
    #[serde(with = "duration", default = "max_ttl")]
    pub max_ttl: Duration,
    /// Its key set, a URL or a file, instead of discovery.
    #[serde(default)]
    pub jwks: Option<String>,
    /// Certificates for `https`.
    #[serde(default)]
    pub tls: ClientTlsFiles,
    /// Says in so many words that plaintext beyond loopback is meant.
    #[serde(default)]
    pub insecure: bool,
    /// How often its keys are read again.
    #[serde(with = "duration", default = "refresh")]
    pub refresh: Duration,
    /// A token with an unknown key has them read again at most this often.
    #[serde(with = "duration", default = "again_after")]
    pub again_after: Duration,
    /// How long the last good keys are used when they cannot be read again.
    #[serde(with = "duration", default = "keep_keys")]
    pub keep_keys: Duration,
}

/// What one subject of an issuer is, whatever its tokens claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubjectConfig {
    /// Its exact `sub`.
    pub sub: String,
    /// The organization it acts in; one of the issuer's.
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

fn refresh() -> Duration {
    Duration::from_secs(300)
}

fn again_after() -> Duration {
    Duration::from_secs(30)
}

fn keep_keys() -> Duration {
    Duration::from_secs(24 * 3600)
}

impl IssuerConfig {
    /// One with the defaults, which can name nobody yet.
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
            jwks: None,
            tls: ClientTlsFiles::default(),
            insecure: false,
            refresh: refresh(),
            again_after: again_after(),
            keep_keys: keep_keys(),
        }
    }

    /// The rules for its tokens.
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

    /// Where it describes itself.
    pub(super) fn discovery(&self) -> String {
        format!("{}{DISCOVERY}", self.issuer.trim_end_matches('/'))
    }

    /// A document of its, read as its own settings say.
    pub(super) fn document(&self, location: impl Into<String>) -> DocumentConfig {
        DocumentConfig {
            tls: self.tls.clone(),
            insecure: self.insecure,
            refresh: self.refresh,
            again_after: self.again_after,
            ..DocumentConfig::new(location)
        }
    }

    /// Every role that is granted anywhere in it, with where.
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
                "must be https beyond loopback (or say `insecure = true` to use plaintext)",
            );
        }
        if let Some(location) = &self.jwks {
            let mut found = Problems::default();
            self.document(location).validate(&mut found);
            for problem in found.found().iter().filter(|problem| problem.key == "location") {
                problems.add("jwks", problem.what.clone());
            }
        }
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
        problems.require(self.leeway <= MOST_LEEWAY, "leeway", "must be at most 60s");
        problems.require(
            !self.max_ttl.is_zero() && self.max_ttl <= MOST_TTL,
            "max_ttl",
            "must be more than 0 and at most 7days",
        );
        problems.require(!self.refresh.is_zero(), "refresh", "must not be zero");
        problems.require(
            self.again_after >= Duration::from_secs(1),
            "again_after",
            "must be at least 1s",
        );
        problems.require(
            self.keep_keys >= self.refresh,
            "keep_keys",
            "must not be shorter than `refresh`",
        );
        problems.require(
            self.role_values.is_empty() || self.roles_claim.is_some(),
            "role_values",
            "needs `roles_claim`",
        );
        problems.check("tls", &self.tls);
        self.validate_orgs(problems);
    }
}

/// Checks the list as a whole; call it for the field that holds the issuers.
/// `roles` are those that an issuer may grant.
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
