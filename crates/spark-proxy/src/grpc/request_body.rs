//! The messages of a request: read from the client, rewritten by [`crate::grpc::identity`], and
//! held back until the first head is parsed.
//!
//! Messages compressed with gzip become plain first. Before the identity is set they can be inspected
//! ([`RequestBody::peek`]). The first 64 KiB are kept
//! until the backend responds, so that an unprocessed call can be sent again.

use crate::config::LimitConfig;
use crate::grpc::gzip_requests::{Decompressor, InvalidGzip, MAX_PLAIN, MAX_RATIO};
use crate::grpc::identity::{
    ClientType, InvalidRequest, NOT_A_UUID, Operation, Piece, Rewriter, SparkSessionId,
};
use crate::grpc::reply::ClientGone;
use crate::grpc::spark_error::invalid_handle;
use bytes::buf::Chain;
use bytes::{Buf, Bytes};
use h2::RecvStream;
use http::HeaderMap;
use session_core::Reason;
use session_proto::error::Refused;
use std::collections::VecDeque;
use std::time::Duration;
use tonic::Status;

/// One frame for a backend: bytes of Berth, then of the client.
pub(crate) type Outgoing = Chain<Bytes, Bytes>;

/// Reason for the failure of a request.
pub(crate) enum RequestError {
    /// The client may not send this.
    Refused(Refused),
    /// The same, with an error class of Apache Spark.
    InvalidHandle(Box<Status>),
    /// The client disconnected.
    ClientGone,
}

impl From<InvalidRequest> for RequestError {
    fn from(invalid: InvalidRequest) -> Self {
        if invalid == InvalidRequest::Malformed(NOT_A_UUID) {
            return Self::InvalidHandle(Box::new(invalid_handle("session_id")));
        }
        Self::Refused(match invalid {
            InvalidRequest::Compressed => Refused::new(
                Reason::CompressedRequest,
                "The compression of the request is not accepted. Use gzip, or send it without grpc-encoding.",
            ),
            InvalidRequest::Malformed(why) => Refused::new(
                Reason::MalformedMessage,
                format!("The request is not a Spark Connect message: {why}."),
            ),
        })
    }
}

impl From<InvalidGzip> for RequestError {
    fn from(invalid: InvalidGzip) -> Self {
        let refused = |text: String| Self::Refused(Refused::new(Reason::CompressedRequest, text));
        match invalid {
            InvalidGzip::TooLong(max) => refused(format!(
                "A compressed message may have at most {max} bytes (limits.stream_window_bytes). Send it without grpc-encoding."
            )),
            InvalidGzip::TooLarge(max) => refused(format!(
                "A message may have at most {max} bytes when decompressed: {MAX_RATIO} times its compressed length, and {} MiB. Send it without grpc-encoding.",
                MAX_PLAIN >> 20
            )),
            InvalidGzip::Malformed(why) => InvalidRequest::Malformed(why).into(),
        }
    }
}

impl From<ClientGone> for RequestError {
    fn from(ClientGone: ClientGone) -> Self {
        Self::ClientGone
    }
}

/// Maximum length of a request that is kept for another attempt, or inspected.
pub(crate) const MAX_REWIND_BYTES: usize = 64 * 1024;
/// Memory overhead of a piece of a request.
const PIECE_OVERHEAD: usize = 64;

/// The messages of one request.
pub(crate) struct RequestBody {
    /// `None` once nothing more of it is needed: the stream holds its connection in memory.
    body: Option<RecvStream>,
    /// Present if the messages are compressed.
    decompressor: Option<Decompressor>,
    /// Data read before the identity was set, and its length.
    raw: Vec<Bytes>,
    raw_len: usize,
    rewriter: Option<Rewriter>,
    ready: VecDeque<Piece>,
    /// Everything forwarded so far, unless it exceeds [`MAX_REWIND_BYTES`].
    kept: Option<Vec<Piece>>,
    kept_len: usize,
    /// Client bytes read and not yet forwarded.
    credit: usize,
    /// Decompressed bytes that are not yet forwarded.
    decompressed: usize,
    /// Time limit for the first message.
    first_within: Duration,
    /// Maximum pause within a forwarded request.
    idle_timeout: Duration,
    /// All data of the client has been read.
    client_ended: bool,
    /// All data has been read, and decompressed.
    ended: bool,
    /// Everything has been forwarded, the end included.
    finished: bool,
}

/// The next part of a request.
pub(crate) enum BodyPart {
    /// Bytes, and whether they are the last.
    Data(Outgoing, bool),
    /// The end, after bytes that were not marked as the last.
    End,
}

