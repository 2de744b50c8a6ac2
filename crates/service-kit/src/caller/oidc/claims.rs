//! Conversion of the claims of a valid token to a [`Caller`]. A token with a
//! claim of the wrong type is rejected, because a guess could grant too much.

use super::config::IssuerConfig;
use crate::caller::{Caller, CallerError, TokenClaims};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Maximum number of roles or teams; above that of the largest token.
const MAX_VALUES: usize = 2000;
/// Maximum length of a value: directory groups are whole distinguished names.
const MAX_VALUE_BYTES: usize = 512;
const MAX_TEAM_BYTES: usize = 128;
/// Claims that OAuth writes as one space-separated text.
const SPACED: [&str; 2] = ["scope", "scp"];

const SHAPE: CallerError = CallerError::Token("a claim has the wrong type");

/// The caller of a valid token of this issuer. Roles outside `grantable` are
/// dropped.
pub(super) fn caller(
    config: &IssuerConfig,
    grantable: &BTreeSet<String>,
    claims: TokenClaims,
) -> Result<Caller, CallerError> {
    let TokenClaims { subject, all } = claims;
    let granted = |roles: &mut dyn Iterator<Item = &String>| -> Vec<String> {
        let roles: BTreeSet<_> = roles.filter(|role| grantable.contains(*role)).collect();
        roles.into_iter().cloned().collect()
    };
    if let Some(fixed) = config.subjects.iter().find(|fixed| fixed.sub == subject) {
        return Ok(Caller {
            issuer_alias: config.alias.clone(),
            subject,
            org: pinned(config, &fixed.org)?,
            roles: granted(&mut fixed.roles.iter()),
            teams: fixed.teams.iter().cloned().collect(),
            team_admin_of: fixed.team_admin_of.iter().cloned().collect(),
        });
    }
    let org = match (&config.org, &config.org_claim) {
        (Some(org), _) => org.clone(),
        (None, Some(claim)) => claimed_org(config, &all, claim)?,
        (None, None) => return Err(CallerError::NotPinned),
    };
    let claimed = list(&all, config.roles_claim.as_deref())?;
    let named: Vec<String> = if config.role_values.is_empty() {
        claimed
    } else {
        claimed
            .iter()
            .filter_map(|value| config.role_values.get(value).cloned())
            .collect()
    };
    Ok(Caller {
        issuer_alias: config.alias.clone(),
        subject,
        org: pinned(config, &org)?,
        roles: granted(&mut config.roles.iter().chain(&named)),
        teams: teams(&all, config.teams_claim.as_deref())?,
        team_admin_of: teams(&all, config.team_admin_claim.as_deref())?,
    })
}

/// The configured claim that the provider omitted from this token because of
/// its size: Entra ID lists it in `_claim_names`, or sets `hasgroups`.
pub(super) fn left_out<'c>(config: &'c IssuerConfig, all: &Map<String, Value>) -> Option<&'c str> {
    let elsewhere = all.get("_claim_names").and_then(Value::as_object);
    let hasgroups = all
        .get("hasgroups")
        .is_some_and(|value| *value != Value::Bool(false));
    [
        &config.org_claim,
        &config.roles_claim,
        &config.teams_claim,
        &config.team_admin_claim,
    ]
    .into_iter()
    .filter_map(|claim| claim.as_deref())
    .filter(|claim| find(all, claim).is_none())
    .find(|claim| {
        elsewhere.is_some_and(|names| names.contains_key(*claim)) || (hasgroups && *claim == "groups")
    })
}

/// The organization, if the issuer may assert it.
fn pinned(config: &IssuerConfig, org: &str) -> Result<String, CallerError> {
    config.orgs.get(org).cloned().ok_or(CallerError::NotPinned)
}

fn claimed_org(config: &IssuerConfig, all: &Map<String, Value>, claim: &str) -> Result<String, CallerError> {
    let value = match find(all, claim) {
        None => return Err(CallerError::NotPinned),
        Some(Value::String(text)) => text,
        // A list with exactly one item counts as that organization.
        Some(Value::Array(items)) => match items.as_slice() {
            [Value::String(text)] => text,
            _ => return Err(SHAPE),
        },
        Some(_) => return Err(SHAPE),
    };
    if config.org_values.is_empty() {
        return Ok(value.clone());
    }
    config
        .org_values
        .get(value)
        .cloned()
        .ok_or(CallerError::NotPinned)
}

