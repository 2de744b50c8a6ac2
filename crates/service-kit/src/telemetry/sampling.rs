//! Which traces are sampled: by the caller's flag, else by the configured ratio.

use http::{HeaderMap, HeaderName};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Share of sampled traces without a caller's decision, as bits of an `f64`.
/// Zero, the bits of 0.0, until an exporter exists.
static SAMPLE_RATIO: AtomicU64 = AtomicU64::new(0);

/// Sets the share of sampled traces without a caller's decision.
pub(super) fn set_ratio(ratio: f64) {
    SAMPLE_RATIO.store(ratio.to_bits(), Relaxed);
}

/// Whether this request is part of a sampled trace: by the flag of its
/// `traceparent`, or without one by the configured ratio.
pub fn is_sampled(headers: &HeaderMap) -> bool {
    match headers.get(&TRACEPARENT) {
        Some(value) => has_sampled_flag(value.as_bytes()),
        None => is_chosen(),
    }
}

/// Whether a trace that begins here is sampled: by the configured ratio; never
/// without an OTLP endpoint.
pub fn is_chosen() -> bool {
    match f64::from_bits(SAMPLE_RATIO.load(Relaxed)) {
        ratio if ratio <= 0.0 => false,
        ratio => rand::random::<f64>() < ratio,
    }
}

/// `version-traceid-parentid-flags`, 55 characters at least (W3C Trace Context).
fn has_sampled_flag(traceparent: &[u8]) -> bool {
    let flags = traceparent.get(53..55);
    let flags = flags.and_then(|digits| std::str::from_utf8(digits).ok());
    flags
        .and_then(|digits| u8::from_str_radix(digits, 16).ok())
        .is_some_and(|flags| flags & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sampled_flag_is_the_lowest_bit() {
        for (traceparent, sampled) in [
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", true),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03", true),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-", false),
            ("", false),
        ] {
            assert_eq!(has_sampled_flag(traceparent.as_bytes()), sampled, "{traceparent}");
        }
    }
}
