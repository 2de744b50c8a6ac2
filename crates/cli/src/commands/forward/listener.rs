//! The local port or UNIX socket, and its new connections.

use super::peer;
use crate::doctor::transport::Stream;
use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Number of free ports that are tried until one is free for both versions of IP.
const MAX_FREE_PORTS: u32 = 32;

/// Where to listen.
#[derive(Debug)]
pub(super) enum Place {
    /// A port of 127.0.0.1 and, if the machine has IPv6, of [::1]; 0 selects a free one.
    Port(u16),
    Socket(PathBuf),
}

#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpPort),
    Unix(UnixListener, SocketFile),
}

/// A port of the loopback interface. `localhost` can be the address of either version of IP: if only
/// one was taken, another user could take the other one and get the secret.
#[derive(Debug)]
pub(super) struct TcpPort {
    v4: TcpListener,
    /// `None` on a machine without IPv6.
    v6: Option<TcpListener>,
    port: u16,
}

/// The file of a socket; removed at the end.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode, so that no file of another process is removed.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // What remains is replaced by the next run.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A new connection.
pub(super) enum Client {
    Tcp {
        stream: TcpStream,
        remote: SocketAddr,
        local: SocketAddr,
    },
    Unix(UnixStream),
}

impl Listener {
    pub(super) async fn bind(place: Place) -> Result<Self> {
        match place {
            Place::Port(0) => Ok(Self::Tcp(TcpPort::bind_free().await?)),
            Place::Port(port) => Ok(Self::Tcp(TcpPort::bind(port).await?)),
            Place::Socket(path) => bind_socket(&std::path::absolute(path)?).await,
        }
    }

    /// The port; `None` for a socket.
    pub(super) fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(tcp) => Some(tcp.port),
            Self::Unix(..) => None,
        }
    }

    /// The address as it is printed.
    pub(super) fn address(&self) -> String {
        match self {
            Self::Tcp(tcp) => SocketAddr::from((Ipv4Addr::LOCALHOST, tcp.port)).to_string(),
            Self::Unix(_, file) => file.path.display().to_string(),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Client> {
        match self {
            Self::Tcp(tcp) => {
                let (stream, remote) = tcp.accept().await?;
                stream.set_nodelay(true)?;
                let local = stream.local_addr()?;
                Ok(Client::Tcp {
                    stream,
                    remote,
                    local,
                })
            }
            Self::Unix(listener, _) => Ok(Client::Unix(listener.accept().await?.0)),
        }
    }
}

impl TcpPort {
    async fn bind(port: u16) -> Result<Self> {
        let v4 = bind_tcp(Ipv4Addr::LOCALHOST.into(), port).await;
        let v4 = v4.map_err(|error| port_error("127.0.0.1", port, &error))?;
        let v6 = bind_v6(port).await;
        let v6 = v6.map_err(|error| port_error("[::1]", port, &error))?;
        Ok(Self { v4, v6, port })
    }

    async fn bind_free() -> Result<Self> {
        for _ in 0..MAX_FREE_PORTS {
            let v4 = bind_tcp(Ipv4Addr::LOCALHOST.into(), 0).await;
            let v4 = v4.map_err(|error| port_error("127.0.0.1", 0, &error))?;
            let port = v4.local_addr().context("reading the address of the port")?.port();
            match bind_v6(port).await {
                Ok(v6) => return Ok(Self { v4, v6, port }),
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(port_error("[::1]", port, &error)),
            }
        }
        bail!("no port is free at both 127.0.0.1 and [::1]: choose one with --port")
    }

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match &self.v6 {
            Some(v6) => tokio::select! {
                accepted = self.v4.accept() => accepted,
                accepted = v6.accept() => accepted,
            },
            None => self.v4.accept().await,
        }
    }
}

async fn bind_tcp(ip: IpAddr, port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((ip, port)).await
}

