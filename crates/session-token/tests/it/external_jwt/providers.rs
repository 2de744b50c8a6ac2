//! Key sets and tokens in the form of real providers: members of headers, claims and
//! keys as documented or published. Names, ids and keys are invented. Each token is
//! accepted, and rejected after one strict check fails.

use super::{IDP, Idp, changed, check, refused, without};
use crate::common::{NOW, at, b64};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use serde_json::{Value, json};
use session_token::{
    ExternalAlgorithm, ExternalClaims, ExternalError, ExternalKeys, ExternalRules, ExternalVerifier,
};
use std::time::Duration;

/// One type of token of one provider.
struct Provider {
    name: &'static str,
    issuer: &'static str,
    audience: &'static str,
    other_audiences: bool,
    client: Option<&'static str>,
    keys: Value,
    header: Value,
    claims: Value,
    subject: &'static str,
}

impl Provider {
    fn rules(&self) -> ExternalRules {
        ExternalRules {
            issuer: self.issuer.to_owned(),
            audiences: vec![self.audience.to_owned()],
            other_audiences: self.other_audiences,
            authorized_parties: self.client.map(str::to_owned).into_iter().collect(),
            // The defaults of the configuration.
            algorithms: vec![
                ExternalAlgorithm::Rs256,
                ExternalAlgorithm::Ps256,
                ExternalAlgorithm::Es256,
            ],
            leeway: Duration::from_secs(30),
            max_ttl: Duration::from_secs(24 * 3600),
        }
    }

    fn judge(&self, token: &str) -> Result<ExternalClaims, ExternalError> {
        let verifier = ExternalVerifier::new(self.rules());
        verifier.replace(ExternalKeys::from_json(&self.keys.to_string()).unwrap());
        verifier.verify(token, at(NOW + 60))
    }
}

/// An RSA key of a key set, with additional members `more`.
fn rsa(kid: &str, more: Value) -> Value {
    merged(IDP.rsa_jwk(kid), more)
}

fn ec(kid: &str, more: Value) -> Value {
    merged(Idp::ec_jwk(&IDP.p256, kid, "P-256"), more)
}

fn merged(mut value: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    value.as_object_mut().unwrap().extend(more);
    value
}

/// Thumbprints of an unused certificate.
fn thumbprint(sha256: bool) -> String {
    let algorithm = if sha256 {
        &SHA256
    } else {
        &SHA1_FOR_LEGACY_USE_ONLY
    };
    b64(digest(algorithm, b"certificate").as_ref())
}

fn certificate() -> Value {
    json!(["MIICmzCCAYMCBgGA"])
}

fn keycloak() -> Provider {
    let kid = "FJ86GcF3jTbNLOco4NvZkUCIUmfYCqoqtOQeMfbhNlE";
    let members = |alg: &str, use_: &str| {
        json!({
            "alg": alg, "use": use_, "x5c": certificate(), "x5t": thumbprint(false),
            "x5t#S256": thumbprint(true),
        })
    };
    Provider {
        name: "Keycloak",
        issuer: "https://sso.example.org/realms/acme",
        audience: "berth",
        other_audiences: true,
        client: Some("notebooks"),
        keys: json!({"keys": [
            rsa("Xu8aOqTHRdZ7nQv1m", members("RSA-OAEP", "enc")),
            rsa(kid, members("RS256", "sig")),
            {"kid": "a-hidden-secret", "kty": "oct", "alg": "HS512", "use": "sig"},
        ]}),
        header: json!({"alg": "RS256", "typ": "JWT", "kid": kid}),
        claims: json!({
            "exp": NOW + 300, "iat": NOW, "auth_time": NOW - 20, "jti": "onrtac:0c6f1a9e-7d1b",
            "iss": "https://sso.example.org/realms/acme",
            "aud": (0..40).map(|n| format!("client-{n}")).chain(["berth".to_owned(), "account".to_owned()])
                .collect::<Vec<_>>(),
            "sub": "b7afc098-30ce-43c7-abfa-043ab484a779", "typ": "Bearer", "azp": "notebooks",
            "sid": "ded04dec-4bc2-482e-9cd2-6c8753656b9d", "acr": "1", "allowed-origins": ["*"],
            "realm_access": {"roles": ["default-roles-acme", "offline_access"]},
            "resource_access": {"account": {"roles": ["manage-account", "view-profile"]}},
            "authorization": {"permissions": [{"scopes": ["read"], "rsid": "9", "rsname": "x"}]},
            "scope": "openid email profile", "email_verified": true, "groups": ["/data", "/ops"],
            "preferred_username": "ada",
        }),
        subject: "b7afc098-30ce-43c7-abfa-043ab484a779",
    }
}

