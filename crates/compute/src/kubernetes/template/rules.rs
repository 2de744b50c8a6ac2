//! What a template may contain.

use super::super::layout::{CONTAINER, HOME, PORT, SECRET_DIR, SECRET_VOLUME, SESSION_VOLUME};
use super::super::names::RESERVED_PREFIX;
use super::walk::{Found, Path};
use serde_json::{Map, Value};
use session_core::{Engine, KubernetesPods};

type Fields = Map<String, Value>;

const SPEC: &[&str] = &[
    "affinity",
    "containers",
    "dnsConfig",
    "dnsPolicy",
    "hostAliases",
    "imagePullSecrets",
    "initContainers",
    "nodeSelector",
    "preemptionPolicy",
    "priorityClassName",
    "runtimeClassName",
    "schedulerName",
    "securityContext",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
];
const POD_SECURITY: &[&str] = &[
    "fsGroup",
    "fsGroupChangePolicy",
    "runAsGroup",
    "runAsUser",
    "supplementalGroups",
];
/// Of the engine's container.
const ENGINE: &[&str] = &[
    "env",
    "imagePullPolicy",
    "name",
    "resources",
    "securityContext",
    "terminationMessagePolicy",
    "volumeMounts",
];
const ENGINE_SECURITY: &[&str] = &["runAsGroup", "runAsUser"];
/// Of other containers.
const OTHER: &[&str] = &[
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "lifecycle",
    "livenessProbe",
    "name",
    "ports",
    "readinessProbe",
    "resources",
    "securityContext",
    "startupProbe",
    "terminationMessagePolicy",
    "volumeMounts",
    "workingDir",
];
const OTHER_SECURITY: &[&str] = &["readOnlyRootFilesystem", "runAsGroup", "runAsUser"];
const VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "name",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const PROJECTED: &[&str] = &["clusterTrustBundle", "configMap", "downwardAPI", "secret"];
const MOUNT: &[&str] = &[
    "mountPath",
    "name",
    "readOnly",
    "recursiveReadOnly",
    "subPath",
    "subPathExpr",
];
const MAX_CONTAINERS: usize = 8;

const RESERVED: &str = "is reserved: Berth sets it";
const SECURITY: &str = "is reserved: it would weaken the isolation of sessions";
const NOT_ALLOWED: &str = "is not a field that a pod template may set";

/// Labels of other programs that Berth sets.
const LABELS: [&str; 3] = [
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/name",
    "sidecar.istio.io/inject",
];
/// Annotations that replace fields of the security context.
const SECURITY_ANNOTATIONS: [&str; 3] = [
    "container.apparmor.security.beta.kubernetes.io/",
    "container.seccomp.security.alpha.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
];
/// Variables of the engine by the beginnings of their names: they load code, or have a
/// setting of their own.
const ENGINE_ENV: [&str; 17] = [
    "BERTH",
    "CLASSPATH",
    "DYLD_",
    "GLIBC_",
    "HOME",
    "JAVA_",
    "JDK_",
    "LANG",
    "LD_",
    "PATH",
    "PYSPARK_",
    "PYTHON",
    "SAIL_",
    "SPARK_",
    "TMPDIR",
    "_JAVA",
    "IBM_JAVA",
];
/// Folders of no container that a volume may cover.
const SYSTEM_DIRS: [&str; 5] = ["/proc", "/sys", "/dev", "/var/run/secrets", "/run/secrets"];

/// Adds every problem of a template.
pub(super) fn check(engine: Engine, pods: &KubernetesPods, template: &Value, root: &Path, found: &mut Found) {
    no_directives(template, root, found);
    let Some(fields) = found.object(template, root) else {
        return;
    };
    found.only(fields, &["metadata", "spec"], root, |_| NOT_ALLOWED);
    if let Some(metadata) = fields.get("metadata") {
        check_metadata(metadata, &root.field("metadata"), found);
    }
    if let Some(spec) = fields.get("spec") {
        check_spec(engine, pods, spec, &root.field("spec"), found);
    }
}

