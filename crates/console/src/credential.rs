//! The credential of a caller.

use service_kit::config::Secret;
use sha2::{Digest, Sha256};

/// Digest of a credential: a key for limits and channels that reveals nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CredentialId([u8; 16]);

/// What the caller shows to the gRPC APIs: a service-account key, or a token of
/// an identity provider. Not verified here.
#[derive(Debug, Clone)]
pub(crate) struct Credential {
    secret: Secret,
    id: CredentialId,
}

impl Credential {
    /// A credential with this text.
    pub(crate) fn new(text: &str) -> Self {
        let digest = Sha256::digest(text.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self {
            secret: Secret::new(text),
            id: CredentialId(id),
        }
    }

    /// The text.
    pub(crate) fn expose(&self) -> &str {
        self.secret.expose()
    }

    /// Its digest.
    pub(crate) fn id(&self) -> CredentialId {
        self.id
    }
}
