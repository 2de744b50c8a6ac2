//! Hand-written HTTP/2, for frames that no client library sends.

use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Frame types (RFC 9113, section 6).
pub(crate) mod kinds {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub(crate) mod flags {
    pub(crate) const NONE: u8 = 0;
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;
}

/// A received frame.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// A connection without protocol checks.
pub(crate) struct Raw {
    pub(crate) tcp: TcpStream,
}

impl Raw {
    /// Preface and settings: `(identifier, value)` each.
    pub(crate) async fn connect(address: SocketAddr, settings: &[(u16, u32)]) -> std::io::Result<Self> {
        let mut tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        hello.extend(frame(kinds::SETTINGS, flags::NONE, 0, &payload));
        tcp.write_all(&hello).await?;
        Ok(Self { tcp })
    }

    /// Sends any frame.
    pub(crate) async fn send(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> std::io::Result<()> {
        self.tcp.write_all(&frame(kind, flags, stream, payload)).await
    }

    /// The headers of a valid call, and additional ones.
    pub(crate) fn headers(path: &str, token: &str, more: &[(&str, &str)]) -> Vec<u8> {
        // POST, http, and literals that are not indexed (RFC 7541, section 6.2.2).
        let mut block = vec![0x83, 0x86];
        put_call(&mut block, 0x00, path, token, more);
        block
    }

    /// The same, as literals that are indexed (RFC 7541, section 6.2.1), and the few bytes that repeat
    /// them on the same connection.
    pub(crate) fn indexed_headers(path: &str, token: &str, more: &[(&str, &str)]) -> (Vec<u8>, Vec<u8>) {
        /// Index of the newest entry of the dynamic table.
        const NEWEST: u8 = 62;
        let mut block = vec![0x83, 0x86];
        let fields = put_call(&mut block, 0x40, path, token, more);
        let newest_to_oldest = (NEWEST..0x7f).take(fields);
        let repeated = [0x83, 0x86]
            .into_iter()
            .chain(newest_to_oldest.map(|index| 0x80 | index))
            .collect();
        (block, repeated)
    }

    /// The next frame; `None` when the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.tcp.read_exact(&mut head).await.ok()?;
        let len = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; len];
        self.tcp.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            kind: head[3],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        })
    }

    /// Reads until the connection ends; the GOAWAY's error code if one came.
    pub(crate) async fn ended(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.next().await {
            if frame.kind == kinds::GOAWAY
                && let Some(bytes) = frame.payload.get(4..8)
            {
                code = bytes.try_into().ok().map(u32::from_be_bytes);
            }
        }
        code
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut out = vec![len[1], len[2], len[3], kind, flags];
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// Appends the fields of a call with the given form of literals, and returns their number.
fn put_call(block: &mut Vec<u8>, form: u8, path: &str, token: &str, more: &[(&str, &str)]) -> usize {
    let common = [
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let bearer = format!("Bearer {token}");
    let mut fields = 0;
    for (name, value) in common
        .iter()
        .chain(&[("authorization", bearer.as_str())])
        .chain(more)
    {
        block.push(form);
        put_text(block, name);
        put_text(block, value);
        fields += 1;
    }
    fields
}

/// A text as HPACK writes it without Huffman codes (RFC 7541, section 5).
fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut len = text.len();
    if len < 127 {
        out.push(u8::try_from(len).unwrap_or(0));
    } else {
        out.push(127);
        len -= 127;
        while len >= 128 {
            out.push(u8::try_from(len & 0x7f).unwrap_or(0) | 0x80);
            len >>= 7;
        }
        out.push(u8::try_from(len).unwrap_or(0));
    }
    out.extend_from_slice(text.as_bytes());
}
