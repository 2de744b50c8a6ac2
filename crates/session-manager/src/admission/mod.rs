//! Who may call the APIs, and how much.
//!
//! ```text
//! call ─▶ layer ─▶ authenticate ── service accounts, external_jwt (OIDC)
//!           │
//!           └────▶ concurrency: places by address, principal and organization ─▶ api
//! ```

pub(crate) mod authenticate;
pub(crate) mod concurrency;
pub(crate) mod external_jwt;
pub(crate) mod layer;
