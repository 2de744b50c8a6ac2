//! Servers and sentinels with TLS between all of them, and one user for each role.
//!
//! A plaintext port on loopback stays open for the tests themselves, which log in as an
//! administrator; the user `default` is off.

use super::Certificates;
use anyhow::Context as _;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

/// The user of the tests, as `AUTH` takes it.
pub(super) const ADMIN: &str = "admin admin-password";
/// Other servers: replication, and sentinels that monitor and promote.
const REPLICA: &str = "replica-password";
const SENTINEL: &str = "sentinel-password";
/// Sentinels, at each other.
const PEER: &str = "peer-password";

/// TLS and users of a deployment. Copies share the certificates.
#[derive(Debug, Clone)]
pub struct Secured {
    /// Certificates of servers and clients.
    pub certificates: Arc<Certificates>,
    /// Rules of the user [`Secured::USER`] at servers with state.
    rules: String,
    /// Rules of the same user at sentinels.
    sentinel_rules: String,
}

impl Secured {
    /// The user under test, at servers and sentinels.
    pub const USER: &'static str = "berth";
    /// Its password at servers with state.
    pub const PASSWORD: &'static str = "data-password";
    /// Its password at sentinels.
    pub const SENTINEL_PASSWORD: &'static str = "watch-password";

    /// With the rights that `docs/config.md` names for the user under test.
    pub fn as_documented() -> anyhow::Result<Self> {
        let [rules, sentinel_rules] = documented_rules()?;
        Ok(Self {
            certificates: Arc::new(Certificates::make()?),
            rules,
            sentinel_rules,
        })
    }

    /// Arguments of a server, without its ports. Its users are in a file in `dir`.
    pub(super) fn server_words(&self, dir: &Path, cluster: bool) -> anyhow::Result<Vec<String>> {
        let users = dir.join("users.acl");
        if !users.exists() {
            std::fs::write(&users, self.server_users())?;
        }
        let mut words = vec!["--aclfile".to_owned(), users.to_string_lossy().into_owned()];
        let mut add = |name: &str, value: &str| words.extend([format!("--{name}"), value.to_owned()]);
        for (name, value) in self.certificates.server_files()? {
            add(name, &value);
        }
        add("tls-replication", "yes");
        if cluster {
            add("tls-cluster", "yes");
        }
        add("masteruser", "replica");
        add("masterauth", REPLICA);
        Ok(words)
    }

    /// The rights of other servers and of sentinels are those of the manual of Redis.
    fn server_users(&self) -> String {
        let admin = ADMIN.replace(' ', " on >");
        format!(
            "user default off\nuser {admin} ~* &* +@all\nuser {} on >{} {}\n\
             user replica on >{REPLICA} -@all +psync +replconf +ping\n\
             user sentinel on >{SENTINEL} allchannels -@all +multi +slaveof +ping +exec +subscribe \
             +config|rewrite +role +publish +info +client|setname +client|kill +script|kill\n",
            Self::USER,
            Self::PASSWORD,
            self.rules,
        )
    }

    /// Configuration of a sentinel of the primary `name`, without plaintext port, but with its
    /// port for TLS.
    pub(super) fn sentinel_config(&self, name: &str, tls_port: u16) -> anyhow::Result<String> {
        let admin = ADMIN.replace(' ', " on >");
        let mut config = format!(
            "tls-port {tls_port}\ntls-replication yes\n\
             user default off\nuser {admin} ~* &* +@all\nuser peer on >{PEER} ~* &* +@all\n\
             user {} on >{} {}\n\
             sentinel auth-user {name} sentinel\nsentinel auth-pass {name} {SENTINEL}\n\
             sentinel sentinel-user peer\nsentinel sentinel-pass {PEER}\n",
            Self::USER,
            Self::SENTINEL_PASSWORD,
            self.sentinel_rules,
        );
        for (name, value) in self.certificates.server_files()? {
            writeln!(config, "{name} {value}")?;
        }
        Ok(config)
    }
}

/// The rules of Berth's user in `docs/config.md`, as `ACL SETUSER` takes them after the
/// password: at servers with state, and at sentinels.
pub fn documented_rules() -> anyhow::Result<[String; 2]> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config.md");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let rules = text
        .lines()
        .filter_map(|line| line.strip_prefix("ACL SETUSER berth on >PASSWORD "));
    let rules: Vec<String> = rules.map(str::to_owned).collect();
    rules
        .try_into()
        .ok()
        .context("docs/config.md does not name the rules of two users")
}
