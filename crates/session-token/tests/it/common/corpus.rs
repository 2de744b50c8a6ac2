//! The negative corpus: all forms of tokens that are not exactly session tokens, most
//! of them *signed with our key*, so that only the check under test can reject them.
//! The tests of the verifier and of the proxy use the same rows.

use super::{ISSUER, NOW, Rig, b64, claims, payload};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use session_core::Reason;
use session_token::MAX_TOKEN_BYTES;
use std::collections::BTreeSet;
use std::sync::LazyLock;

pub(crate) static RIG: LazyLock<Rig> = LazyLock::new(Rig::new);

/// A token that must be rejected, and the reason.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) token: String,
    pub(crate) reason: Reason,
}

/// The bytes before the point of a P-256 key in SubjectPublicKeyInfo.
const SPKI_OF_P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

#[derive(Default)]
struct Rows(Vec<Row>);

impl Rows {
    fn add(&mut self, cases: impl IntoIterator<Item = (String, String)>, reason: Reason) -> usize {
        let before = self.0.len();
        let rows = cases.into_iter().map(|(name, token)| Row { name, token, reason });
        self.0.extend(rows);
        self.0.len() - before
    }
}

/// All rows, each token once.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Rows::default();
    for add in [
        algorithms,
        types_and_key_names,
        header_members_that_are_not_ours,
        claims_of_the_wrong_shape,
        claims_of_the_wrong_value,
        encodings_and_serialisations,
        parts_of_different_tokens_do_not_mix,
        signatures,
        tokens_of_others,
    ] {
        add(&mut rows);
    }
    let mut seen = BTreeSet::new();
    rows.0.retain(|row| seen.insert(row.token.clone()));
    rows.0
}

/// A correctly signed token whose header is ours with `"member": value` added or
/// replaced.
pub(crate) fn with_header(members: &[(&str, &str)]) -> String {
    let mut header: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&RIG.header()).unwrap();
    for (name, json) in members {
        header.insert((*name).to_owned(), serde_json::from_str(json).unwrap());
    }
    RIG.forge(&serde_json::to_string(&header).unwrap(), &payload())
}

pub(crate) fn with_claim(name: &str, json: &str) -> String {
    let mut claims: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&payload()).unwrap();
    claims.insert(name.to_owned(), serde_json::from_str(json).unwrap());
    RIG.forge(&RIG.header(), &serde_json::to_string(&claims).unwrap())
}

fn algorithms(rows: &mut Rows) {
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
        "RS384",
        "PS256",
        "PS384",
        "PS512",
        "ES256 none",
        "ES256,none",
        "dir",
        "HS1",
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
    // Algorithm confusion: the public key as an HMAC secret.
    let jwks = session_token::Jwks::new([RIG.signer.public_jwk()]).to_json();
    let point = RIG.raw.public_key().as_ref().to_vec();
    let der = [SPKI_OF_P256, &point].concat();
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        STANDARD.encode(&der)
    );
    let jwk = serde_json::to_vec(&RIG.signer.public_jwk()).unwrap();
    for (name, secret) in [
        ("point", point),
        ("JWKS", jwks.into_bytes()),
        ("JWK", jwk),
        ("DER", der),
        (
            "PEM without its last line end",
            pem.trim_end().as_bytes().to_vec(),
        ),
        ("PEM", pem.into_bytes()),
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
    assert_eq!(rows.add(cases, Reason::TokenInvalid), 43);

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
    rows.add(
        unsigned.map(|(name, token)| (name.to_owned(), token)),
        Reason::TokenMalformed,
    );

    let zeros = [[0; 64], [0xff; 64]].map(|signature| {
        (
            "degenerate signature".to_owned(),
            format!("{}.{}.{}", b64(&header), b64(payload()), b64(signature)),
        )
    });
    rows.add(zeros, Reason::TokenInvalid);
}

fn types_and_key_names(rows: &mut Rows) {
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
    assert_eq!(rows.add(cases, Reason::TokenInvalid), 22);
}

fn header_members_that_are_not_ours(rows: &mut Rows) {
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
    assert_eq!(rows.add(cases, Reason::TokenMalformed), 49);
}

