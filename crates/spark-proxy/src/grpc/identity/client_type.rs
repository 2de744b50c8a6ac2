//! The `client_type` of a request, collected as its bytes pass: the text in which a client names its
//! versions. Only the first call of a Spark session needs it.

use super::head::SparkSessionId;

/// Bytes kept of a text: its end. Clients put their versions after a prefix that users can choose.
const MAX_BYTES: usize = 128;
/// Spark sessions whose client is remembered; another one takes the place of the oldest. Kept for
/// every session that made a call.
const MAX_KNOWN: usize = 4;

/// The end of a `client_type`.
#[derive(Debug, Clone)]
pub(crate) struct ClientType {
    bytes: [u8; MAX_BYTES],
    len: usize,
}

impl Default for ClientType {
    fn default() -> Self {
        Self {
            bytes: [0; MAX_BYTES],
            len: 0,
        }
    }
}

impl ClientType {
    /// The collected bytes, which need not be text.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, part: &[u8]) {
        let part = &part[part.len().saturating_sub(MAX_BYTES)..];
        let excess = (self.len + part.len()).saturating_sub(MAX_BYTES);
        self.bytes.copy_within(excess..self.len, 0);
        self.len -= excess;
        self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
        self.len += part.len();
    }
}

/// The Spark sessions whose clients are known, the newest first, by 32-bit hashes of their ids; 0 is
/// a free place.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KnownClients([u32; MAX_KNOWN]);

impl KnownClients {
    pub(crate) fn contains(&self, spark_session: &SparkSessionId) -> bool {
        self.0.contains(&hash_of(spark_session))
    }

    pub(crate) fn insert(&mut self, spark_session: &SparkSessionId) {
        if !self.contains(spark_session) {
            self.0.rotate_right(1);
            self.0[0] = hash_of(spark_session);
        }
    }
}

fn hash_of(spark_session: &SparkSessionId) -> u32 {
    let mut hash: u64 = 0;
    for part in spark_session.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
    }
    // The low half; never the mark of a free place.
    (hash as u32).max(1)
}

/// Collects the `client_type` of a call.
#[derive(Debug)]
pub(super) struct Collector {
    /// Number of the field, which depends on the method.
    field: u64,
    known: KnownClients,
    /// The client of the call's Spark session is unknown.
    active: bool,
    collected: Option<Box<ClientType>>,
}

impl Collector {
    pub(super) fn new(field: u64, known: KnownClients) -> Self {
        Self {
            field,
            known,
            active: false,
            collected: None,
        }
    }

    pub(super) fn begin(&mut self, spark_session: &SparkSessionId) {
        self.active = !self.known.contains(spark_session);
    }

    pub(super) fn collected(&self) -> Option<&ClientType> {
        self.collected.as_deref()
    }

    /// Whether the content of this field is collected; the last of duplicate fields counts.
    pub(super) fn wants(&mut self, field: u64) -> bool {
        let wanted = self.active && field == self.field;
        if wanted {
            self.collected.get_or_insert_default().len = 0;
        }
        wanted
    }

    /// Takes a part of the content; false if it is of another field.
    pub(super) fn content(&mut self, field: u64, bytes: &[u8]) -> bool {
        match &mut self.collected {
            Some(collected) if field == self.field => {
                collected.push(bytes);
                true
            }
            Some(_) | None => false,
        }
    }
}
