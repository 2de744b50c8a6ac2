//! An OpenID provider in this process: it lets everybody in, checks what the
//! client sends, and can be told to answer wrongly.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use session_core::{Clock as _, SystemClock};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const CLIENT: &str = "console";
const SECRET: &str = "top:secret%";

pub(crate) struct Provider {
    issuer: String,
    state: Arc<Mutex<Behaviour>>,
}

/// What the provider does and has seen.
pub(crate) struct Behaviour {
    key: EcdsaKeyPair,
    issuer: String,
    codes: HashMap<String, BTreeMap<String, String>>,
    refresh_tokens: Vec<String>,
    count: usize,
    /// Claims of ID tokens beside or instead of the usual ones.
    pub(crate) claims: Value,
    /// Lifetime of ID tokens in seconds.
    pub(crate) life: u64,
    /// Whether it issues refresh tokens.
    pub(crate) refreshes: bool,
    /// `iss` of callbacks.
    pub(crate) callback_issuer: Option<String>,
    /// Whether ID tokens are signed with an unpublished key.
    pub(crate) other_key: bool,
    /// Accepted renewals.
    pub(crate) renewals: usize,
}

type Shared = Arc<Mutex<Behaviour>>;

impl Provider {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}/realm", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(Behaviour {
            key: new_key(),
            issuer: issuer.clone(),
            codes: HashMap::new(),
            refresh_tokens: Vec::new(),
            count: 0,
            claims: json!({}),
            life: 600,
            refreshes: false,
            callback_issuer: Some(issuer.clone()),
            other_key: false,
            renewals: 0,
        }));
        let router = Router::new()
            .route("/realm/.well-known/openid-configuration", get(description))
            .route("/realm/keys", get(keys))
            .route("/realm/auth", get(authorize))
            .route("/realm/token", post(token))
            .with_state(Arc::clone(&state));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { issuer, state }
    }

    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Changes what it does.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.state.lock().unwrap());
    }

    pub(crate) fn renewals(&self) -> usize {
        self.state.lock().unwrap().renewals
    }

    /// Configuration of a console that browsers reach at `public`.
    pub(crate) fn config(&self, dir: &Path, public: &str) -> String {
        let secret: PathBuf = dir.join("client-secret");
        std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
        format!(
            "public.url = \"{public}\"\n[[sign_in.providers]]\nid = \"corp\"\nissuer = \"{}\"\nclient_id = \"{CLIENT}\"\n\
             client_secret_file = \"{}\"\n",
            self.issuer,
            secret.display()
        )
    }
}

fn new_key() -> EcdsaKeyPair {
    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()
}

async fn description(State(state): State<Shared>) -> Response {
    let issuer = state.lock().unwrap().issuer.clone();
    axum::Json(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/auth"),
        "token_endpoint": format!("{issuer}/token"),
        "jwks_uri": format!("{issuer}/keys"),
        "authorization_response_iss_parameter_supported": true,
    }))
    .into_response()
}

async fn keys(State(state): State<Shared>) -> Response {
    let state = state.lock().unwrap();
    let (x, y) = state.key.public_key().as_ref()[1..].split_at(32);
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let key = json!({"kty": "EC", "crv": "P-256", "kid": "k", "use": "sig", "alg": "ES256", "x": part(x), "y": part(y)});
    axum::Json(json!({"keys": [key]})).into_response()
}

fn pairs(text: &str) -> BTreeMap<String, String> {
    form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

/// Lets the user in at once.
async fn authorize(State(state): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let asked = pairs(&query.unwrap_or_default());
    let mut state = state.lock().unwrap();
    let is_good = asked["response_type"] == "code"
        && asked["client_id"] == CLIENT
        && asked["code_challenge_method"] == "S256"
        && asked["scope"].split(' ').any(|scope| scope == "openid")
        && !asked["nonce"].is_empty();
    assert!(is_good, "{asked:?}");
    state.count += 1;
    let code = format!("code-{}", state.count);
    let mut query = form_urlencoded::Serializer::new(String::new());
    query
        .append_pair("code", &code)
        .append_pair("state", &asked["state"]);
    if let Some(issuer) = &state.callback_issuer {
        query.append_pair("iss", issuer);
    }
    let location = format!("{}?{}", asked["redirect_uri"], query.finish());
    state.codes.insert(code, asked);
    (StatusCode::FOUND, [(header::LOCATION, location)]).into_response()
}

async fn token(State(state): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let form = pairs(std::str::from_utf8(&body).unwrap());
    let mut state = state.lock().unwrap();
    if !is_client(&headers) {
        return (
            StatusCode::UNAUTHORIZED,
            axum::Json(json!({"error": "invalid_client"})),
        )
            .into_response();
    }
    let nonce = match form["grant_type"].as_str() {
        // A code is good once, for the client that has the verifier.
        "authorization_code" => state.codes.remove(&form["code"]).and_then(|asked| {
            let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(form["code_verifier"].as_bytes()));
            let same = challenge == asked["code_challenge"] && form["redirect_uri"] == asked["redirect_uri"];
            same.then(|| Some(asked["nonce"].clone()))
        }),
        // A refresh token is good once too.
        "refresh_token" => {
            let known = state
                .refresh_tokens
                .iter()
                .position(|token| *token == form["refresh_token"]);
            known.map(|place| {
                state.refresh_tokens.remove(place);
                state.renewals += 1;
                None
            })
        }
        _ => None,
    };
    match nonce {
        Some(nonce) => axum::Json(state.tokens(nonce)).into_response(),
        None => (
            StatusCode::BAD_REQUEST,
            axum::Json(json!({"error": "invalid_grant"})),
        )
            .into_response(),
    }
}

fn is_client(headers: &HeaderMap) -> bool {
    let encoded = form_urlencoded::byte_serialize(SECRET.as_bytes()).collect::<String>();
    let expected = format!("Basic {}", STANDARD.encode(format!("{CLIENT}:{encoded}")));
    headers
        .get(header::AUTHORIZATION)
        .is_some_and(|value| value == &expected)
}

impl Behaviour {
    fn tokens(&mut self, nonce: Option<String>) -> Value {
        let now = SystemClock.now().as_secs();
        let mut claims = json!({
            "iss": self.issuer, "aud": CLIENT, "sub": "grace", "iat": now, "exp": now + self.life,
            "org": "acme", "roles": ["member"], "nonce": nonce,
        });
        for (name, value) in self.claims.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let mut answer =
            json!({"id_token": self.sign(&claims), "access_token": "opaque", "token_type": "Bearer"});
        if self.refreshes {
            self.count += 1;
            let token = format!("refresh-{}", self.count);
            self.refresh_tokens.push(token.clone());
            answer["refresh_token"] = json!(token);
        }
        answer
    }

    fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": "k"});
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", part(&header), part(claims));
        let other = self.other_key.then(new_key);
        let key = other.as_ref().unwrap_or(&self.key);
        let signature = key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

impl Behaviour {
    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Rejects all refresh tokens that it issued.
    pub(crate) fn forget_refresh_tokens(&mut self) {
        self.refresh_tokens.clear();
    }
}
