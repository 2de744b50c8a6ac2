//! A real session-manager, and consoles in front of it.

use super::browser::Browser;
use super::provider::Provider;
use serde::de::DeserializeOwned;
use service_kit::caller::{NewKey, generate_key};
use service_kit::config::{Sources, Validate, load};
use service_kit::shutdown::Shutdown;
use session_token::{Jwks, Signer, generate_key_pem};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

/// A session-manager without clusters, with the account `ada`.
pub(crate) struct Installation {
    pub(crate) dir: TempDir,
    pub(crate) key: NewKey,
    manager: SocketAddr,
    shutdown: Shutdown,
}

/// A running console.
pub(crate) struct Console {
    pub(crate) address: SocketAddr,
    shutdown: Shutdown,
    ended: tokio::task::JoinHandle<anyhow::Result<()>>,
}

fn config<C: DeserializeOwned + serde::Serialize + Validate>(file: PathBuf, text: &str) -> C {
    std::fs::write(&file, text).unwrap();
    let sources = Sources {
        file: Some(file),
        ..Default::default()
    };
    load(&sources).unwrap_or_else(|error| panic!("{error:#}\n{text}"))
}

impl Installation {
    /// Starts it; it accepts tokens of `provider` for the organization `acme`.
    pub(crate) async fn start(provider: Option<&Provider>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let signer = Signer::from_pkcs8_pem(&generate_key_pem().unwrap()).unwrap();
        let jwks = dir.path().join("jwks.json");
        std::fs::write(&jwks, Jwks::new([signer.public_jwk()]).to_json()).unwrap();
        let key = generate_key();
        let oidc = provider.map(|provider| {
            format!(
                "[[oidc]]\nalias = \"corp\"\nissuer = \"{}\"\naudiences = [\"console\"]\norgs = [\"acme\"]\n\
                 org_claim = \"org\"\nroles_claim = \"roles\"\nkeys.again_after = \"1s\"\n",
                provider.issuer()
            )
        });
        let text = format!(
            "listen.public.address = \"127.0.0.1:0\"\nlisten.internal.address = \"127.0.0.1:0\"\n\
             admin.address = \"127.0.0.1:0\"\nstore.url = \"memory://\"\ntokens.keys.location = \"{}\"\n{}\n\
             [[service_accounts]]\nname = \"ada\"\norg = \"acme\"\nroles = [\"member\"]\nkey_sha256 = \"{}\"\n",
            jwks.display(),
            oidc.unwrap_or_default(),
            key.sha256
        );
        let config: session_manager::Config = config(dir.path().join("manager.toml"), &text);
        let listeners = session_manager::Listeners::bind(&config).await.unwrap();
        let manager = listeners.public.local_addr();
        let shutdown = Shutdown::new();
        tokio::spawn(session_manager::run(config, listeners, shutdown.clone()));
        let installation = Self {
            dir,
            key,
            manager,
            shutdown,
        };
        installation.new_keys("keys");
        installation
    }

    /// A new folder of cookie keys.
    pub(crate) fn new_keys(&self, name: &str) -> PathBuf {
        let folder = self.dir.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let mut key = [0_u8; 32];
        aws_lc_rs::rand::fill(&mut key).unwrap();
        std::fs::write(folder.join("key"), key.map(|byte| byte | 0x80)).unwrap();
        folder
    }

    /// A console with the usual cookie keys.
    pub(crate) async fn console(&self, more: &str) -> Console {
        self.console_with(&self.dir.path().join("keys"), more).await
    }

    /// A console with these cookie keys.
    pub(crate) async fn console_with(&self, keys: &Path, more: &str) -> Console {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let text = format!(
            "listen.address = \"127.0.0.1:0\"\nadmin.address = \"127.0.0.1:0\"\nmanager.uri = \"http://{}\"\n\
             sign_in.keys_dir = \"{}\"\n{more}",
            self.manager,
            keys.display()
        );
        let file = format!("console{}.toml", COUNT.fetch_add(1, Ordering::Relaxed));
        let config: console::Config = config(self.dir.path().join(file), &text);
        let listeners = console::Listeners::bind(&config).await.unwrap();
        let address = listeners.web.local_addr();
        let shutdown = Shutdown::new();
        let ended = tokio::spawn(console::run(config, listeners, shutdown.clone()));
        Console {
            address,
            shutdown,
            ended,
        }
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        self.shutdown.stop();
    }
}

impl Console {
    pub(crate) fn browser(&self) -> Browser {
        Browser::new(self.address)
    }

    /// Ends it at once, with all its connections.
    pub(crate) fn kill(&self) {
        self.shutdown.stop();
        self.shutdown.force();
        self.ended.abort();
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.shutdown.stop();
    }
}

/// A balancer: each connection goes to the next backend that accepts one.
pub(crate) struct Balancer {
    pub(crate) address: SocketAddr,
    served: Arc<Vec<AtomicUsize>>,
}

impl Balancer {
    /// Binds its port; backends follow with [`Self::serve`].
    pub(crate) async fn bind() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    pub(crate) fn serve(listener: TcpListener, backends: Vec<SocketAddr>) -> Self {
        let address = listener.local_addr().unwrap();
        let served: Arc<Vec<AtomicUsize>> = Arc::new(backends.iter().map(|_| AtomicUsize::new(0)).collect());
        let counts = Arc::clone(&served);
        tokio::spawn(async move {
            let mut next = 0;
            while let Ok((mut client, _)) = listener.accept().await {
                for _ in 0..backends.len() {
                    let place = next % backends.len();
                    next += 1;
                    if let Ok(mut backend) = TcpStream::connect(backends[place]).await {
                        counts[place].fetch_add(1, Ordering::Relaxed);
                        tokio::spawn(async move {
                            tokio::io::copy_bidirectional(&mut client, &mut backend).await
                        });
                        break;
                    }
                }
            }
        });
        Self { address, served }
    }

    /// Connections of each backend.
    pub(crate) fn served(&self) -> Vec<usize> {
        self.served
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect()
    }
}