/// Realms with several algorithms may publish one key for each, with one `kid`
/// (keycloak issue 14794 has such a set).
fn one_kid_for_two_algorithms() -> Provider {
    let kid = "nrzqxULxLmRsNrpDAe0snB+cr6M=";
    let base = keycloak();
    Provider {
        name: "one kid for several algorithms",
        keys: json!({"keys": [
            rsa(kid, json!({"alg": "RS256", "use": "sig", "x5t": thumbprint(false)})),
            rsa(kid, json!({"alg": "PS256", "use": "sig"})),
            rsa(kid, json!({"alg": "RS512", "use": "sig"})),
            ec(kid, json!({"alg": "ES256", "use": "sig"})),
        ]}),
        header: json!({"alg": "PS256", "typ": "JWT", "kid": kid}),
        ..base
    }
}

fn entra_keys(v2: bool) -> Value {
    let key = |kid: &str, own: bool| {
        let mut key = rsa(kid, json!({"use": "sig", "x5t": kid, "x5c": certificate()}));
        if v2 {
            key["cloud_instance_name"] = json!("microsoftonline.com");
            key["issuer"] = json!("https://login.microsoftonline.com/{tenantid}/v2.0");
        }
        if !own {
            // Another key of the provider, not used here.
            key["n"] = json!(b64([0xC5; 256]));
        }
        key
    };
    json!({"keys": [key("T1St-dLTvyWRgxB_676u8krXS-I", false), key("JYhAcTPMZ_LX6DBlOWQ7Hn0NeXE", true)]})
}

fn entra_v1() -> Provider {
    let kid = "JYhAcTPMZ_LX6DBlOWQ7Hn0NeXE";
    Provider {
        name: "Entra ID v1",
        issuer: "https://sts.windows.net/72f988bf-0000-41af-91ab-2d7cd011db47/",
        audience: "api://berth",
        other_audiences: false,
        client: Some("b14a7505-96e9-4927-91e8-0601d0fc9caa"),
        keys: entra_keys(false),
        header: json!({"typ": "JWT", "alg": "RS256", "x5t": kid, "kid": kid}),
        claims: json!({
            "aud": "api://berth", "iss": "https://sts.windows.net/72f988bf-0000-41af-91ab-2d7cd011db47/",
            "iat": NOW - 300, "nbf": NOW - 300, "exp": NOW + 4823, "acr": "1", "aio": "ATQAy/8TAAAA",
            "amr": ["pwd", "mfa"], "appid": "b14a7505-96e9-4927-91e8-0601d0fc9caa", "appidacr": "0",
            "family_name": "Lovelace", "ipaddr": "192.0.2.7", "name": "Ada Lovelace",
            "oid": "690222be-ff1a-4d56-abd1-7e4f7d38e474", "rh": "0.ARoAv4j5cvGGr0GRqy180BHbR", "scp": "sessions",
            "sub": "HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ", "tid": "72f988bf-0000-41af-91ab-2d7cd011db47",
            "unique_name": "ada@example.org", "upn": "ada@example.org", "uti": "fqiBqXLPj0eQa82S-IYFAA", "ver": "1.0",
            "xms_idrel": "1 4",
        }),
        subject: "HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ",
    }
}

