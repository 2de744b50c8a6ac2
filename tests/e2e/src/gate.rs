//! Clusters whose engines start only while a gate is open, so that a test can hold a session in the
//! phases before its compute is ready for as long as it needs.

use crate::Engine;
use anyhow::Result;
use local_stack::paths::{home, installed};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use tempfile::TempDir;

/// The gate of the clusters `gated-sail` and `gated-spark`.
#[derive(Debug)]
pub struct Gate {
    dir: TempDir,
}

impl Gate {
    /// A closed gate.
    ///
    /// # Errors
    /// When an engine is not installed.
    pub fn closed() -> Result<Self> {
        let gate = Self {
            dir: tempfile::Builder::new().prefix("berth-gate-").tempdir()?,
        };
        gate.program("sail", &installed("venv-sail/bin/sail")?)?;
        std::fs::create_dir(gate.dir.path().join("bin"))?;
        gate.program("bin/java", &installed("java-spark/bin/java")?)?;
        Ok(gate)
    }

    /// Lets engines start.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn open(&self) -> Result<()> {
        Ok(std::fs::write(self.dir.path().join("open"), "")?)
    }

    /// Lets no engine start from now on.
    ///
    /// # Errors
    /// When it is not open.
    pub fn close(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.dir.path().join("open"))?)
    }

    /// The name of the gated cluster of an engine.
    pub fn cluster(engine: Engine) -> &'static str {
        match engine {
            Engine::Sail => "gated-sail",
            Engine::Spark => "gated-spark",
        }
    }

    /// The clusters, as session-manager's configuration. Both give their compute back when idle.
    pub fn clusters(&self) -> String {
        format!(
            r#"
[[clusters]]
name = "gated-sail"
engine = "sail"
provisioning_deadline = "5m"
[clusters.process]
program = "{gate}/sail"

[[clusters]]
name = "gated-spark"
engine = "spark"
idle_policy = "release"
provisioning_deadline = "5m"
[clusters.process]
program = "{spark}/spark-home"
python = "{spark}/bin/python"
java_home = "{gate}"
driver_memory = "1g"
"#,
            gate = self.dir.path().display(),
            spark = home().join("venv-spark").display(),
        )
    }

    fn program(&self, name: &str, behind: &Path) -> Result<()> {
        let path = self.dir.path().join(name);
        let script = format!(
            "#!/bin/sh\nwhile [ ! -e '{}/open' ]; do sleep 0.1; done\nexec '{}' \"$@\"\n",
            self.dir.path().display(),
            behind.display()
        );
        std::fs::write(&path, script)?;
        Ok(std::fs::set_permissions(&path, Permissions::from_mode(0o755))?)
    }
}
