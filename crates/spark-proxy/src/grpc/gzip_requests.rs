//! Messages that a client compresses with gzip, decompressed within limits.
//!
//! The identity is set in plain messages, and the prefix of a plain message states its length, which a
//! compressed one does not. So a message is decompressed twice: first only to measure it, then piece by
//! piece as it is forwarded; a short message is kept from the first time. The compressed message itself
//! waits inside the stream's flow-control window, which limits its length.
//!
//! A step produces at most [`STEP`] bytes, and the calls of one worker take steps in turn, so that
//! large messages delay other calls by one step at a time.

use crate::grpc::encoding::GRPC_ENCODING;
use crate::grpc::identity::{GRPC_PREFIX, InvalidRequest};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flate2::bufread::GzDecoder;
use http::HeaderMap;
use std::collections::VecDeque;
use std::io::{Cursor, Read as _};
use std::rc::Rc;
use tokio::sync::Semaphore;

/// Maximum number of bytes that one step produces.
const STEP: usize = 64 * 1024;
/// Maximum decompressed length of a message; the engines accept no more.
pub(crate) const MAX_PLAIN: usize = 128 << 20;
/// Maximum ratio of the decompressed length to the compressed one, beyond the first step. Plans and
/// Arrow data compress by less than 20.
pub(crate) const MAX_RATIO: usize = 200;
/// Memory of a decoder.
const DECODER_BYTES: usize = 48 * 1024;

thread_local! {
    /// The turn to take a step on this worker.
    static TURN: Rc<Semaphore> = Rc::new(Semaphore::new(1));
}

/// Reason for the rejection of compressed data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InvalidGzip {
    /// The compressed message is longer than this.
    TooLong(usize),
    /// The decompressed message is longer than this.
    TooLarge(usize),
    /// Not what other decoders would read.
    Malformed(&'static str),
}

/// Decompresses the messages of one request.
#[derive(Debug)]
pub(crate) struct Decompressor {
    /// Maximum length of a compressed message.
    max_compressed: usize,
    /// Client bytes that are not yet consumed.
    input: VecDeque<Bytes>,
    input_len: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Prefix {
        bytes: [u8; GRPC_PREFIX],
        have: usize,
    },
    /// An uncompressed message, forwarded as it is.
    Plain {
        left: usize,
    },
    /// A compressed message that is not yet complete.
    Collect {
        len: usize,
        held: BytesMut,
    },
    Measure(Measure),
    Produce {
        decoder: Box<GzDecoder<Cursor<Bytes>>>,
        compressed: usize,
        left: usize,
    },
}

impl State {
    const START: Self = Self::Prefix {
        bytes: [0; GRPC_PREFIX],
        have: 0,
    };
}

/// The first pass over a message.
#[derive(Debug)]
struct Measure {
    message: Bytes,
    decoder: Box<GzDecoder<Cursor<Bytes>>>,
    buffer: Vec<u8>,
    len: usize,
}

/// What a step led to.
enum Step {
    /// Bytes to forward.
    Plain(Bytes),
    /// No bytes yet; take another step.
    Again,
    /// More client bytes are needed.
    NeedsInput,
}

impl Decompressor {
    /// For a request with these headers; `None` if its messages are not compressed with gzip.
    /// `window` is the flow-control window of the stream.
    pub(crate) fn of(headers: &HeaderMap, window: u32) -> Option<Self> {
        let mut encodings = headers.get_all(&GRPC_ENCODING).iter();
        let is_gzip = encodings.next().is_some_and(|value| value == "gzip") && encodings.next().is_none();
        is_gzip.then(|| Self {
            max_compressed: (window as usize).saturating_sub(GRPC_PREFIX),
            input: VecDeque::new(),
            input_len: 0,
            state: State::START,
        })
    }

