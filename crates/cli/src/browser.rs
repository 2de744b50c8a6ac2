//! Opens an address in the user's browser.

use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Time after which a browser that still runs counts as opened.
const START_TIMEOUT: Duration = Duration::from_secs(3);

/// Opens `address`; returns whether a browser was started. `BROWSER` names the
/// program; an empty one means that there is none.
pub(crate) async fn open(address: &str) -> bool {
    let chosen = std::env::var("BROWSER").ok();
    let program = match chosen.as_deref() {
        Some("") => return false,
        Some(program) => program,
        None if cfg!(target_os = "macos") => "open",
        None if has_display() => "xdg-open",
        None => return false,
    };
    let started = Command::new(program)
        .arg(address)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = started else { return false };
    match tokio::time::timeout(START_TIMEOUT, child.wait()).await {
        Ok(Ok(status)) => status.success(),
        Ok(Err(_)) => false,
        Err(_) => true,
    }
}

/// Whether this process can show windows.
pub(crate) fn has_display() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    cfg!(target_os = "macos") || set("DISPLAY") || set("WAYLAND_DISPLAY")
}
