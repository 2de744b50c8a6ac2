//! Spark Connect servers that Berth did not start, for `static` clusters.

use anyhow::Result;
use local_stack::paths::installed;
use local_stack::wait::until;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use test_support::ports::free_port;
use tokio::net::TcpStream;

const READY: Duration = Duration::from_secs(120);

/// A server; it ends when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    /// Starts Sail.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub async fn sail() -> Result<Self> {
        Self::sail_with(&[]).await
    }

    /// Starts Sail with more environment variables.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub async fn sail_with(settings: &[(&str, &str)]) -> Result<Self> {
        Self::sail_in(Path::new("."), settings).await
    }

    /// Starts Sail in a folder, where it puts its tables, with more environment variables.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub async fn sail_in(dir: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let address = free_port()?;
        let mut command = Command::new(installed("venv-sail/bin/sail")?);
        command
            .current_dir(dir)
            .envs(settings.iter().copied())
            .args(["spark", "server", "--ip", "127.0.0.1", "--port"])
            .arg(address.port().to_string());
        Self::start(command, address).await
    }

    /// Starts Apache Spark with more settings, `key=value` each.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub async fn spark(dir: &Path, settings: &[&str]) -> Result<Self> {
        let address = free_port()?;
        let home = installed("venv-spark/spark-home")?;
        let mut command = Command::new(home.join("bin/spark-submit"));
        command
            .current_dir(dir)
            .env("SPARK_HOME", &home)
            .env("JAVA_HOME", installed("java-spark")?)
            .env("PYSPARK_PYTHON", installed("venv-spark/bin/python")?)
            .args([
                "--class",
                "org.apache.spark.sql.connect.service.SparkConnectServer",
            ])
            .args(["--master", "local[2]", "--driver-memory", "1g"]);
        let port = format!("spark.connect.grpc.binding.port={}", address.port());
        let own = [
            "spark.ui.enabled=false",
            "spark.connect.grpc.binding.address=127.0.0.1",
            "spark.driver.host=127.0.0.1",
            "spark.driver.bindAddress=127.0.0.1",
            &port,
        ];
        for setting in own.iter().chain(settings) {
            command.args(["--conf", setting]);
        }
        command.arg("spark-internal");
        Self::start(command, address).await
    }

    async fn start(mut command: Command, address: SocketAddr) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Scripts start the server as a child of theirs: the group is ended as a whole.
            .process_group(0)
            .spawn()?;
        let server = Self { child, address };
        until("the server listens", READY, async || {
            TcpStream::connect(address)
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        })
        .await?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
