//! For any bytes in any pieces, a real decoder reads from the rewriter's output only Berth's user,
//! and all other bytes are the client's, unchanged.

#![no_main]

#[path = "../../src/grpc/identity/mod.rs"]
#[allow(dead_code, unused_imports, unreachable_pub)]
mod identity;

use bytes::Bytes;
use identity::{Identity, KnownClients, Rewriter};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use std::collections::VecDeque;

/// The fields of every request.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    session_id: String,
    #[prost(message, optional, tag = "2")]
    user_context: Option<User>,
}

#[derive(Clone, PartialEq, Message)]
struct User {
    #[prost(string, tag = "1")]
    user_id: String,
    #[prost(string, tag = "2")]
    user_name: String,
}

/// The forwarded bytes, or `None` if the request is rejected.
fn rewritten(bytes: &[u8], step: usize) -> Option<Vec<u8>> {
    let identity = Identity::new("s-berth", "sa|me", true);
    let mut rewriter = Rewriter::new(identity)
        .with_operation()
        .with_client_type(4, KnownClients::default());
    let mut out = VecDeque::new();
    for piece in bytes.chunks(step.max(1)) {
        rewriter.feed(Bytes::copy_from_slice(piece), &mut out).ok()?;
    }
    rewriter.finish().ok()?;
    Some(
        out.iter()
            .flat_map(|piece| [&piece.berth_bytes[..], &piece.client_bytes[..]].concat())
            .collect(),
    )
}

fuzz_target!(|data: &[u8]| {
    let Some((&step, message)) = data.split_first() else { return };
    // The message alone, so that the fuzzer need not find its length.
    let mut bytes = vec![0];
    bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
    bytes.extend_from_slice(message);
    let out = rewritten(&bytes, usize::from(step));
    assert_eq!(out, rewritten(&bytes, usize::MAX), "chunk boundaries do not change the result");
    let Some(out) = out else { return };

    let content = &out[5..];
    assert_eq!(out[1..5], (content.len() as u32).to_be_bytes(), "the length prefix is right");
    // Other fields may contain what prost rejects and engines accept, such as invalid UTF-8.
    let Ok(request) = Request::decode(content) else { return };
    let user = request.user_context.unwrap_or_default();
    assert_eq!((user.user_id.as_str(), user.user_name.as_str()), ("s-berth", "sa|me"));
    assert_eq!(request.session_id.len(), 36);
    // Berth's fields come first; the client's, from the first field above 2, are the end of both.
    let same = content
        .iter()
        .rev()
        .zip(message.iter().rev())
        .take_while(|(sent, received)| sent == received)
        .count();
    let head = 2 + 36 + 2 + "s-berth".len() + 2 + "sa|me".len() + 2;
    assert!(
        same + head >= content.len() || user_context_len(message) > 0,
        "bytes of the client were changed"
    );
});

/// Upper bound of the copied extensions, which are among Berth's fields.
fn user_context_len(message: &[u8]) -> usize {
    message.windows(1).filter(|byte| byte[0] == 0x12).count()
}
