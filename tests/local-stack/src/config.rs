//! The configuration files of the services of a stack.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;

/// Where the services of a stack listen.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// session-manager's public API.
    pub manager: SocketAddr,
    /// session-manager's internal API.
    pub internal: SocketAddr,
    /// session-manager's admin port.
    pub manager_admin: SocketAddr,
    /// token-issuer's API.
    pub issuer: SocketAddr,
    /// token-issuer's key set.
    pub jwks: SocketAddr,
    /// token-issuer's admin port.
    pub issuer_admin: SocketAddr,
    /// spark-proxy's Spark Connect port.
    pub proxy: SocketAddr,
    /// spark-proxy's admin port.
    pub proxy_admin: SocketAddr,
}

impl Addresses {
    /// Where the key set is.
    pub fn keys(&self) -> String {
        format!("http://{}/.well-known/jwks.json", self.jwks)
    }

    /// Where session-manager's public API is.
    pub fn manager_uri(&self) -> String {
        format!("http://{}", self.manager)
    }

    /// Where session-manager's internal API is.
    pub fn internal_uri(&self) -> String {
        format!("http://{}", self.internal)
    }

    /// Where token-issuer's API is.
    pub fn issuer_uri(&self) -> String {
        format!("http://{}", self.issuer)
    }
}

/// A service account.
#[derive(Clone)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its organization.
    pub org: String,
    /// Its roles.
    pub roles: Vec<String>,
    /// Its key.
    pub key: String,
    /// The digest of its key, as the configuration names it.
    pub key_sha256: String,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("name", &self.name)
            .field("org", &self.org)
            .field("roles", &self.roles)
            .finish_non_exhaustive()
    }
}

/// A session-manager.
#[derive(Clone, Copy)]
pub struct Manager<'a> {
    /// Its public API.
    pub public: SocketAddr,
    /// Its internal API.
    pub internal: SocketAddr,
    /// Its admin port.
    pub admin: SocketAddr,
    /// The URL of its state store.
    pub store: &'a str,
    /// The password of its state store.
    pub password: Option<&'a str>,
    /// File or URL of the key set.
    pub keys: &'a str,
    /// The folder of its compute.
    pub compute_dir: &'a Path,
    /// Its service accounts.
    pub accounts: &'a [Account],
    /// More of its configuration: root keys, then tables.
    pub more: &'a str,
}

impl Manager<'_> {
    /// Its configuration file.
    pub fn toml(&self) -> String {
        let mut text = format!(
            r#"listen.public.address = "{}"
listen.internal.address = "{}"
admin.address = "{}"
store.url = "{}"
tokens.keys.location = "{}"
compute.process.state_dir = "{}"
telemetry.format = "text"
"#,
            self.public,
            self.internal,
            self.admin,
            self.store,
            self.keys,
            self.compute_dir.display()
        );
        if let Some(password) = self.password {
            text += &format!("store.password = \"{password}\"\n");
        }
        text += self.more;
        text.push('\n');
        for account in self.accounts {
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "\n[[service_accounts]]\nname = \"{}\"\norg = \"{}\"\nroles = {:?}\nkey_sha256 = \"{}\"\n",
                account.name, account.org, account.roles, account.key_sha256
            );
        }
        text
    }
}

/// A token-issuer.
#[derive(Debug, Clone, Copy)]
pub struct Issuer<'a> {
    /// Where it and the proxy that its connection strings name listen; its
    /// session-manager is at `internal`.
    pub addresses: &'a Addresses,
    /// The file of its signing key.
    pub signing_key: &'a Path,
    /// True if its connection strings ask for TLS.
    pub tls: bool,
    /// More of its configuration: root keys, then tables.
    pub more: &'a str,
}

impl Issuer<'_> {
    /// Its configuration file.
    pub fn toml(&self) -> String {
        let at = self.addresses;
        format!(
            r#"listen.grpc.address = "{}"
listen.jwks.address = "{}"
admin.address = "{}"
keys.signing = "{}"
public.endpoint = "localhost:{}"
public.tls = {}
manager.uri = "{}"
telemetry.format = "text"
{}
"#,
            at.issuer,
            at.jwks,
            at.issuer_admin,
            self.signing_key.display(),
            at.proxy.port(),
            self.tls,
            at.internal_uri(),
            self.more
        )
    }
}

/// Which protocols a Spark Connect port takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tls {
    /// Plaintext, as `make run`.
    #[default]
    Off,
    /// TLS.
    Required,
    /// Both.
    Auto,
}

/// A spark-proxy.
#[derive(Debug, Clone, Copy)]
pub struct Proxy<'a> {
    /// Its Spark Connect port.
    pub address: SocketAddr,
    /// Its admin port.
    pub admin: SocketAddr,
    /// File or URL of the key set.
    pub keys: &'a str,
    /// Where session-manager's internal API is.
    pub manager_uri: &'a str,
    /// Which protocols its Spark Connect port takes.
    pub tls: Tls,
    /// The folder of `cert.pem` and `key.pem`, if it takes TLS.
    pub certificates: &'a Path,
    /// More of its configuration: root keys, then tables.
    pub more: &'a str,
}

impl Proxy<'_> {
    /// Its configuration file.
    pub fn toml(&self) -> String {
        let dir = self.certificates.display();
        let files = format!("listen.tls.cert = \"{dir}/cert.pem\"\nlisten.tls.key = \"{dir}/key.pem\"\n");
        let (mode, files) = match self.tls {
            Tls::Off => ("off", ""),
            Tls::Required => ("required", files.as_str()),
            Tls::Auto => ("auto", files.as_str()),
        };
        format!(
            r#"listen.address = "{}"
listen.tls.mode = "{mode}"
{files}admin.address = "{}"
tokens.keys.location = "{}"
manager.uri = "{}"
telemetry.format = "text"
{}
"#,
            self.address, self.admin, self.keys, self.manager_uri, self.more
        )
    }
}

/// A console.
#[derive(Debug, Clone, Copy)]
pub struct Console<'a> {
    /// Its web port.
    pub address: SocketAddr,
    /// Its admin port.
    pub admin: SocketAddr,
    /// Where the APIs and the proxy are.
    pub addresses: &'a Addresses,
    /// The folder of the keys of its cookies.
    pub keys: &'a Path,
    /// True if Spark clients use TLS.
    pub tls: bool,
    /// More of its configuration: root keys, then tables.
    pub more: &'a str,
}

impl Console<'_> {
    /// Its configuration file.
    pub fn toml(&self) -> String {
        let at = self.addresses;
        format!(
            r#"listen.address = "{}"
admin.address = "{}"
sign_in.keys_dir = "{}"
spark_connect.endpoint = "localhost:{}"
spark_connect.tls = {}
manager.uri = "{}"
issuer.uri = "{}"
telemetry.format = "text"
{}
"#,
            self.address,
            self.admin,
            self.keys.display(),
            at.proxy.port(),
            self.tls,
            at.manager_uri(),
            at.issuer_uri(),
            self.more
        )
    }
}
