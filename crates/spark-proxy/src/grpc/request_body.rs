//! A request's messages on their way to the backend: read from the client,
//! rewritten by [`crate::grpc::identity`], and held back until the first head is known.
//!
//! Before it is known who speaks they can be looked at ([`Messages::peek`]).
//! The first 64 KiB that went on are kept until the backend has answered, so
//! that a call which provably did nothing can be sent again.

use crate::config::LimitConfig;
use crate::grpc::identity::{Hostile, Identity, Operation, Piece, Rewriter, SparkSessionId};
use crate::grpc::reply::Vanished;
use bytes::buf::Chain;
use bytes::{Buf, Bytes};
use h2::RecvStream;
use session_core::Reason;
use session_proto::error::Refused;
use std::collections::VecDeque;
use std::time::Duration;

/// What goes to a backend in one frame: bytes of ours, then of the client's.
pub(crate) type Outgoing = Chain<Bytes, Bytes>;

/// Why there are no more messages.
pub(crate) enum Broken {
    /// The client may not send this.
    Refused(Refused),
    /// It left.
    Vanished,
}

impl From<Hostile> for Broken {
    fn from(hostile: Hostile) -> Self {
        Self::Refused(match hostile {
            Hostile::Compressed => Refused::new(
                Reason::CompressedRequest,
                "Compressed requests are not taken. Send them without grpc-encoding.",
            ),
            Hostile::Malformed(why) => Refused::new(
                Reason::MalformedMessage,
                format!("The request is not a Spark Connect message: {why}."),
            ),
        })
    }
}

impl From<Vanished> for Broken {
    fn from(Vanished: Vanished) -> Self {
        Self::Vanished
    }
}

/// How much of a request is kept to be sent again, and looked at beforehand.
pub(crate) const MOST_KEPT: usize = 64 * 1024;
/// What a piece of a request takes beside its bytes.
const PIECE_OVERHEAD: usize = 64;

/// The messages of one request.
pub(crate) struct Messages {
    body: RecvStream,
    /// What was read before it was known who speaks.
    raw: Vec<Bytes>,
    rewriter: Option<Rewriter>,
    ready: VecDeque<Piece>,
    /// All that went on so far, unless that is more than [`MOST_KEPT`].
    kept: Option<Vec<Piece>>,
    kept_len: usize,
    /// Bytes of the client's that were read and not given on yet.
    credit: usize,
    /// How long the first message may take to come.
    first_within: Duration,
    /// How long nothing may come of a request that goes on.
    idle_timeout: Duration,
    /// All data was read.
    ended: bool,
    /// All was given on, the end included.
    finished: bool,
}

/// The next of a request.
pub(crate) enum Next {
    /// Bytes, and whether they are the last.
    Data(Outgoing, bool),
    /// The end, after bytes that did not know they were the last.
    End,
}

impl Messages {
    pub(crate) fn new(body: RecvStream, limits: &LimitConfig) -> Self {
        Self {
            body,
            raw: Vec::new(),
            rewriter: None,
            ready: VecDeque::new(),
            kept: Some(Vec::new()),
            kept_len: 0,
            credit: 0,
            first_within: limits.first_message,
            idle_timeout: limits.request_idle_timeout,
            ended: false,
            finished: false,
        }
    }

    /// The whole request as its client wrote it, before it is known who
    /// speaks; `None` if it is longer than `most`. It stays to be sent.
    pub(crate) async fn peek(&mut self, most: usize) -> Result<Option<Vec<u8>>, Broken> {
        let within = self.first_within;
        let read = async {
            while !self.ended && self.credit <= most {
                self.read().await?;
            }
            Ok(())
        };
        in_time(within, read).await?;
        Ok((self.credit <= most).then(|| self.raw.concat()))
    }

    /// What this proxy holds of the request, with what each piece takes beside its bytes.
    pub(crate) fn weight(&self) -> usize {
        self.credit + (self.raw.len() + self.ready.len()) * PIECE_OVERHEAD
    }

    /// Reads one piece more, unless all is here or `most` is held. False if nothing was read.
    pub(crate) async fn gather(&mut self, most: usize) -> Result<bool, Broken> {
        if self.ended || self.weight() >= most {
            return Ok(false);
        }
        self.read().await?;
        Ok(true)
    }