/// With too many groups for the token: it contains the endpoint of the groups instead.
fn entra_v2() -> Provider {
    Provider {
        name: "Entra ID v2, groups overage",
        issuer: "https://login.microsoftonline.com/72f988bf-0000-41af-91ab-2d7cd011db47/v2.0",
        audience: "6e74172b-be56-4843-9ff4-e66a39bb12e3",
        other_audiences: false,
        client: Some("04b07795-8ddb-461a-bbee-02f9e1bf7b46"),
        keys: entra_keys(true),
        header: json!({
            "typ": "JWT", "nonce": "0Qzg5wbpu1cvCrTKWzKrRvbTNSKuJ6bGlJPVlMQSpTA", "alg": "RS256",
            "kid": "JYhAcTPMZ_LX6DBlOWQ7Hn0NeXE",
        }),
        claims: json!({
            "aud": "6e74172b-be56-4843-9ff4-e66a39bb12e3",
            "iss": "https://login.microsoftonline.com/72f988bf-0000-41af-91ab-2d7cd011db47/v2.0",
            "iat": NOW, "nbf": NOW, "exp": NOW + 5000, "aio": "AXQAi/8IAAAA", "azpacr": "0",
            "azp": "04b07795-8ddb-461a-bbee-02f9e1bf7b46",
            "_claim_names": {"groups": "src1"},
            "_claim_sources": {"src1": {"endpoint": "https://graph.example/users/1/getMemberObjects"}},
            "name": "Ada Lovelace", "oid": "690222be-ff1a-4d56-abd1-7e4f7d38e474",
            "preferred_username": "ada@example.org", "rh": "I", "roles": ["Berth.Member"], "scp": "sessions",
            "sub": "HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ", "tid": "72f988bf-0000-41af-91ab-2d7cd011db47",
            "uti": "fqiBqXLPj0eQa82S-IYFAA", "ver": "2.0", "wids": ["b79fbf4d-3ef9-4689-8143-76b194e85509"],
            "xms_ftd": "x", "xms_cc": ["CP1"],
        }),
        subject: "HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ",
    }
}

fn okta() -> Provider {
    Provider {
        name: "Okta",
        issuer: "https://acme.okta.example/oauth2/default",
        audience: "api://default",
        other_audiences: false,
        client: Some("0oabskvc6442nkvQO0h7"),
        keys: json!({"keys": [
            rsa("w5XQK4Bcm8dVVo6GkJ9Kyg4iB3V0eJ4b", json!({"alg": "RS256", "use": "sig"})),
            rsa("the-next-one", json!({"alg": "RS256", "use": "sig", "status": "NEXT"})),
        ]}),
        header: json!({"kid": "w5XQK4Bcm8dVVo6GkJ9Kyg4iB3V0eJ4b", "alg": "RS256"}),
        claims: json!({
            "ver": 1, "jti": "AT.0mP4JKAZX1iACIT4vbEDF7LpvDVjxypPMf0D7uX39RE",
            "iss": "https://acme.okta.example/oauth2/default", "aud": "api://default",
            "sub": "ada@example.org", "iat": NOW, "exp": NOW + 3600, "cid": "0oabskvc6442nkvQO0h7",
            "uid": "00ujmkLgagxeRrAg20g3", "scp": ["openid", "profile"], "auth_time": NOW - 9,
            "groups": ["Everyone", "data"],
        }),
        subject: "ada@example.org",
    }
}

fn auth0() -> Provider {
    let kid = "NEE1QURBOTM4MzI5RkFDNTYxOTU1MDg2ODgwQ0UzMTk1QjYyRkRFQw";
    let key = |kid: &str| {
        let more = json!({"alg": "RS256", "use": "sig", "x5c": certificate(), "x5t": kid});
        rsa(kid, more)
    };
    Provider {
        name: "Auth0",
        issuer: "https://acme.eu.auth0.example/",
        audience: "https://berth.example.org",
        other_audiences: true,
        client: Some("my_client_id"),
        keys: json!({"keys": [key(kid), key("another")]}),
        header: json!({"alg": "RS256", "typ": "at+jwt", "kid": kid}),
        claims: json!({
            "iss": "https://acme.eu.auth0.example/", "sub": "google-oauth2|103547991597142817347",
            "aud": ["https://berth.example.org", "https://acme.eu.auth0.example/userinfo"],
            "iat": NOW, "exp": NOW + 86_400, "scope": "openid profile", "azp": "my_client_id",
            "gty": "client-credentials", "permissions": ["use:sessions"], "org_id": "org_9ybsU1dN2dKfDkBi",
            "https://berth.example.org/teams": ["data"],
        }),
        subject: "google-oauth2|103547991597142817347",
    }
}

