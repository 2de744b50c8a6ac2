//! Identifiers as newtypes, parsed once at the edge.
//!
//! Generated ids are a prefix and 20 lower-case Crockford base-32 characters:
//! ten of time, so that they sort by age, and ten of randomness. The alphabet
//! is safe in gRPC metadata, connection strings (no `=`, `;` or `%`), DNS
//! labels and Kubernetes names. Ids of up to 23 bytes, so every generated one,
//! need no memory beside the value: a proxy holds each of many sessions' ids in
//! several tables.

use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use smol_str::{SmolStr, SmolStrBuilder};
use std::fmt;
use std::str::FromStr;

const CROCKFORD: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const HALF: usize = 10;

/// A text that is not a valid identifier of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} must be {expected}")]
pub struct InvalidId {
    /// The kind of identifier, in user terms.
    pub kind: &'static str,
    /// The accepted form.
    pub expected: &'static str,
}

fn crockford(mut value: u64, out: &mut SmolStrBuilder) {
    let mut digits = [b'0'; HALF];
    for digit in digits.iter_mut().rev() {
        *digit = CROCKFORD[(value & 31) as usize];
        value >>= 5;
    }
    for digit in digits {
        out.push(char::from(digit));
    }
}

macro_rules! text_newtype {
    ($name:ident) => {
        impl $name {
            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }
    };
}

macro_rules! generated_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(SmolStr);

        impl $name {
            /// Generates an id from the current time and 50 random bits (higher
            /// bits are ignored).
            pub fn generate(now: Timestamp, random: u64) -> Self {
                let mut text = SmolStrBuilder::new();
                text.push_str($prefix);
                crockford(now.as_millis(), &mut text);
                crockford(random, &mut text);
                Self(text.finish())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let tail = text.strip_prefix($prefix).unwrap_or("");
                if tail.len() == 2 * HALF && tail.bytes().all(|b| CROCKFORD.contains(&b)) {
                    Ok(Self(SmolStr::new(text)))
                } else {
                    Err(InvalidId {
                        kind: $kind,
                        expected: concat!("\"", $prefix, "\" and 20 characters of 0-9 a-z without i, l, o, u"),
                    })
                }
            }
        }

        text_newtype!($name);
    };
}

generated_id!(
    /// Permanent id of a session, e.g. `s-01jdq8…`.
    SessionId, "s-", "session id"
);
generated_id!(
    /// Id of a session token (the JWT's `jti`), e.g. `t-01jdq8…`.
    TokenId, "t-", "token id"
);

macro_rules! named {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(SmolStr);

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if is_dns_label(text) {
                    Ok(Self(SmolStr::new(text)))
                } else {
                    Err(InvalidId {
                        kind: $kind,
                        expected: "1 to 63 characters of a-z 0-9 and '-', beginning and ending with a letter or digit",
                    })
                }
            }
        }

        text_newtype!($name);
    };
}

named!(
    /// Name of an organization, the tenant.
    OrgId, "organization"
);
named!(
    /// Name of a cluster.
    ClusterName, "cluster"
);
named!(
    /// Name of a catalog.
    CatalogName, "catalog"
);
named!(
    /// Name of a profile of a cluster.
    ProfileName, "profile"
);

/// Id of a Spark session: a UUID of 36 characters, chosen by the client. The
/// exact bytes are kept, because engines treat two spellings of one UUID as two
/// sessions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SparkSessionId(SmolStr);

impl SparkSessionId {
    /// Length in bytes.
    pub const BYTES: usize = 36;

    /// Whether the bytes have the form 8-4-4-4-12 of hexadecimal digits. Upper
    /// and lower case are both valid and stay distinct, as on every engine.
    pub fn is_one(bytes: &[u8]) -> bool {
        bytes.len() == Self::BYTES
            && bytes.iter().enumerate().all(|(index, byte)| match index {
                8 | 13 | 18 | 23 => *byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            })
    }
}

impl FromStr for SparkSessionId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if Self::is_one(text.as_bytes()) {
            Ok(Self(SmolStr::new(text)))
        } else {
            Err(InvalidId {
                kind: "Spark session id",
                expected: "a UUID of 36 characters",
            })
        }
    }
}

text_newtype!(SparkSessionId);

/// Id of a session together with its organization.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionKey {
    /// The tenant; determines the partition.
    pub org: OrgId,
    /// The session.
    pub id: SessionId,
}

fn is_dns_label(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

impl OrgId {
    /// Number of hash slots for organizations. It must never change, because it
    /// is part of every stored key.
    pub const PARTITIONS: u8 = 16;

    /// The partition (0 to 15) that holds this organization's state.
    pub fn partition(&self) -> u8 {
        let hash = fnv1a(self.0.bytes());
        u8::try_from(hash % u64::from(Self::PARTITIONS)).unwrap_or(0)
    }
}

/// FNV-1a with 64 bits. It decides where stored keys are, so no version or
/// platform may change it.
pub fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_ids_parse_sort_and_fit_a_dns_label() {
        let early = SessionId::generate(Timestamp::from_millis(1_700_000_000_000), u64::MAX);
        let late = SessionId::generate(Timestamp::from_millis(1_700_000_000_001), 0);
        assert!(early < late);
        assert_eq!(early.as_str().parse::<SessionId>().unwrap(), early);
        assert_eq!(early.as_str().len(), 22);
        assert!(is_dns_label(early.as_str()));
    }

    #[test]
    fn foreign_spellings_are_refused() {
        for text in [
            "",
            "s-",
            "t-01jdq8aaaaaaaaaaaaaa",
            "s-01JDQ8aaaaaaaaaaaaaa",
            "s-01jdq8aaaaaaaaaaaaai",
            "s-0",
        ] {
            assert!(text.parse::<SessionId>().is_err(), "{text}");
        }
        for text in ["", "-a", "a-", "A", "a_b", "a.b"] {
            assert!(text.parse::<OrgId>().is_err(), "{text}");
        }
        assert!("a".repeat(64).parse::<OrgId>().is_err());
    }

    #[test]
    fn spark_session_ids_keep_their_spelling() {
        let text = "0B5C2E9e-1f3a-4c6d-8e7f-0123456789aB";
        assert_eq!(text.parse::<SparkSessionId>().unwrap().as_str(), text);
        for text in [
            "",
            "1-1-1-1-1",
            "0b5c2e9e1f3a4c6d8e7f0123456789ab0000",
            "0b5c2e9e-1f3a-4c6d-8e7f-0123456789a",
            "0b5c2e9e-1f3a-4c6d-8e7f-0123456789abc",
            "0b5c2e9e-1f3a-4c6d-8e7f-0123456789ag",
            "{b5c2e9e-1f3a-4c6d-8e7f-0123456789a}",
        ] {
            assert!(text.parse::<SparkSessionId>().is_err(), "{text}");
        }
    }

    #[test]
    fn partitions_never_move() {
        let partition = |name: &str| name.parse::<OrgId>().unwrap().partition();
        assert_eq!(
            [partition("acme"), partition("local"), partition("a")],
            [15, 8, 12]
        );
    }
}
