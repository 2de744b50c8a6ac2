//! The negative corpus of external tokens: signed ones that differ from a valid one in
//! one detail, and forged ones.

mod providers;

use crate::common::{NOW, Rig, at, b64};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair, RsaPublicKeyComponents,
};
use serde_json::{Value, json};
use session_token::{
    ExternalAlgorithm, ExternalClaims, ExternalError, ExternalKeys, ExternalRules, ExternalVerifier,
    JwksError, MAX_EXTERNAL_TOKEN_BYTES, external_issuer_of,
};
use std::sync::LazyLock;
use std::time::Duration;

const ISSUER: &str = "https://login.example.org/tenant";

/// An identity provider with a key of every type.
struct Idp {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

static IDP: LazyLock<Idp> = LazyLock::new(|| {
    let ec = |algorithm| EcdsaKeyPair::generate(algorithm).unwrap();
    Idp {
        rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
        p256: ec(&ECDSA_P256_SHA256_FIXED_SIGNING),
        p384: ec(&ECDSA_P384_SHA384_FIXED_SIGNING),
        ed: Ed25519KeyPair::generate().unwrap(),
    }
});

impl Idp {
    fn rsa_jwk(&self, kid: &str) -> Value {
        let parts = RsaPublicKeyComponents::<Vec<u8>>::from(self.rsa.public_key());
        json!({"kty": "RSA", "kid": kid, "n": b64(parts.n), "e": b64(parts.e)})
    }

    fn ec_jwk(key: &EcdsaKeyPair, kid: &str, crv: &str) -> Value {
        let point = &key.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        json!({"kty": "EC", "kid": kid, "crv": crv, "x": b64(x), "y": b64(y)})
    }

    fn keys(&self) -> Vec<Value> {
        let mut ps = self.rsa_jwk("ps");
        ps["alg"] = json!("PS256");
        vec![
            self.rsa_jwk("rsa"),
            ps,
            Self::ec_jwk(&self.p256, "p256", "P-256"),
            Self::ec_jwk(&self.p384, "p384", "P-384"),
            json!({"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": b64(self.ed.public_key().as_ref())}),
        ]
    }

    fn sign(&self, alg: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let rsa = |padding| {
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(padding, &random, message, &mut signature).unwrap();
            signature
        };
        match alg {
            "RS256" => rsa(&RSA_PKCS1_SHA256),
            "PS256" => rsa(&RSA_PSS_SHA256),
            "ES384" => self.p384.sign(&random, message).unwrap().as_ref().to_vec(),
            "EdDSA" => self.ed.sign(message).as_ref().to_vec(),
            _ => self.p256.sign(&random, message).unwrap().as_ref().to_vec(),
        }
    }

    /// Any two texts, correctly signed.
    fn forge(&self, signed_with: &str, header: &str, payload: &str) -> String {
        let message = format!("{}.{}", b64(header), b64(payload));
        let signature = self.sign(signed_with, message.as_bytes());
        format!("{message}.{}", b64(signature))
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let alg = header["alg"].as_str().unwrap_or("ES256");
        self.forge(alg, &header.to_string(), &claims.to_string())
    }
}

fn header() -> Value {
    json!({"alg": "ES256", "typ": "JWT", "kid": "p256"})
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "berth", "sub": "ada", "iat": NOW, "exp": NOW + 3600,
        "org": "acme", "groups": ["data", {"deep": [1, null, 1.5]}],
    })
}

fn changed(mut value: Value, name: &str, to: Value) -> Value {
    value[name] = to;
    value
}

fn without(mut value: Value, name: &str) -> Value {
    value.as_object_mut().unwrap().remove(name);
    value
}

fn rules() -> ExternalRules {
    ExternalRules {
        issuer: ISSUER.to_owned(),
        audiences: vec!["berth".to_owned(), "berth-too".to_owned()],
        other_audiences: false,
        authorized_parties: Vec::new(),
        algorithms: ExternalAlgorithm::ALL.to_vec(),
        leeway: Duration::from_secs(30),
        max_ttl: Duration::from_secs(24 * 3600),
    }
}