/// The header names the issuing instance; `iat` is optional.
fn ping_federate() -> Provider {
    Provider {
        name: "PingFederate",
        issuer: "https://sso.example.org:9031",
        audience: "berth",
        other_audiences: false,
        client: Some("ac_client"),
        keys: json!({"keys": [
            {"kty": "EC", "kid": "rr9", "use": "sig", "crv": "P-521", "alg": "ES512",
             "x": b64([1; 66]), "y": b64([2; 66])},
            ec("gNJQBJdPJTZ3kJgNQQ4NEBH4BCM", json!({"use": "sig", "alg": "ES256"})),
            rsa("mXc1jtKBzkWjGj1PxOcvQ9w4wAk", json!({"use": "sig", "x5c": certificate(), "x5t": thumbprint(false)})),
            rsa("enc1", json!({"use": "enc", "alg": "RSA-OAEP-256"})),
        ]}),
        header: json!({"alg": "RS256", "kid": "mXc1jtKBzkWjGj1PxOcvQ9w4wAk", "pi.atm": "2", "x5t": thumbprint(false)}),
        claims: json!({
            "scope": ["openid", "profile"], "client_id": "ac_client", "iss": "https://sso.example.org:9031",
            "aud": "berth", "sub": "ada", "Username": "ada", "exp": NOW + 7199,
            "memberOf": "CN=data,OU=Groups,DC=example,DC=org",
        }),
        subject: "ada",
    }
}

fn salesforce() -> Provider {
    let kid = "CORE_ATJWT.00DXX000000ABCd.1725579420125";
    Provider {
        name: "Salesforce",
        issuer: "https://acme.my.salesforce.example",
        audience: "https://acme.my.salesforce.example",
        other_audiences: false,
        client: Some("3MVG9CEn_O3jvv0xTqRT0Le6tmz"),
        keys: json!({"keys": [rsa(kid, json!({"alg": "RS256", "use": "sig"}))]}),
        header: json!({
            "tnk": "core/prod/00DXX000000ABCd2AO", "ver": "1.0", "kid": kid, "tty": "sfdc-core-token",
            "typ": "JWT", "alg": "RS256",
        }),
        claims: json!({
            "scp": "refresh_token web api", "aud": ["https://acme.my.salesforce.example"],
            "sub": "uid:005XX000001Sv6AYAS", "nbf": NOW - 15, "mty": "oauth", "sfi": "3b5a0d4c", "roles": [],
            "iss": "https://acme.my.salesforce.example", "hsc": false, "exp": NOW + 1800, "iat": NOW,
            "client_id": "3MVG9CEn_O3jvv0xTqRT0Le6tmz",
        }),
        subject: "uid:005XX000001Sv6AYAS",
    }
}

fn google() -> Provider {
    let kid = "ba4ba1d9f6c9d9f0e4b1f8c5b1d6a0d3c5e7f9a1";
    let client = "1234987819200.apps.googleusercontent.example";
    Provider {
        name: "Google",
        issuer: "https://accounts.google.example",
        audience: client,
        other_audiences: false,
        client: Some(client),
        keys: json!({"keys": [
            rsa(kid, json!({"alg": "RS256", "use": "sig"})),
            rsa("2c8a0d", json!({"alg": "RS256", "use": "sig"})),
        ]}),
        header: json!({"alg": "RS256", "kid": kid, "typ": "JWT"}),
        claims: json!({
            "iss": "https://accounts.google.example", "azp": client, "aud": client, "sub": "10769150350006150715113082367",
            "at_hash": "HK6E_P6Dh8Y93mRNtsDB1Q", "hd": "example.org", "email": "ada@example.org",
            "email_verified": true, "nonce": "0394852-3190485-2490358", "iat": NOW, "exp": NOW + 3600,
        }),
        subject: "10769150350006150715113082367",
    }
}