    /// Says who speaks. What was read already is rewritten now.
    pub(crate) fn identify(&mut self, identity: Identity, notice_operation: bool) -> Result<(), Broken> {
        let mut rewriter = Rewriter::new(identity);
        if notice_operation {
            rewriter = rewriter.noticing_operation();
        }
        self.ready.clear();
        for bytes in &self.raw {
            rewriter.feed(bytes.clone(), &mut self.ready)?;
        }
        if self.ended {
            rewriter.finish()?;
        }
        self.raw.clear();
        self.rewriter = Some(rewriter);
        Ok(())
    }

    /// Reads until it is known which Spark session the request is about.
    pub(crate) async fn open(&mut self) -> Result<SparkSessionId, Broken> {
        let within = self.first_within;
        let read = async {
            while self.session().is_none() && !self.ended {
                self.read().await?;
            }
            Ok(())
        };
        in_time(within, read).await?;
        self.session()
            .ok_or(Broken::from(Hostile::Malformed("it has no session_id")))
    }

    fn session(&self) -> Option<SparkSessionId> {
        self.rewriter.as_ref().and_then(Rewriter::session)
    }

    /// What was noticed of the operation so far.
    pub(crate) fn operation(&self) -> Option<&Operation> {
        self.rewriter.as_ref().and_then(Rewriter::operation)
    }

    /// The next bytes that may go on, or `None` after the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Next>, Broken> {
        if self.finished {
            return Ok(None);
        }
        let idle_timeout = self.idle_timeout;
        let read = async {
            while self.ready.is_empty() && !self.ended {
                self.read().await?;
            }
            Ok(())
        };
        tokio::time::timeout(idle_timeout, read)
            .await
            .unwrap_or_else(|_| Err(stalled(idle_timeout)))?;
        if let Some(piece) = self.ready.pop_front() {
            self.keep(&piece);
            self.finished = self.ended && self.ready.is_empty() && self.body.is_end_stream();
            let Piece { ours, theirs } = piece;
            return Ok(Some(Next::Data(ours.chain(theirs), self.finished)));
        }
        self.finished = true;
        // No gRPC client sends trailers with a request, and what they say is not checked.
        self.body.trailers().await.map_err(|_| Vanished)?;
        Ok(Some(Next::End))
    }

    fn keep(&mut self, piece: &Piece) {
        self.kept_len += piece.ours.len() + piece.theirs.len();
        if self.kept_len > MOST_KEPT {
            self.kept = None;
        } else if let Some(kept) = &mut self.kept {
            kept.push(piece.clone());
        }
    }

    /// Goes back to the beginning, so that all can be sent again; false if it
    /// is not held any more.
    pub(crate) fn rewind(&mut self) -> bool {
        let Some(kept) = &mut self.kept else { return false };
        for piece in kept.drain(..).rev() {
            self.ready.push_front(piece);
        }
        self.kept_len = 0;
        self.finished = false;
        true
    }

    /// What was read has gone on: the client may send as much again.
    pub(crate) fn passed(&mut self) {
        if self.ready.is_empty() {
            let credit = std::mem::take(&mut self.credit);
            // This fails only after the stream is over.
            let _ = self.body.flow_control().release_capacity(credit);
        }
    }

    async fn read(&mut self) -> Result<(), Broken> {
        match self.body.data().await {
            Some(data) => {
                let data = data.map_err(|_| Vanished)?;
                self.credit += data.len();
                match &mut self.rewriter {
                    Some(rewriter) => rewriter.feed(data, &mut self.ready)?,
                    None => self.raw.push(data),
                }
                self.ended = self.body.is_end_stream();
            }
            None => self.ended = true,
        }
        if self.ended
            && let Some(rewriter) = &self.rewriter
        {
            rewriter.finish()?;
        }
        Ok(())
    }
}

fn stalled(idle_timeout: Duration) -> Broken {
    Broken::Refused(
        Refused::new(
            Reason::MalformedMessage,
            format!(
                "Nothing more of the request came within {} s (limits.request_idle_timeout). Send it without pauses.",
                idle_timeout.as_secs()
            ),
        )
        .with("limit", "limits.request_idle_timeout"),
    )
}

async fn in_time(within: Duration, read: impl Future<Output = Result<(), Broken>>) -> Result<(), Broken> {
    tokio::time::timeout(within, read).await.unwrap_or_else(|_| {
        Err(Broken::Refused(Refused::new(
            Reason::MalformedMessage,
            format!(
                "No message came within {} s of the call's headers (limits.first_message).",
                within.as_secs()
            ),
        )))
    })
}
