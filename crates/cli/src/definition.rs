//! Definitions of clusters and catalogs as files, with the keys of
//! `[[clusters]]` and `[[catalogs]]` in session-manager's configuration, so
//! that definitions can move between both. The API validates the values.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use session_proto::convert;
use session_proto::v1;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    name: String,
    engine: String,
    #[serde(default)]
    engine_version: String,
    #[serde(default)]
    client_versions: Vec<String>,
    #[serde(default)]
    granted_orgs: Vec<String>,
    #[serde(default)]
    idle_policy: String,
    #[serde(default)]
    wake: String,
    idle_timeout: Option<String>,
    close_after_idle: Option<String>,
    max_lifetime: Option<String>,
    provisioning_deadline: Option<String>,
    r#static: Option<StaticFile>,
    process: Option<ProcessFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StaticFile {
    endpoints: Vec<EndpointFile>,
    #[serde(default)]
    allow_shared_untrusted: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointFile {
    address: String,
    #[serde(default)]
    tls_server_name: String,
    #[serde(default)]
    token_env: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProcessFile {
    program: String,
    #[serde(default)]
    java_home: String,
    #[serde(default)]
    properties: BTreeMap<String, String>,
    #[serde(default)]
    python: String,
    #[serde(default)]
    driver_memory: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogFile {
    name: String,
    #[serde(default)]
    org: String,
    engine: String,
    #[serde(default)]
    default_database: String,
    #[serde(default)]
    properties: BTreeMap<String, Property>,
    #[serde(default)]
    allowed_teams: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Property {
    Text(String),
    List(Vec<String>),
}

/// Parses the definition of a cluster.
pub(crate) fn cluster(file: &Path) -> Result<v1::Cluster> {
    let read: ClusterFile = read(file)?;
    let about = || format!("in {}", file.display());
    let provider = match (read.r#static, read.process) {
        (Some(fixed), None) => v1::cluster::Provider::Static(v1::StaticProvider {
            allow_shared_untrusted: fixed.allow_shared_untrusted,
            endpoints: fixed.endpoints.into_iter().map(endpoint).collect(),
        }),
        (None, Some(process)) => v1::cluster::Provider::Process(v1::ProcessProvider {
            program: process.program,
            java_home: process.java_home,
            properties: process.properties.into_iter().collect(),
            python: process.python,
            driver_memory: process.driver_memory,
        }),
        (Some(_), Some(_)) | (None, None) => {
            bail!(
                "{} needs exactly one of the sections static and process",
                file.display()
            )
        }
    };
    Ok(v1::Cluster {
        name: read.name,
        engine: engine(&read.engine).with_context(about)?.into(),
        engine_version: read.engine_version,
        client_versions: read.client_versions,
        granted_orgs: read.granted_orgs,
        provider: Some(provider),
        idle_policy: read.idle_policy,
        wake: read.wake,
        idle_timeout: duration("idle_timeout", read.idle_timeout).with_context(about)?,
        close_after_idle: duration("close_after_idle", read.close_after_idle).with_context(about)?,
        max_lifetime: duration("max_lifetime", read.max_lifetime).with_context(about)?,
        provisioning_deadline: duration("provisioning_deadline", read.provisioning_deadline)
            .with_context(about)?,
        ..v1::Cluster::default()
    })
}

/// Parses the definition of a catalog.
pub(crate) fn catalog(file: &Path) -> Result<v1::Catalog> {
    use v1::property_value::Value;
    let read: CatalogFile = read(file)?;
    let property = |property| match property {
        Property::Text(text) => Value::Text(text),
        Property::List(items) => Value::List(v1::TextList { items }),
    };
    Ok(v1::Catalog {
        name: read.name,
        org: read.org,
        engine: engine(&read.engine)
            .with_context(|| format!("in {}", file.display()))?
            .into(),
        default_database: read.default_database,
        properties: read
            .properties
            .into_iter()
            .map(|(key, value)| {
                let value = Some(property(value));
                (key, v1::PropertyValue { value })
            })
            .collect(),
        allowed_teams: read.allowed_teams,
        ..v1::Catalog::default()
    })
}

fn read<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {shown}"))?;
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => toml::from_str(&text).with_context(|| format!("in {shown}")),
        Some("json") => serde_json::from_str(&text).with_context(|| format!("in {shown}")),
        Some(_) | None => bail!("{shown} must end in .toml or .json"),
    }
}

fn endpoint(endpoint: EndpointFile) -> v1::StaticEndpoint {
    v1::StaticEndpoint {
        address: endpoint.address,
        tls_server_name: endpoint.tls_server_name,
        token_env: endpoint.token_env,
    }
}

fn engine(text: &str) -> Result<v1::Engine> {
    match text {
        "sail" => Ok(v1::Engine::Sail),
        "spark" => Ok(v1::Engine::Spark),
        other => bail!("engine: {other:?} is unknown; use sail or spark"),
    }
}

fn duration(field: &str, text: Option<String>) -> Result<Option<prost_types::Duration>> {
    let Some(text) = text else { return Ok(None) };
    let parsed = humantime::parse_duration(&text)
        .with_context(|| format!("{field}: {text:?} is not a duration like \"15min\""))?;
    Ok(Some(convert::duration(parsed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str, text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        (dir, file)
    }

    #[test]
    fn a_cluster_reads_as_in_the_configuration() {
        let (_dir, file) = written(
            "lab.toml",
            "name = \"lab\"\nengine = \"spark\"\nidle_timeout = \"15min\"\n\
             [process]\nprogram = \"/opt/spark\"\nproperties = { \"spark.sql.x\" = \"1\" }\n",
        );
        let read = cluster(&file).unwrap();
        assert_eq!((read.name.as_str(), read.engine()), ("lab", v1::Engine::Spark));
        assert_eq!(read.idle_timeout.unwrap().seconds, 900);
        assert!(matches!(read.provider, Some(v1::cluster::Provider::Process(_))));
        let (_dir, file) = written(
            "lab.json",
            r#"{"name": "lab", "engine": "sail", "static": {"endpoints": [{"address": "a:1"}]}}"#,
        );
        let Some(v1::cluster::Provider::Static(fixed)) = cluster(&file).unwrap().provider else {
            panic!("no static provider");
        };
        assert_eq!(fixed.endpoints[0].address, "a:1");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("name = \"lab\"\nengine = \"sail\"", "static and process"),
            (
                "name = \"lab\"\nengine = \"duck\"\n[process]\nprogram = \"/x\"",
                "duck",
            ),
            ("name = \"lab\"\nengin = \"sail\"", "engin"),
            (
                "name = \"lab\"\nengine = \"sail\"\nidle_timeout = \"soon\"\n[process]\nprogram = \"/x\"",
                "idle_timeout",
            ),
        ] {
            let (_dir, file) = written("lab.toml", text);
            let problem = format!("{:#}", cluster(&file).unwrap_err());
            assert!(problem.contains(named), "{problem}");
        }
        let (_dir, file) = written("lab.yaml", "");
        assert!(cluster(&file).unwrap_err().to_string().contains(".toml"));
    }

    #[test]
    fn properties_of_a_catalog_are_texts_or_lists() {
        let (_dir, file) = written(
            "lake.toml",
            "name = \"lake\"\nengine = \"sail\"\n[properties]\ntype = \"memory\"\ninitial_database = [\"lab\"]\n",
        );
        let read = catalog(&file).unwrap();
        let value = |key: &str| read.properties[key].value.clone().unwrap();
        assert_eq!(
            value("type"),
            v1::property_value::Value::Text("memory".to_owned())
        );
        assert!(matches!(
            value("initial_database"),
            v1::property_value::Value::List(_)
        ));
    }
}