/// Finds a claim by its whole name, or else by a dotted path.
fn find<'c>(all: &'c Map<String, Value>, claim: &str) -> Option<&'c Value> {
    if let Some(value) = all.get(claim) {
        return Some(value);
    }
    let (first, rest) = claim.split_once('.')?;
    let mut value = all.get(first)?;
    for step in rest.split('.') {
        value = value.as_object()?.get(step)?;
    }
    Some(value)
}

/// The texts of a claim; empty if the claim is not configured or absent.
fn list(all: &Map<String, Value>, claim: Option<&str>) -> Result<Vec<String>, CallerError> {
    let Some((claim, value)) = claim.and_then(|claim| Some((claim, find(all, claim)?))) else {
        return Ok(Vec::new());
    };
    let texts: Vec<&str> = match value {
        Value::Null => Vec::new(),
        Value::String(text) if SPACED.contains(&claim) => text.split(' ').collect(),
        Value::String(text) => vec![text],
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().ok_or(SHAPE))
            .collect::<Result<_, _>>()?,
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => return Err(SHAPE),
    };
    if texts.len() > MAX_VALUES {
        return Err(CallerError::Token("a claim has too many values"));
    }
    let usable =
        |text: &&str| !text.is_empty() && text.len() <= MAX_VALUE_BYTES && printable::all_printable(text);
    let texts: BTreeSet<&str> = texts.into_iter().filter(usable).collect();
    Ok(texts.into_iter().map(str::to_owned).collect())
}