/// A merge has no deletion: neither by null nor by a directive.
fn no_directives(value: &Value, path: &Path, found: &mut Found) {
    match value {
        Value::Null => found.add(path, "must not be null: a template cannot remove anything"),
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = path.field(name);
                if name.starts_with('$') {
                    found.add(&path, "is a directive of a patch; a template has none");
                }
                no_directives(value, &path, found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                no_directives(item, &path.item(index), found);
            }
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn check_metadata(metadata: &Value, path: &Path, found: &mut Found) {
    let Some(fields) = found.object(metadata, path) else {
        return;
    };
    found.only(fields, &["annotations", "labels"], path, |_| RESERVED);
    for kind in ["annotations", "labels"] {
        let Some(pairs) = fields.get(kind) else { continue };
        let path = path.field(kind);
        for key in found.object(pairs, &path).into_iter().flat_map(Map::keys) {
            if key.starts_with(RESERVED_PREFIX) || LABELS.contains(&key.as_str()) {
                found.add(&path.field(key), RESERVED);
            } else if SECURITY_ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix)) {
                found.add(&path.field(key), SECURITY);
            }
        }
    }
}

fn check_spec(engine: Engine, pods: &KubernetesPods, spec: &Value, path: &Path, found: &mut Found) {
    let Some(fields) = found.object(spec, path) else {
        return;
    };
    found.only(fields, SPEC, path, |name| match name {
        "activeDeadlineSeconds"
        | "enableServiceLinks"
        | "hostname"
        | "restartPolicy"
        | "shareProcessNamespace"
        | "subdomain"
        | "terminationGracePeriodSeconds" => RESERVED,
        "automountServiceAccountToken"
        | "hostIPC"
        | "hostNetwork"
        | "hostPID"
        | "hostUsers"
        | "nodeName"
        | "serviceAccount"
        | "serviceAccountName" => SECURITY,
        _ => NOT_ALLOWED,
    });
    if let Some(context) = fields.get("securityContext") {
        check_security(context, POD_SECURITY, &path.field("securityContext"), found);
    }
    for (path, volume) in items(fields, "volumes", path, found) {
        check_volume(volume, &path, found);
    }
    let containers = items(fields, "containers", path, found);
    let init_containers = items(fields, "initContainers", path, found);
    if containers.len() + init_containers.len() > MAX_CONTAINERS {
        let problem = format!("must not have more than {MAX_CONTAINERS} containers and init containers");
        found.add(path, problem);
    }
    for (path, container) in containers {
        let name = container.get("name").and_then(Value::as_str);
        if name == Some(CONTAINER) {
            check_engine(engine, pods, container, &path, found);
        } else {
            check_other(container, false, &path, found);
        }
    }
    for (path, container) in init_containers {
        check_other(container, true, &path, found);
    }
}

fn items<'a>(fields: &'a Fields, name: &str, path: &Path, found: &mut Found) -> Vec<(Path, &'a Value)> {
    match fields.get(name) {
        Some(list) => found.list(list, &path.field(name)),
        None => Vec::new(),
    }
}

fn check_security(context: &Value, allowed: &[&str], path: &Path, found: &mut Found) {
    let Some(fields) = found.object(context, path) else {
        return;
    };
    found.only(fields, allowed, path, |_| SECURITY);
    if fields
        .get("runAsUser")
        .is_some_and(|user| user.as_u64().is_none_or(|user| user == 0))
    {
        found.add(&path.field("runAsUser"), "must be a number above 0");
    }
}

fn check_volume(volume: &Value, path: &Path, found: &mut Found) {
    let Some(fields) = found.object(volume, path) else {
        return;
    };
    found.only(fields, VOLUMES, path, |_| SECURITY);
    if let Some(name) = found.text(fields, "name", path)
        && [SESSION_VOLUME, SECRET_VOLUME].contains(&name)
    {
        found.add(&path.field("name"), "is the name of a volume of Berth");
    }
    let Some(projected) = fields.get("projected") else {
        return;
    };
    let path = path.field("projected");
    let Some(projected) = found.object(projected, &path) else {
        return;
    };
    for (path, source) in items(projected, "sources", &path, found) {
        if let Some(source) = found.object(source, &path) {
            found.only(source, PROJECTED, &path, |_| SECURITY);
        }
    }
}

fn check_engine(engine: Engine, pods: &KubernetesPods, container: &Value, path: &Path, found: &mut Found) {
    let Some(fields) = found.object(container, path) else {
        return;
    };
    found.only(fields, ENGINE, path, |name| match name {
        "args" | "command" | "image" | "ports" | "workingDir" => RESERVED,
        _ => NOT_ALLOWED,
    });
    if let Some(context) = fields.get("securityContext") {
        check_security(context, ENGINE_SECURITY, &path.field("securityContext"), found);
    }
    for (path, variable) in items(fields, "env", path, found) {
        let Some(fields) = found.object(variable, &path) else {
            continue;
        };
        let Some(name) = found.text(fields, "name", &path) else {
            continue;
        };
        let upper = name.to_ascii_uppercase();
        let path = path.field("name");
        if pods.properties.contains_key(name) {
            found.add(&path, format!("{name} is set by properties"));
        } else if ENGINE_ENV.iter().any(|prefix| upper.starts_with(prefix)) {
            let problem = format!("{name} is reserved; settings of {engine} are properties");
            found.add(&path, problem);
        }
    }
    check_engine_resources(fields, path, found);
    check_mounts(fields, true, path, found);
}

