//! Encoding of records and changes in Redis: compressed JSON.
//!
//! Sessions share most of their text, so one dictionary serves all of them. The first
//! byte names the form, so that later versions can add forms and still read this one:
//! - `{`: plain JSON, which a person may write;
//! - 1: a Zstandard frame without its magic number, made with [`DICTIONARY`].
//!
//! A dictionary never changes, because records written with it must stay readable. A
//! better one is another form. `tests/it/record_dictionary.rs` created this one.

use crate::Error;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::sync::LazyLock;
use zstd::bulk::{Compressor, Decompressor};
use zstd::dict::{DecoderDictionary, EncoderDictionary};
use zstd::zstd_safe::get_frame_content_size;

/// Text that most records and changes contain.
const DICTIONARY: &[u8] = include_bytes!("1.dictionary");
const WITH_DICTIONARY: u8 = 1;
const PLAIN: u8 = b'{';
/// The first four bytes of every Zstandard frame.
const MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// Speed is more important here than size.
const LEVEL: i32 = 1;
/// Limit of a decompressed record, far above any real one: the length in a corrupt
/// frame can be any number.
const MAX_RECORD_BYTES: u64 = 16 << 20;

static ENCODER: LazyLock<EncoderDictionary<'static>> =
    LazyLock::new(|| EncoderDictionary::copy(DICTIONARY, LEVEL));
static DECODER: LazyLock<DecoderDictionary<'static>> = LazyLock::new(|| DecoderDictionary::copy(DICTIONARY));

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

fn corrupt(error: impl ToString) -> Error {
    Error::Corrupt(error.to_string())
}

fn compressor() -> std::io::Result<Compressor<'static>> {
    let mut compressor = Compressor::with_prepared_dictionary(&ENCODER)?;
    compressor.include_dictid(false)?;
    compressor.include_checksum(false)?;
    Ok(compressor)
}

/// Compresses a value whose JSON is an object.
pub(in crate::redis) fn pack<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    let json = serde_json::to_vec(value).map_err(corrupt)?;
    let mut frame = COMPRESSOR
        .with_borrow_mut(|kept| {
            let mut compressor = match kept.take() {
                Some(compressor) => compressor,
                None => compressor()?,
            };
            let frame = compressor.compress(&json)?;
            *kept = Some(compressor);
            Ok::<_, std::io::Error>(frame)
        })
        .map_err(corrupt)?;
    // The form replaces the magic number.
    frame.drain(..MAGIC.len() - 1);
    match frame.first_mut() {
        Some(form) => *form = WITH_DICTIONARY,
        None => return Err(corrupt("an empty frame")),
    }
    Ok(frame)
}

/// Decodes a result of [`pack`], or plain JSON.
pub(in crate::redis) fn unpack<T: DeserializeOwned>(packed: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(&json(packed)?).map_err(corrupt)
}

/// The JSON of a result of [`pack`].
fn json(packed: &[u8]) -> Result<Vec<u8>, Error> {
    match packed.split_first() {
        Some((&PLAIN, _)) => Ok(packed.to_vec()),
        Some((&WITH_DICTIONARY, frame)) => decompress(frame),
        Some((form, _)) => Err(corrupt(format!("a record of unknown form {form}"))),
        None => Err(corrupt("an empty record")),
    }
}

fn decompress(frame: &[u8]) -> Result<Vec<u8>, Error> {
    let whole = [&MAGIC, frame].concat();
    let length = match get_frame_content_size(&whole) {
        Ok(Some(length)) if length <= MAX_RECORD_BYTES => usize::try_from(length).map_err(corrupt)?,
        Ok(_) | Err(_) => return Err(corrupt("a record that cannot be decompressed")),
    };
    DECOMPRESSOR
        .with_borrow_mut(|kept| {
            let mut decompressor = match kept.take() {
                Some(decompressor) => decompressor,
                None => Decompressor::with_prepared_dictionary(&DECODER)?,
            };
            let json = decompressor.decompress(&whole, length)?;
            *kept = Some(decompressor);
            Ok::<_, std::io::Error>(json)
        })
        .map_err(corrupt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn typical() -> Value {
        json!({"v": 2, "at": 1_800_000_000_123_u64, "from": "pending", "to": "active",
               "phase": "ready", "gen": 1, "reason": "COMPUTE_READY", "by": "system"})
    }

    #[test]
    fn what_was_packed_comes_back() {
        let long = json!({"status_detail": "x".repeat(100_000), "labels": {"é": "\u{0}\n"}});
        for value in [typical(), long, json!({})] {
            let packed = pack(&value).unwrap();
            assert_eq!(unpack::<Value>(&packed).unwrap(), value);
            let plain = serde_json::to_vec(&value).unwrap();
            assert_eq!(unpack::<Value>(&plain).unwrap(), value);
        }
        assert!(pack(&typical()).unwrap().len() < 60);
    }

    /// Stored records depend on the dictionary byte by byte.
    #[test]
    fn the_dictionary_is_the_one_that_records_were_written_with() {
        let packed = KNOWN.chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).unwrap();
            u8::from_str_radix(pair, 16).unwrap()
        });
        let packed: Vec<u8> = packed.collect();
        assert_eq!(unpack::<Value>(&packed).unwrap(), typical());
    }

    const KNOWN: &[u8] = b"012078fd000083400139c27eefd108fcc757163d8d4f1ecd41009e655e4b0c57f430405615";

    #[test]
    fn nonsense_is_corrupt_and_no_panic() {
        let good = pack(&typical()).unwrap();
        let mut samples = vec![
            Vec::new(),
            vec![0],
            vec![1],
            vec![2, 3],
            b"{".to_vec(),
            b"nonsense".to_vec(),
        ];
        samples.extend((0..good.len()).map(|end| good[..end].to_vec()));
        samples.extend((1..good.len()).map(|at| {
            let mut bent = good.clone();
            bent[at] ^= 0xff;
            bent
        }));
        for sample in samples {
            match unpack::<Value>(&sample) {
                Ok(_) | Err(Error::Corrupt(_)) => {}
                Err(other) => panic!("{sample:?}: {other}"),
            }
        }
        assert!(unpack::<Value>(b"\x01").is_err());
    }
}