/// The texts of a claim that are valid team names.
fn teams(all: &Map<String, Value>, claim: Option<&str>) -> Result<Vec<String>, CallerError> {
    let mut teams = list(all, claim)?;
    teams.retain(|team| team.len() <= MAX_TEAM_BYTES);
    Ok(teams)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(more: Value) -> IssuerConfig {
        let mut all = json!({
            "alias": "corp", "issuer": "https://id.example", "audiences": ["berth"],
            "orgs": ["acme", "beta"], "org_claim": "org", "roles_claim": "roles",
            "teams_claim": "https://berth.example/teams", "team_admin_claim": "groups.admin",
        });
        for (name, value) in more.as_object().unwrap() {
            all[name] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    fn said(config: &IssuerConfig, claims: Value) -> Result<Caller, CallerError> {
        let grantable = ["member", "org-admin"].map(str::to_owned).into();
        let claims = TokenClaims {
            subject: "ada".to_owned(),
            all: claims.as_object().unwrap().clone(),
        };
        caller(config, &grantable, claims)
    }

    #[test]
    fn claims_become_org_roles_and_teams() {
        let claims = json!({
            "org": "acme", "roles": ["member", "platform-admin", "root"],
            "https://berth.example/teams": ["data", "ops", "data"], "groups": {"admin": "data"},
        });
        let caller = said(&config(json!({})), claims).unwrap();
        assert_eq!(
            (caller.issuer_alias.as_str(), caller.subject.as_str()),
            ("corp", "ada")
        );
        assert_eq!(
            (caller.org.as_str(), caller.roles),
            ("acme", vec!["member".to_owned()])
        );
        assert_eq!(caller.teams, ["data", "ops"]);
        assert_eq!(caller.team_admin_of, ["data"]);
    }

    #[test]
    fn an_issuer_speaks_only_for_its_own_organizations() {
        let config = config(json!({}));
        for org in [
            json!("umbrella"),
            json!("ACME"),
            json!("acme "),
            json!(""),
            json!("acme,umbrella"),
        ] {
            let refused = said(&config, json!({"org": org}));
            assert_eq!(refused, Err(CallerError::NotPinned), "{org}");
        }
        assert_eq!(said(&config, json!({})), Err(CallerError::NotPinned));
        for org in [
            json!(1),
            json!(null),
            json!({"acme": 1}),
            json!(["acme", "beta"]),
            json!([]),
            json!([["acme"]]),
        ] {
            assert_eq!(said(&config, json!({"org": org})), Err(SHAPE), "{org}");
        }
        assert_eq!(said(&config, json!({"org": ["beta"]})).unwrap().org, "beta");
    }

    #[test]
    fn values_are_mapped_and_nobody_is_made_a_platform_admin() {
        let config = config(json!({
            "org_values": {"tenant-1": "acme"},
            "role_values": {"berth-users": "member", "gods": "platform-admin", "chiefs": "org-admin"},
        }));
        let caller = said(
            &config,
            json!({"org": "tenant-1", "roles": ["berth-users", "gods", "org-admin", "platform-admin"]}),
        )
        .unwrap();
        assert_eq!(
            (caller.org.as_str(), caller.roles),
            ("acme", vec!["member".to_owned()])
        );
        assert_eq!(said(&config, json!({"org": "acme"})), Err(CallerError::NotPinned));
        let both = said(
            &config,
            json!({"org": "tenant-1", "roles": ["chiefs", "berth-users"]}),
        );
        assert_eq!(both.unwrap().roles, ["member", "org-admin"]);
    }

    #[test]
    fn a_configured_subject_is_what_the_configuration_says() {
        let config = config(json!({"subjects": [{"sub": "ada", "org": "beta", "roles": ["member"]}]}));
        let caller = said(&config, json!({"org": "acme", "roles": ["org-admin"]})).unwrap();
        assert_eq!(
            (caller.org.as_str(), caller.roles),
            ("beta", vec!["member".to_owned()])
        );
    }

    #[test]
    fn odd_shapes_are_refused_and_hostile_names_left_out() {
        let config = config(json!({}));
        for roles in [
            json!(1),
            json!(true),
            json!({"member": true}),
            json!(["member", 1]),
        ] {
            let refused = said(&config, json!({"org": "acme", "roles": roles}));
            assert_eq!(refused, Err(SHAPE), "{roles}");
        }
        let many: Vec<String> = (0..2001).map(|index| index.to_string()).collect();
        assert!(said(&config, json!({"org": "acme", "roles": many})).is_err());
        let teams = json!(["ok", "", "a\nb", "\u{1b}[31m", "x".repeat(129)]);
        let caller = said(
            &config,
            json!({"org": "acme", "https://berth.example/teams": teams}),
        )
        .unwrap();
        assert_eq!(caller.teams, ["ok"]);
    }

    #[test]
    fn long_lists_and_long_names_of_real_directories_are_read() {
        let name = format!("CN=berth-users,{}DC=example,DC=org", "OU=Groups,".repeat(20));
        let mut groups: Vec<String> = (0..900)
            .map(|n| format!("{n:08}-0000-0000-0000-000000000000"))
            .collect();
        groups.push(name.clone());
        let config = config(json!({"roles_claim": "groups", "role_values": {name.clone(): "member"}}));
        let caller = said(&config, json!({"org": "acme", "groups": groups})).unwrap();
        assert_eq!(caller.roles, ["member"]);
        let one = said(&config, json!({"org": "acme", "groups": name})).unwrap();
        assert_eq!(one.roles, ["member"], "one text instead of a list");
    }

    #[test]
    fn a_claim_that_the_provider_left_out_is_none_and_is_named() {
        let config = config(json!({"teams_claim": "groups"}));
        for (claims, named) in [
            (
                json!({"org": "acme", "_claim_names": {"groups": "src1"}}),
                Some("groups"),
            ),
            (json!({"org": "acme", "hasgroups": true}), Some("groups")),
            (json!({"org": "acme", "_claim_names": {"other": "src1"}}), None),
            (
                json!({"org": "acme", "groups": [], "_claim_names": {"groups": "src1"}}),
                None,
            ),
            (json!({"org": "acme"}), None),
        ] {
            assert_eq!(left_out(&config, claims.as_object().unwrap()), named, "{claims}");
            assert!(said(&config, claims).unwrap().teams.is_empty());
        }
    }
}
