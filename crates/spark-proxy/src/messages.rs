//! A request's messages on their way to the backend: read from the client,
//! rewritten by [`crate::identity`], and held back until the first head is known.

use crate::identity::{Hostile, Identity, Piece, Rewriter, SparkSessionId};
use crate::respond::Vanished;
use bytes::Buf;
use bytes::buf::Chain;
use h2::RecvStream;
use http::HeaderMap;
use session_core::Reason;
use session_proto::error::Refused;
use std::collections::VecDeque;

/// What goes to a backend in one frame: bytes of ours, then of the client's.
pub(crate) type Outgoing = Chain<bytes::Bytes, bytes::Bytes>;

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

/// The messages of one request.
pub(crate) struct Messages {
    body: RecvStream,
    rewriter: Rewriter,
    ready: VecDeque<Piece>,
    /// Bytes of the client's that were read and not given on yet.
    credit: usize,
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
    End(Option<HeaderMap>),
}

impl Messages {
    pub(crate) fn new(body: RecvStream, identity: Identity) -> Self {
        Self {
            body,
            rewriter: Rewriter::new(identity),
            ready: VecDeque::new(),
            credit: 0,
            ended: false,
            finished: false,
        }
    }

    /// Reads until it is known which Spark session the request is about.
    pub(crate) async fn open(&mut self) -> Result<(), Broken> {
        while self.rewriter.session().is_none() && !self.ended {
            self.read().await?;
        }
        Ok(())
    }

    /// The Spark session that the request is about, once it is open.
    pub(crate) fn session(&self) -> Option<SparkSessionId> {
        self.rewriter.session()
    }

    /// A copy of the whole request as it will go on, which stays to be sent;
    /// `None` if it is longer than `most`.
    pub(crate) async fn whole(&mut self, most: usize) -> Result<Option<Vec<u8>>, Broken> {
        while !self.ended && self.credit <= most {
            self.read().await?;
        }
        if self.credit > most {
            return Ok(None);
        }
        Ok(Some(
            self.ready
                .iter()
                .flat_map(|piece| [&piece.ours[..], &piece.theirs[..]])
                .flatten()
                .copied()
                .collect(),
        ))
    }

    /// The next bytes that may go on, or `None` after the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Next>, Broken> {
        if self.finished {
            return Ok(None);
        }
        while self.ready.is_empty() && !self.ended {
            self.read().await?;
        }
        if let Some(Piece { ours, theirs }) = self.ready.pop_front() {
            self.finished = self.ended && self.ready.is_empty() && self.body.is_end_stream();
            return Ok(Some(Next::Data(ours.chain(theirs), self.finished)));
        }
        self.finished = true;
        Ok(Some(Next::End(self.body.trailers().await.map_err(|_| Vanished)?)))
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
                self.rewriter.feed(data, &mut self.ready)?;
                self.ended = self.body.is_end_stream();
            }
            None => self.ended = true,
        }
        if self.ended {
            self.rewriter.finish()?;
        }
        Ok(())
    }
}