fn verifier(rules: ExternalRules) -> ExternalVerifier {
    let verifier = ExternalVerifier::new(rules);
    let set = json!({"keys": IDP.keys()}).to_string();
    verifier.replace(ExternalKeys::from_json(&set).unwrap());
    verifier
}

fn check(token: &str) -> Result<ExternalClaims, ExternalError> {
    verifier(rules()).verify(token, at(NOW + 60))
}

/// Verifies that all are rejected; lists all failures.
fn refused(cases: impl IntoIterator<Item = (String, String)>) -> usize {
    let mut wrong = Vec::new();
    let mut count = 0;
    for (name, token) in cases {
        count += 1;
        match check(&token) {
            Ok(_) => wrong.push(format!("{name}: ACCEPTED")),
            Err(error) => {
                let said = format!("{error} {error:?}");
                if token.split('.').any(|part| part.len() > 8 && said.contains(part)) {
                    wrong.push(format!("{name}: echoes the token"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    count
}

#[test]
fn good_tokens_of_every_kind_are_accepted() {
    for (alg, kid) in [
        ("RS256", "rsa"),
        ("PS256", "rsa"),
        ("PS256", "ps"),
        ("ES256", "p256"),
        ("ES384", "p384"),
        ("EdDSA", "ed"),
    ] {
        for typ in [json!("JWT"), json!("at+jwt"), json!("application/AT+JWT")] {
            let header = json!({"alg": alg, "kid": kid, "typ": typ, "x5t": "abc"});
            let good = check(&IDP.token(&header, &claims())).unwrap();
            assert_eq!((good.subject.as_str(), good.expires_at), ("ada", at(NOW + 3600)));
            assert_eq!(good.all["groups"][0], "data");
        }
    }
    let plain = IDP.token(&without(header(), "typ"), &claims());
    assert!(check(&plain).is_ok());
    assert_eq!(external_issuer_of(&plain).as_deref(), Ok(ISSUER));
}

#[test]
fn algorithms_are_the_keys_not_the_headers() {
    let mut cases = Vec::new();
    for alg in [
        "none", "None", "NONE", "nOnE", "", " ", "es256", "ES256 ", "HS256", "HS384", "HS512", "RS1",
        "ES512", "ES256K", "Ed25519", "RSA-OAEP", "dir",
    ] {
        for kid in ["rsa", "p256", "ed"] {
            let header = json!({"alg": alg, "typ": "JWT", "kid": kid});
            let message = format!("{}.{}", b64(header.to_string()), b64(claims().to_string()));
            cases.push((format!("{alg:?} unsigned, {kid}"), format!("{message}.")));
            let signature = b64(IDP.sign("ES256", message.as_bytes()));
            cases.push((format!("{alg:?} signed, {kid}"), format!("{message}.{signature}")));
        }
    }
    // Valid signature, wrong type of key.
    for (alg, kid) in [
        ("RS256", "ps"),
        ("RS256", "p256"),
        ("RS256", "ed"),
        ("ES256", "p384"),
        ("ES256", "rsa"),
        ("ES384", "p256"),
        ("EdDSA", "p256"),
        ("PS256", "ed"),
    ] {
        let header = json!({"alg": alg, "kid": kid});
        cases.push((format!("{alg} with the key {kid}"), IDP.token(&header, &claims())));
    }
    // Algorithm confusion: a public key as an HMAC secret.
    let spki = IDP.rsa.public_key().as_der().unwrap().as_ref().to_vec();
    for (name, secret) in [
        ("modulus", b64("x").into_bytes()),
        ("spki", spki.clone()),
        (
            "pem",
            format!("-----BEGIN PUBLIC KEY-----\n{}", b64(spki)).into_bytes(),
        ),
        ("jwk", IDP.rsa_jwk("rsa").to_string().into_bytes()),
        ("empty", Vec::new()),
    ] {
        for alg in ["HS256", "RS256", "ES256"] {
            let header = json!({"alg": alg, "kid": "rsa"});
            let message = format!("{}.{}", b64(header.to_string()), b64(claims().to_string()));
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), message.as_bytes());
            cases.push((
                format!("{alg} by HMAC with the {name}"),
                format!("{message}.{}", b64(tag)),
            ));
        }
    }
    assert_eq!(refused(cases), 125);
}

#[test]
fn an_algorithm_that_is_not_configured_is_refused_whatever_the_key_allows() {
    let verifier = verifier(ExternalRules {
        algorithms: vec![ExternalAlgorithm::Ps256],
        ..rules()
    });
    let token = |alg: &str| IDP.token(&json!({"alg": alg, "kid": "rsa"}), &claims());
    assert!(verifier.verify(&token("PS256"), at(NOW)).is_ok());
    assert_eq!(
        verifier.verify(&token("RS256"), at(NOW)),
        Err(ExternalError::Invalid("its alg is not allowed"))
    );
}

#[test]
fn headers() {
    let mut cases = Vec::new();
    for name in [
        "crit", "jwk", "jku", "x5u", "x5c", "b64", "zip", "enc", "epk", "apu", "iss", "sub", "aud",
    ] {
        for value in [json!("x"), json!(null), json!(["exp"])] {
            let title = format!("{name} = {value}");
            cases.push((title, IDP.token(&changed(header(), name, value), &claims())));
        }
    }
    for typ in [
        json!("berth-session+jwt"),
        json!("logout+jwt"),
        json!("dpop+jwt"),
        json!("JWE"),
        json!(""),
        json!("JWT "),
        json!(1),
        json!(null),
        json!(["JWT"]),
    ] {
        cases.push((
            format!("typ {typ}"),
            IDP.token(&changed(header(), "typ", typ), &claims()),
        ));
    }
    for kid in [
        json!(""),
        json!("P256"),
        json!("p256 "),
        json!("../p256"),
        json!("p256\u{0}"),
        json!("' or 1=1"),
        json!("https://evil.example/key"),
        json!("x".repeat(257)),
        json!(1),
        json!(null),
        json!(["p256"]),
        json!({"p256": 1}),
    ] {
        cases.push((
            format!("kid {kid}"),
            IDP.token(&changed(header(), "kid", kid), &claims()),
        ));
    }
    for name in ["alg", "kid"] {
        cases.push((
            format!("no {name}"),
            IDP.token(&without(header(), name), &claims()),
        ));
    }
    for doubled in [
        r#"{"alg":"ES256","kid":"p256","kid":"p256"}"#,
        r#"{"alg":"none","alg":"ES256","kid":"p256"}"#,
        r#"{"alg":"ES256","\u0061lg":"ES256","kid":"p256"}"#,
        r#"["ES256","p256"]"#,
        r#"{"alg":"ES256","kid":"p256"}x"#,
        r#"{"alg":"ES256","kid":"p256""#,
        "",
    ] {
        cases.push((
            format!("header {doubled}"),
            IDP.forge("ES256", doubled, &claims().to_string()),
        ));
    }
    assert_eq!(refused(cases), 69);
    for (name, value) in [
        ("x5t", json!("abc")),
        ("x5t#S256", json!("abc")),
        ("pi.atm", json!("2")),
        ("cty", json!("JSON")),
        ("ver", json!("1.0")),
        ("nonce", json!("n")),
        ("url", json!("https://evil.example/key")),
        ("", json!([{"deep": null}])),
        ("iss", json!(ISSUER)),
        ("sub", json!("ada")),
        ("aud", json!("berth")),
    ] {
        let token = IDP.token(&changed(header(), name, value), &claims());
        assert!(check(&token).is_ok(), "{name}: {:?}", check(&token));
    }
    let mixed_up = IDP.token(&changed(header(), "typ", json!("berth-session+jwt")), &claims());
    assert_eq!(check(&mixed_up), Err(ExternalError::SessionToken));
    assert_eq!(
        check(&Rig::new().good()),
        Err(ExternalError::SessionToken),
        "a real one"
    );
    assert_eq!(
        external_issuer_of(&Rig::new().good()),
        Err(ExternalError::SessionToken)
    );
    let unknown = IDP.token(&changed(header(), "kid", json!("new")), &claims());
    assert_eq!(check(&unknown), Err(ExternalError::UnknownKid));
}

#[test]
fn issuers_and_audiences() {
    let mut cases = Vec::new();
    for iss in [
        json!("https://login.example.org/tenant/"),
        json!("https://login.example.org"),
        json!("HTTPS://login.example.org/tenant"),
        json!("https://login.example.org/tenant\u{0}"),
        json!("http://login.example.org/tenant"),
        json!(""),
        json!(1),
        json!(null),
        json!([ISSUER]),
    ] {
        cases.push((
            format!("iss {iss}"),
            IDP.token(&header(), &changed(claims(), "iss", iss)),
        ));
    }
    for aud in [
        json!("other"),
        json!("Berth"),
        json!("berth "),
        json!("berth,other"),
        json!(""),
        json!([]),
        json!(["other"]),
        json!(["berth", "other"]),
        json!(["berth", 1]),
        json!([["berth"]]),
        json!({"berth": true}),
        json!(1),
        json!(null),
        json!(vec!["berth"; 501]),
    ] {
        cases.push((
            format!("aud {aud}"),
            IDP.token(&header(), &changed(claims(), "aud", aud)),
        ));
    }
    for azp in [json!(1), json!(null), json!(["web"])] {
        cases.push((
            format!("azp {azp}"),
            IDP.token(&header(), &changed(claims(), "azp", azp)),
        ));
    }
    assert_eq!(refused(cases), 26);
    for aud in [
        json!(["berth"]),
        json!(["berth", "berth-too"]),
        json!("berth-too"),
    ] {
        assert!(check(&IDP.token(&header(), &changed(claims(), "aud", aud))).is_ok());
    }
}

#[test]
fn other_audiences_and_clients_by_rule() {
    let token = |more: &[(&str, Value)]| {
        let all = more
            .iter()
            .fold(claims(), |all, (name, value)| changed(all, name, value.clone()));
        IDP.token(&header(), &all)
    };
    let lenient = verifier(ExternalRules {
        other_audiences: true,
        ..rules()
    });
    let with_others = ("aud", json!(["account", "berth"]));
    assert!(lenient.verify(&token(&[with_others]), at(NOW)).is_ok());
    assert!(
        lenient
            .verify(&token(&[("aud", json!(["account"]))]), at(NOW))
            .is_err()
    );

    let pinned = verifier(ExternalRules {
        authorized_parties: vec!["web".to_owned()],
        ..rules()
    });
    assert!(pinned.verify(&token(&[("azp", json!("web"))]), at(NOW)).is_ok());
    assert!(
        pinned
            .verify(&token(&[("client_id", json!("web"))]), at(NOW))
            .is_ok()
    );
    for wrong in [
        vec![],
        vec![("azp", json!("Web"))],
        vec![("azp", json!(""))],
        vec![("azp", json!("evil")), ("client_id", json!("web"))],
        vec![("client_id", json!("evil"))],
        vec![("client_id", json!(["web"]))],
    ] {
        assert!(pinned.verify(&token(&wrong), at(NOW)).is_err(), "{wrong:?}");
    }
}

#[test]
fn subjects_and_times() {
    let mut cases = Vec::new();
    for name in ["iss", "aud", "sub", "exp"] {
        cases.push((
            format!("no {name}"),
            IDP.token(&header(), &without(claims(), name)),
        ));
    }
    for sub in [
        json!(""),
        json!("a\nb"),
        json!("\u{1b}[31m"),
        json!("x".repeat(201)),
        json!(1),
        json!(null),
        json!(["ada"]),
    ] {
        cases.push((
            format!("sub {sub}"),
            IDP.token(&header(), &changed(claims(), "sub", sub)),
        ));
    }
    let far = u64::MAX;
    for (name, value) in [
        ("exp", json!(NOW + 24 * 3600 + 1)),
        ("exp", json!(far)),
        ("exp", json!(1e300)),
        ("exp", json!(NOW)),
        ("exp", json!(NOW - 1)),
        ("exp", json!(0)),
        ("exp", json!(-1)),
        ("exp", json!((NOW + 100).to_string())),
        ("exp", json!(1e18)),
        ("exp", json!(null)),
        ("exp", json!([NOW + 100])),
        ("iat", json!(NOW + 91)),
        ("iat", json!(far)),
        ("iat", json!(-1)),
        ("iat", json!("now")),
        ("iat", json!(NOW - 24 * 3600)),
        ("nbf", json!(NOW + 91)),
        ("nbf", json!(far)),
        ("nbf", json!("0")),
        ("nbf", json!(null)),
        // Rounded to the strict side.
        ("iat", json!(1_790_000_090.001)),
        ("nbf", json!(1_790_000_090.001)),
        ("exp", json!(1_790_086_400.001)),
        ("exp", json!(1_789_999_999.999)),
    ] {
        let title = format!("{name} {value}");
        cases.push((title, IDP.token(&header(), &changed(claims(), name, value))));
    }
    assert_eq!(refused(cases), 35);

    let good = IDP.token(&header(), &claims());
    let at_the_end = |seconds| verifier(rules()).verify(&good, at(NOW + 3600 + seconds));
    assert!(at_the_end(29).is_ok());
    assert_eq!(at_the_end(30), Err(ExternalError::Expired { at: at(NOW + 3600) }));
    let early = IDP.token(&header(), &changed(claims(), "nbf", json!(NOW + 90)));
    assert!(check(&early).is_ok(), "within the leeway");
}

#[test]
fn nothing_is_said_of_the_time_of_a_token_that_is_not_truly_signed() {
    let good = IDP.token(&header(), &claims());
    let (message, _) = good.rsplit_once('.').unwrap();
    let forged = format!("{message}.{}", b64([7; 64]));
    let late = verifier(rules()).verify(&forged, at(NOW + 999_999));
    assert_eq!(late, Err(ExternalError::Invalid("the signature does not match")));
}

#[test]
fn forms() {
    // A signature whose base64 differs between the alphabets.
    let good = std::iter::repeat_with(|| IDP.token(&header(), &claims()))
        .find(|token| token.contains(['-', '_']))
        .unwrap();
    let [head, body, signature] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let cases = [
        ("nothing", String::new()),
        ("dots", "..".to_owned()),
        ("more dots", "....".to_owned()),
        ("two parts", format!("{head}.{body}")),
        ("four parts", format!("{good}.{signature}")),
        ("five parts, as JWE", format!("{good}.{body}.{signature}")),
        ("unsigned", format!("{head}.{body}.")),
        ("no header", format!(".{body}.{signature}")),
        ("no body", format!("{head}..{signature}")),
        ("padding", format!("{head}=.{body}.{signature}")),
        ("padded signature", format!("{good}==")),
        ("space before", format!(" {good}")),
        ("space after", format!("{good} ")),
        ("newline", format!("{good}\n")),
        ("standard base64", good.replace(['-', '_'], "+")),
        (
            "JSON serialisation",
            json!({"payload": body, "protected": head, "signature": signature}).to_string(),
        ),
        ("cut signature", good[..good.len() - 4].to_owned()),
        ("longer signature", format!("{good}AAAA")),
        (
            "another body",
            format!(
                "{head}.{}.{signature}",
                b64(changed(claims(), "org", json!("beta")).to_string())
            ),
        ),
        ("null byte", format!("{head}\0.{body}.{signature}")),
        ("a key", "berth_sa_abc.def".to_owned()),
        ("1 MB", format!("{head}.{}.{signature}", "A".repeat(1_000_000))),
        ("just too long", "A".repeat(MAX_EXTERNAL_TOKEN_BYTES + 1)),
    ];
    let count = refused(cases.map(|(name, token)| (name.to_owned(), token)));
    assert_eq!(count, 23);
    let bodies = [
        r#"{"iss":1"#.to_owned(),
        "[]".to_owned(),
        "null".to_owned(),
        claims().to_string().replacen('{', r#"{"org":"beta","#, 1),
        claims().to_string().replacen('{', r#"{"x":{"a":1,"a":2},"#, 1),
        claims()
            .to_string()
            .replacen('{', &format!(r#"{{"x":{}1{},"#, "[".repeat(9), "]".repeat(9)), 1),
        claims().to_string().replacen(
            '{',
            &format!(r#"{{"x":{}1{},"#, "[".repeat(4000), "]".repeat(4000)),
            1,
        ),
        format!("{}x", claims()),
        claims().to_string().replace("acme", "\u{0}"),
        claims().to_string().replacen('{', "{\u{feff}", 1),
    ];
    let signed = bodies.map(|body| {
        let token = IDP.forge("ES256", &header().to_string(), &body);
        (body.chars().take(40).collect(), token)
    });
    assert_eq!(refused(signed), 10);
    // A change of any byte of a valid token is detected.
    let mut flipped = Vec::new();
    for index in 0..good.len() {
        let mut bytes = good.clone().into_bytes();
        bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
        flipped.push((format!("byte {index}"), String::from_utf8(bytes).unwrap()));
    }
    assert_eq!(refused(flipped), good.len());
}

#[test]
fn key_sets_give_only_what_can_check_signatures() {
    let check_with = |keys: Vec<Value>, alg: &str| {
        let verifier = ExternalVerifier::new(rules());
        verifier.replace(ExternalKeys::from_json(&json!({"keys": keys}).to_string()).unwrap());
        verifier.verify(&IDP.token(&json!({"alg": alg, "kid": "k"}), &claims()), at(NOW))
    };
    let ec = || Idp::ec_jwk(&IDP.p256, "k", "P-256");
    let rsa = || IDP.rsa_jwk("k");
    assert!(check_with(vec![ec()], "ES256").is_ok());
    for good in [
        changed(ec(), "use", json!("sig")),
        changed(ec(), "alg", json!("ES256")),
        changed(ec(), "key_ops", json!(["verify"])),
        changed(ec(), "x5c", json!(["whatever"])),
    ] {
        assert!(check_with(vec![good.clone()], "ES256").is_ok(), "{good}");
    }
    let zeros = b64([0; 32]);
    for bad in [
        changed(ec(), "use", json!("enc")),
        changed(ec(), "alg", json!("ES384")),
        changed(ec(), "alg", json!("none")),
        changed(ec(), "key_ops", json!(["sign"])),
        changed(ec(), "crv", json!("P-384")),
        changed(ec(), "crv", json!("secp256k1")),
        changed(ec(), "kty", json!("oct")),
        changed(ec(), "x", json!(zeros)),
        changed(ec(), "x", json!("")),
        without(ec(), "y"),
        without(ec(), "kid"),
        json!({"kty": "oct", "kid": "k", "k": b64([1; 32])}),
        json!("k"),
    ] {
        assert!(check_with(vec![bad.clone()], "ES256").is_err(), "{bad}");
        assert!(check_with(vec![bad], "HS256").is_err());
    }
    for bad in [
        changed(rsa(), "e", json!(b64([1]))),
        changed(rsa(), "e", json!(b64([2]))),
        changed(rsa(), "e", json!(b64([1, 0, 0, 0, 1]))),
        changed(rsa(), "n", json!(b64([255; 128]))),
        changed(rsa(), "n", json!(b64([255; 1025]))),
        changed(rsa(), "alg", json!("RSA-OAEP")),
    ] {
        assert!(check_with(vec![bad.clone()], "RS256").is_err(), "{bad}");
    }
    let nested = |keys: String| ExternalKeys::from_json(&keys).unwrap_err();
    assert_eq!(nested("[]".to_owned()), JwksError::NotAKeySet);
    assert_eq!(nested("x".repeat(300_000)), JwksError::TooLarge);
    let many = json!({"keys": vec![ec(); 129]}).to_string();
    assert_eq!(nested(many), JwksError::TooLarge);
}

#[test]
fn of_keys_with_one_kid_the_one_that_fits_the_algorithm_is_taken() {
    let other = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let other = || Idp::ec_jwk(&other, "k", "P-256");
    let rsa = |alg: &str| changed(IDP.rsa_jwk("k"), "alg", json!(alg));
    let ec = || Idp::ec_jwk(&IDP.p256, "k", "P-256");
    let check_with = |keys: Vec<Value>, alg: &str| {
        let verifier = ExternalVerifier::new(rules());
        verifier.replace(ExternalKeys::from_json(&json!({"keys": keys}).to_string()).unwrap());
        verifier.verify(&IDP.token(&json!({"alg": alg, "kid": "k"}), &claims()), at(NOW))
    };
    let encryption = || changed(rsa("RSA-OAEP"), "use", json!("enc"));
    for set in [
        vec![rsa("RS256"), rsa("PS256"), ec(), encryption()],
        vec![encryption(), ec(), rsa("PS256"), rsa("RS256")],
        vec![IDP.rsa_jwk("k"), ec()],
        vec![other(), ec(), IDP.rsa_jwk("k"), IDP.rsa_jwk("k")],
    ] {
        for alg in ["RS256", "PS256", "ES256"] {
            let outcome = check_with(set.clone(), alg);
            assert!(outcome.is_ok(), "{alg} of {set:?}: {outcome:?}");
        }
    }
    let refused = |keys, alg, why| assert_eq!(check_with(keys, alg), Err(ExternalError::Invalid(why)));
    refused(
        vec![rsa("PS256"), ec()],
        "RS256",
        "its alg does not match its key",
    );
    refused(
        vec![rsa("RS512"), rsa("PS256")],
        "ES256",
        "its alg does not match its key",
    );
    refused(
        vec![other(), rsa("RS256")],
        "ES256",
        "the signature does not match",
    );
    // An invalid token costs at most four signature checks.
    refused(
        vec![other(), other(), other(), other(), ec()],
        "ES256",
        "the signature does not match",
    );
}

#[test]
fn fractional_dates_are_rounded_to_the_strict_side() {
    let token = |iat: f64, exp: f64| {
        let all = changed(changed(claims(), "iat", json!(iat)), "exp", json!(exp));
        IDP.token(&header(), &all)
    };
    let good = token(1_790_000_000.25, 1_790_003_600.75);
    assert_eq!(check(&good).unwrap().expires_at, at(NOW + 3600));
    let late = verifier(rules()).verify(&good, at(NOW + 3630));
    assert_eq!(late, Err(ExternalError::Expired { at: at(NOW + 3600) }));
    let early = |seconds| verifier(rules()).verify(&good, at(NOW - seconds));
    assert!(early(29).is_ok());
    assert_eq!(early(30), Err(ExternalError::Invalid("iat is in the future")));
    // A whole day with fractions is a day, not a day and a second.
    assert!(check(&token(1_790_000_000.5, 1_790_086_400.5)).is_ok());
}

#[test]
fn a_token_without_iat_is_bounded_by_nbf_or_by_now() {
    let token = |changes: &[(&str, u64)]| {
        let bare = without(claims(), "iat");
        let all = changes
            .iter()
            .fold(bare, |all, (name, value)| changed(all, name, json!(value)));
        check(&IDP.token(&header(), &all))
    };
    const DAY: u64 = 24 * 3600;
    let too_long = Err(ExternalError::Invalid("exp is too far from iat"));
    assert!(token(&[]).is_ok());
    assert!(token(&[("nbf", NOW), ("exp", NOW + DAY)]).is_ok());
    assert_eq!(token(&[("nbf", NOW), ("exp", NOW + DAY + 1)]), too_long);
    // It is checked at NOW + 60.
    assert!(token(&[("exp", NOW + 60 + DAY)]).is_ok());
    assert_eq!(token(&[("exp", NOW + 61 + DAY)]), too_long);
    assert_eq!(
        token(&[("exp", NOW)]),
        Err(ExternalError::Expired { at: at(NOW) })
    );
}

#[test]
fn the_client_is_named_by_each_providers_claim() {
    let pinned = verifier(ExternalRules {
        authorized_parties: vec!["web".to_owned()],
        ..rules()
    });
    let token = |changes: &[(&str, &str)]| {
        let all = changes
            .iter()
            .fold(claims(), |all, (name, value)| changed(all, name, json!(value)));
        pinned.verify(&IDP.token(&header(), &all), at(NOW)).is_ok()
    };
    for name in ["azp", "client_id", "appid", "cid"] {
        assert!(token(&[(name, "web")]), "{name}");
        assert!(!token(&[(name, "evil")]), "{name}");
    }
    for (decides, ignored) in [("azp", "client_id"), ("client_id", "appid"), ("appid", "cid")] {
        assert!(
            !token(&[(decides, "evil"), (ignored, "web")]),
            "{decides} decides"
        );
        assert!(token(&[(decides, "web"), (ignored, "evil")]), "{decides} decides");
    }
}