/// The size is that of the cluster or its profile; other resources are free.
fn check_engine_resources(fields: &Fields, path: &Path, found: &mut Found) {
    let Some(resources) = fields.get("resources") else {
        return;
    };
    let path = path.field("resources");
    let Some(resources) = found.object(resources, &path) else {
        return;
    };
    found.only(resources, &["limits", "requests"], &path, |_| NOT_ALLOWED);
    for kind in ["limits", "requests"] {
        let Some(quantities) = resources.get(kind) else {
            continue;
        };
        let path = path.field(kind);
        for name in found.object(quantities, &path).into_iter().flat_map(Map::keys) {
            if ["cpu", "memory", "ephemeral-storage"].contains(&name.as_str()) {
                found.add(
                    &path.field(name),
                    "is reserved: it is the size of the cluster or its profile",
                );
            }
        }
    }
}

fn check_other(container: &Value, is_init: bool, path: &Path, found: &mut Found) {
    let Some(fields) = found.object(container, path) else {
        return;
    };
    let why = |name: &str| match name {
        "resizePolicy" | "restartPolicyRules" | "stdin" | "stdinOnce" | "tty" | "volumeDevices" => {
            NOT_ALLOWED
        }
        _ => SECURITY,
    };
    for name in fields.keys() {
        // An init container that is restarted is a sidecar.
        let allowed = OTHER.contains(&name.as_str()) || (is_init && name == "restartPolicy");
        if !allowed {
            found.add(&path.field(name), why(name));
        }
    }
    if found.text(fields, "name", path) == Some(CONTAINER) {
        found.add(&path.field("name"), "is the name of the engine's container");
    }
    found.text(fields, "image", path);
    if let Some(context) = fields.get("securityContext") {
        check_security(context, OTHER_SECURITY, &path.field("securityContext"), found);
    }
    for (path, port) in items(fields, "ports", path, found) {
        let Some(port) = found.object(port, &path) else {
            continue;
        };
        found.only(port, &["containerPort", "name", "protocol"], &path, |_| SECURITY);
        if port.get("containerPort").and_then(Value::as_u64) == Some(u64::from(PORT)) {
            found.add(&path.field("containerPort"), "is the port of the engine");
        }
    }
    for resource in ["cpu", "memory"] {
        let limit = container.pointer(&format!("/resources/limits/{resource}"));
        if limit.is_none() {
            let path = path.field("resources").field("limits").field(resource);
            found.add(&path, "is missing: every container of a session has limits");
        }
    }
    check_mounts(fields, false, path, found);
}

fn check_mounts(fields: &Fields, is_engine: bool, path: &Path, found: &mut Found) {
    for (path, mount) in items(fields, "volumeMounts", path, found) {
        let Some(mount) = found.object(mount, &path) else {
            continue;
        };
        found.only(mount, MOUNT, &path, |_| SECURITY);
        if let Some(name) = found.text(mount, "name", &path)
            && [SESSION_VOLUME, SECRET_VOLUME].contains(&name)
        {
            found.add(&path.field("name"), "is a volume of Berth");
        }
        let Some(dir) = found.text(mount, "mountPath", &path) else {
            continue;
        };
        let engine_dirs = [HOME, SECRET_DIR, "/tmp"];
        let engine_dirs = engine_dirs.iter().filter(|_| is_engine);
        let is_taken = SYSTEM_DIRS
            .iter()
            .chain(engine_dirs)
            .any(|taken| overlap(dir, taken));
        if !dir.starts_with('/') || dir.contains("..") || dir.contains(':') || is_taken {
            let problem = "must be an absolute path outside of the folders of Berth and the system";
            found.add(&path.field("mountPath"), problem);
        }
    }
}

/// Whether one folder is in the other.
fn overlap(one: &str, other: &str) -> bool {
    let parts = |path: &str| -> Vec<String> {
        let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
        parts.map(str::to_owned).collect()
    };
    parts(one).iter().zip(&parts(other)).all(|(a, b)| a == b)
}
