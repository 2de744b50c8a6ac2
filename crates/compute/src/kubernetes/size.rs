//! Sizes of pods, and the quantities of Kubernetes.

use session_core::{KubernetesPods, Profile};

/// Limit of the disk unless a cluster sets one.
const DEFAULT_DISK: &str = "10Gi";
/// The scheduler reserves this much of a node's disk for a pod, or its limit if that is
/// less: most sessions write little.
const DISK_REQUEST: &str = "512Mi";

/// Size of the pods of a cluster or profile.
pub(super) struct Size<'a> {
    pub(super) cpu: &'a str,
    pub(super) memory: &'a str,
    pub(super) disk: Option<&'a str>,
    pub(super) heap: Option<&'a str>,
}

impl<'a> Size<'a> {
    pub(super) fn of(pods: &'a KubernetesPods) -> Self {
        Self {
            cpu: &pods.cpu,
            memory: &pods.memory,
            disk: pods.ephemeral_storage.as_deref(),
            heap: pods.driver_memory.as_deref(),
        }
    }

    pub(super) fn of_profile(pods: &'a KubernetesPods, profile: &'a Profile) -> Self {
        let all = Self::of(pods);
        Self {
            cpu: &profile.cpu,
            memory: &profile.memory,
            disk: profile.ephemeral_storage.as_deref().or(all.disk),
            heap: profile.driver_memory.as_deref().or(all.heap),
        }
    }
}

/// Disk of a pod.
pub(super) struct Disk {
    pub(super) request: String,
    pub(super) limit: String,
}

/// The disk of the pods of a cluster.
pub(super) fn disk(pods: &KubernetesPods) -> Disk {
    let limit = pods.ephemeral_storage.as_deref().unwrap_or(DEFAULT_DISK);
    let request = if bytes(limit) < bytes(DISK_REQUEST) {
        limit
    } else {
        DISK_REQUEST
    };
    Disk {
        request: request.to_owned(),
        limit: limit.to_owned(),
    }
}

/// `2`, `0.5` and `500m` in thousandths of a CPU.
pub(super) fn milli_cpus(text: &str) -> Option<u64> {
    match text.strip_suffix('m') {
        Some(milli) => whole(milli),
        None => scaled(text, 1000),
    }
}

/// `2Gi`, `1.5G` and `1000000` in bytes.
pub(super) fn bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    match UNITS
        .iter()
        .find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)))
    {
        Some((number, size)) => scaled(number, size),
        None => whole(text),
    }
}

fn whole(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

/// A number with at most three decimal places, times `size`.
fn scaled(text: &str, size: u64) -> Option<u64> {
    let (whole_part, decimals) = text.split_once('.').unwrap_or((text, "000"));
    if decimals.len() > 3 {
        return None;
    }
    let thousandths = whole(&format!("{decimals:0<3}"))?;
    whole(whole_part)?
        .checked_mul(size)?
        .checked_add(thousandths.checked_mul(size)? / 1000)
}

/// Thousandths of a CPU as Kubernetes writes them.
pub(super) fn shown_cpus(milli: u64) -> String {
    if milli.is_multiple_of(1000) {
        (milli / 1000).to_string()
    } else {
        format!("{milli}m")
    }
}

/// Bytes as Kubernetes writes them, in the largest unit without a remainder.
pub(super) fn shown_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    match UNITS
        .iter()
        .find(|(_, size)| bytes > 0 && bytes.is_multiple_of(*size))
    {
        Some((unit, size)) => format!("{}{unit}", bytes / size),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_does() {
        for (text, milli) in [
            ("2", Some(2000)),
            ("500m", Some(500)),
            ("0.5", Some(500)),
            ("1.25", Some(1250)),
            ("", None),
            (".5", None),
            ("-1", None),
            ("1.0001", None),
            ("1e3", None),
        ] {
            assert_eq!(milli_cpus(text), milli, "{text}");
        }
        for (text, size) in [
            ("512Mi", Some(512 << 20)),
            ("1.5Gi", Some(3 << 29)),
            ("2G", Some(2_000_000_000)),
            ("1000", Some(1000)),
            ("2GB", None),
            ("Gi", None),
            ("99999999999Ti", None),
        ] {
            assert_eq!(bytes(text), size, "{text}");
        }
    }

    #[test]
    fn quantities_are_written_as_kubernetes_does() {
        assert_eq!([2000, 500, 0].map(shown_cpus), ["2", "500m", "0"]);
        assert_eq!(
            [3 << 29, 4 << 30, 1000, 0].map(shown_bytes),
            ["1536Mi", "4Gi", "1000", "0"]
        );
    }

    #[test]
    fn a_small_disk_is_reserved_as_a_whole() {
        let of = |limit: Option<&str>| {
            let pods = KubernetesPods {
                ephemeral_storage: limit.map(str::to_owned),
                ..KubernetesPods::default()
            };
            let disk = disk(&pods);
            (disk.request, disk.limit)
        };
        let pair = |request: &str, limit: &str| (request.to_owned(), limit.to_owned());
        assert_eq!(of(None), pair("512Mi", "10Gi"));
        assert_eq!(of(Some("100Mi")), pair("100Mi", "100Mi"));
    }
}