fn dex() -> Provider {
    Provider {
        name: "Dex",
        issuer: "https://dex.example.org/dex",
        audience: "berth",
        other_audiences: false,
        client: None,
        keys: json!({"keys": [
            rsa("3b8a3a8f1f9c4a7e", json!({"use": "sig", "alg": "RS256"})),
            rsa("0a1b2c3d4e5f6071", json!({"use": "sig", "alg": "RS256"})),
        ]}),
        header: json!({"alg": "RS256", "kid": "3b8a3a8f1f9c4a7e"}),
        claims: json!({
            "iss": "https://dex.example.org/dex", "sub": "CiQwOGE4Njg0Yi1kYjg4LTRiNzMtOTBhOS0zY2QxNjYxZjU0NjYSBWxvY2Fs",
            "aud": "berth", "exp": NOW + 86_400, "iat": NOW, "at_hash": "MTItl0X9VoDMXk0dqrGzFw",
            "c_hash": "Xfh3", "email": "ada@example.org", "email_verified": true, "groups": ["data"], "name": "ada",
            "federated_claims": {"connector_id": "ldap", "user_id": "ada"},
        }),
        subject: "CiQwOGE4Njg0Yi1kYjg4LTRiNzMtOTBhOS0zY2QxNjYxZjU0NjYSBWxvY2Fs",
    }
}

fn kubernetes() -> Provider {
    Provider {
        name: "Kubernetes service account",
        issuer: "https://kubernetes.default.svc.cluster.local",
        audience: "berth-internal",
        other_audiences: false,
        client: None,
        keys: json!({"keys": [
            rsa("g0p6TkDnY0xk0VQk2Q3jpQ9Oq3sB8VjM", json!({"use": "sig", "alg": "RS256"})),
            ec("the-next-one", json!({"use": "sig", "alg": "ES256"})),
        ]}),
        header: json!({"alg": "RS256", "kid": "g0p6TkDnY0xk0VQk2Q3jpQ9Oq3sB8VjM"}),
        claims: json!({
            "aud": ["berth-internal"], "exp": NOW + 3600, "iat": NOW, "nbf": NOW,
            "iss": "https://kubernetes.default.svc.cluster.local", "jti": "ea28ed49-2e11-4280-9ec5-bc3d1d84661a",
            "kubernetes.io": {
                "namespace": "berth", "node": {"name": "n1", "uid": "646e7c5e"}, "pod": {"name": "p", "uid": "5e0bd49b"},
                "serviceaccount": {"name": "spark-proxy", "uid": "14ee3fa4"}, "warnafter": NOW + 3000,
            },
            "sub": "system:serviceaccount:berth:spark-proxy",
        }),
        subject: "system:serviceaccount:berth:spark-proxy",
    }
}

/// A provider that writes times with fractions.
fn fractional() -> Provider {
    let base = dex();
    let claims = changed(base.claims, "iat", json!(1_790_000_000.123_456));
    let claims = changed(claims, "nbf", json!(1_790_000_000.123_456));
    Provider {
        name: "fractional dates",
        claims: changed(claims, "exp", json!(1_790_003_600.123_456)),
        ..base
    }
}

fn all() -> Vec<Provider> {
    vec![
        keycloak(),
        one_kid_for_two_algorithms(),
        entra_v1(),
        entra_v2(),
        okta(),
        auth0(),
        ping_federate(),
        salesforce(),
        google(),
        dex(),
        kubernetes(),
        fractional(),
    ]
}

