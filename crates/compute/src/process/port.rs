//! Free loopback ports, and verification of the listening process.
//!
//! Any process on the machine can take a port before the engine binds it. So the owner
//! of the listener is read from /proc before anything, above all the session's
//! credential, is sent there.

use super::stat;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;

/// Ports in use by children of this manager.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ports(Arc<Mutex<BTreeSet<u16>>>);

/// A port of one child; released when dropped.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    ports: Ports,
}

impl Ports {
    /// Reserves a loopback port without a listener and without another child.
    pub(crate) fn take(&self) -> io::Result<Port> {
        // Kept open, so that the kernel returns a new port each time.
        let mut tried = Vec::new();
        for _ in 0..64 {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let number = listener.local_addr()?.port();
            if self.0.lock().insert(number) {
                return Ok(Port {
                    number,
                    ports: self.clone(),
                });
            }
            tried.push(listener);
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "no free loopback port"))
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.ports.0.lock().remove(&self.number);
    }
}

/// Owner of the listener on a loopback port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listener {
    None,
    Own,
    Foreign,
}

/// Determines whether the listener on `port` belongs to process group `group`.
pub(crate) fn listener(port: u16, group: i32) -> io::Result<Listener> {
    let mut inodes = listening_inodes(BufReader::new(File::open("/proc/net/tcp")?), port)?;
    // Java listens on IPv4 addresses through an IPv6 socket.
    if let Ok(table) = File::open("/proc/net/tcp6") {
        inodes.extend(listening_inodes(BufReader::new(table), port)?);
    }
    if inodes.is_empty() {
        return Ok(Listener::None);
    }
    let ours = sockets_of_group(group)?;
    // Several sockets can listen on one port, and the kernel selects one.
    Ok(if inodes.iter().all(|inode| ours.contains(inode)) {
        Listener::Own
    } else {
        Listener::Foreign
    })
}

/// Inodes of sockets in a `/proc/net/tcp` table that listen on `port` at an address
/// that 127.0.0.1 reaches.
///
/// The kernel lists all listening sockets before the first other one (`tcp_seq_start` in its
/// `net/ipv4/tcp_ipv4.c`). Reading ends there, because the others can be many thousands.
fn listening_inodes(table: impl BufRead, port: u16) -> io::Result<Vec<u64>> {
    const LISTEN: &str = "0A";
    const LOOPBACK: [&str; 4] = [
        "0100007F",
        "00000000",
        "0000000000000000FFFF00000100007F",
        "00000000000000000000000000000000",
    ];
    let wanted = format!("{port:04X}");
    let mut inodes = Vec::new();
    for line in table.lines().skip(1) {
        let line = line?;
        let mut fields = line.split_ascii_whitespace();
        let (local, state) = (fields.nth(1), fields.nth(1));
        if state != Some(LISTEN) {
            break;
        }
        let address = local
            .and_then(|local| local.split_once(':'))
            .filter(|(_, port)| *port == wanted);
        if address.is_some_and(|(address, _)| LOOPBACK.contains(&address)) {
            inodes.extend(fields.nth(5).and_then(|inode| inode.parse::<u64>().ok()));
        }
    }
    Ok(inodes)
}

fn sockets_of_group(group: i32) -> io::Result<BTreeSet<u64>> {
    let mut sockets = BTreeSet::new();
    for pid in pids_of_group(group)? {
        // Processes can end during the scan.
        let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            let Ok(target) = std::fs::read_link(descriptor.path()) else {
                continue;
            };
            let inode: Option<u64> = target
                .to_str()
                .and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            sockets.extend(inode);
        }
    }
    Ok(sockets)
}

/// The processes of a group, except zombies.
pub(crate) fn pids_of_group(group: i32) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        if stat::parse(&stat).is_some_and(|(state, _, of)| of == group && state != "Z") {
            pids.push(pid);
        }
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_given_once_and_come_back() {
        let ports = Ports::default();
        let held: Vec<Port> = (0..50).map(|_| ports.take().unwrap()).collect();
        let numbers: BTreeSet<u16> = held.iter().map(|port| port.number).collect();
        assert_eq!(numbers.len(), 50);
        drop(held);
        assert!(ports.0.lock().is_empty());
    }

    #[test]
    fn the_owner_of_a_listening_socket_is_found() {
        let own_group = rustix::process::getpgrp().as_raw_pid();
        let free = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        assert_eq!(listener(free, own_group).unwrap(), Listener::None);
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
            let Ok(socket) = TcpListener::bind(address) else {
                continue;
            };
            let port = socket.local_addr().unwrap().port();
            assert_eq!(listener(port, own_group).unwrap(), Listener::Own, "{address}");
            assert_eq!(listener(port, i32::MAX).unwrap(), Listener::Foreign, "{address}");
        }
    }

    /// The order of the table that [`listening_inodes`] relies on.
    #[test]
    fn the_kernel_lists_listening_sockets_first() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let states: Vec<&str> = table
            .lines()
            .skip(1)
            .filter_map(|line| line.split_ascii_whitespace().nth(3))
            .collect();
        let listening = states.iter().take_while(|state| **state == "0A").count();
        assert!(listening > 0 && listening < states.len(), "{listening}");
        assert!(states[listening..].iter().all(|state| *state != "0A"));
    }

    #[test]
    fn tables_of_the_kernel_are_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:3A98 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 111 1 0 100 0 0 10 0\n\
            1: 0200000A:3A98 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 222 1 0 100 0 0 10 0\n\
            2: 0100007F:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 333 1 0 100 0 0 10 0\n\
            3: 00000000:3A98 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 444 1 0 100 0 0 10 0\n\
            4: 0100007F:3A98 0100007F:9999 01 00000000:00000000 00:00000000 00000000 0 0 555 1 0 100 0 0 10 0\n";
        assert_eq!(listening_inodes(table.as_bytes(), 15000).unwrap(), [111, 444]);
        assert_eq!(stat::parse("12 (a) b) S 1 77 78 0"), Some(("S", 1, 77)));
    }
}
