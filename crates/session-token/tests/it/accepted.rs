//! Accepted tokens: valid ones, the grace after `exp`, and changed keys.

use crate::common::{AUDIENCE, ISSUER, NOW, Rig, at, claims};
use session_core::Reason;
use session_token::{
    Grace, Jwks, KeyError, Keyring, Signer, TokenError, TokenErrorKind, Verifier, VerifierConfig,
    generate_key_pem,
};
use std::time::Duration;

#[test]
fn a_signed_token_verifies_to_its_claims() {
    let rig = Rig::new();
    let token = rig.good();
    assert!(token.len() <= 600, "{} bytes", token.len());
    let verified = rig.check(&token).unwrap();
    assert_eq!(verified.claims, claims());
    assert_eq!(verified.kid, rig.signer.kid());
    assert!(!verified.by_grace);
}

#[test]
fn a_long_subject_still_fits_the_size_cap() {
    let rig = Rig::new();
    let mut long = claims();
    long.sub = format!("idp|{}", "x".repeat(250)).parse().unwrap();
    let token = rig.signer.sign(&long).unwrap();
    assert!(rig.check(&token).is_ok());
}

#[test]
fn clocks_may_differ_by_the_leeway_and_no_more() {
    let rig = Rig::new();
    let token = rig.good();
    let verify = |secs| rig.verifier.verify(&token, &rig.keyring, at(secs), Grace::None);
    assert!(verify(NOW - 30).is_ok());
    assert!(matches!(
        verify(NOW - 31),
        Err(TokenError::Invalid("iat is in the future"))
    ));
    assert!(verify(NOW + 3600 + 29).is_ok());
    assert!(matches!(verify(NOW + 3600 + 30), Err(TokenError::Expired { .. })));
}

#[test]
fn grace_is_for_its_own_kind_of_call_and_ends() {
    let rig = Rig::new();
    let token = rig.good();
    let verify = |secs, grace| {
        rig.verifier
            .verify(&token, &rig.keyring, at(NOW + 3600 + secs), grace)
    };
    let by_grace = verify(31, Grace::Reattach).unwrap();
    assert!(by_grace.by_grace);
    assert!(verify(31, Grace::None).is_err());
    assert!(verify(12 * 3600 + 29, Grace::Reattach).is_ok());
    assert!(verify(12 * 3600 + 30, Grace::Reattach).is_err());
    assert!(verify(15 * 60 + 29, Grace::Interrupt).is_ok());
    assert!(verify(15 * 60 + 30, Grace::Interrupt).is_err());
    assert!(
        !verify(0, Grace::Interrupt).unwrap().by_grace,
        "the leeway alone is no grace"
    );
    assert_eq!(
        rig.verifier.config().afterlife(),
        Duration::from_secs(12 * 3600 + 30)
    );
}

#[test]
fn strict_installations_give_no_grace() {
    let rig = Rig::new();
    let strict = VerifierConfig {
        reattach_grace: Duration::ZERO,
        interrupt_grace: Duration::ZERO,
        ..VerifierConfig::new(ISSUER, AUDIENCE)
    };
    let late = Verifier::new(strict).verify(&rig.good(), &rig.keyring, at(NOW + 3630), Grace::Reattach);
    assert!(matches!(late, Err(TokenError::Expired { .. })));
}

#[test]
fn the_expiry_text_says_when_and_what_to_do() {
    let rig = Rig::new();
    let error = rig
        .verifier
        .verify(&rig.good(), &rig.keyring, at(NOW + 7200), Grace::None)
        .unwrap_err();
    let expected = format!(
        "The token expired at {}. Call spark.stop(), then connect with a new one: `berth token {}`",
        at(NOW + 3600),
        claims().sid
    );
    assert_eq!(error.client_text(), expected);
    assert_eq!(
        (error.reason(), error.kind()),
        (Reason::TokenExpired, TokenErrorKind::Expired)
    );
}

#[test]
fn an_unknown_key_can_be_learned_and_an_old_one_forgotten() {
    let (rig, other) = (Rig::new(), Rig::new());
    let token = other.good();
    let unknown = rig.check(&token).unwrap_err();
    assert_eq!(
        (&unknown, unknown.reason()),
        (&TokenError::UnknownKid, Reason::TokenInvalid)
    );

    rig.keyring.replace(
        &Jwks::new([rig.signer.public_jwk(), other.signer.public_jwk()]),
        at(NOW + 5),
    );
    assert!(rig.check(&token).is_ok() && rig.check(&rig.good()).is_ok());
    assert_eq!(rig.keyring.last_refreshed(), Some(at(NOW + 5)));

    rig.keyring
        .replace(&Jwks::new([other.signer.public_jwk()]), at(NOW + 6));
    assert!(!rig.keyring.knows(rig.signer.kid()));
    assert_eq!(rig.check(&rig.good()).unwrap_err(), TokenError::UnknownKid);
}

