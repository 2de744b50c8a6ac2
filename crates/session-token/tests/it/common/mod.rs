//! Common parts of the tests: one signer, its keyring, and valid claims.

pub(crate) mod corpus;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use session_core::{SessionId, Timestamp, TokenId};
use session_token::{
    Claims, Grace, Jwks, Keyring, Signer, TokenError, Verified, Verifier, VerifierConfig, generate_key_pem,
};

pub(crate) const ISSUER: &str = "https://tokens.berth.example.com";
pub(crate) const AUDIENCE: &str = "berth-spark";
pub(crate) const NOW: u64 = 1_790_000_000;

pub(crate) fn at(secs: u64) -> Timestamp {
    Timestamp::from_millis(secs * 1000)
}

pub(crate) fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) struct Rig {
    pub(crate) signer: Signer,
    pub(crate) raw: EcdsaKeyPair,
    pub(crate) keyring: Keyring,
    pub(crate) verifier: Verifier,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let pem = generate_key_pem().unwrap();
        let signer = Signer::from_pkcs8_pem(&pem).unwrap();
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).unwrap();
        let raw = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der()).unwrap();
        let keyring = Keyring::new(&Jwks::new([signer.public_jwk()]), at(NOW));
        Self {
            signer,
            raw,
            keyring,
            verifier: Verifier::new(VerifierConfig::new(ISSUER, AUDIENCE)),
        }
    }

    pub(crate) fn good(&self) -> String {
        self.signer.sign(&claims()).unwrap()
    }

    pub(crate) fn check(&self, token: &str) -> Result<Verified, TokenError> {
        self.verifier
            .verify(token, &self.keyring, at(NOW + 60), Grace::None)
    }

    /// A token with this header and payload, signed with our key.
    pub(crate) fn forge(&self, header: &str, payload: &str) -> String {
        self.sign_parts(&b64(header), &b64(payload))
    }

    /// The same from encoded parts, valid or not.
    pub(crate) fn sign_parts(&self, header: &str, payload: &str) -> String {
        let message = format!("{header}.{payload}");
        let signature = self.raw.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", b64(signature))
    }

    pub(crate) fn header(&self) -> String {
        format!(
            r#"{{"alg":"ES256","typ":"berth-session+jwt","kid":"{}"}}"#,
            self.signer.kid()
        )
    }
}

pub(crate) fn claims() -> Claims {
    Claims {
        iss: ISSUER.into(),
        aud: AUDIENCE.into(),
        sub: "sa|etl-nightly".parse().unwrap(),
        org: "acme".parse().unwrap(),
        sid: SessionId::generate(at(NOW), 7),
        epoch: 3,
        iat: NOW,
        nbf: NOW,
        exp: NOW + 3600,
        jti: TokenId::generate(at(NOW), 8),
    }
}

pub(crate) fn payload() -> String {
    serde_json::to_string(&claims()).unwrap()
}
