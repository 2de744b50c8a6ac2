//! The messages of a response that its client has not acknowledged, and the position up to which
//! they were sent.
//!
//! ```text
//! removed │ sent, not acknowledged │ not sent │
//!         └── messages ─────────────────────────┘
//! ```
//!
//! The request of a returning client contains the id of the last message that it received; the
//! position is set to the message after it. Messages are removed when the client acknowledges them.
//! Sent messages are also removed when their bytes exceed a limit; a client that needs them again
//! gets an error.

use crate::activity::sail_operations::{NotRetained, Received};
use crate::grpc::encoding::Encoding;
use crate::grpc::response_scanner::{ResponseId, ResponseScanner, ScannedMessage};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// Smaller pieces are copied: a slice keeps its whole buffer in memory, which has 32 KiB for frames
/// that were joined.
const MIN_SHARED_BYTES: usize = 16 * 1024;
/// Smaller pieces are sent together.
const MIN_SENT_BYTES: usize = 4 * 1024;
/// Maximum size of pieces that are sent together.
const MAX_JOINED_BYTES: usize = 32 * 1024;
/// Compressed bytes between two pauses. They decompress to a thousand times as many at most, which
/// takes a few milliseconds.
const MAX_COMPRESSED_BYTES: usize = 4 * 1024;
/// Memory of a piece and of a message beyond their bytes.
const PIECE_OVERHEAD: usize = 64;
const MESSAGE_OVERHEAD: usize = 128;

/// The part of a response that its client has not acknowledged.
pub(crate) struct Unacknowledged {
    scanner: ResponseScanner,
    /// Compressed bytes since the last pause.
    unpaused: usize,
    messages: VecDeque<Message>,
    sent: Position,
    bytes: usize,
    /// The last removed message, if any.
    removed: Option<Removed>,
    is_complete: bool,
}

#[derive(Default)]
struct Message {
    id: Option<ResponseId>,
    pieces: Vec<Bytes>,
    bytes: usize,
    has_ended: bool,
    /// Sent pieces were removed before the message ended.
    is_cut: bool,
}

/// Index of the next byte to be sent: message, piece, and offset in the piece.
#[derive(Debug, Clone, Copy, Default)]
struct Position {
    message: usize,
    piece: usize,
    offset: usize,
}

/// The id of a removed message.
type Removed = Option<ResponseId>;

impl Unacknowledged {
    pub(crate) fn new(encoding: Encoding) -> Self {
        Self {
            scanner: ResponseScanner::new(encoding),
            unpaused: 0,
            messages: VecDeque::new(),
            sent: Position::default(),
            bytes: 0,
            removed: None,
            is_complete: false,
        }
    }

