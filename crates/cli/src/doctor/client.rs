//! Steps about the Spark client of this machine.

use super::connection_string::ConnectionString;
use super::fault::{Checked, Fault};
use super::report::{Part, Report};
use session_proto::v1;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Variable from which gRPC's C core reads trusted authorities.
const GRPC_ROOTS: &str = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH";
/// Variables from which it reads an HTTP proxy, in its order.
const PROXY_VARIABLES: [&str; 3] = ["grpc_proxy", "https_proxy", "http_proxy"];
const NO_PROXY_VARIABLES: [&str; 2] = ["no_grpc_proxy", "no_proxy"];
/// Limit of the start of Python.
const PYTHON_TIMEOUT: Duration = Duration::from_secs(20);
/// Prints the versions of the packages that matter, as JSON.
const PYTHON_SCRIPT: &str = "\
import importlib.metadata as m, json
found = {}
for name in ('pyspark', 'pyspark-client', 'pyspark-connect', 'grpcio'):
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))";

/// The authorities that gRPC clients of this environment trust.
pub(super) fn grpc_roots() -> Option<PathBuf> {
    std::env::var_os(GRPC_ROOTS)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// Notes on what clients do and this command does not.
pub(super) fn check_environment(string: &ConnectionString, ca: Option<&Path>, report: &mut Report) {
    let variable = |name: &&str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let excluded = NO_PROXY_VARIABLES.iter().find_map(variable).unwrap_or_default();
    if !is_excluded(&string.host, &excluded)
        && let Some(name) = PROXY_VARIABLES.iter().find(|name| variable(name).is_some())
    {
        let text = format!("{name} is set, and {} is not in no_proxy", string.host);
        report.found(Part::Client, "environment", Fault::ProxyEnvironment.seen(text));
    }
    if string.tls && ca.is_some() && grpc_roots().is_none() {
        let text = format!("{GRPC_ROOTS} is not set, and a private authority is used");
        report.found(Part::Client, "environment", Fault::ClientAuthority.seen(text));
    }
}

/// Whether gRPC connects to a host without the proxy: a suffix of its name is
/// listed.
fn is_excluded(host: &str, list: &str) -> bool {
    list.split(',')
        .map(str::trim)
        .any(|suffix| !suffix.is_empty() && host.ends_with(suffix))
}

/// Compares the Spark client of a Python with the cluster and the string.
pub(super) async fn check_python(
    python: &Path,
    string: Option<&ConnectionString>,
    cluster: Option<&v1::Cluster>,
    report: &mut Report,
) {
    let Some(versions) = report.take(Part::Client, "python", versions(python).await) else {
        return;
    };
    let judged = judge(&versions, string, cluster);
    if let Some(text) = report.take(Part::Client, "python", judged) {
        report.ok(Part::Client, "python", text);
    }
}

async fn versions(python: &Path) -> Checked<BTreeMap<String, String>> {
    let problem = |text: String| Fault::ClientVersion.seen(format!("{}: {text}", python.display()));
    let run = tokio::process::Command::new(python)
        .args(["-I", "-c", PYTHON_SCRIPT])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PYTHON_TIMEOUT, run)
        .await
        .map_err(|_| problem("does not end".to_owned()))?
        .map_err(|error| problem(error.to_string()))?;
    serde_json::from_slice(&output.stdout)
        .map_err(|_| problem("this is not a Python 3.8 or later".to_owned()))
}

fn judge(
    versions: &BTreeMap<String, String>,
    string: Option<&ConnectionString>,
    cluster: Option<&v1::Cluster>,
) -> Checked<String> {
    let names = ["pyspark", "pyspark-client", "pyspark-connect"];
    let found = names.iter().find_map(|name| versions.get_key_value(*name));
    let Some((name, version)) = found else {
        return Err(Fault::ClientVersion.seen("neither pyspark nor pyspark-client is installed"));
    };
    if !versions.contains_key("grpcio") {
        return Err(Fault::ClientVersion.seen(format!(
            "{name} {version} without grpcio: install pyspark[connect]"
        )));
    }
    let supported = cluster
        .map(|cluster| cluster.client_versions.as_slice())
        .unwrap_or_default();
    if !supported.is_empty() && !supported.iter().any(|wanted| is_of(version, wanted)) {
        return Err(Fault::ClientVersion.seen(format!(
            "{name} {version} is installed, and the cluster supports {}",
            supported.join(", ")
        )));
    }
    if version.starts_with("3.") && string.is_some_and(|string| !string.tls) {
        return Err(Fault::ClientNeedsTls.seen(format!(
            "{name} {version} uses TLS always, and the string is for plaintext"
        )));
    }
    Ok(format!("{name} {version}"))
}

/// Whether a version is of a release line such as 4.1.
fn is_of(version: &str, line: &str) -> bool {
    version
        .strip_prefix(line)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(|next: char| !next.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_release_line() {
        assert!(is_of("4.1.3", "4.1") && is_of("4.1", "4.1") && is_of("4.1.0rc1", "4.1.0"));
        assert!(!is_of("4.10.0", "4.1") && !is_of("3.5.9", "4.1"));
    }

    #[test]
    fn hosts_are_excluded_by_suffix() {
        assert!(is_excluded("berth.example.org", "other, .example.org"));
        assert!(!is_excluded("berth.example.org", "example.com"));
        assert!(!is_excluded("berth.example.org", ""));
    }
}
