//! Inspection of Sail's response to an interrupt: the operations that it ended.

use super::Exchange;
use crate::grpc::encoding::{Encoding, unary};
use crate::grpc::method::Method;
use http::HeaderMap;
use prost::Message as _;
use session_core::Engine;
use session_proto::spark::InterruptResponse;

/// Maximum size of a response to `Interrupt`, which is a list of ids.
const MAX_INTERRUPT_RESPONSE: usize = 64 * 1024;
/// Maximum number of ids taken from one response.
const MAX_INTERRUPTED: usize = 256;

/// The received part of Sail's response to `Interrupt`.
pub(super) struct Inspection {
    encoding: Encoding,
    body: Vec<u8>,
}

impl Inspection {
    /// `None` if the response needs none.
    pub(super) fn new(exchange: &Exchange<'_>, headers: &HeaderMap) -> Option<Self> {
        let is_needed =
            exchange.backend.engine == Engine::Sail && exchange.open.method() == Method::Interrupt;
        is_needed.then(|| Self {
            encoding: Encoding::of(headers),
            body: Vec::new(),
        })
    }

    pub(super) fn feed(&mut self, data: &[u8]) {
        if self.body.len() + data.len() <= MAX_INTERRUPT_RESPONSE {
            self.body.extend_from_slice(data);
        }
    }

    /// Records the operations that the response names, at its end with OK.
    pub(super) fn end(self, exchange: &Exchange<'_>) {
        let Some(message) = unary(self.encoding, &self.body) else {
            return;
        };
        let Ok(answer) = InterruptResponse::decode(message) else {
            return;
        };
        let sail_operations = &exchange.open.usage().sail_operations;
        for operation in answer.interrupted_ids.iter().take(MAX_INTERRUPTED) {
            sail_operations.interrupted(exchange.backend.generation, &exchange.spark_session, operation);
        }
    }
}