    /// Memory of the messages and their scanner.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.scanner.memory()
    }

    /// Whether the last message was `result_complete`.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Whether a client that received all sent bytes can continue.
    pub(crate) fn is_resumable(&self) -> bool {
        let next = self.messages.get(self.sent.message);
        next.is_none_or(|message| !message.is_cut)
    }

    /// Takes the next bytes of the response. Pauses between slices of compressed bytes, so that other
    /// calls of the worker are not delayed.
    pub(crate) async fn push(&mut self, mut data: Bytes) {
        while !data.is_empty() {
            let (count, ended) = self.scan(&data).await;
            let piece = data.split_to(count);
            if self.messages.back().is_none_or(|last| last.has_ended) {
                self.messages.push_back(Message::default());
                self.bytes += MESSAGE_OVERHEAD;
            }
            let Some(last) = self.messages.back_mut() else {
                return;
            };
            self.bytes += last.add(piece);
            if let Some(ended) = ended {
                last.has_ended = true;
                last.id = ended.id;
                self.is_complete = ended.is_result_complete;
            }
        }
    }

    /// Scans bytes up to the end of the present message.
    async fn scan(&mut self, data: &[u8]) -> (usize, Option<ScannedMessage>) {
        if !self.scanner.decompresses() {
            return self.scanner.scan(data);
        }
        let mut scanned = 0;
        loop {
            let slice = (data.len() - scanned).min(MAX_COMPRESSED_BYTES - self.unpaused);
            let (count, ended) = self.scanner.scan(&data[scanned..scanned + slice]);
            scanned += count;
            self.unpaused += count;
            if self.unpaused >= MAX_COMPRESSED_BYTES {
                self.unpaused = 0;
                tokio::task::yield_now().await;
            }
            if ended.is_some() || scanned == data.len() {
                return (scanned, ended);
            }
        }
    }

    /// The next bytes to be sent; empty if everything was sent.
    pub(crate) fn unsent(&self) -> Bytes {
        let mut pieces = self.unsent_pieces();
        let Some(first) = pieces.next() else {
            return Bytes::new();
        };
        if first.len() >= MIN_SENT_BYTES {
            return first;
        }
        let Some(second) = pieces.next() else { return first };
        let mut joined = BytesMut::with_capacity(MAX_JOINED_BYTES);
        joined.extend_from_slice(&first);
        for piece in std::iter::once(second).chain(pieces) {
            if joined.len() + piece.len() > MAX_JOINED_BYTES {
                break;
            }
            joined.extend_from_slice(&piece);
        }
        joined.freeze()
    }

    /// Whether bytes are to be sent.
    pub(crate) fn has_unsent(&self) -> bool {
        self.unsent_pieces().next().is_some()
    }

    fn unsent_pieces(&self) -> impl Iterator<Item = Bytes> {
        let Position {
            message,
            piece,
            offset,
        } = self.sent;
        let messages = self.messages.range(message.min(self.messages.len())..);
        messages
            .enumerate()
            .flat_map(move |(index, message)| message.pieces.get(if index == 0 { piece } else { 0 }..))
            .flatten()
            .enumerate()
            .map(move |(index, bytes)| bytes.slice(if index == 0 { offset } else { 0 }..))
    }

    /// Records that `count` of the unsent bytes were sent.
    pub(crate) fn mark_sent(&mut self, mut count: usize) {
        while let Some(message) = self.messages.get(self.sent.message) {
            if let Some(piece) = message.pieces.get(self.sent.piece) {
                let left = piece.len() - self.sent.offset;
                if count < left {
                    self.sent.offset += count;
                    return;
                }
                count -= left;
                self.sent.piece += 1;
                self.sent.offset = 0;
            } else if message.has_ended {
                self.sent.message += 1;
                self.sent.piece = 0;
            } else {
                return;
            }
        }
    }

    /// Removes the sent messages up to this one.
    pub(crate) fn release_until(&mut self, id: ResponseId) {
        let mut sent = self.messages.range(..self.sent.message);
        if let Some(index) = sent.position(|message| message.id == Some(id)) {
            (0..=index).for_each(|_| self.remove_first());
        }
    }

    /// Removes the oldest sent message, or the sent pieces of the message that is being received;
    /// false if nothing can be removed.
    pub(crate) fn remove_oldest_sent(&mut self) -> bool {
        if self.sent.message > 0 {
            self.remove_first();
            return true;
        }
        let Some(first) = self.messages.front_mut().filter(|_| self.sent.piece > 0) else {
            return false;
        };
        first.is_cut = true;
        let removed: usize = first
            .pieces
            .drain(..self.sent.piece)
            .map(|piece| cost(&piece))
            .sum();
        first.bytes -= removed;
        self.bytes -= removed;
        self.sent.piece = 0;
        true
    }

    fn remove_first(&mut self) {
        if let Some(first) = self.messages.pop_front() {
            self.bytes -= first.bytes + MESSAGE_OVERHEAD;
            self.removed = Some(first.id);
            self.sent.message -= 1;
        }
    }

    /// Sets the position to the first message that the client did not receive.
    pub(crate) fn rewind(&mut self, received: Received) -> Result<(), NotRetained> {
        let start = match received {
            Received::Nothing if self.removed.is_none() => 0,
            Received::UpTo(id) if self.removed == Some(Some(id)) => 0,
            Received::UpTo(id) => {
                let last = self.messages.iter().position(|message| message.id == Some(id));
                last.ok_or(NotRetained)? + 1
            }
            Received::Nothing => return Err(NotRetained),
        };
        if self.messages.range(start..).any(|message| message.is_cut) {
            return Err(NotRetained);
        }
        self.sent = Position {
            message: start,
            ..Position::default()
        };
        Ok(())
    }
}

