//! Ports for servers whose configuration names one. Each is handed out once, and from
//! below the range that the kernel takes for outgoing connections, so neither
//! two tests nor a client's own port can be in the way.

use anyhow::{Context, Result};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 15_000;
/// Debian's `net.ipv4.ip_local_port_range` begins at 32768.
const COUNT: u16 = 17_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// An address on which nothing listens, given out once.
///
/// # Errors
/// When all are taken.
pub fn free_port() -> Result<SocketAddr> {
    // Two runs on one machine begin far from each other, though their pids are near.
    let offset = std::process::id().wrapping_mul(0x9E37_79B1) % u32::from(COUNT);
    (0..COUNT)
        .map(|_| {
            let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
            let place = (offset + step) % u32::from(COUNT);
            FIRST + u16::try_from(place).unwrap_or(0)
        })
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .find(|address| TcpListener::bind(address).is_ok())
        .context("no port is free")
}

/// `N` of them.
///
/// # Errors
/// When all are taken.
pub fn free_ports<const N: usize>() -> Result<[SocketAddr; N]> {
    let ports: Vec<SocketAddr> = (0..N).map(|_| free_port()).collect::<Result<_>>()?;
    ports.try_into().map_err(|_| anyhow::anyhow!("ports"))
}
