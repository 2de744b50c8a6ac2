//! Versions of Spark: what clients have, what engines serve, and the advice if a
//! client is newer.

use crate::cluster::{Cluster, Engine};
use std::fmt;

/// A minor version of Spark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SparkVersion {
    /// The first number.
    pub major: u16,
    /// The second number.
    pub minor: u16,
}

impl SparkVersion {
    /// The first version with Spark Connect.
    const FIRST: Self = Self { major: 3, minor: 4 };
    /// Larger numbers are no versions of Spark; limits the texts about them.
    const MAX_NUMBER: u16 = 999;

    /// Parses the beginning of a version, such as `4.1`, `4.1.3` or `4.3.0.dev1`.
    /// `None` for versions without Spark Connect, which belong to other software.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, rest) = text.split_once('.')?;
        let end = rest.find(|char: char| !char.is_ascii_digit());
        let version = Self {
            major: major.parse().ok()?,
            minor: rest[..end.unwrap_or(rest.len())].parse().ok()?,
        };
        let is_small = version.major.max(version.minor) <= Self::MAX_NUMBER;
        (version >= Self::FIRST && is_small).then_some(version)
    }
}

impl fmt::Display for SparkVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The newest clients that an engine serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewestClient {
    /// Their version.
    pub version: SparkVersion,
    /// It is the newest of the cluster's `client_versions`; otherwise it is the
    /// engine's own version of Spark.
    pub declared: bool,
}

impl NewestClient {
    /// The newest clients of compute whose readiness probe read the version of Spark
    /// `probed`, on a cluster with the definition `defined`; `None` if not known.
    ///
    /// Apache Spark is its own measure, before what the cluster declares. Sail names
    /// a version of Spark too, but only the cluster declares which clients work.
    pub fn of(engine: Engine, probed: &str, defined: Option<Self>) -> Option<Self> {
        let own = Self::own(probed);
        match engine {
            Engine::Sail => defined.or(own),
            Engine::Spark => own.or(defined),
        }
    }

    /// What the definition of a cluster says. The version of Sail is not a version of
    /// Spark.
    pub fn defined(cluster: &Cluster) -> Option<Self> {
        let own = match cluster.engine {
            Engine::Sail => None,
            Engine::Spark => cluster.engine_version.as_deref().and_then(Self::own),
        };
        let versions = cluster.client_versions.iter();
        let newest = versions.filter_map(|text| client_version(text)).max();
        own.or(newest.map(|version| Self {
            version,
            declared: true,
        }))
    }

    fn own(text: &str) -> Option<Self> {
        SparkVersion::parse(text).map(|version| Self {
            version,
            declared: false,
        })
    }

    /// The advice for a client with this version, if it is newer by a minor version
    /// at least. At most [`crate::EventRecord::MESSAGE_BYTES`], printable ASCII.
    pub fn advice(self, client: &str) -> Option<String> {
        let client = printable_version(client);
        let version = SparkVersion::parse(client)?;
        if version <= self.version {
            return None;
        }
        let newest = self.version;
        let compared = if self.declared {
            format!("{newest}, the newest in the cluster's client_versions")
        } else {
            format!("the engine's Spark {newest}")
        };
        Some(format!(
            "client {client} is newer than {compared}; what is new in {version} may fail"
        ))
    }
}

/// Maximum length of a client's version in texts.
const MAX_VERSION_BYTES: usize = 16;

/// The beginning of a version that a client sent, with the characters of versions
/// only.
pub fn printable_version(text: &str) -> &str {
    let is_other = |char: char| !(char.is_ascii_alphanumeric() || matches!(char, '.' | '-' | '+' | '_'));
    let end = text.find(is_other).unwrap_or(text.len()).min(MAX_VERSION_BYTES);
    // ASCII up to here.
    &text[..end]
}

