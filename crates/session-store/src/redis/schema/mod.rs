//! Layout of the data in Redis.
//!
//! ```text
//! keys: the name and hash slot of every key    record: a session's fields    codec: their compression
//! ```

pub(super) mod codec;
pub(super) mod keys;
pub(super) mod record;
