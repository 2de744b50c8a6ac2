//! Redacts the credential of the compute in `Config` replies: Spark's reply with all settings
//! contains `spark.connect.authenticate.token`. Each byte of the secret is masked, so the length of
//! the reply does not change.

use bytes::{Bytes, BytesMut};
use http::HeaderValue;

const MASK: u8 = b'*';

/// Masks one secret in a stream of bytes.
pub(crate) struct Redactor {
    secret: Vec<u8>,
    /// Last bytes received, which may be the start of the secret.
    held: BytesMut,
}

impl Redactor {
    /// Creates a redactor for the token of a `Bearer …` header.
    pub(crate) fn of(credential: &HeaderValue) -> Option<Self> {
        let secret = credential.as_bytes().strip_prefix(b"Bearer ")?;
        (!secret.is_empty()).then(|| Self {
            secret: secret.to_vec(),
            held: BytesMut::new(),
        })
    }

    /// Takes more bytes; returns those that cannot be part of the secret.
    pub(crate) fn feed(&mut self, data: &[u8]) -> Bytes {
        self.held.extend_from_slice(data);
        let mut from = 0;
        while let Some(at) = find(&self.held[from..], &self.secret) {
            let end = from + at + self.secret.len();
            self.held[from + at..end].fill(MASK);
            from = end;
        }
        // The longest suffix that is a prefix of the secret.
        let max = (self.secret.len() - 1).min(self.held.len());
        let unsure = (1..=max)
            .rev()
            .find(|&count| self.secret.starts_with(&self.held[self.held.len() - count..]))
            .unwrap_or(0);
        self.held.split_to(self.held.len() - unsure).freeze()
    }

    /// Returns the remaining bytes at the end.
    pub(crate) fn finish(&mut self) -> Bytes {
        self.held.split().freeze()
    }
}

fn find(bytes: &[u8], secret: &[u8]) -> Option<usize> {
    bytes.windows(secret.len()).position(|window| window == secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str, step: usize) -> String {
        let mut redactor = Redactor::of(&HeaderValue::from_static("Bearer s3cr3t-s3")).unwrap();
        let mut out = Vec::new();
        for piece in text.as_bytes().chunks(step) {
            out.extend_from_slice(&redactor.feed(piece));
        }
        out.extend_from_slice(&redactor.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_secret_is_masked_across_chunks() {
        for step in [1, 2, 3, 5, 9, 100] {
            assert_eq!(
                masked("a s3cr3t-s3, s3s3cr3t-s3s3cr3t-s3 and s3cr3t-", step),
                "a *********, s3****************** and s3cr3t-",
                "cut every {step}"
            );
            assert_eq!(masked("nothing to hide s3cr", step), "nothing to hide s3cr");
        }
    }
}