    /// Adds bytes of the client.
    pub(crate) fn feed(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.input_len += bytes.len();
            self.input.push_back(bytes);
        }
    }

    /// Client bytes that are held: their flow-control capacity is not to be released.
    pub(crate) fn held(&self) -> usize {
        self.input_len
            + match &self.state {
                State::Prefix { .. } | State::Plain { .. } => 0,
                State::Collect { held, .. } => held.len(),
                State::Measure(measure) => measure.message.len(),
                State::Produce { compressed, .. } => *compressed,
            }
    }

    /// Memory beyond the client's bytes.
    pub(crate) fn overhead(&self) -> usize {
        match &self.state {
            State::Prefix { .. } | State::Plain { .. } | State::Collect { .. } => 0,
            State::Measure(_) => DECODER_BYTES + STEP,
            State::Produce { .. } => DECODER_BYTES,
        }
    }

    /// Whether the client's bytes end here, at the end of a message.
    pub(crate) fn finish(&self) -> Result<(), InvalidRequest> {
        match self.state {
            State::Prefix { have: 0, .. } => Ok(()),
            _ => Err(InvalidRequest::Malformed(
                "the request ends in the middle of a message",
            )),
        }
    }

    /// Returns the next plain bytes; `None` if more client bytes are needed. Cancelling loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, InvalidGzip> {
        loop {
            let is_work = matches!(self.state, State::Measure(_) | State::Produce { .. });
            let turn = TURN.with(Rc::clone);
            // The semaphore is never closed.
            let permit = if is_work { turn.acquire().await.ok() } else { None };
            if is_work {
                tokio::task::yield_now().await;
            }
            let step = self.step()?;
            drop(permit);
            match step {
                Step::Plain(bytes) => return Ok(Some(bytes)),
                Step::Again => {}
                Step::NeedsInput => return Ok(None),
            }
        }
    }

    fn step(&mut self) -> Result<Step, InvalidGzip> {
        match std::mem::replace(&mut self.state, State::START) {
            State::Prefix { mut bytes, mut have } => {
                while have < GRPC_PREFIX {
                    let Some(part) = self.take(GRPC_PREFIX - have) else {
                        self.state = State::Prefix { bytes, have };
                        return Ok(Step::NeedsInput);
                    };
                    bytes[have..have + part.len()].copy_from_slice(&part);
                    have += part.len();
                }
                self.begin(bytes)
            }
            State::Plain { left } => {
                let Some(part) = self.take(left) else {
                    self.state = State::Plain { left };
                    return Ok(Step::NeedsInput);
                };
                if part.len() < left {
                    self.state = State::Plain {
                        left: left - part.len(),
                    };
                }
                Ok(Step::Plain(part))
            }
            State::Collect { len, mut held } => {
                while held.len() < len {
                    let Some(part) = self.take(len - held.len()) else {
                        self.state = State::Collect { len, held };
                        return Ok(Step::NeedsInput);
                    };
                    held.extend_from_slice(&part);
                }
                self.state = State::Measure(Measure::new(held.freeze()));
                Ok(Step::Again)
            }
            State::Measure(measure) => {
                let (state, step) = measure.step()?;
                self.state = state;
                Ok(step)
            }
            State::Produce {
                mut decoder,
                compressed,
                left,
            } => {
                let plain = read_full(&mut decoder, left.min(STEP))?;
                let left = left - plain.len();
                if left > 0 {
                    self.state = State::Produce {
                        decoder,
                        compressed,
                        left,
                    };
                }
                Ok(Step::Plain(plain.into()))
            }
        }
    }

    /// Begins the message with this prefix.
    fn begin(&mut self, prefix: [u8; GRPC_PREFIX]) -> Result<Step, InvalidGzip> {
        let [flag, len @ ..] = prefix;
        let len = u32::from_be_bytes(len) as usize;
        if flag != 1 {
            // The identity is set in it, or it is rejected there.
            if len > 0 {
                self.state = State::Plain { left: len };
            }
            return Ok(Step::Plain(Bytes::copy_from_slice(&prefix)));
        }
        if len > self.max_compressed {
            return Err(InvalidGzip::TooLong(self.max_compressed));
        }
        self.state = State::Collect {
            len,
            held: BytesMut::new(),
        };
        Ok(Step::Again)
    }

    /// At most `max` bytes of the input.
    fn take(&mut self, max: usize) -> Option<Bytes> {
        let first = self.input.front_mut()?;
        let part = first.split_to(max.min(first.len()));
        if !first.has_remaining() {
            self.input.pop_front();
        }
        self.input_len -= part.len();
        Some(part)
    }
}

impl Measure {
    fn new(message: Bytes) -> Self {
        Self {
            decoder: decoder(&message),
            message,
            buffer: Vec::new(),
            len: 0,
        }
    }

    fn step(mut self) -> Result<(State, Step), InvalidGzip> {
        let is_first = self.len == 0;
        self.buffer = read_full(&mut self.decoder, STEP)?;
        self.len += self.buffer.len();
        let max = MAX_PLAIN.min(STEP.max(self.message.len() * MAX_RATIO));
        if self.len > max {
            return Err(InvalidGzip::TooLarge(max));
        }
        if self.buffer.len() == STEP {
            return Ok((State::Measure(self), Step::Again));
        }
        if self.decoder.get_ref().position() < self.message.len() as u64 {
            // Some decoders read a second member, and others ignore it.
            return Err(InvalidGzip::Malformed("bytes follow the compressed message"));
        }
        let mut out = BytesMut::with_capacity(GRPC_PREFIX + if is_first { self.len } else { 0 });
        out.put_u8(0);
        // At most `MAX_PLAIN`.
        out.put_u32(u32::try_from(self.len).unwrap_or(u32::MAX));
        let state = if is_first {
            out.put_slice(&self.buffer);
            State::START
        } else {
            State::Produce {
                decoder: decoder(&self.message),
                compressed: self.message.len(),
                left: self.len,
            }
        };
        Ok((state, Step::Plain(out.freeze())))
    }
}

