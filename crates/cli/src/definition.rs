//! Definitions of clusters and catalogs as files, with the keys of
//! `[[clusters]]` and `[[catalogs]]` in session-manager's configuration, so
//! that definitions can move between both. The API validates the values.

use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use session_proto::definition::{CatalogDefinition, ClusterDefinition};
use session_proto::v1;
use std::path::Path;

/// Reads the definition of a cluster.
pub(crate) fn cluster(file: &Path) -> Result<v1::Cluster> {
    let read: ClusterDefinition = read(file)?;
    read.to_wire().map_err(|(field, problem)| {
        let between = if field.is_empty() { "" } else { ": " };
        anyhow!("{}{between}{field} {problem}", file.display())
    })
}

/// Parses the definition of a catalog.
pub(crate) fn catalog(file: &Path) -> Result<v1::Catalog> {
    let read: CatalogDefinition = read(file)?;
    Ok(read.to_wire())
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
            "pods.toml",
            "name = \"pods\"\nengine = \"sail\"\n[kubernetes]\nnamespace = \"sessions\"\n\
             image = \"sail:1\"\ncpu = \"1\"\nmemory = \"2Gi\"\n\
             tolerations = [{ key = \"spot\", effect = \"NoSchedule\" }]\n",
        );
        let Some(v1::cluster::Provider::Kubernetes(pods)) = cluster(&file).unwrap().provider else {
            panic!("no kubernetes provider");
        };
        assert_eq!((pods.image.as_str(), pods.memory.as_str()), ("sail:1", "2Gi"));
        assert_eq!(pods.tolerations[0].effect, "NoSchedule");
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
            (
                "name = \"lab\"\nengine = \"sail\"",
                "static, process and kubernetes",
            ),
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
