//! Service-account keys.

use service_kit::caller::{
    Accounts, CallerError, ServiceAccountConfig, generate_key, key_sha256, validate_accounts,
};
use service_kit::config::Problems;
use std::time::{Duration, SystemTime};

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

fn account(name: &str, key: &str) -> ServiceAccountConfig {
    ServiceAccountConfig {
        name: name.into(),
        org: "acme".into(),
        roles: vec!["member".into()],
        teams: vec!["data".into()],
        team_admin_of: vec![],
        key_sha256: key_sha256(key),
        expires_at: None,
    }
}

#[test]
fn a_key_is_found_by_its_hash() {
    let keys: Vec<_> = (0..5).map(|_| generate_key()).collect();
    let accounts: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(i, k)| account(&format!("a{i}"), &k.key))
        .collect();
    let book = Accounts::new(&accounts);
    for (i, key) in keys.iter().enumerate() {
        assert!(
            key.key.starts_with("berth_sa_") && key.key.len() == 9 + 43,
            "{}",
            key.key.len()
        );
        assert_eq!(key.sha256, accounts[i].key_sha256);
        let caller = book.authenticate(&key.key, now()).unwrap();
        assert_eq!(
            (caller.issuer_alias.as_str(), caller.subject),
            ("sa", format!("a{i}"))
        );
        assert_eq!(
            (caller.org.as_str(), caller.teams),
            ("acme", vec!["data".to_owned()])
        );
    }
    let unknown = book.authenticate(&generate_key().key, now());
    assert_eq!(unknown, Err(CallerError::UnknownKey));
    assert_eq!(
        Accounts::default().authenticate(&keys[0].key, now()),
        Err(CallerError::UnknownKey)
    );
}

#[test]
fn other_credentials_are_not_keys() {
    let key = generate_key().key;
    let book = Accounts::new(&[account("a", &key)]);
    let others = [
        String::new(),
        "berth_sa_".into(),
        key[1..].into(),
        key[..key.len() - 1].into(),
        format!("{key}A"),
        format!("{key} "),
        key.to_uppercase(),
        key_sha256(&key),
        format!("berth_sa_{}", "=".repeat(43)),
        "eyJhbGciOiJFUzI1NiJ9.e30.AAAA".into(),
    ];
    for other in others {
        assert_eq!(
            book.authenticate(&other, now()),
            Err(CallerError::NotACredential),
            "{other}"
        );
    }
}

#[test]
fn keys_expire() {
    let key = generate_key().key;
    let expiring = ServiceAccountConfig {
        expires_at: Some(now()),
        ..account("a", &key)
    };
    let book = Accounts::new(&[expiring]);
    assert!(book.authenticate(&key, now() - Duration::from_secs(1)).is_ok());
    assert_eq!(book.authenticate(&key, now()), Err(CallerError::KeyExpired));
}

#[test]
fn bad_accounts_are_named_and_rotation_is_allowed() {
    let (old, new) = (generate_key().key, generate_key().key);
    let found = |accounts: &[ServiceAccountConfig]| {
        let mut problems = Problems::default();
        validate_accounts("service_accounts", accounts, &mut problems);
        problems.found().iter().map(|p| p.key.clone()).collect::<Vec<_>>()
    };
    let retiring = ServiceAccountConfig {
        expires_at: Some(now()),
        ..account("a", &old)
    };
    assert!(found(&[retiring.clone(), account("a", &new)]).is_empty());
    assert_eq!(
        found(&[account("a", &old), account("b", &old)]),
        ["service_accounts[1].key_sha256"]
    );
    let elsewhere = ServiceAccountConfig {
        org: "evil".into(),
        ..account("a", &new)
    };
    assert_eq!(
        found(&[account("a", &old), elsewhere]),
        ["service_accounts[1].name"]
    );
    let bad = ServiceAccountConfig {
        org: String::new(),
        key_sha256: "beef".into(),
        ..account("a|b", &old)
    };
    assert_eq!(
        found(&[bad]),
        [
            "service_accounts[0].name",
            "service_accounts[0].org",
            "service_accounts[0].key_sha256"
        ]
    );
}

#[test]
fn expiry_is_written_as_people_do() {
    let text = format!(
        "name = \"a\"\norg = \"acme\"\nkey_sha256 = \"{}\"\nexpires_at = \"2026-12-31T00:00:00Z\"\n",
        "0".repeat(64)
    );
    let account: ServiceAccountConfig = toml::from_str(&text).unwrap();
    assert!(account.expires_at > Some(now()));
    assert!(
        toml::to_string(&account)
            .unwrap()
            .contains("2026-12-31T00:00:00Z")
    );
    assert!(toml::from_str::<ServiceAccountConfig>(&text.replace("T00", " at 00")).is_err());
}
