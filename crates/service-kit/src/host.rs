//! Host identity for loopback addresses.

use std::sync::LazyLock;

/// The header with the [`id`] of the calling service.
pub const HOST_ID: &str = "x-berth-host-id";

/// Processes with the same id share `127.0.0.1`: the id covers one boot of one
/// kernel and one network namespace. It changes with every boot.
pub fn id() -> &'static str {
    static ID: LazyLock<String> = LazyLock::new(|| {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let network = std::fs::read_link("/proc/self/ns/net");
        let known = boot.ok().zip(network.ok());
        // Without both values, the hostname is the best approximation.
        let text = known.map_or_else(
            || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default(),
            |(boot, network)| format!("{} {}", boot.trim(), network.display()),
        );
        format!("{:016x}", fnv(text.trim().as_bytes()))
    });
    &ID
}

/// Must be equal in all versions of Berth, because services of two versions
/// compare it.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