fn claims_of_the_wrong_shape(rows: &mut Rows) {
    let good = payload();
    let iss = ISSUER;
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
    assert_eq!(rows.add(cases, Reason::TokenMalformed), 132);
}

fn claims_of_the_wrong_value(rows: &mut Rows) {
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
    assert_eq!(rows.add(cases, Reason::TokenInvalid), 21);
}

fn encodings_and_serialisations(rows: &mut Rows) {
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
    assert_eq!(rows.add(cases, Reason::TokenMalformed), 39);
}

fn parts_of_different_tokens_do_not_mix(rows: &mut Rows) {
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
    rows.add(
        cases.map(|(name, token)| (name.to_owned(), token)),
        Reason::TokenInvalid,
    );
}

/// Order of the P-256 group.
pub(crate) const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
    0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

/// `a - b`, or `a + b`, as 32-byte numbers; and whether it fits.
pub(crate) fn arithmetic(a: &[u8], b: &[u8], plus: bool) -> (Vec<u8>, bool) {
    let mut carry = 0_i32;
    let mut out = vec![0; 32];
    for i in (0..32).rev() {
        let (a, b) = (i32::from(a[i]), i32::from(b[i]));
        let sum = if plus { a + b + carry } else { a - b + carry };
        out[i] = u8::try_from(sum.rem_euclid(256)).unwrap();
        carry = sum.div_euclid(256);
    }
    (out, carry == 0)
}

/// The three parts of a valid token, with the signature as two numbers.
pub(crate) fn taken_apart() -> (String, Vec<u8>, Vec<u8>) {
    let good = RIG.good();
    let (message, signature) = good.rsplit_once('.').unwrap();
    let signature = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(signature)
        .unwrap();
    (
        message.to_owned(),
        signature[..32].to_vec(),
        signature[32..].to_vec(),
    )
}

fn signatures(rows: &mut Rows) {
    let (message, r, s) = taken_apart();
    let with = |r: &[u8], s: &[u8]| format!("{message}.{}", b64([r, s].concat()));
    let (zero, one, most) = ([0; 32], arithmetic(&[0; 32], &ORDER, true).0, [0xff; 32]);
    let mut unit = [0; 32];
    unit[31] = 1;
    let mut cases = vec![
        ("r is zero".to_owned(), with(&zero, &s)),
        ("s is zero".to_owned(), with(&r, &zero)),
        ("r is the order".to_owned(), with(&one, &s)),
        ("s is the order".to_owned(), with(&r, &one)),
        ("r is all ones".to_owned(), with(&most, &s)),
        ("s is all ones".to_owned(), with(&r, &most)),
        ("r and s are one".to_owned(), with(&unit, &unit)),
        ("r and s are swapped".to_owned(), with(&s, &r)),
        ("r twice".to_owned(), with(&r, &r)),
        (
            "s mirrored in r".to_owned(),
            with(&arithmetic(&ORDER, &r, false).0, &s),
        ),
    ];
    // Beyond the order, if it fits: the same number for verifiers that reduce it.
    for (name, value, first) in [("r", &r, true), ("s", &s, false)] {
        let (beyond, fits) = arithmetic(value, &ORDER, true);
        if fits {
            let token = if first {
                with(&beyond, &s)
            } else {
                with(&r, &beyond)
            };
            cases.push((format!("{name} plus the order"), token));
        }
    }
    rows.add(cases, Reason::TokenInvalid);

    let der = |r: &[u8], s: &[u8]| {
        let number = |value: &[u8]| {
            let padded = if value[0] > 0x7f {
                [&[0], value].concat()
            } else {
                value.to_vec()
            };
            [&[2, u8::try_from(padded.len()).unwrap()], padded.as_slice()].concat()
        };
        let both = [number(r), number(s)].concat();
        [&[0x30, u8::try_from(both.len()).unwrap()], both.as_slice()].concat()
    };
    let raw = [r.clone(), s.clone()].concat();
    let cases = [
        ("the very signature as DER", der(&r, &s)),
        ("cut by a byte", raw[..63].to_vec()),
        ("cut to r", r.clone()),
        ("a zero before", [&[0], raw.as_slice()].concat()),
        ("a zero after", [raw.as_slice(), &[0]].concat()),
        ("twice", [raw.clone(), raw.clone()].concat()),
        ("with the uncompressed mark", [&[4], raw.as_slice()].concat()),
    ];
    rows.add(
        cases.map(|(name, bytes)| (format!("signature {name}"), format!("{message}.{}", b64(bytes)))),
        Reason::TokenMalformed,
    );
}

