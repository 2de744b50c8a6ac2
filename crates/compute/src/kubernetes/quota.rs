//! What a quota of a namespace lacks for a pod.

use super::size::{bytes, milli_cpus, shown_bytes, shown_cpus};

/// Explains `exceeded quota: NAME, requested: A=1,B=2, used: A=3,B=4, limited: A=3,B=4`;
/// `None` for another text.
pub(super) fn quota(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("exceeded quota: ")?;
    let (name, rest) = rest.split_once(", requested: ")?;
    let (requested, rest) = rest.split_once(", used: ")?;
    let (used, limited) = rest.split_once(", limited: ")?;
    let needs: Vec<String> = requested
        .split(',')
        .filter_map(|pair| {
            let (resource, needed) = pair.trim().split_once('=')?;
            let used = value_of(used, resource)?;
            let limit = value_of(limited, resource)?;
            let shown = shown_resource(resource);
            Some(match left(resource, used, limit) {
                Some(left) => format!("needs {needed} {shown}, {left} of {limit} left"),
                None => format!("needs {needed} {shown}, {used} of {limit} used"),
            })
        })
        .collect();
    (!needs.is_empty()).then(|| format!("quota {name} of its namespace is used up: {}", needs.join("; ")))
}

fn value_of<'a>(list: &'a str, name: &str) -> Option<&'a str> {
    list.split(',')
        .find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

/// `limits.cpu` and `requests.cpu` are a quota of CPU.
fn shown_resource(resource: &str) -> &str {
    match resource.rsplit_once('.').map_or(resource, |(_, last)| last) {
        "cpu" => "CPU",
        "memory" => "memory",
        "ephemeral-storage" => "disk",
        "pods" => "pods",
        _ => resource,
    }
}

fn left(resource: &str, used: &str, limit: &str) -> Option<String> {
    let is = |name: &str| resource == name || resource.ends_with(&format!(".{name}"));
    if is("cpu") {
        let left = milli_cpus(limit)?.saturating_sub(milli_cpus(used)?);
        return Some(shown_cpus(left));
    }
    let left = bytes(limit)?.saturating_sub(bytes(used)?);
    let is_size = is("memory") || resource.contains("storage");
    Some(if is_size {
        shown_bytes(left)
    } else {
        left.to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_names_what_is_left() {
        for (message, text) in [
            (
                "pods \"x\" is forbidden: exceeded quota: q, requested: limits.cpu=4,pods=1, used: limits.cpu=5500m,pods=8, limited: limits.cpu=8,pods=8",
                "quota q of its namespace is used up: needs 4 CPU, 2500m of 8 left; needs 1 pods, 0 of 8 left",
            ),
            (
                "exceeded quota: q, requested: requests.memory=4Gi, used: requests.memory=6656Mi, limited: requests.memory=8Gi",
                "quota q of its namespace is used up: needs 4Gi memory, 1536Mi of 8Gi left",
            ),
            (
                "exceeded quota: q, requested: limits.ephemeral-storage=10Gi, used: limits.ephemeral-storage=12Gi, limited: limits.ephemeral-storage=10Gi",
                "quota q of its namespace is used up: needs 10Gi disk, 0 of 10Gi left",
            ),
            (
                "exceeded quota: q, requested: requests.example.org/gpu=1, used: requests.example.org/gpu=x, limited: requests.example.org/gpu=2",
                "quota q of its namespace is used up: needs 1 requests.example.org/gpu, x of 2 used",
            ),
        ] {
            assert_eq!(quota(message).as_deref(), Some(text));
        }
        assert_eq!(quota("forbidden"), None);
    }
}
