//! Which host this is, as far as loopback addresses go.

use std::sync::LazyLock;

/// The header by which a service tells its [`id`] to another one.
pub const HOST_ID: &str = "x-berth-host-id";

/// Two processes with the same id reach the same `127.0.0.1`: one boot of one
/// kernel, and one network namespace of it. Changes with every boot.
pub fn id() -> &'static str {
    static ID: LazyLock<String> = LazyLock::new(|| {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let network = std::fs::read_link("/proc/self/ns/net");
        let known = boot.ok().zip(network.ok());
        // Where neither can be read, the hostname is the best there is.
        let text = known.map_or_else(
            || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default(),
            |(boot, network)| format!("{} {}", boot.trim(), network.display()),
        );
        format!("{:016x}", fnv(text.trim().as_bytes()))
    });
    &ID
}

/// The same in every version of Berth, because services of two versions compare it.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