impl Message {
    /// Adds a piece; returns its memory.
    fn add(&mut self, piece: Bytes) -> usize {
        let piece = if piece.len() < MIN_SHARED_BYTES {
            Bytes::copy_from_slice(&piece)
        } else {
            piece
        };
        let cost = cost(&piece);
        self.bytes += cost;
        self.pieces.push(piece);
        cost
    }
}

fn cost(piece: &Bytes) -> usize {
    piece.len() + PIECE_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::encoding::testing::framed;
    use proptest::prelude::*;
    use session_proto::spark::ExecutePlanResponse;
    use session_proto::spark::execute_plan_response::{ArrowBatch, ResponseType, ResultComplete};
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn id(number: usize) -> String {
        format!("{number:08x}-89ab-cdef-0123-456789abcdef")
    }

    fn response_id(number: usize) -> ResponseId {
        ResponseId::parse(&id(number)).unwrap()
    }

    fn message(number: usize, response_type: Option<ResponseType>) -> Bytes {
        crate::grpc::framed(&ExecutePlanResponse {
            response_id: id(number),
            response_type,
            ..ExecutePlanResponse::default()
        })
    }

    fn rows(number: usize, len: usize) -> Bytes {
        let data = vec![number as u8; len];
        message(
            number,
            Some(ResponseType::ArrowBatch(ArrowBatch {
                data,
                ..ArrowBatch::default()
            })),
        )
    }

    /// Takes bytes; returns the number of pauses.
    fn push(stream: &mut Unacknowledged, data: Bytes) -> usize {
        let mut push = pin!(stream.push(data));
        let mut context = Context::from_waker(Waker::noop());
        std::iter::from_fn(|| push.as_mut().poll(&mut context).is_pending().then_some(())).count()
    }

    /// Sends up to `max` bytes.
    fn send(stream: &mut Unacknowledged, max: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while out.len() < max && stream.has_unsent() {
            let next = stream.unsent();
            let count = next.len().min(max - out.len());
            out.extend_from_slice(&next[..count]);
            stream.mark_sent(count);
        }
        out
    }

    fn send_all(stream: &mut Unacknowledged) -> Vec<u8> {
        send(stream, usize::MAX)
    }

    /// A stream that has received messages of these sizes in frames of `frame` bytes.
    fn stream(sizes: &[usize], frame: usize) -> (Unacknowledged, Vec<Bytes>) {
        let messages: Vec<_> = sizes.iter().enumerate().map(|(n, size)| rows(n, *size)).collect();
        let mut stream = Unacknowledged::new(Encoding::Identity);
        for chunk in messages.concat().chunks(frame) {
            push(&mut stream, Bytes::copy_from_slice(chunk));
        }
        (stream, messages)
    }

    #[test]
    fn a_returning_client_gets_what_it_does_not_have() {
        let (mut held, messages) = stream(&[10, 20_000, 0, 3], 7000);
        assert_eq!(send_all(&mut held), messages.concat());
        for last in 0..4 {
            held.rewind(Received::UpTo(response_id(last))).unwrap();
            assert_eq!(send_all(&mut held), messages[last + 1..].concat(), "{last}");
        }
        held.rewind(Received::Nothing).unwrap();
        assert_eq!(send_all(&mut held), messages.concat());
        assert_eq!(held.rewind(Received::UpTo(response_id(9))), Err(NotRetained));
        assert!(!held.has_unsent(), "a failed rewind changes nothing");
    }

    #[test]
    fn acknowledged_messages_are_removed() {
        let (mut held, messages) = stream(&[100; 5], 64);
        held.release_until(response_id(1));
        held.rewind(Received::Nothing)
            .expect("nothing was sent, so nothing can be acknowledged");
        send(&mut held, messages[..3].concat().len() + 10);
        let before = held.bytes();
        held.release_until(response_id(1));
        assert!(held.bytes() < before);
        held.release_until(response_id(3));
        held.release_until(response_id(77));
        assert_eq!(
            send_all(&mut held),
            messages.concat()[messages[..3].concat().len() + 10..]
        );
        assert_eq!(held.rewind(Received::Nothing), Err(NotRetained));
        assert_eq!(held.rewind(Received::UpTo(response_id(0))), Err(NotRetained));
        held.rewind(Received::UpTo(response_id(1))).unwrap();
        assert_eq!(send_all(&mut held), messages[2..].concat());
        held.release_until(response_id(4));
        assert_eq!(held.bytes(), 0);
        held.rewind(Received::UpTo(response_id(4))).unwrap();
        assert!(!held.has_unsent());
    }

    #[test]
    fn a_message_whose_beginning_was_removed_is_not_resumed() {
        let (mut held, messages) = stream(&[100, 50_000], 5000);
        send(&mut held, 20_000);
        while held.remove_oldest_sent() {}
        assert_eq!(held.rewind(Received::UpTo(response_id(0))), Err(NotRetained));
        assert_eq!(send_all(&mut held), messages.concat()[20_000..]);
        held.rewind(Received::UpTo(response_id(1))).unwrap();

        // Still being received.
        let whole = rows(0, 50_000);
        let mut held = Unacknowledged::new(Encoding::Identity);
        push(&mut held, whole.slice(..30_000));
        assert!(held.is_resumable());
        send_all(&mut held);
        assert!(held.remove_oldest_sent() && !held.remove_oldest_sent());
        assert!(!held.is_resumable() && held.bytes() == MESSAGE_OVERHEAD);
        push(&mut held, whole.slice(30_000..));
        assert!(!held.is_resumable());
        assert_eq!(held.rewind(Received::Nothing), Err(NotRetained));
        assert_eq!(send_all(&mut held), whole[30_000..]);
        assert!(held.is_resumable());
    }

    #[test]
    fn unsent_messages_are_never_removed() {
        let (mut held, messages) = stream(&[10_000; 3], 9000);
        assert!(!held.remove_oldest_sent());
        send(&mut held, messages[0].len() + 100);
        while held.remove_oldest_sent() {}
        assert_eq!(send_all(&mut held), messages.concat()[messages[0].len() + 100..]);
    }

    /// Frames of a small result are joined in a buffer of 32 KiB.
    #[test]
    fn a_small_result_does_not_keep_the_buffer_of_its_frames() {
        for (size, is_kept) in [(10_000, false), (20_000, true)] {
            let mut buffer = BytesMut::with_capacity(MAX_JOINED_BYTES);
            buffer.extend_from_slice(&rows(0, size));
            let frame = buffer.freeze();
            let mut held = Unacknowledged::new(Encoding::Identity);
            push(&mut held, frame.clone());
            assert_eq!(!frame.is_unique(), is_kept, "{size}");
        }
    }

    #[test]
    fn small_messages_are_sent_together() {
        let (held, messages) = stream(&[10; 100], usize::MAX);
        assert_eq!(held.unsent(), messages.concat());
        let (held, _) = stream(&[3000; 100], usize::MAX);
        let len = held.unsent().len();
        assert!((MAX_JOINED_BYTES / 2..=MAX_JOINED_BYTES).contains(&len), "{len}");
    }

    #[test]
    fn compressed_bytes_are_read_in_slices_and_the_decoder_is_counted() {
        let rows = rows(0, 16 << 20);
        let whole = Bytes::from(framed(Encoding::Gzip, &rows[5..]));
        assert!(whole.len() > 3 * MAX_COMPRESSED_BYTES, "{}", whole.len());
        let mut held = Unacknowledged::new(Encoding::Gzip);
        let half = whole.len() / 2;
        let pauses = push(&mut held, whole.slice(..half));
        assert_eq!(pauses, half / MAX_COMPRESSED_BYTES);
        assert!(held.bytes() > half + 64 * 1024, "{}", held.bytes());
        let pauses = push(&mut held, whole.slice(half..));
        assert_eq!(
            pauses,
            whole.len() / MAX_COMPRESSED_BYTES - half / MAX_COMPRESSED_BYTES
        );
        assert!(held.bytes() < whole.len() + 64 * 1024, "{}", held.bytes());
        // One piece for each frame that was received.
        assert_eq!(held.messages[0].pieces.len(), 2);
        send_all(&mut held);
        assert_eq!(held.rewind(Received::UpTo(response_id(0))), Ok(()));

        // Many short messages.
        let short = Bytes::from(framed(Encoding::Gzip, &[]).repeat(1000));
        let pauses = push(&mut Unacknowledged::new(Encoding::Gzip), short.clone());
        assert_eq!(pauses, short.len() / MAX_COMPRESSED_BYTES);
        let (mut plain, messages) = stream(&[100_000], 50_000);
        assert_eq!(push(&mut plain, messages.concat().into()), 0);
    }

    #[test]
    fn only_result_complete_completes() {
        let mut held = Unacknowledged::new(Encoding::Identity);
        let complete = || Some(ResponseType::ResultComplete(ResultComplete {}));
        for (of, expected) in [
            (None, false),
            (complete(), true),
            (None, false),
            (complete(), true),
        ] {
            push(&mut held, message(1, of));
            assert_eq!(held.is_complete(), expected);
        }
    }

    proptest! {
        /// A client that is cut at any byte, acknowledges any received message and returns receives
        /// every message once and in order, for any frame sizes and limits.
        #[test]
        fn cuts_lose_and_repeat_nothing(
            sizes in prop::collection::vec(0_usize..20_000, 1..12),
            frame in 1_usize..9000,
            cuts in prop::collection::vec((1_usize..30_000, any::<bool>(), any::<bool>()), 0..12),
        ) {
            let messages: Vec<_> = sizes.iter().enumerate().map(|(n, size)| rows(n, *size)).collect();
            let all = messages.concat();
            let ends: Vec<usize> = messages.iter().scan(0, |end, m| { *end += m.len(); Some(*end) }).collect();
            let mut held = Unacknowledged::new(Encoding::Identity);
            let mut frames = all.chunks(frame).peekable();
            let (mut got, mut begin) = (Vec::new(), 0);
            let mut cuts = cuts.into_iter();
            loop {
                let (until, acknowledges, evicts) = cuts.next().unwrap_or((usize::MAX, true, true));
                let mut received = Vec::new();
                while received.len() < until {
                    if !held.has_unsent() {
                        match frames.next() {
                            Some(bytes) => {
                                push(&mut held, Bytes::copy_from_slice(bytes));
                            }
                            None => break,
                        }
                    }
                    received.extend(send(&mut held, until - received.len()));
                }
                got.truncate(begin);
                got.extend(received);
                let whole = ends.iter().take_while(|end| **end <= got.len()).count();
                begin = whole.checked_sub(1).map_or(0, |last| ends[last]);
                if acknowledges && whole > 0 {
                    held.release_until(response_id(whole - 1));
                }
                if evicts {
                    // Only messages that the client received completely.
                    while held.removed.is_none_or(|id| id != whole.checked_sub(1).map(response_id))
                        && whole > 0
                        && held.sent.message > 0
                        && held.remove_oldest_sent()
                    {}
                }
                if got.len() == all.len() {
                    break;
                }
                let received = whole.checked_sub(1).map_or(Received::Nothing, |last| Received::UpTo(response_id(last)));
                prop_assert_eq!(held.rewind(received), Ok(()));
            }
            prop_assert_eq!(got, all);
            let memory: usize = held.messages.iter().map(|m| m.bytes + MESSAGE_OVERHEAD).sum();
            prop_assert_eq!(held.bytes(), memory);
        }
    }
}
