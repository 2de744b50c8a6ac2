//! The negative corpus: every way to write a token that is not exactly ours,
//! most of them *truly signed with our key*, so that nothing but the check in
//! question refuses them.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod common;

use aws_lc_rs::hmac;
use common::{NOW, Rig, at, b64, claims, payload};
use proptest::prelude::*;
use session_core::Reason;
use session_token::{Grace, MAX_TOKEN_BYTES, TokenError};
use std::sync::LazyLock;

static RIG: LazyLock<Rig> = LazyLock::new(Rig::new);

/// Checks the refusal of every case, with all of them named on failure.
fn refused(cases: impl IntoIterator<Item = (String, String)>, reason: Reason) -> usize {
    let mut wrong = Vec::new();
    let mut count = 0;
    for (name, token) in cases {
        count += 1;
        for grace in [Grace::None, Grace::Reattach, Grace::Interrupt] {
            match RIG.verifier.verify(&token, &RIG.keyring, at(NOW + 60), grace) {
                Ok(_) => wrong.push(format!("{name}: ACCEPTED")),
                Err(error) if error.reason() != reason => wrong.push(format!("{name}: {error}")),
                Err(error) => {
                    let said = format!("{error} {error:?} {}", error.client_text());
                    let echoed = token.split('.').any(|part| part.len() > 8 && said.contains(part));
                    if echoed {
                        wrong.push(format!("{name}: echoes the token"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    count
}

/// A truly signed token whose header is ours with `"member": value` put in or replaced.
fn with_header(members: &[(&str, &str)]) -> String {
    let mut header: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&RIG.header()).unwrap();
    for (name, json) in members {
        header.insert((*name).to_owned(), serde_json::from_str(json).unwrap());
    }
    RIG.forge(&serde_json::to_string(&header).unwrap(), &payload())
}

fn with_claim(name: &str, json: &str) -> String {
    let mut claims: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&payload()).unwrap();
    claims.insert(name.to_owned(), serde_json::from_str(json).unwrap());
    RIG.forge(&RIG.header(), &serde_json::to_string(&claims).unwrap())
}

#[test]
fn the_forger_itself_makes_good_tokens() {
    assert!(RIG.check(&RIG.forge(&RIG.header(), &payload())).is_ok());
    assert!(RIG.check(&with_claim("epoch", "3")).is_ok());
    assert!(RIG.check(&with_header(&[])).is_ok());
}

#[test]
fn algorithms() {
    let mut cases = Vec::new();
    for alg in [
        "none",
        "None",
        "NONE",
        "nOnE",
        "",
        " ",
        "es256",
        "Es256",
        "ES256 ",
        " ES256",
        "ES256\\u0000",
        "HS256",
        "HS384",
        "HS512",
        "RS256",
        "RS512",
        "PS256",
        "ES384",
        "ES512",
        "ES256K",
        "EdDSA",
        "Ed25519",
    ] {
        cases.push((
            format!("alg {alg:?}"),
            with_header(&[("alg", &format!("\"{alg}\""))]),
        ));
    }
    // The classic: the public key, which everybody has, as an HMAC secret.
    let jwks = session_token::Jwks::new([RIG.signer.public_jwk()]).to_json();
    let point = {
        use aws_lc_rs::signature::KeyPair as _;
        RIG.raw.public_key().as_ref().to_vec()
    };
    for (name, secret) in [
        ("point", point),
        ("JWKS", jwks.into_bytes()),
        ("empty", Vec::new()),
    ] {
        for alg in ["HS256", "ES256"] {
            let header = RIG.header().replace("ES256", alg);
            let message = format!("{}.{}", b64(header), b64(payload()));
            let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
            let tag = hmac::sign(&key, message.as_bytes());
            let doubled = [tag.as_ref(), tag.as_ref()].concat();
            cases.push((
                format!("{alg} by HMAC with the {name}"),
                format!("{message}.{}", b64(doubled)),
            ));
        }
    }
    assert_eq!(refused(cases, Reason::TokenInvalid), 28);

    let header = RIG.header();
    let none = header.replace("ES256", "none");
    let unsigned = [
        (
            "none, empty signature",
            format!("{}.{}.", b64(&none), b64(payload())),
        ),
        ("none, two parts", format!("{}.{}", b64(&none), b64(payload()))),
        (
            "ES256, empty signature",
            format!("{}.{}.", b64(&header), b64(payload())),
        ),
        (
            "ES256, HMAC-sized signature",
            format!("{}.{}.{}", b64(&header), b64(payload()), b64([7; 32])),
        ),
        (
            "ES256, ES384-sized signature",
            format!("{}.{}.{}", b64(&header), b64(payload()), b64([7; 96])),
        ),
        (
            "ES256, DER signature",
            format!("{}.{}.{}", b64(&header), b64(payload()), b64([0x30; 71])),
        ),
    ];
    refused(
        unsigned.map(|(name, token)| (name.to_owned(), token)),
        Reason::TokenMalformed,
    );

    let zeros = [[0; 64], [0xff; 64]].map(|signature| {
        (
            "degenerate signature".to_owned(),
            format!("{}.{}.{}", b64(&header), b64(payload()), b64(signature)),
        )
    });
    refused(zeros, Reason::TokenInvalid);
}

#[test]
fn types_and_key_names() {
    let mut cases = Vec::new();
    for typ in [
        "JWT",
        "jwt",
        "",
        "at+jwt",
        "logout+jwt",
        "berth-session",
        "berth-session+JWT",
        "Berth-Session+jwt",
        "application/berth-session+jwt",
        "berth-session+jwt ",
        "berth-session+jws",
        "berth-caller+jwt",
    ] {
        cases.push((
            format!("typ {typ:?}"),
            with_header(&[("typ", &format!("\"{typ}\""))]),
        ));
    }
    let stranger = Rig::new().signer.kid().to_owned();
    let upper = RIG.signer.kid().to_uppercase();
    let long = "A".repeat(1000);
    for kid in [
        "",
        "0",
        "../../../../dev/null",
        "key' OR '1'='1",
        "https://evil.example/key",
        "\\u0000",
        "*",
        &long,
        &upper,
        &stranger,
    ] {
        cases.push((
            format!("kid {kid:?}"),
            with_header(&[("kid", &format!("\"{kid}\""))]),
        ));
    }
    assert_eq!(refused(cases, Reason::TokenInvalid), 22);
}

#[test]
fn header_members_that_are_not_ours() {
    let jwk = serde_json::to_string(&Rig::new().signer.public_jwk()).unwrap();
    let mut cases = Vec::new();
    for (name, value) in [
        ("crit", r#"["exp"]"#),
        ("crit", "[]"),
        ("crit", r#"["b64"]"#),
        ("b64", "false"),
        ("jwk", jwk.as_str()),
        ("jku", r#""https://evil.example/jwks.json""#),
        ("x5u", r#""https://evil.example/cert.pem""#),
        ("x5c", r#"["MIIB"]"#),
        ("x5t", r#""AAAA""#),
        ("x5t#S256", r#""AAAA""#),
        ("cty", r#""JWT""#),
        ("zip", r#""DEF""#),
        ("enc", r#""A256GCM""#),
        ("epk", "{}"),
        ("url", r#""https://evil.example""#),
        ("nonce", r#""n""#),
        ("iss", r#""https://evil.example""#),
        ("exp", "9999999999"),
        ("Alg", r#""none""#),
        ("", "1"),
        ("__proto__", "{}"),
        ("alg", "null"),
        ("alg", "256"),
        ("alg", r#"["ES256"]"#),
        ("typ", "null"),
        ("typ", r#"["berth-session+jwt"]"#),
        ("kid", "null"),
        ("kid", "1"),
        ("kid", "{}"),
    ] {
        cases.push((format!("header {name} = {value}"), with_header(&[(name, value)])));
    }
    let kid = RIG.signer.kid();
    for header in [
        format!(r#"{{"alg":"none","alg":"ES256","typ":"berth-session+jwt","kid":"{kid}"}}"#),
        format!(r#"{{"alg":"ES256","alg":"ES256","typ":"berth-session+jwt","kid":"{kid}"}}"#),
        format!(r#"{{"alg":"ES256","typ":"berth-session+jwt","kid":"x","kid":"{kid}"}}"#),
        format!(r#"{{"alg":"ES256","typ":"JWT","typ":"berth-session+jwt","kid":"{kid}"}}"#),
        format!(r#"{{"alg":"ES256","\u0061lg":"none","typ":"berth-session+jwt","kid":"{kid}"}}"#),
        format!(r#"{{"typ":"berth-session+jwt","kid":"{kid}"}}"#),
        format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#),
        r#"{"alg":"ES256","typ":"berth-session+jwt"}"#.to_owned(),
        format!(r#"["ES256","berth-session+jwt","{kid}"]"#),
        "{}".to_owned(),
        "null".to_owned(),
        String::new(),
        format!("{} ", RIG.header()) + "x",
        format!("\u{feff}{}", RIG.header()),
        format!(" {}", RIG.header()),
        RIG.header().replace('"', "'"),
        RIG.header().replace('}', ",}"),
        format!("{}{}", RIG.header(), RIG.header()),
        format!("{}/* */", RIG.header()),
    ] {
        cases.push((format!("header {header}"), RIG.forge(&header, &payload())));
    }
    let latin1: Vec<u8> = RIG
        .header()
        .replace("ES256", "ES256é")
        .chars()
        .map(|c| c as u8)
        .collect();
    cases.push((
        "header not UTF-8".to_owned(),
        RIG.sign_parts(&b64(latin1), &b64(payload())),
    ));
    assert_eq!(refused(cases, Reason::TokenMalformed), 49);
}

#[test]
fn claims_of_the_wrong_shape() {
    let good = payload();
    let iss = common::ISSUER;
    let mut cases = Vec::new();
    for name in [
        "iss", "aud", "sub", "org", "sid", "epoch", "iat", "nbf", "exp", "jti",
    ] {
        let mut map: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&good).unwrap();
        let value = map.remove(name).unwrap();
        cases.push((
            format!("no {name}"),
            RIG.forge(&RIG.header(), &serde_json::to_string(&map).unwrap()),
        ));
        cases.push((format!("{name} null"), with_claim(name, "null")));
        cases.push((format!("{name} array"), with_claim(name, &format!("[{value}]"))));
        cases.push((format!("{name} object"), with_claim(name, "{}")));
        cases.push((format!("{name} true"), with_claim(name, "true")));
        let doubled = good.replacen('{', &format!("{{\"{name}\":{value},"), 1);
        cases.push((format!("{name} twice"), RIG.forge(&RIG.header(), &doubled)));
    }
    for name in ["epoch", "iat", "nbf", "exp"] {
        for value in [
            "\"1790000000\"",
            "1790000000.0",
            "1790000000.5",
            "1.79e9",
            "-1",
            "-0.0",
            "1e400",
            "18446744073709551616",
            "\"\"",
        ] {
            let number = format!("\"{name}\":{value}");
            let old = serde_json::to_value(claims()).unwrap()[name].to_string();
            let text = good.replacen(&format!("\"{name}\":{old}"), &number, 1);
            cases.push((format!("{name} = {value}"), RIG.forge(&RIG.header(), &text)));
        }
    }
    for (name, value) in [
        ("iss", "5"),
        ("aud", "5"),
        ("sub", "\"\""),
        ("sub", "\"nobody\""),
        ("sub", "\"sa|\""),
        ("sub", "\"|x\""),
        ("sub", "\"sa|a\\nb\""),
        ("sub", &format!("\"sa|{}\"", "x".repeat(300))),
        ("org", "\"\""),
        ("org", "\"ACME\""),
        ("org", "\"a/b\""),
        ("sid", "\"\""),
        ("sid", "\"*\""),
        ("sid", "\"t-00000000000000000000\""),
        ("sid", "\"s-0000000000000000000\""),
        ("jti", "\"\""),
        ("jti", "\"s-00000000000000000000\""),
        ("role", "\"admin\""),
        ("sids", "[]"),
        ("", "1"),
    ] {
        cases.push((format!("{name} = {value}"), with_claim(name, value)));
    }
    for text in [
        "[]".to_owned(),
        "{}".to_owned(),
        "null".to_owned(),
        String::new(),
        "\"text\"".to_owned(),
        format!("[{good}]"),
        format!(" {good}"),
        format!("{good}{{}}"),
        format!("{good}\u{0}"),
        good.replacen('}', ",}", 1),
        good.replacen("{\"iss\"", &format!("{{\"\\u0069ss\":\"{iss}\",\"iss\""), 1),
        good.replacen(
            '{',
            &format!("{{\"x\":{}{},", "[".repeat(500), "]".repeat(500)),
            1,
        ),
        good.replacen(
            '{',
            &format!("{{\"x\":{}1{},", "{\"a\":".repeat(200), "}".repeat(200)),
            1,
        ),
        good.replacen("\"epoch\":3", "\"epoch\":03", 1),
        good.replacen("\"epoch\":3", "\"epoch\":+3", 1),
        good.replacen("\"epoch\":3", "\"epoch\":NaN", 1),
    ] {
        cases.push((format!("claims {text:.60}"), RIG.forge(&RIG.header(), &text)));
    }
    assert_eq!(refused(cases, Reason::TokenMalformed), 132);
}

#[test]
fn claims_of_the_wrong_value() {
    let mut cases = Vec::new();
    for iss in [
        "",
        "https://tokens.berth.example.com/",
        "https://TOKENS.berth.example.com",
        "https://evil.example",
    ] {
        cases.push((format!("iss {iss}"), with_claim("iss", &format!("\"{iss}\""))));
    }
    for aud in [
        "",
        "berth",
        "berth-spark ",
        "BERTH-SPARK",
        "berth-spark,other",
        "berth-api",
    ] {
        cases.push((format!("aud {aud}"), with_claim("aud", &format!("\"{aud}\""))));
    }
    for (name, value) in [
        ("exp", NOW + 12 * 3600 + 1),
        ("exp", u64::MAX),
        ("exp", NOW),
        ("exp", NOW - 1),
        ("exp", 0),
        ("iat", NOW + 91),
        ("iat", u64::MAX),
        ("iat", 0),
        ("nbf", NOW + 91),
        ("nbf", NOW + 3600),
        ("nbf", u64::MAX),
    ] {
        cases.push((format!("{name} = {value}"), with_claim(name, &value.to_string())));
    }
    assert_eq!(refused(cases, Reason::TokenInvalid), 21);

    // Strings that JSON escapes differently are the same text, and stay good.
    let escaped = payload().replacen("berth-spark", "berth\\u002dspark", 1);
    assert!(RIG.check(&RIG.forge(&RIG.header(), &escaped)).is_ok());
}

#[test]
fn encodings_and_serialisations() {
    let good = RIG.good();
    let [header, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else {
        panic!("three parts")
    };
    let mut cases: Vec<(String, String)> = [
        String::new(),
        ".".into(),
        "..".into(),
        "...".into(),
        "a.b.c".into(),
        "berth_sa_0123456789012345678901234567890123456789012".into(),
        format!(" {good}"),
        format!("{good} "),
        format!("{good}\n"),
        format!("{good}\0"),
        format!("{good}="),
        format!("{good}=="),
        format!("{good}."),
        format!(".{good}"),
        format!("{good}.x"),
        format!("{header}=.{claims}.{signature}"),
        format!("{header}..{signature}"),
        format!(".{claims}.{signature}"),
        format!("{header}.{claims}."),
        format!("{header}.{claims}"),
        format!("{header}\n.{claims}.{signature}"),
        format!("{header}. {claims}.{signature}"),
        format!("{header}.{claims}.{signature}A"),
        format!("{header}.{claims}.{}", &signature[1..]),
        format!("{header}.{claims}.{signature}.{claims}.{signature}"),
        format!("Bearer {good}"),
        format!("\"{good}\""),
        good.replace('.', "%2E"),
        good.replace('.', "。"),
        format!(r#"{{"payload":"{claims}","protected":"{header}","signature":"{signature}"}}"#),
        format!(
            r#"{{"payload":"{claims}","signatures":[{{"protected":"{header}","signature":"{signature}"}}]}}"#
        ),
        "A".repeat(MAX_TOKEN_BYTES + 1),
        "A".repeat(1 << 20),
        ".".repeat(1 << 20),
        format!("{good}{}", "A".repeat(1 << 20)),
        format!("{header}.{}.{signature}", "A".repeat(1 << 20)),
        "é".repeat(100),
    ]
    .into_iter()
    .map(|token| (format!("{token:.40}"), token))
    .collect();
    // The standard alphabet and stray trailing bits decode to the same bytes elsewhere.
    let last = signature.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let value = alphabet.find(last).unwrap();
    let stray = alphabet.chars().nth(value + 1).unwrap();
    let cut = &signature[..signature.len() - 1];
    cases.push(("stray bits".into(), format!("{header}.{claims}.{cut}{stray}")));
    for _ in 0..200 {
        let token = RIG.good();
        if token.contains(['-', '_']) {
            cases.push((
                "standard alphabet".into(),
                token.replace('-', "+").replace('_', "/"),
            ));
            break;
        }
    }
    assert_eq!(refused(cases, Reason::TokenMalformed), 39);
}

#[test]
fn parts_of_different_tokens_do_not_mix() {
    let mut other = claims();
    other.org = "evil".parse().unwrap();
    let (a, b) = (RIG.good(), RIG.signer.sign(&other).unwrap());
    let a: Vec<_> = a.split('.').collect();
    let b: Vec<_> = b.split('.').collect();
    let stranger = Rig::new();
    let foreign = stranger.forge(&RIG.header(), &payload());
    let cases = [
        (
            "claims of one, signature of the other",
            [a[0], b[1], a[2]].join("."),
        ),
        (
            "signature of one, claims of the other",
            [b[0], a[1], b[2]].join("."),
        ),
        ("a stranger's signature under our kid", foreign),
        ("a stranger's token", stranger.good()),
    ];
    refused(
        cases.map(|(name, token)| (name.to_owned(), token)),
        Reason::TokenInvalid,
    );
}

/// What a single change of a good token may lead to.
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
