//! Rate limit for client frames that carry no part of a call: settings, pings, windows, priorities,
//! resets, empty data. Each costs as much as a frame of a call. A connection beyond the rate is
//! read more slowly, without effect on others, and is closed if it stays beyond it.
//!
//! Valid clients send such frames for received data (windows) and for calls (resets), so data and
//! calls add to the budget. This is why the rate limits of service-kit do not fit; and the budget of
//! one connection needs neither key nor lock.

use std::time::Duration;
use tokio::time::Instant;

/// Frames without a call per second.
const FRAMES_PER_SECOND: u64 = 1000;
/// Maximum budget.
const MAX_SAVED: i64 = 1024;
/// Initial budget: a client begins with less than ten frames. Whoever connects again and again sends
/// a burst of this size each time.
const INITIAL: i64 = 64;
/// Minimum budget for reading. Small, so that a flood is read in small bursts.
const MIN_TO_READ: i64 = 8;
/// Bytes in either direction that add one frame to the budget: a client that returns its window in
/// steps of 16 KiB, for the stream and the connection, needs half.
const BYTES_PER_FRAME: usize = 4096;
/// Frames that the headers of a call add: its reset and two windows.
const FRAMES_PER_HEADERS: i64 = 3;
/// Bytes read at once per frame in the budget.
const READ_BYTES_PER_FRAME: i64 = 16;
/// Smaller data frames count as empty, unless they end the request.
const MIN_DATA_BYTES: usize = 16;
/// Time without budget after which a connection is closed.
const FLOOD_TIMEOUT: Duration = Duration::from_secs(5);

const PREFACE: usize = 24;
const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

/// Frame budget of one connection.
#[derive(Debug)]
pub(crate) struct FrameBudget {
    left: i64,
    filled_at: Instant,
    /// Time since which the budget is exhausted.
    exhausted_since: Option<Instant>,
    /// Bytes not yet counted as a whole frame.
    bytes: usize,
    /// Received part of the next frame header.
    header: [u8; HEADER],
    have: usize,
    /// Bytes until the next frame.
    skip: usize,
}

/// Permission to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// Up to this number of bytes.
    Bytes(usize),
    /// Nothing before this time.
    After(Instant),
    /// Nothing; the connection must be closed.
    Flood,
}

impl FrameBudget {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            left: INITIAL,
            filled_at: now,
            exhausted_since: None,
            bytes: 0,
            header: [0; HEADER],
            have: 0,
            skip: PREFACE,
        }
    }

    /// Returns how much may be read.
    pub(crate) fn allowed(&mut self, now: Instant) -> Allowed {
        if self.left < MAX_SAVED {
            self.fill(now);
        }
        if self.left >= MIN_TO_READ {
            if self.left >= MAX_SAVED / 2 {
                self.exhausted_since = None;
            }
            return Allowed::Bytes(usize::try_from(self.left * READ_BYTES_PER_FRAME).unwrap_or(usize::MAX));
        }
        let since = *self.exhausted_since.get_or_insert(now);
        if now.duration_since(since) >= FLOOD_TIMEOUT {
            return Allowed::Flood;
        }
        let missing = u64::try_from(MIN_TO_READ - self.left).unwrap_or_default();
        Allowed::After(now + Duration::from_micros(missing * 1_000_000 / FRAMES_PER_SECOND))
    }

    fn fill(&mut self, now: Instant) {
        let passed = u64::try_from(now.duration_since(self.filled_at).as_micros()).unwrap_or(u64::MAX);
        let more = passed.saturating_mul(FRAMES_PER_SECOND) / 1_000_000;
        if more > 0 {
            self.filled_at = now;
            self.add(i64::try_from(more).unwrap_or(MAX_SAVED));
        }
    }

    fn add(&mut self, more: i64) {
        self.left = self.left.saturating_add(more).min(MAX_SAVED);
    }

    /// Counts response bytes and request data.
    pub(crate) fn passed(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.add(i64::try_from(self.bytes / BYTES_PER_FRAME).unwrap_or(MAX_SAVED));
        self.bytes %= BYTES_PER_FRAME;
    }

    /// Parses the next received bytes.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEADER {
                self.have = 0;
                self.frame();
            }
        }
    }

    fn frame(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.header;
        let len = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        self.skip = len;
        match kind {
            HEADERS => self.add(FRAMES_PER_HEADERS),
            CONTINUATION => {}
            DATA if len >= MIN_DATA_BYTES => self.passed(len),
            DATA if flags & END_STREAM != 0 => {}
            _ => self.left -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, len: usize) -> Vec<u8> {
        let size = u32::try_from(len).unwrap().to_be_bytes();
        let mut frame = vec![size[1], size[2], size[3], kind, flags, 0, 0, 0, 1];
        frame.resize(HEADER + len, 0);
        frame
    }

    fn begun(now: Instant) -> FrameBudget {
        let mut budget = FrameBudget::new(now);
        budget.read(&[0; PREFACE]);
        budget
    }

    #[test]
    fn frames_are_counted_for_any_chunk_size() {
        let all = [
            frame(4, 0, 6),
            frame(HEADERS, 4, 100),
            frame(DATA, END_STREAM, 0),
            frame(DATA, 0, 10_000),
            frame(DATA, 0, 0),
            frame(6, 0, 8),
            frame(8, 0, 4),
        ]
        .concat();
        for step in [1, 2, 9, 10, 1000, all.len()] {
            let mut budget = begun(Instant::now());
            all.chunks(step).for_each(|piece| budget.read(piece));
            // Settings, an empty frame, a ping, a window; headers, and 10 000 bytes.
            assert_eq!(budget.left, INITIAL - 4 + FRAMES_PER_HEADERS + 2, "{step}");
        }
    }

    #[test]
    fn a_flood_is_throttled_and_then_closed() {
        let start = Instant::now();
        let (mut now, mut budget, mut frames) = (start, begun(start), 0);
        let ping = frame(6, 0, 8);
        let ended = loop {
            match budget.allowed(now) {
                Allowed::Bytes(bytes) => {
                    let count = bytes / ping.len() + 1;
                    frames += count;
                    budget.read(&ping.repeat(count));
                }
                Allowed::After(at) => {
                    assert!(at > now);
                    now = at;
                }
                Allowed::Flood => break now - start,
            }
        };
        assert!((FLOOD_TIMEOUT..FLOOD_TIMEOUT * 2).contains(&ended), "{ended:?}");
        let max = INITIAL as u64 + FRAMES_PER_SECOND * ended.as_secs() + 2 * FRAMES_PER_SECOND;
        assert!((frames as u64) < max, "{frames} frames");
    }

    #[test]
    fn window_updates_for_received_data_are_not_throttled() {
        let now = Instant::now();
        let mut budget = begun(now);
        for _ in 0..100_000 {
            budget.passed(16 << 10);
            budget.read(&frame(8, 0, 4).repeat(2));
            assert!(matches!(budget.allowed(now), Allowed::Bytes(bytes) if bytes >= 1024));
        }
    }
}
