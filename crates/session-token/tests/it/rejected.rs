//! Rejected tokens: the negative corpus, and random changes of valid tokens.

use crate::common::corpus::{ORDER, RIG, arithmetic, rows, taken_apart, with_claim, with_header};
use crate::common::{NOW, at, b64, claims, payload};
use proptest::prelude::*;
use session_token::{Grace, Jwks, Keyring, TokenError};

/// Every row; lists all failures.
#[test]
fn every_row_of_the_corpus_is_refused_for_its_own_reason() {
    let rows = rows();
    assert!(rows.len() >= 300, "{} rows", rows.len());
    // Also by a verifier with a signature cache that contains the valid token.
    let remembering = Keyring::with_signature_cache(64);
    remembering.replace(&Jwks::new([RIG.signer.public_jwk()]), at(NOW));
    let good = RIG
        .verifier
        .verify(&RIG.good(), &remembering, at(NOW + 60), Grace::None);
    assert!(good.is_ok());
    let mut wrong = Vec::new();
    for (row, keyring) in rows
        .iter()
        .flat_map(|row| [(row, &RIG.keyring), (row, &remembering)])
    {
        for grace in [Grace::None, Grace::Reattach, Grace::Interrupt] {
            match RIG.verifier.verify(&row.token, keyring, at(NOW + 60), grace) {
                Ok(_) => wrong.push(format!("{}: ACCEPTED", row.name)),
                Err(error) if error.reason() != row.reason => wrong.push(format!("{}: {error}", row.name)),
                Err(error) => {
                    let said = format!("{error} {error:?} {}", error.client_text());
                    let echoed = row
                        .token
                        .split('.')
                        .any(|part| part.len() > 8 && said.contains(part));
                    if echoed {
                        wrong.push(format!("{}: echoes the token", row.name));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// (r, n - s) is as valid a signature as (r, s) in ECDSA. It is another text of the
/// same token: same claims, same `jti`, so it is revoked with it.
#[test]
fn the_mirrored_signature_is_the_same_token() {
    let (message, r, s) = taken_apart();
    let mirrored = arithmetic(&ORDER, &s, false).0;
    let verified = RIG
        .check(&format!("{message}.{}", b64([r, mirrored].concat())))
        .unwrap();
    assert_eq!(verified.claims, claims());
}

#[test]
fn texts_may_be_escaped_and_stay_the_same() {
    let escaped = payload().replacen("berth-spark", "berth\\u002dspark", 1);
    assert!(RIG.check(&RIG.forge(&RIG.header(), &escaped)).is_ok());
}

#[test]
fn the_forger_itself_makes_good_tokens() {
    assert!(RIG.check(&RIG.forge(&RIG.header(), &payload())).is_ok());
    assert!(RIG.check(&with_claim("epoch", "3")).is_ok());
    assert!(RIG.check(&with_header(&[])).is_ok());
}

/// Possible results of a single change of a valid token.
fn unharmed(token: &str) -> Result<(), TestCaseError> {
    match RIG.check(token) {
        Ok(verified) => prop_assert_eq!(verified.claims, claims(), "accepted with other claims"),
        Err(TokenError::Expired { .. }) => prop_assert!(false, "an unverified time was believed"),
        Err(_) => {}
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_changed_byte_is_refused(place in any::<prop::sample::Index>(), byte in 0_u8..128) {
        let good = RIG.good();
        let mut bytes = good.clone().into_bytes();
        let place = place.index(bytes.len());
        prop_assume!(bytes[place] != byte);
        bytes[place] = byte;
        let token = String::from_utf8(bytes).unwrap();
        prop_assert!(RIG.check(&token).is_err());
        unharmed(&token)?;
    }

    #[test]
    fn cutting_doubling_and_inserting_is_refused(
        from in any::<prop::sample::Index>(),
        len in 1_usize..40,
        insert in "[A-Za-z0-9_.=-]{0,8}",
    ) {
        let good = RIG.good();
        let from = from.index(good.len());
        let to = (from + len).min(good.len());
        let changed = format!("{}{insert}{}", &good[..from], &good[to..]);
        prop_assume!(changed != good);
        unharmed(&changed)?;
        let doubled = format!("{}{}", &good[..to], &good[from..]);
        prop_assert!(RIG.check(&doubled).is_err());
    }

    #[test]
    fn no_text_makes_the_verifier_panic(text in ".{0,200}", json in "\\{\"[a-z\":,0-9\\[\\]{}]{0,60}") {
        prop_assert!(RIG.check(&text).is_err());
        prop_assert!(RIG.check(&RIG.forge(&RIG.header(), &json)).is_err());
        prop_assert!(RIG.check(&RIG.forge(&json, &payload())).is_err());
    }
}
