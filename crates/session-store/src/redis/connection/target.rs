//! The configured Redis: parses the URL and its options, and opens connections to its
//! servers.

use super::super::{ConnectError, Credentials, Options, TlsFiles};
use super::failure::Failure;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    RedisConnectionInfo, TlsCertificates,
};
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// Default port of a Redis.
const REDIS_PORT: u16 = 6379;
/// Default port of a sentinel.
const SENTINEL_PORT: u16 = 26379;
/// Requests that can queue on a connection before callers wait.
const MAX_QUEUED: usize = 1024;

/// Address of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::redis) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Address {
    /// Parses `host:port` of a Redis reply; an empty host means `source`, the host that
    /// sent it.
    pub(super) fn parse(text: &str, source: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        Some(Self {
            host: if host.is_empty() { source } else { host }.to_owned(),
            port: port.parse().ok()?,
        })
    }
}

/// Kind of deployment.
#[derive(Debug)]
pub(super) enum Kind {
    /// One server.
    Single(Address),
    /// The primary that sentinels name.
    Sentinel {
        /// Addresses of the sentinels.
        sentinels: Vec<Address>,
        /// Name of the primary in the sentinels.
        master: String,
    },
    /// The nodes of a cluster.
    Cluster {
        /// First nodes to connect to.
        seeds: Vec<Address>,
    },
}

/// Role of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It stores state.
    Data,
    /// It names the primary.
    Sentinel,
}

/// The configured Redis with its credentials.
pub(super) struct Target {
    pub(super) kind: Kind,
    data: RedisConnectionInfo,
    sentinel: RedisConnectionInfo,
    tls: Option<TlsFiles>,
    timeout: Duration,
}

impl Target {
    /// Parses the URL, without a connection.
    pub(super) fn parse(url: &str, options: &Options) -> Result<Self, ConnectError> {
        let invalid = |why: &str| ConnectError::Url(why.to_owned());
        let parts = Parts::of(url).ok_or_else(|| invalid("not a Redis URL"))?;
        let hosts = parts
            .hosts
            .split(',')
            .map(|host| parts.info(host))
            .collect::<Result<Vec<_>, _>>()?;
        let data = hosts.first().map(|info| info.redis_settings().clone());
        let data = with_credentials(data.ok_or_else(|| invalid("no host"))?, &options.credentials);
        let mut addresses = hosts.iter().map(|info| match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Some(Address {
                host: host.clone(),
                port: *port,
            }),
            _ => None,
        });
        let addresses: Option<Vec<_>> = addresses.by_ref().collect();
        let addresses = addresses.ok_or_else(|| invalid("no host"))?;
        let kind = parts.kind(addresses)?;
        let files = &options.tls;
        check_usable(files, parts.tls)?;
        let sentinel = with_credentials(RedisConnectionInfo::default(), &options.sentinel_credentials);
        Ok(Self {
            kind,
            data,
            sentinel,
            tls: parts.tls.then(|| files.clone()),
            timeout: options.call_timeout,
        })
    }

    /// Time limit of a call.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Opens a connection. Certificate files are read each time, so replaced files
    /// apply from the next connection.
    pub(super) async fn open(&self, address: &Address, role: Role) -> Result<MultiplexedConnection, Failure> {
        let client = self.client(address, role)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(MAX_QUEUED);
        let opening = client.get_multiplexed_async_connection_with_config(&config);
        match tokio::time::timeout(self.timeout, opening).await {
            Ok(opened) => opened.map_err(Failure::Redis),
            Err(_) => Err(Failure::Timeout(self.timeout)),
        }
    }

    /// Verifies that the certificate files are usable.
    pub(super) fn check_files(&self) -> Result<(), ConnectError> {
        let somewhere = Address {
            host: "localhost".to_owned(),
            port: REDIS_PORT,
        };
        match self.client(&somewhere, Role::Data) {
            Ok(_) => Ok(()),
            Err(Failure::NoServer(why)) => Err(ConnectError::Tls(why)),
            Err(Failure::Redis(error)) => Err(ConnectError::Tls(error.to_string())),
            Err(failure) => Err(ConnectError::Unavailable(failure.into_error())),
        }
    }

    fn client(&self, address: &Address, role: Role) -> Result<Client, Failure> {
        let Address { host, port } = address.clone();
        let addr = match &self.tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            },
        };
        // Without TCP_USER_TIMEOUT a peer that vanished is detected late.
        let tcp = TcpSettings::default().set_nodelay(true);
        #[cfg(target_os = "linux")]
        let tcp = tcp.set_user_timeout(self.timeout * 2);
        let settings = match role {
            Role::Data => &self.data,
            Role::Sentinel => &self.sentinel,
        };
        let info = addr
            .into_connection_info()?
            // The name of the library is another command that users would need rights for.
            .set_redis_settings(settings.clone().set_skip_set_lib_name())
            .set_tcp_settings(tcp);
        match &self.tls {
            None => Ok(Client::open(info)?),
            Some(files) => Ok(Client::build_with_tls(info, certificates(files)?)?),
        }
    }
}

