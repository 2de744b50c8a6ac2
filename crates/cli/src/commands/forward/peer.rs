//! The user of a local client, from the kernel.

use std::net::{IpAddr, SocketAddr};

/// State of an open connection in /proc/net/tcp.
const ESTABLISHED: &str = "01";
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];

/// The effective user of this process.
pub(super) fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether the process at the other end of a TCP connection of this machine belongs to this user.
pub(super) async fn is_own_tcp(client: SocketAddr, server: SocketAddr) -> bool {
    let look = tokio::task::spawn_blocking(move || {
        TABLES
            .iter()
            .filter_map(|file| std::fs::read_to_string(file).ok())
            .find_map(|table| user_of(&table, client, server))
    });
    look.await.ok().flatten() == Some(own_user())
}

/// The user of the open socket with these addresses.
fn user_of(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    let (local, remote) = (spellings(local), spellings(remote));
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (from, to, state) = (fields.next()?, fields.next()?, fields.next()?);
        let found = local.iter().any(|text| text == from)
            && remote.iter().any(|text| text == to)
            && state == ESTABLISHED;
        // After queues, timer and retransmissions.
        found.then(|| fields.nth(3)?.parse().ok()).flatten()
    })
}

/// An address as the tables have it, as IPv4 and as IPv4 within IPv6: the words of the address in
/// the byte order of the machine.
fn spellings(address: SocketAddr) -> Vec<String> {
    let port = address.port();
    let words = |octets: &[u8]| -> String {
        octets
            .chunks_exact(4)
            .map(|word| {
                let word = word.try_into().map_or(0, u32::from_ne_bytes);
                format!("{word:08X}")
            })
            .collect()
    };
    match address.ip() {
        IpAddr::V4(ip) => vec![
            format!("{}:{port:04X}", words(&ip.octets())),
            format!("{}:{port:04X}", words(&ip.to_ipv6_mapped().octets())),
        ],
        IpAddr::V6(ip) => vec![format!("{}:{port:04X}", words(&ip.octets()))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn the_kernel_names_the_user_of_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let client = TcpStream::connect(server).unwrap();
        let (_accepted, remote) = listener.accept().unwrap();
        assert!(is_own_tcp(remote, server).await);
        assert!(!is_own_tcp(server, remote).await || own_user() == 0);
        drop(client);
        assert!(
            !is_own_tcp(remote, server).await,
            "a client that is gone has no user"
        );
    }

    #[test]
    fn only_open_connections_with_both_addresses_count() {
        let (client, server) = (
            "127.0.0.1:40000".parse().unwrap(),
            "127.0.0.1:15002".parse().unwrap(),
        );
        let table = |state: &str, remote: &str| {
            let [local, _] = spellings(client).try_into().unwrap();
            format!(
                "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000  1000        0 1 1\n"
            )
        };
        let [v4, v6] = spellings(server).try_into().unwrap();
        assert_eq!(user_of(&table("01", &v4), client, server), Some(1000));
        assert_eq!(user_of(&table("01", &v6), client, server), Some(1000));
        assert_eq!(user_of(&table("06", &v4), client, server), None);
        assert_eq!(user_of(&table("01", "0100007F:0001"), client, server), None);
        assert_eq!(user_of("", client, server), None);
    }
}
