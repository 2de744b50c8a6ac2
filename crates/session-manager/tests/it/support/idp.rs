//! An identity provider for tests: discovery, changing keys, outages.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use session_core::{Clock as _, SystemClock};
use std::sync::{Arc, Mutex};

pub(crate) struct Idp {
    pub(crate) issuer: String,
    state: Arc<Mutex<State>>,
}

struct State {
    keys: Vec<(String, EcdsaKeyPair)>,
    published: usize,
    away: bool,
    /// The issuer in the discovery document, if not the real one.
    discovery: Option<Value>,
    reads: usize,
}

impl Idp {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}/realm", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            keys: vec![("k0".to_owned(), new_key())],
            published: 1,
            away: false,
            discovery: None,
            reads: 0,
        }));
        let description = {
            let (state, issuer) = (Arc::clone(&state), issuer.clone());
            move || async move {
                let state = state.lock().unwrap();
                let discovery = state.discovery.clone();
                let discovery = discovery
                    .unwrap_or_else(|| json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")}));
                answer(&state, discovery)
            }
        };
        let keys = {
            let state = Arc::clone(&state);
            move || async move {
                let mut state = state.lock().unwrap();
                state.reads += 1;
                let published = state.published;
                let keys: Vec<Value> = state
                    .keys
                    .iter()
                    .take(published)
                    .map(|(kid, key)| jwk(kid, key))
                    .collect();
                answer(&state, json!({"keys": keys}))
            }
        };
        let router = Router::new()
            .route("/realm/.well-known/openid-configuration", get(description))
            .route("/realm/keys", get(keys));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { issuer, state }
    }

    /// Signs with a new key from now on; `publish` puts it into the set.
    pub(crate) fn rotate(&self, publish: bool) {
        let mut state = self.state.lock().unwrap();
        let kid = format!("k{}", state.keys.len());
        state.keys.push((kid, new_key()));
        if publish {
            state.published = state.keys.len();
        }
    }

    pub(crate) fn away(&self, away: bool) {
        self.state.lock().unwrap().away = away;
    }

    pub(crate) fn serve_discovery(&self, discovery: Value) {
        self.state.lock().unwrap().discovery = Some(discovery);
    }

    /// The number of reads of the key set.
    pub(crate) fn reads(&self) -> usize {
        self.state.lock().unwrap().reads
    }

    /// A token with these claims in addition to the required ones.
    pub(crate) fn token(&self, claims: Value) -> String {
        let now = SystemClock.now().as_secs();
        let mut all = json!({"iss": self.issuer, "aud": "berth", "sub": "ada", "iat": now, "exp": now + 600});
        for (name, value) in claims.as_object().unwrap() {
            all[name] = value.clone();
        }
        let state = self.state.lock().unwrap();
        let (kid, key) = state.keys.last().unwrap();
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": kid});
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", part(&header), part(&all));
        let signature = key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn new_key() -> EcdsaKeyPair {
    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()
}

fn jwk(kid: &str, key: &EcdsaKeyPair) -> Value {
    let (x, y) = key.public_key().as_ref()[1..].split_at(32);
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    json!({"kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "alg": "ES256", "x": part(x), "y": part(y)})
}

fn answer(state: &State, json: Value) -> (StatusCode, String) {
    if state.away {
        (StatusCode::SERVICE_UNAVAILABLE, String::new())
    } else {
        (StatusCode::OK, json.to_string())
    }
}