/// Verifies that the combination of certificate files is valid.
fn check_usable(files: &TlsFiles, tls: bool) -> Result<(), ConnectError> {
    let invalid = |why: &str| Err(ConnectError::Tls(why.to_owned()));
    if !tls && *files != TlsFiles::default() {
        return invalid("certificate files need a rediss:// URL");
    }
    if files.certificate.is_some() != files.key.is_some() {
        return invalid("a client certificate needs its key, and the key its certificate");
    }
    Ok(())
}

fn with_credentials(info: RedisConnectionInfo, credentials: &Credentials) -> RedisConnectionInfo {
    let info = match &credentials.username {
        Some(username) => info.set_username(username),
        None => info,
    };
    match &credentials.password {
        Some(password) => info.set_password(password),
        None => info,
    }
}

fn certificates(files: &TlsFiles) -> Result<TlsCertificates, Failure> {
    let read = |path: &Path| {
        std::fs::read(path)
            .map_err(|error| Failure::NoServer(format!("{} cannot be read: {error}", path.display())))
    };
    let client_tls = match (&files.certificate, &files.key) {
        (Some(certificate), Some(key)) => Some(ClientTlsConfig {
            client_cert: read(certificate)?,
            client_key: read(key)?,
        }),
        (Some(_) | None, _) => None,
    };
    let root_cert = files.ca.as_deref().map(read).transpose()?;
    Ok(TlsCertificates {
        client_tls,
        root_cert,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Single,
    Sentinel,
    Cluster,
}

/// The parts of a URL: `scheme://[user:password@]host[:port][,...][/path][?db=N]`.
struct Parts<'a> {
    form: Form,
    tls: bool,
    /// Includes the `@`.
    login: &'a str,
    hosts: &'a str,
    master: &'a str,
    db: &'a str,
    protocol: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (form, tls) = match scheme {
            "redis" => (Form::Single, false),
            "rediss" => (Form::Single, true),
            "redis-sentinel" => (Form::Sentinel, false),
            "rediss-sentinel" => (Form::Sentinel, true),
            "redis-cluster" => (Form::Cluster, false),
            "rediss-cluster" => (Form::Cluster, true),
            _ => return None,
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let at = authority.rfind('@').map_or(0, |at| at + 1);
        let (login, hosts) = authority.split_at(at);
        let (mut db, mut protocol) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=')? {
                ("db", value) => db = Some(value),
                ("protocol", value) => protocol = Some(value),
                _ => return None,
            }
        }
        let (master, path_db) = match form {
            Form::Sentinel => (path, ""),
            Form::Single | Form::Cluster => ("", path),
        };
        let db = db.unwrap_or(if path_db.is_empty() { "0" } else { path_db });
        let valid = !hosts.is_empty() && !master.contains(['/', '#']) && !db.contains('#');
        valid.then_some(Self {
            form,
            tls,
            login,
            hosts,
            master,
            db,
            protocol,
        })
    }

    /// The kind of deployment at these addresses.
    fn kind(&self, addresses: Vec<Address>) -> Result<Kind, ConnectError> {
        let invalid = |why: &str| Err(ConnectError::Url(why.to_owned()));
        match (self.form, addresses.as_slice()) {
            (Form::Single, [address]) => Ok(Kind::Single(address.clone())),
            (Form::Single, _) => invalid("several hosts need redis-sentinel:// or redis-cluster://"),
            (Form::Sentinel, _) if self.master.is_empty() => {
                invalid("a sentinel URL ends with the name of the master: redis-sentinel://host:port/name")
            }
            (Form::Sentinel, _) => Ok(Kind::Sentinel {
                sentinels: addresses,
                master: self.master.to_owned(),
            }),
            (Form::Cluster, _) if self.db != "0" => invalid("a cluster has no databases"),
            (Form::Cluster, _) => Ok(Kind::Cluster { seeds: addresses }),
        }
    }

    /// Connection settings of one host of the URL.
    fn info(&self, host: &str) -> Result<ConnectionInfo, ConnectError> {
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let port = match (has_port, self.form) {
            (true, _) => String::new(),
            (false, Form::Sentinel) => format!(":{SENTINEL_PORT}"),
            (false, Form::Single | Form::Cluster) => format!(":{REDIS_PORT}"),
        };
        let scheme = if self.tls { "rediss" } else { "redis" };
        let protocol = self
            .protocol
            .map(|protocol| format!("?protocol={protocol}"))
            .unwrap_or_default();
        let url = format!("{scheme}://{}{host}{port}/{}{protocol}", self.login, self.db);
        url.into_connection_info()
            .map_err(|error| ConnectError::Url(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Target, String> {
        Target::parse(url, &Options::default()).map_err(|error| error.to_string())
    }

    fn addresses(target: &Target) -> Vec<String> {
        let all = match &target.kind {
            Kind::Single(address) => std::slice::from_ref(address),
            Kind::Sentinel { sentinels, .. } => sentinels,
            Kind::Cluster { seeds } => seeds,
        };
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn urls_name_one_server_sentinels_or_a_cluster() {
        let one = parse("redis://u:p%40ss@h/3").unwrap();
        assert!(matches!(&one.kind, Kind::Single(_)));
        assert_eq!(addresses(&one), ["h:6379"]);
        assert_eq!(one.data.username(), Some("u"));
        assert_eq!(one.data.password(), Some("p@ss"));
        assert_eq!(one.data.db(), 3);
        assert!(one.tls.is_none());
        assert!(parse("rediss://h:1").unwrap().tls.is_some());

        let watched = parse("rediss-sentinel://:pw@h1:1,h2,[::1]:3/main?db=2").unwrap();
        assert!(matches!(&watched.kind, Kind::Sentinel { master, .. } if master == "main"));
        assert_eq!(addresses(&watched), ["h1:1", "h2:26379", "::1:3"]);
        assert_eq!(watched.data.db(), 2);
        assert_eq!(watched.data.password(), Some("pw"));
        assert_eq!(watched.sentinel.password(), None, "sentinels have their own");
        assert!(watched.tls.is_some());

        let many = parse("redis-cluster://h1:1,h2:2").unwrap();
        assert!(matches!(&many.kind, Kind::Cluster { .. }));
        assert_eq!(addresses(&many), ["h1:1", "h2:2"]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for url in [
            "redis://",
            "redis://h1,h2",
            "redis://h/x",
            "redis-sentinel://h1,h2",
            "redis-sentinel://h/a/b",
            "redis-cluster://h/3",
            "redis://h?wait=1",
            "rediss://h/#insecure",
            "rediss://h#insecure",
            "unix:///tmp/x",
        ] {
            assert!(parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn credentials_beside_the_url_win() {
        let options = Options {
            credentials: Credentials {
                username: Some("berth".to_owned()),
                password: Some("hunter2".to_owned()),
            },
            ..Options::default()
        };
        let target = Target::parse("redis://u:p@h", &options).unwrap();
        assert_eq!(target.data.username(), Some("berth"));
        assert_eq!(target.data.password(), Some("hunter2"));
        assert!(!format!("{options:?}").contains("hunter"));
    }

    #[test]
    fn certificate_files_go_with_tls_only() {
        let options = |tls| Options {
            tls,
            ..Options::default()
        };
        let ca = options(TlsFiles {
            ca: Some("/nowhere/ca.pem".into()),
            ..TlsFiles::default()
        });
        assert!(matches!(
            Target::parse("redis://h", &ca),
            Err(ConnectError::Tls(_))
        ));
        let missing = Target::parse("rediss://h", &ca)
            .unwrap()
            .check_files()
            .unwrap_err();
        assert!(missing.to_string().contains("/nowhere/ca.pem"), "{missing}");
        let half = options(TlsFiles {
            certificate: Some("/nowhere/cert.pem".into()),
            ..TlsFiles::default()
        });
        assert!(matches!(
            Target::parse("rediss://h", &half),
            Err(ConnectError::Tls(_))
        ));
    }
}
