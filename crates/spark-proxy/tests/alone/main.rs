//! Tests that measure time or memory: they run one after the other, in a program without other tests
//! of this crate.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cancels;
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
