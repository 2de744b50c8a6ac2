//! Tests that measure time or memory: one after the other, and in a program of
//! their own, so that no other test of this crate runs beside them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(
    dead_code,
    unused_imports,
    clippy::allow_attributes,
    reason = "shared with the other test program"
)]
#[path = "../it/common/mod.rs"]
mod common;
mod floods;
mod latency;
mod shares;

use tokio::sync::{Mutex, MutexGuard};

/// Waits until no other test runs.
async fn alone() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::const_new(());
    RUNNING.lock().await
}