/// Other kinds of tokens, of Berth and of others.
fn tokens_of_others(rows: &mut Rows) {
    let kid = RIG.signer.kid().to_owned();
    let idp = |typ: &str| {
        let header = format!(r#"{{"alg":"ES256","typ":"{typ}","kid":"{kid}"}}"#);
        let claims = format!(
            r#"{{"iss":"{ISSUER}","aud":["berth","account"],"sub":"f:1:ada","azp":"berth","scope":"openid","exp":{},"iat":{NOW}}}"#,
            NOW + 3600
        );
        RIG.forge(&header, &claims)
    };
    let good = RIG.good();
    let nested = |payload: &str| RIG.sign_parts(&b64(RIG.header()), &b64(payload));
    let [header, claims_part, signature] = good.split('.').collect::<Vec<_>>()[..] else {
        panic!("three parts")
    };
    let cases = [
        ("an identity token", idp("JWT")),
        ("an access token of an identity provider", idp("at+jwt")),
        ("an identity token that says it is ours", idp("berth-session+jwt")),
        ("a token in a token", nested(&good)),
        ("a token in a token, as JSON text", nested(&format!("\"{good}\""))),
        (
            "a JWE by its five parts",
            format!("{header}..{claims_part}.{signature}.{signature}"),
        ),
        (
            "four parts",
            format!("{header}.{claims_part}.{signature}.{signature}"),
        ),
        ("detached claims", format!("{header}..{signature}")),
        (
            "a byte order mark before the claims",
            RIG.forge(&RIG.header(), &format!("\u{feff}{}", payload())),
        ),
        ("a byte order mark before all", format!("\u{feff}{good}")),
        (
            "a lookalike of alg",
            RIG.forge(&RIG.header().replace("alg", "\u{430}lg"), &payload()),
        ),
        (
            "a lookalike of sid",
            RIG.forge(&RIG.header(), &payload().replace("\"sid\"", "\"s\u{456}d\"")),
        ),
        (
            "UTF-16",
            RIG.sign_parts(&b64(utf16(&RIG.header())), &b64(utf16(&payload()))),
        ),
        ("tabs between", format!("{header}.\t{claims_part}.{signature}")),
        ("a URL fragment", format!("{good}#x")),
        ("a query", format!("{good}?x=1")),
        ("a semicolon", format!("{good};x-session-id=s")),
        ("a PASETO", "v4.public.eyJzdWIiOiJhZGEifQ".to_owned()),
        ("upper case", good.to_uppercase()),
        (
            "JSON as CBOR",
            RIG.sign_parts(
                &b64(RIG.header()),
                &b64([0xa1, 0x63, 0x69, 0x73, 0x73, 0x61, 0x61]),
            ),
        ),
    ];
    rows.add(
        cases.map(|(name, token)| (name.to_owned(), token)),
        Reason::TokenMalformed,
    );
    let stranger = Rig::new();
    let foreign_header = stranger.header();
    let cases = [
        (
            "a stranger's key under his own name",
            stranger.forge(&foreign_header, &payload()),
        ),
        (
            "our signature under a stranger's name",
            RIG.forge(&foreign_header, &payload()),
        ),
    ];
    rows.add(
        cases.map(|(name, token)| (name.to_owned(), token)),
        Reason::TokenInvalid,
    );
    let mut mine = claims();
    mine.aud = "berth-api".to_owned();
    let other_use = RIG.signer.sign(&mine).unwrap();
    rows.add(
        [("our token for another use".to_owned(), other_use)],
        Reason::TokenInvalid,
    );
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}