impl RequestBody {
    /// The body of a request with these headers.
    pub(crate) fn new(body: RecvStream, headers: &HeaderMap, limits: &LimitConfig) -> Self {
        Self {
            body: Some(body),
            decompressor: Decompressor::of(headers, limits.stream_window_bytes),
            raw: Vec::new(),
            raw_len: 0,
            rewriter: None,
            ready: VecDeque::new(),
            kept: Some(Vec::new()),
            kept_len: 0,
            credit: 0,
            decompressed: 0,
            first_within: limits.first_message,
            idle_timeout: limits.request_idle_timeout,
            client_ended: false,
            ended: false,
            finished: false,
        }
    }

    /// Returns the plain messages of the whole request, before the identity is set; `None` if they are
    /// longer than `max`. The request can still be sent.
    pub(crate) async fn peek(&mut self, max: usize) -> Result<Option<Vec<u8>>, RequestError> {
        let within = self.first_within;
        let read = async {
            while !self.ended && self.raw_len <= max {
                self.read().await?;
            }
            Ok(())
        };
        in_time(within, read).await?;
        Ok((self.raw_len <= max).then(|| self.raw.concat()))
    }

    /// Memory held for the request, overhead included.
    pub(crate) fn buffered_bytes(&self) -> usize {
        let decompressor = self.decompressor.as_ref().map_or(0, Decompressor::overhead);
        self.credit + self.decompressed + decompressor + (self.raw.len() + self.ready.len()) * PIECE_OVERHEAD
    }

    /// Reads one more piece, unless the request is complete or `max` is reached; false if nothing
    /// was read.
    pub(crate) async fn buffer(&mut self, max: usize) -> Result<bool, RequestError> {
        if self.ended || self.buffered_bytes() >= max {
            return Ok(false);
        }
        self.read().await?;
        Ok(true)
    }

    /// Sets the user identity, with what rewrites by it, and rewrites the data read so far.
    pub(crate) fn identify(&mut self, mut rewriter: Rewriter) -> Result<(), RequestError> {
        self.ready.clear();
        for bytes in &self.raw {
            rewriter.feed(bytes.clone(), &mut self.ready)?;
        }
        if self.ended {
            rewriter.finish()?;
        }
        self.raw.clear();
        self.raw_len = 0;
        self.rewriter = Some(rewriter);
        Ok(())
    }

    /// Reads until the Spark session of the request is known.
    pub(crate) async fn open(&mut self) -> Result<SparkSessionId, RequestError> {
        let within = self.first_within;
        let read = async {
            while self.session().is_none() && !self.ended {
                self.read().await?;
            }
            Ok(())
        };
        in_time(within, read).await?;
        self.session().ok_or(RequestError::from(InvalidRequest::Malformed(
            "it has no session_id",
        )))
    }

    fn session(&self) -> Option<SparkSessionId> {
        self.rewriter.as_ref().and_then(Rewriter::session)
    }

    /// Returns the operation as parsed so far.
    pub(crate) fn operation(&self) -> Option<&Operation> {
        self.rewriter.as_ref().and_then(Rewriter::operation)
    }

    /// Returns the `client_type` as collected so far.
    pub(crate) fn client_type(&self) -> Option<&ClientType> {
        self.rewriter.as_ref().and_then(Rewriter::client_type)
    }

    /// Returns the next bytes to forward, or `None` after the end.
    pub(crate) async fn next(&mut self) -> Result<Option<BodyPart>, RequestError> {
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
            .unwrap_or_else(|_| Err(idle_timeout_error(idle_timeout)))?;
        if let Some(piece) = self.ready.pop_front() {
            self.keep(&piece);
            self.decompressed = self.decompressed.saturating_sub(piece.client_bytes.len());
            self.finished = self.ended && self.ready.is_empty() && self.is_end_stream();
            let Piece {
                berth_bytes,
                client_bytes,
            } = piece;
            return Ok(Some(BodyPart::Data(
                berth_bytes.chain(client_bytes),
                self.finished,
            )));
        }
        self.finished = true;
        // No gRPC client sends request trailers, and their content is not checked, so they are
        // dropped.
        if let Some(body) = &mut self.body {
            body.trailers().await.map_err(|_| ClientGone)?;
        }
        Ok(Some(BodyPart::End))
    }

