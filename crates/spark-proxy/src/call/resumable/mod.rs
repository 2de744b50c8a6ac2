//! Queries on Sail whose streams outlive their clients.
//!
//! ```text
//! compute ─▶ owner ─▶ unacknowledged ─▶ outlet ─▶ client of the ExecutePlan
//!              ▲                          └─ events ─▶ resume ─▶ client of a ReattachExecute
//!              └── requests (attach, release) ── calls of any worker
//! ```
//!
//! Sail's own reattach loses rows, so the proxy keeps Sail's first stream open: the task of the
//! `ExecutePlan` owns it, retains the messages that the client has not acknowledged, and holds the
//! stream while no client is connected. The call of a returning client receives the rest of the
//! response from that task.

mod accounting;
mod outlet;
mod owner;
mod resume;
mod unacknowledged;

pub(crate) use owner::own;
pub(crate) use resume::resume;
