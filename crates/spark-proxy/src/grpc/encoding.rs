//! Compression of response messages.

use crate::grpc::identity::GRPC_PREFIX;
use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use std::io::Read as _;

static GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// Maximum decompressed size of a message that is decompressed as a whole.
const MAX_INFLATED: u64 = 256 * 1024;

/// Compression of the messages of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Gzip,
    Zstd,
    /// An unsupported encoding, whose messages cannot be read.
    Unknown,
}

impl Encoding {
    /// Returns the encoding in the response headers.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        match headers.get(&GRPC_ENCODING).map(|value| value.as_bytes()) {
            None | Some(b"identity") => Self::Identity,
            Some(b"gzip") => Self::Gzip,
            Some(b"zstd") => Self::Zstd,
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
            Self::Zstd => zstd::stream::read::Decoder::new(message)
                .and_then(|decoder| decoder.take(MAX_INFLATED).read_to_end(&mut out)),
            Self::Identity | Self::Unknown => return None,
        };
        (read.ok()? < MAX_INFLATED as usize).then_some(out)
    }
}

/// The only message of a unary response, if `body` has all of it.
pub(crate) fn unary(encoding: Encoding, body: &[u8]) -> Option<Bytes> {
    let (prefix, message) = body.split_first_chunk::<GRPC_PREFIX>()?;
    let [flag, len @ ..] = *prefix;
    let message = message.get(..u32::from_be_bytes(len) as usize)?;
    encoding.inflate(flag != 0, message).map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn framed(encoding: Encoding, message: &[u8]) -> Vec<u8> {
        let (flag, message) = match encoding {
            Encoding::Identity | Encoding::Unknown => (0, message.to_vec()),
            Encoding::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(message).unwrap();
                (1, encoder.finish().unwrap())
            }
            Encoding::Zstd => (1, zstd::stream::encode_all(message, 1).unwrap()),
        };
        let len = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[flag][..], &len, &message].concat()
    }

    #[test]
    fn incomplete_unary_responses_are_ignored() {
        for encoding in [Encoding::Identity, Encoding::Gzip, Encoding::Zstd] {
            let body = framed(encoding, b"message");
            assert_eq!(unary(encoding, &body).as_deref(), Some(&b"message"[..]));
            assert_eq!(unary(encoding, &body[..body.len() - 1]), None);
        }
        assert_eq!(unary(Encoding::Identity, b""), None);
    }

    #[test]
    fn a_short_message_with_a_huge_decompressed_size_is_not_read() {
        let bomb = framed(Encoding::Zstd, &vec![0; 1 << 20]);
        assert_eq!(unary(Encoding::Zstd, &bomb), None);
    }
}