#[test]
fn a_long_expired_token_of_a_retired_key_is_expired_and_causes_no_refetch() {
    let (rig, other) = (Rig::new(), Rig::new());
    let error = rig
        .verifier
        .verify(&other.good(), &rig.keyring, at(NOW + 86_400), Grace::None)
        .unwrap_err();
    assert_eq!(error.reason(), Reason::TokenExpired);
    assert!(
        error.client_text().ends_with("`berth token <session>`"),
        "nothing unverified is echoed"
    );
}

#[test]
fn an_empty_keyring_accepts_nothing_and_counts_no_age() {
    let rig = Rig::new();
    let empty = Keyring::empty();
    assert!(empty.is_empty() && empty.age(at(NOW)).is_none());
    let error = rig
        .verifier
        .verify(&rig.good(), &empty, at(NOW), Grace::None)
        .unwrap_err();
    assert_eq!(error, TokenError::UnknownKid);
    rig.keyring.confirm(at(NOW + 9));
    assert_eq!(rig.keyring.age(at(NOW + 10)), Some(Duration::from_secs(1)));
    assert!(rig.check(&rig.good()).is_ok());
}

#[test]
fn key_sets_round_trip_and_skip_what_is_not_ours() {
    let (a, b) = (Rig::new().signer.public_jwk(), Rig::new().signer.public_jwk());
    let set = Jwks::new([a.clone(), b.clone(), a.clone()]);
    assert_eq!(set.keys().len(), 2);
    assert_eq!(Jwks::from_json(&set.to_json()).unwrap(), set);
    assert_eq!(serde_json::from_str::<Jwks>(&set.to_json()).unwrap(), set);
    assert_ne!(set.etag(), Jwks::new([b]).etag());
    assert!(set.etag().starts_with('"') && set.etag().ends_with('"'));

    let good = serde_json::to_value(&a).unwrap();
    let mut others = Vec::new();
    for (member, value) in [
        ("kty", "RSA"),
        ("kty", "oct"),
        ("crv", "P-384"),
        ("crv", "secp256k1"),
        ("alg", "HS256"),
        ("use", "enc"),
        ("kid", "../../etc/passwd"),
        ("kid", ""),
        ("x", "AAAA"),
        ("y", ""),
        ("x", good["y"].as_str().unwrap()),
    ] {
        let mut key = good.clone();
        key[member] = value.into();
        others.push(key);
    }
    others.push(serde_json::json!({"kty": "oct", "k": "c2VjcmV0", "kid": "hmac"}));
    others.push(serde_json::json!("no key at all"));
    others.push(good);
    let mixed = Jwks::from_json(&serde_json::json!({ "keys": others, "extra": 1 }).to_string()).unwrap();
    assert_eq!(mixed.keys(), [a]);

    for text in ["", "[]", "{}", r#"{"keys":{}}"#, "<html>"] {
        assert!(Jwks::from_json(text).is_err(), "{text}");
    }
    assert!(Jwks::from_json(&" ".repeat(100_000)).is_err());
}

#[test]
fn the_thumbprint_is_rfc_7638() {
    // Computed independently with Python's hashlib over the canonical JSON.
    let set = Jwks::from_json(
        r#"{"keys":[{"kty":"EC","crv":"P-256",
            "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
            "kid":"oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U"}]}"#,
    );
    assert_eq!(set.unwrap().keys().len(), 1);
}

#[test]
fn wrong_private_keys_are_named() {
    assert_eq!(Signer::from_pkcs8_pem("").unwrap_err(), KeyError::NotPkcs8Pem);
    let pem = generate_key_pem().unwrap();
    let cut = pem.replacen("M", "A", 1);
    assert_eq!(Signer::from_pkcs8_pem(&cut).unwrap_err(), KeyError::NotP256);
    let signer = Signer::from_pkcs8_pem(&pem).unwrap();
    let shown = format!("{signer:?}");
    assert!(shown.contains(signer.kid()) && !shown.contains(pem.lines().nth(1).unwrap()));
}

/// For a cached token only the signature check is skipped.
#[test]
fn a_remembered_signature_ends_with_its_time_and_with_its_key() {
    let rig = Rig::new();
    let keyring = Keyring::with_signature_cache(16);
    let keys = Jwks::new([rig.signer.public_jwk()]);
    keyring.replace(&keys, at(NOW));
    let token = rig.good();
    let verify = |secs, grace| rig.verifier.verify(&token, &keyring, at(secs), grace);
    for _ in 0..2 {
        assert_eq!(verify(NOW, Grace::None).unwrap().claims, claims());
    }
    let late = NOW + 3600 + 30;
    assert!(matches!(
        verify(late, Grace::None),
        Err(TokenError::Expired { .. })
    ));
    assert!(verify(late, Grace::Reattach).unwrap().by_grace);
    keyring.confirm(at(NOW + 60));
    assert!(verify(NOW, Grace::None).is_ok());
    let other = Signer::from_pkcs8_pem(&generate_key_pem().unwrap()).unwrap();
    keyring.replace(&Jwks::new([other.public_jwk()]), at(NOW));
    assert!(matches!(verify(NOW, Grace::None), Err(TokenError::UnknownKid)));
    keyring.replace(&Jwks::default(), at(NOW));
    assert!(matches!(verify(NOW, Grace::None), Err(TokenError::UnknownKid)));
}
