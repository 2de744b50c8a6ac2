//! What tests need of the world around Berth, and nothing that ships.

pub mod documentation;
pub mod fake_routes;
pub mod fake_spark;
pub mod redis;