#[test]
fn tokens_of_real_providers_are_accepted() {
    let mut wrong = Vec::new();
    for provider in all() {
        let token = IDP.token(&provider.header, &provider.claims);
        match provider.judge(&token) {
            Ok(good) => {
                assert_eq!(good.subject, provider.subject, "{}", provider.name);
                assert_eq!(Value::Object(good.all), provider.claims, "{}", provider.name);
            }
            Err(error) => wrong.push(format!("{}: {error}", provider.name)),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_same_tokens_are_refused_once_one_strict_check_fails() {
    let mut accepted = Vec::new();
    for provider in all() {
        let (header, claims) = (&provider.header, &provider.claims);
        let alg = header["alg"].as_str().unwrap();
        let mut cases = Vec::new();
        for (name, value) in [
            ("crit", json!(["exp"])),
            ("jwk", IDP.rsa_jwk("evil")),
            ("jku", json!("https://evil.example/jwks")),
            ("x5u", json!("https://evil.example/cert")),
            ("x5c", certificate()),
            ("b64", json!(false)),
            ("typ", json!("logout+jwt")),
            ("kid", json!("another-kid")),
            ("sub", json!("somebody-else")),
        ] {
            let token = IDP.token(&changed(header.clone(), name, value), claims);
            cases.push((format!("header {name}"), token));
        }
        for (name, value) in [
            ("iss", json!("https://evil.example")),
            ("aud", json!("another")),
            ("sub", json!("")),
            ("exp", json!(NOW + 8 * 24 * 3600)),
            ("exp", json!(NOW + 20)),
            ("iat", json!(NOW + 1000)),
            ("nbf", json!(NOW + 1000)),
        ] {
            let token = IDP.token(header, &changed(claims.clone(), name, value));
            cases.push((format!("claim {name}"), token));
        }
        for name in ["iss", "aud", "sub", "exp"] {
            cases.push((
                format!("no {name}"),
                IDP.token(header, &without(claims.clone(), name)),
            ));
        }
        for (name, more) in [("azp", "evil"), ("iss", "https://evil.example")] {
            let doubled =
                claims
                    .to_string()
                    .replacen('{', &format!(r#"{{"{name}":"{more}","{name}":"{more}","#), 1);
            cases.push((
                format!("doubled {name}"),
                IDP.forge(alg, &header.to_string(), &doubled),
            ));
        }
        if provider.client.is_some() {
            let other = changed(claims.clone(), "azp", json!("another-client"));
            cases.push(("another client".to_owned(), IDP.token(header, &other)));
        }
        let good = IDP.token(header, claims);
        let (message, _) = good.rsplit_once('.').unwrap();
        cases.push(("forged".to_owned(), format!("{message}.{}", b64([7; 256]))));
        cases.push(("unsigned".to_owned(), format!("{message}.")));
        for (case, token) in cases {
            // Verified after the expiry 20 s after `iat`.
            let verdict = if case == "claim exp" {
                let verifier = ExternalVerifier::new(provider.rules());
                verifier.replace(ExternalKeys::from_json(&provider.keys.to_string()).unwrap());
                verifier.verify(&token, at(NOW + 3600))
            } else {
                provider.judge(&token)
            };
            if verdict.is_ok() {
                accepted.push(format!("{}: {case}", provider.name));
            }
        }
    }
    assert!(accepted.is_empty(), "{accepted:#?}");
}

#[test]
fn no_provider_accepts_the_tokens_of_another() {
    let everybody = all();
    for (index, provider) in everybody.iter().enumerate() {
        for (other, token) in everybody.iter().enumerate() {
            let token = IDP.token(&token.header, &token.claims);
            let same = everybody[other].issuer == provider.issuer && everybody[other].keys == provider.keys;
            assert!(index == other || same || provider.judge(&token).is_err());
        }
    }
    // The same for the provider of the other tests.
    let tokens = everybody
        .iter()
        .map(|one| (one.name.to_owned(), IDP.token(&one.header, &one.claims)));
    assert_eq!(refused(tokens), everybody.len());
    assert!(check("").is_err());
}
