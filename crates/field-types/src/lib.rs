//! Field types that configuration, definitions and records share: durations
//! with units ([`duration`]) and secrets ([`Secret`]).

pub mod duration;
pub mod secret;

pub use secret::Secret;
