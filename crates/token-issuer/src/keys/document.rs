//! The served key set.

use session_token::Jwks;

/// The served document, created once per change.
#[derive(Debug, Default)]
pub(crate) struct Document {
    json: String,
    etag: String,
}

impl Document {
    pub(crate) fn new(keys: &Jwks) -> Self {
        Self {
            json: keys.to_json(),
            etag: keys.etag(),
        }
    }

    /// The key set as JSON.
    pub(crate) fn json(&self) -> &str {
        &self.json
    }

    /// Its entity tag.
    pub(crate) fn etag(&self) -> &str {
        &self.etag
    }

    /// Whether it contains exactly these keys.
    pub(crate) fn contains(&self, keys: &Jwks) -> bool {
        self.json == keys.to_json()
    }
}