/// The version of Spark in an entry of `client_versions`, such as `4.1`, `pyspark
/// 4.1.3` or `pyspark-client 4.1`; `None` for an entry about other software.
fn client_version(text: &str) -> Option<SparkVersion> {
    let lower = text.to_ascii_lowercase();
    let other = ["python", "java", "jdk", "jvm"];
    if lower.split_whitespace().any(|word| other.contains(&word)) {
        return None;
    }
    lower
        .split(|char: char| !(char.is_ascii_digit() || char == '.'))
        .find_map(SparkVersion::parse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EventRecord;
    use crate::cluster::{ClusterStatus, Provider};
    use crate::policy::{PolicyRange, WakePolicy};
    use std::collections::BTreeSet;

    fn version(major: u16, minor: u16) -> Option<SparkVersion> {
        Some(SparkVersion { major, minor })
    }

    fn cluster(engine: Engine, engine_version: Option<&str>, client_versions: &[&str]) -> Cluster {
        Cluster {
            name: "c".parse().unwrap(),
            status: ClusterStatus::Active,
            engine,
            engine_version: engine_version.map(str::to_owned),
            client_versions: client_versions.iter().map(|&text| text.to_owned()).collect(),
            granted_orgs: BTreeSet::new(),
            provider: Provider::Static {
                endpoints: Vec::new(),
                allow_shared_untrusted: false,
            },
            idle_policy: None,
            wake: WakePolicy::default(),
            policy: PolicyRange::default(),
            managed_by_config: false,
            version: 1,
        }
    }

    #[test]
    fn versions_are_read_up_to_the_minor() {
        for (text, expected) in [
            ("4.1", version(4, 1)),
            ("4.1.3", version(4, 1)),
            ("4.3.0.dev1", version(4, 3)),
            ("4.10.0-SNAPSHOT", version(4, 10)),
            ("3.4.4", version(3, 4)),
            ("5.0-preview1", version(5, 0)),
            ("3.3.9", None),
            ("0.7.2", None),
            ("4", None),
            ("4.", None),
            (".4", None),
            ("dev", None),
            ("", None),
            ("4.x", None),
            ("1000.1", None),
            ("99999999999.1", None),
        ] {
            assert_eq!(SparkVersion::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn the_newest_client_is_found_by_engine() {
        let told = ["4.0", "pyspark-client 4.1", "python 4.9", "0.1"];
        let own = |major, minor| version(major, minor).map(|version| (version, false));
        let clients = |major, minor| version(major, minor).map(|version| (version, true));
        for (engine, probed, engine_version, client_versions, expected) in [
            (Engine::Spark, "4.3.0", Some("4.2.1"), &told[..], own(4, 3)),
            (Engine::Spark, "", Some("4.2.1"), &told[..], own(4, 2)),
            (Engine::Spark, "dev", Some("ours"), &told[..], clients(4, 1)),
            (Engine::Spark, "", None, &[][..], None),
            (Engine::Sail, "4.2.0", Some("4.3"), &told[..], clients(4, 1)),
            (Engine::Sail, "4.2.0", Some("0.7.2"), &[], own(4, 2)),
            (Engine::Sail, "", Some("4.2.0"), &["python 3.12"], None),
            (Engine::Sail, "0.7.2", None, &[], None),
        ] {
            let defined = NewestClient::defined(&cluster(engine, engine_version, client_versions));
            let found = NewestClient::of(engine, probed, defined);
            let found = found.map(|newest| (newest.version, newest.declared));
            assert_eq!(found, expected, "{engine} {probed} {engine_version:?}");
        }
    }

    #[test]
    fn only_newer_clients_get_advice() {
        let newest = |declared| NewestClient {
            version: version(4, 1).unwrap(),
            declared,
        };
        for client in ["4.1.3", "4.1", "4.0.9", "3.5.6", "dev", "", "17"] {
            assert_eq!(newest(false).advice(client), None, "{client}");
        }
        assert_eq!(
            newest(false).advice("4.3.0").as_deref(),
            Some("client 4.3.0 is newer than the engine's Spark 4.1; what is new in 4.3 may fail")
        );
        assert_eq!(
            newest(true).advice("5.0.0").as_deref(),
            Some(
                "client 5.0.0 is newer than 4.1, the newest in the cluster's client_versions; what is new in 5.0 may fail"
            )
        );
    }

    #[test]
    fn texts_of_clients_are_bounded_and_printable() {
        let newest = NewestClient {
            version: version(999, 998).unwrap(),
            declared: true,
        };
        let hostile = "999.999".to_owned() + &"x".repeat(5000);
        let advice = newest.advice(&hostile).unwrap();
        assert!(
            advice.len() <= EventRecord::MESSAGE_BYTES,
            "{} {advice}",
            advice.len()
        );
        let split = NewestClient {
            version: version(4, 1).unwrap(),
            declared: false,
        };
        let advice = split.advice("4.9\r\nx-evil: 1\u{202e}").unwrap();
        assert!(advice.starts_with("client 4.9 is newer"), "{advice}");
    }
}