fn decoder(message: &Bytes) -> Box<GzDecoder<Cursor<Bytes>>> {
    Box::new(GzDecoder::new(Cursor::new(message.clone())))
}

/// Reads `len` bytes, or fewer at the end of the message.
fn read_full(decoder: &mut GzDecoder<Cursor<Bytes>>, len: usize) -> Result<Vec<u8>, InvalidGzip> {
    let mut out = Vec::with_capacity(len);
    decoder
        .take(len as u64)
        .read_to_end(&mut out)
        .map_err(|_| InvalidGzip::Malformed("a compressed message is not gzip, or incomplete"))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use http::HeaderValue;
    use std::io::Write as _;

    const WINDOW: u32 = 1 << 20;

    fn decompressor() -> Decompressor {
        let headers = HeaderMap::from_iter([(GRPC_ENCODING.clone(), HeaderValue::from_static("gzip"))]);
        Decompressor::of(&headers, WINDOW).unwrap()
    }

    fn frame(flag: u8, message: &[u8]) -> Vec<u8> {
        let len = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[flag][..], &len, message].concat()
    }

    fn gzip(message: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(message).unwrap();
        encoder.finish().unwrap()
    }

    /// The plain bytes of a request whose data frames have `frame` bytes.
    async fn plain(request: &[u8], frame: usize) -> Result<Vec<u8>, InvalidGzip> {
        let mut decompressor = decompressor();
        let mut out = Vec::new();
        for part in request.chunks(frame) {
            decompressor.feed(Bytes::copy_from_slice(part));
            assert!(decompressor.held() <= request.len());
            while let Some(bytes) = decompressor.next().await? {
                assert!(bytes.len() <= (STEP + GRPC_PREFIX).max(frame));
                out.extend_from_slice(&bytes);
            }
        }
        assert_eq!((decompressor.held(), decompressor.overhead()), (0, 0));
        assert!(decompressor.finish().is_ok());
        Ok(out)
    }

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n * n % 251) as u8 ^ (n / 977) as u8).collect()
    }

    #[tokio::test]
    async fn messages_of_any_length_are_those_that_were_compressed() {
        for len in [0, 1, STEP - 1, STEP, STEP + 1, 3 * STEP, 1_000_000] {
            let message = text(len);
            let request = [
                frame(1, &gzip(&message)),
                frame(0, b"plain"),
                frame(1, &gzip(b"last")),
            ]
            .concat();
            let expected = [frame(0, &message), frame(0, b"plain"), frame(0, b"last")].concat();
            for frame in [1000, 16_384, request.len()] {
                assert_eq!(plain(&request, frame).await.unwrap(), expected, "{len} {frame}");
            }
        }
        let request = [frame(1, &gzip(b"a")), frame(0, b"")].concat();
        assert_eq!(
            plain(&request, 1).await.unwrap(),
            [frame(0, b"a"), frame(0, b"")].concat()
        );
    }

    #[tokio::test]
    async fn a_request_that_ends_early_is_malformed() {
        let request = frame(1, &gzip(b"message"));
        for len in 1..request.len() {
            let mut decompressor = decompressor();
            decompressor.feed(Bytes::copy_from_slice(&request[..len]));
            assert_eq!(decompressor.next().await, Ok(None));
            assert!(decompressor.finish().is_err(), "{len}");
        }
    }

    #[tokio::test]
    async fn what_exceeds_a_limit_is_rejected() {
        let zeros = vec![0; 2 << 20];
        let bomb = gzip(&zeros);
        assert_eq!(
            plain(&frame(1, &bomb), 4096).await,
            Err(InvalidGzip::TooLarge(bomb.len() * MAX_RATIO))
        );
        // The length is checked before the message is received.
        let long = [&[1][..], &WINDOW.to_be_bytes()].concat();
        assert_eq!(
            plain(&long, 5).await,
            Err(InvalidGzip::TooLong(WINDOW as usize - GRPC_PREFIX))
        );
    }

    #[tokio::test]
    async fn what_decoders_could_read_differently_is_malformed() {
        let two = [gzip(b"one"), gzip(b"two")].concat();
        let mut wrong_sum = gzip(b"message");
        let at = wrong_sum.len() - 8;
        wrong_sum[at] ^= 1;
        let cut = gzip(b"message");
        for message in [&two[..], &wrong_sum, &cut[..cut.len() - 1], b"no gzip", b""] {
            let answer = plain(&frame(1, message), 4096).await;
            assert!(matches!(answer, Err(InvalidGzip::Malformed(_))), "{message:?}");
        }
    }

    #[test]
    fn only_one_header_of_gzip_counts() {
        let with = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(&GRPC_ENCODING, HeaderValue::from_static(value));
            }
            Decompressor::of(&headers, WINDOW).is_some()
        };
        assert!(with(&["gzip"]));
        for others in [&[][..], &["identity"], &["deflate"], &["gzip", "gzip"]] {
            assert!(!with(others), "{others:?}");
        }
    }
}
