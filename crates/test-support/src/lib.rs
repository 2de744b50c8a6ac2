//! What tests need of the world around Berth, and nothing that ships.

pub mod redis;
