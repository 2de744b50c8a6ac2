//! Compression of response messages.

use crate::grpc::identity::GRPC_PREFIX;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::io::Read as _;

/// Compression of the messages.
pub(crate) static GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
/// Encodings that the caller accepts.
pub(crate) static GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Maximum decompressed size of a message that is decompressed as a whole.
const MAX_INFLATED: u64 = 256 * 1024;

/// Compression of the messages of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Gzip,
    /// An unsupported encoding, whose messages cannot be read.
    Unknown,
}

impl Encoding {
    /// Returns the encoding in the response headers.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        match headers.get(&GRPC_ENCODING).map(|value| value.as_bytes()) {
            None | Some(b"identity") => Self::Identity,
            Some(b"gzip") => Self::Gzip,
            Some(_) => Self::Unknown,
        }
    }

    /// Decompresses a short message; `None` if that is impossible here.
    fn inflate(self, compressed: bool, message: &[u8]) -> Option<Vec<u8>> {
        if !compressed {
            return Some(message.to_vec());
        }
        let mut out = Vec::new();
        let read = match self {
            Self::Gzip => flate2::read::GzDecoder::new(message)
                .take(MAX_INFLATED)
                .read_to_end(&mut out),
            Self::Identity | Self::Unknown => return None,
        };
        (read.ok()? < MAX_INFLATED as usize).then_some(out)
    }
}

/// Limits the encodings in a request to those that can be read here. Without a list the engine
/// compresses nothing.
pub(crate) fn limit_accepted(headers: &mut HeaderMap) {
    let lists = headers.get_all(&GRPC_ACCEPT_ENCODING).iter();
    let accepted = lists
        .filter_map(|list| list.to_str().ok())
        .flat_map(|list| list.split(','));
    let readable: Vec<_> = accepted
        .map(str::trim)
        .filter(|encoding| matches!(*encoding, "identity" | "gzip"))
        .collect();
    let has_list = headers.contains_key(&GRPC_ACCEPT_ENCODING);
    let limited = HeaderValue::try_from(readable.join(",")).ok();
    if has_list {
        let limited = limited.filter(|list| !list.is_empty());
        headers.insert(
            &GRPC_ACCEPT_ENCODING,
            limited.unwrap_or(HeaderValue::from_static("identity")),
        );
    }
}

/// The only message of a unary response, if `body` has all of it.
pub(crate) fn unary(encoding: Encoding, body: &[u8]) -> Option<Bytes> {
    let (prefix, message) = body.split_first_chunk::<GRPC_PREFIX>()?;
    let [flag, len @ ..] = *prefix;
    let message = message.get(..u32::from_be_bytes(len) as usize)?;
    encoding.inflate(flag != 0, message).map(Bytes::from)
}

/// A message as an engine with this encoding sends it.
#[cfg(test)]
pub(crate) mod testing {
    use super::Encoding;
    use std::io::Write as _;

    pub(crate) fn framed(encoding: Encoding, message: &[u8]) -> Vec<u8> {
        let (flag, message) = match encoding {
            Encoding::Identity | Encoding::Unknown => (0, message.to_vec()),
            Encoding::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(message).unwrap();
                (1, encoder.finish().unwrap())
            }
        };
        let len = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[flag][..], &len, &message].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::framed;
    use super::*;

    #[test]
    fn incomplete_unary_responses_are_ignored() {
        for encoding in [Encoding::Identity, Encoding::Gzip] {
            let body = framed(encoding, b"message");
            assert_eq!(unary(encoding, &body).as_deref(), Some(&b"message"[..]));
            assert_eq!(unary(encoding, &body[..body.len() - 1]), None);
        }
        assert_eq!(unary(Encoding::Identity, b""), None);
    }

    #[test]
    fn a_short_message_with_a_huge_decompressed_size_is_not_read() {
        let bomb = framed(Encoding::Gzip, &vec![0; 1 << 20]);
        assert_eq!(unary(Encoding::Gzip, &bomb), None);
    }

    #[test]
    fn only_encodings_that_can_be_read_are_accepted() {
        for (lists, expected) in [
            (&["identity, deflate, gzip"][..], Some("identity,gzip")),
            (&["zstd", "gzip"], Some("gzip")),
            (&["zstd"], Some("identity")),
            (&[], None),
        ] {
            let mut headers = HeaderMap::new();
            for list in lists {
                headers.append(&GRPC_ACCEPT_ENCODING, HeaderValue::from_static(list));
            }
            limit_accepted(&mut headers);
            let limited: Vec<_> = headers.get_all(&GRPC_ACCEPT_ENCODING).iter().collect();
            assert_eq!(limited, Vec::from_iter(expected), "{lists:?}");
        }
    }
}
