//! Inspection of Sail's responses as they pass: the results of a query, and the operations that an
//! interrupt ended.

use super::Exchange;
use crate::call::engine_errors;
use crate::call::result_inspector::{self, Encoding, ResultInspector};
use crate::call_error::CallError;
use crate::grpc::method::Method;
use http::HeaderMap;
use prost::Message as _;
use session_core::Engine;
use session_proto::spark::InterruptResponse;

/// Maximum size of a response to `Interrupt`, which is a list of ids.
const MAX_INTERRUPT_RESPONSE: usize = 64 * 1024;
/// Maximum number of ids taken from one response.
const MAX_INTERRUPTED: usize = 256;

/// Inspection of response data.
pub(super) enum Inspection {
    None,
    /// The response of a query on Sail.
    Results(ResultInspector),
    /// The received part of Sail's response to `Interrupt`.
    Interrupt(Encoding, Vec<u8>),
}

impl Inspection {
    pub(super) fn new(exchange: &Exchange<'_>, headers: &HeaderMap) -> Self {
        if exchange.backend.engine != Engine::Sail {
            return Self::None;
        }
        match exchange.open.method() {
            Method::Interrupt => Self::Interrupt(Encoding::of(headers), Vec::new()),
            _ if exchange.sail_stream.get().is_some() => {
                Self::Results(ResultInspector::new(Encoding::of(headers)))
            }
            _ => Self::None,
        }
    }

    pub(super) fn feed(&mut self, exchange: &Exchange<'_>, data: &[u8]) {
        match self {
            Self::None => {}
            Self::Results(watch) => {
                watch.feed(data);
                if watch.has_results()
                    && let Some(stream) = exchange.sail_stream.get()
                {
                    stream.has_results();
                }
            }
            Self::Interrupt(_, body) => {
                if body.len() + data.len() <= MAX_INTERRUPT_RESPONSE {
                    body.extend_from_slice(data);
                }
            }
        }
    }

    /// Handles a response that ended with OK.
    pub(super) fn end(self, exchange: &Exchange<'_>) -> Result<(), CallError> {
        match self {
            Self::None => Ok(()),
            Self::Results(watch) if watch.is_complete() => Ok(()),
            Self::Results(_) => {
                // Otherwise the client would reattach to a lost operation, or take the result for
                // complete.
                if let Some(stream) = exchange.sail_stream.get() {
                    stream.interrupted();
                }
                Err(CallError::Engine(Box::new(engine_errors::operation_canceled())))
            }
            Self::Interrupt(encoding, body) => {
                note_interrupted(exchange, encoding, &body);
                Ok(())
            }
        }
    }
}

/// Records the operations that Sail's response to `Interrupt` names.
fn note_interrupted(exchange: &Exchange<'_>, encoding: Encoding, body: &[u8]) {
    let Some(message) = result_inspector::unary(encoding, body) else {
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