/// `None` if the machine has no IPv6.
async fn bind_v6(port: u16) -> io::Result<Option<TcpListener>> {
    let bound = bind_tcp(Ipv6Addr::LOCALHOST.into(), port).await;
    match bound {
        Ok(listener) => Ok(Some(listener)),
        // The version as a whole, or its loopback address, is missing or switched off.
        Err(error)
            if error.kind() == ErrorKind::AddrNotAvailable
                || Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Client {
    /// Whether the client belongs to this user.
    pub(super) async fn is_own(&self) -> bool {
        match self {
            Self::Tcp { remote, local, .. } => peer::is_own_tcp(*remote, *local).await,
            Self::Unix(stream) => {
                let user = stream.peer_cred().map(|peer| peer.uid());
                user.is_ok_and(|user| user == peer::own_user())
            }
        }
    }

    /// The first byte that the client sends, which stays readable; `None` if it sends nothing.
    pub(super) async fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut first = [0];
        let read = match self {
            Self::Tcp { stream, .. } => stream.peek(&mut first).await?,
            Self::Unix(stream) => {
                stream
                    .async_io(Interest::READABLE, || {
                        let (read, _) = rustix::net::recv(stream, &mut first, RecvFlags::PEEK)?;
                        Ok(read)
                    })
                    .await?
            }
        };
        Ok((read > 0).then_some(first[0]))
    }

    pub(super) fn into_stream(self) -> Box<dyn Stream> {
        match self {
            Self::Tcp { stream, .. } => Box::new(stream),
            Self::Unix(stream) => Box::new(stream),
        }
    }
}

fn port_error(ip: &str, port: u16, error: &io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::AddrInUse => anyhow::anyhow!(
            "port {port} of {ip} is in use, perhaps by another `berth connect`: choose another with --port, or --port 0 for a free one"
        ),
        ErrorKind::PermissionDenied => {
            anyhow::anyhow!("port {port} needs more rights than you have: choose one above 1023 with --port")
        }
        _ => anyhow::anyhow!("listening on port {port} of {ip} failed: {error}"),
    }
}

/// A socket that only this user can open. One that a killed process left is replaced.
async fn bind_socket(path: &Path) -> Result<Listener> {
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("reading {shown}")),
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{shown} exists and is no socket: choose another path with --socket")
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            bail!("{shown} is in use, perhaps by another `berth connect`: choose another path with --socket")
        }
        Ok(_) => std::fs::remove_file(path).with_context(|| format!("removing the unused socket {shown}"))?,
    }
    let listener = UnixListener::bind(path)
        .with_context(|| format!("creating the socket {shown} (its path can have at most 107 bytes)"))?;
    // Until here others could connect; each connection's user is checked as well.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
        .with_context(|| format!("restricting the socket {shown} to your user"))?;
    let file = SocketFile {
        identity: identity(path)?,
        path: path.to_owned(),
    };
    Ok(Listener::Unix(listener, file))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_private_has_one_owner_and_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spark.sock");
        let bind = || Listener::bind(Place::Socket(path.clone()));
        let listener = bind().await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = bind().await.unwrap_err().to_string();
        assert!(text.contains("in use"), "{text}");

        let _client = UnixStream::connect(&path).await.unwrap();
        assert!(listener.accept().await.unwrap().is_own().await);
        drop(listener);
        assert!(!path.exists());

        // A killed process leaves its socket.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(bind().await.unwrap());

        std::fs::write(&path, "a file of the user").unwrap();
        let text = bind().await.unwrap_err().to_string();
        assert!(text.contains("no socket"), "{text}");
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let first = Listener::bind(Place::Port(0)).await.unwrap();
        let port = first.port().unwrap();
        let text = Listener::bind(Place::Port(port)).await.unwrap_err().to_string();
        assert!(
            text.contains(&port.to_string()) && text.contains("--port 0"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_port_of_one_version_of_ip_alone_is_not_free() {
        let Ok(taken) = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else {
            eprintln!("this machine has no IPv6");
            return;
        };
        let port = taken.local_addr().unwrap().port();
        let text = Listener::bind(Place::Port(port)).await.unwrap_err().to_string();
        assert!(text.contains("[::1]") && text.contains("--port 0"), "{text}");
        drop(taken);
        let listener = Listener::bind(Place::Port(port)).await.unwrap();
        let address = (Ipv6Addr::LOCALHOST, port);
        let _client = TcpStream::connect(address).await.unwrap();
        let accepted = listener.accept().await.unwrap();
        assert!(!cfg!(target_os = "linux") || accepted.is_own().await);
    }

    #[tokio::test]
    async fn the_first_byte_stays_readable() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        for place in [Place::Port(0), Place::Socket(path.clone())] {
            let listener = Listener::bind(place).await.unwrap();
            let mut client: Box<dyn Stream> = match listener.port() {
                Some(port) => Box::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap()),
                None => Box::new(UnixStream::connect(&path).await.unwrap()),
            };
            let accepted = listener.accept().await.unwrap();
            client.write_all(b"PRI").await.unwrap();
            assert_eq!(accepted.first_byte().await.unwrap(), Some(b'P'));
            let mut read = [0; 3];
            accepted.into_stream().read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"PRI");
        }
    }
}