    fn keep(&mut self, piece: &Piece) {
        self.kept_len += piece.berth_bytes.len() + piece.client_bytes.len();
        if self.kept_len > MAX_REWIND_BYTES {
            self.kept = None;
        } else if let Some(kept) = &mut self.kept {
            kept.push(piece.clone());
        }
    }

    /// Returns to the beginning for another attempt; false if the beginning is no longer kept.
    pub(crate) fn rewind(&mut self) -> bool {
        let Some(kept) = &mut self.kept else { return false };
        for piece in kept.drain(..).rev() {
            self.ready.push_front(piece);
        }
        self.kept_len = 0;
        self.finished = false;
        true
    }

    /// Frees the beginning and the client's stream of a request that was forwarded: it cannot be sent
    /// again.
    pub(crate) fn forget(&mut self) {
        self.kept = None;
        self.body = None;
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    /// Records that everything read was forwarded, and releases flow-control capacity.
    pub(crate) fn release_capacity(&mut self) {
        if self.ready.is_empty() {
            let held = self.decompressor.as_ref().map_or(0, Decompressor::held);
            let credit = self.credit.saturating_sub(held);
            self.credit -= credit;
            if let Some(body) = &mut self.body {
                // Fails only after the stream has ended.
                let _ = body.flow_control().release_capacity(credit);
            }
        }
    }

    /// Reads one more piece, or its compressed bytes. Cancelling loses nothing.
    async fn read(&mut self) -> Result<(), RequestError> {
        if let Some(decompressor) = &mut self.decompressor {
            if let Some(plain) = decompressor.next().await? {
                self.decompressed += plain.len();
                return self.take(plain);
            }
            if self.client_ended {
                decompressor.finish()?;
                return self.end();
            }
        }
        let next = match &mut self.body {
            Some(body) => body.data().await,
            None => None,
        };
        self.client_ended = next.is_none() || self.is_end_stream();
        let data = next.transpose().map_err(|_| ClientGone)?.unwrap_or_default();
        self.credit += data.len();
        if let Some(decompressor) = &mut self.decompressor {
            decompressor.feed(data);
            return Ok(());
        }
        self.take(data)?;
        if self.client_ended { self.end() } else { Ok(()) }
    }

    /// Takes plain bytes.
    fn take(&mut self, data: Bytes) -> Result<(), RequestError> {
        match &mut self.rewriter {
            _ if data.is_empty() => {}
            Some(rewriter) => rewriter.feed(data, &mut self.ready)?,
            None => {
                self.raw_len += data.len();
                self.raw.push(data);
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), RequestError> {
        self.ended = true;
        if let Some(rewriter) = &self.rewriter {
            rewriter.finish()?;
        }
        Ok(())
    }
}

fn idle_timeout_error(idle_timeout: Duration) -> RequestError {
    RequestError::Refused(
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

async fn in_time(
    within: Duration,
    read: impl Future<Output = Result<(), RequestError>>,
) -> Result<(), RequestError> {
    tokio::time::timeout(within, read).await.unwrap_or_else(|_| {
        Err(RequestError::Refused(Refused::new(
            Reason::MalformedMessage,
            format!(
                "No message came within {} s of the call's headers (limits.first_message).",
                within.as_secs()
            ),
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    /// The bytes of a request, received by a server.
    async fn received(bytes: &'static [u8]) -> RecvStream {
        let (client, server) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move {
            let (mut sender, connection) = h2::client::handshake(client).await.unwrap();
            let request = Request::post("http://berth/").body(()).unwrap();
            let (_response, mut body) = sender.send_request(request, false).unwrap();
            body.send_data(Bytes::from_static(bytes), true).unwrap();
            let _ = connection.await;
        });
        let mut server = h2::server::handshake(server).await.unwrap();
        let (request, respond) = server.accept().await.unwrap().unwrap();
        tokio::spawn(async move {
            let _respond = respond;
            while server.accept().await.is_some() {}
        });
        request.into_body()
    }

    /// A held stream keeps its request, and must not keep the connection of a client that is gone.
    #[tokio::test]
    async fn a_request_that_is_not_sent_again_has_no_stream_of_its_client() {
        let limits = LimitConfig::default();
        let mut request = RequestBody::new(received(b"request").await, &HeaderMap::new(), &limits);
        assert_eq!(
            request.peek(100).await.ok().flatten().as_deref(),
            Some(&b"request"[..])
        );
        assert!(request.body.is_some());
        request.forget();
        assert!(request.body.is_none() && !request.rewind());
        request.release_capacity();
        assert!(matches!(request.read().await, Ok(())));
        assert!(request.ended);
    }
}
