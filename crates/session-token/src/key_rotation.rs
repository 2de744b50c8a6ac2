//! Key rotation: selection of the signing key and of the keys to withdraw.
//!
//! A verifier receives a key some time after its publication, so valid tokens
//! are rejected if a key signs too early or is withdrawn too early. This module
//! alone enforces both windows, for any files at any time. It is pure, so
//! replicas with the same input make the same decision.

use session_core::Timestamp;
use std::time::Duration;

/// A key with a private half, and its recorded times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its `kid`.
    pub kid: String,
    /// Start of its uninterrupted publication by all issuers.
    pub published_since: Option<Timestamp>,
    /// Last time at which any issuer signed with it.
    pub signed_at: Option<Timestamp>,
    /// Time for which this issuer has published it, by a monotonic clock.
    pub published_here: Duration,
    /// Whether it was published before this issuer started; then the earlier
    /// publication counts.
    pub known_at_start: bool,
}

/// Times of publication before and after signing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Longer than the time in which every verifier receives a key.
    pub before_signing: Duration,
    /// Longer than a token can be accepted: maximum lifetime, plus grace, plus
    /// clock difference.
    pub after_signing: Duration,
}

/// The decision for all candidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The signing key; `None` only without candidates.
    pub signing: Option<usize>,
    /// Whether the key signs before the end of its publication window, because
    /// no other key is available: at the first start, or after the others were
    /// withdrawn.
    pub premature: bool,
    /// Keys that need not be published any more.
    pub retired: Vec<usize>,
}

/// Selects the signing key. `candidates` are in order of creation, as far as
/// file names show it; `current` is the present signing key.
pub fn plan(candidates: &[Candidate], current: Option<&str>, now: Timestamp, windows: Windows) -> Plan {
    let retired = |key: &Candidate| {
        key.signed_at
            .is_some_and(|at| now.since(at) > windows.after_signing)
    };
    let ripe = |key: &Candidate| {
        let everywhere = key
            .published_since
            .is_some_and(|since| now.since(since) >= windows.before_signing);
        let here = key.known_at_start || key.published_here >= windows.before_signing;
        everywhere && here && !retired(key)
    };
    let all = || candidates.iter().enumerate();
    let newest_ripe = all()
        .filter(|(_, key)| ripe(key))
        .max_by_key(|(place, key)| (key.published_since, *place));
    let last_signed = || {
        all()
            .filter(|(_, key)| key.signed_at.is_some())
            .max_by_key(|(place, key)| (key.signed_at, *place))
    };
    let signing_now = || all().find(|(_, key)| Some(key.kid.as_str()) == current);
    let signing = newest_ripe
        .or_else(last_signed)
        .or_else(signing_now)
        .or_else(|| all().next())
        .map(|(place, _)| place);
    Plan {
        signing,
        premature: newest_ripe.is_none() && signing.is_some(),
        retired: all()
            .filter(|(place, key)| Some(*place) != signing && retired(key))
            .map(|(place, _)| place)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOWS: Windows = Windows {
        before_signing: Duration::from_secs(300),
        after_signing: Duration::from_secs(87_000),
    };

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    fn key(kid: &str, since: Option<u64>, signed: Option<u64>) -> Candidate {
        Candidate {
            kid: kid.to_owned(),
            published_since: since.map(at),
            signed_at: signed.map(at),
            published_here: Duration::from_secs(1_000_000),
            known_at_start: true,
        }
    }

    fn signing(candidates: &[Candidate], now: u64) -> (usize, bool) {
        let plan = plan(candidates, None, at(now), WINDOWS);
        (plan.signing.unwrap(), plan.premature)
    }

    #[test]
    fn the_first_key_signs_at_once_and_a_later_one_after_its_window() {
        let first = key("a", Some(1_000_000), None);
        assert_eq!(signing(std::slice::from_ref(&first), 1_000_000), (0, true));
        let pair = [
            key("a", Some(1_000_000), Some(1_000_999)),
            key("b", Some(1_001_000), None),
        ];
        assert_eq!(signing(&pair, 1_001_299), (0, false));
        assert_eq!(signing(&pair, 1_001_300), (1, false));
    }

    #[test]
    fn a_key_that_only_others_published_waits_here_too() {
        let mut new = key("b", Some(1_001_000), None);
        new.known_at_start = false;
        new.published_here = Duration::from_secs(299);
        let mut pair = [key("a", Some(1_000_000), Some(1_001_400)), new];
        assert_eq!(signing(&pair, 1_001_400), (0, false));
        pair[1].published_here = Duration::from_secs(300);
        assert_eq!(signing(&pair, 1_001_400), (1, false));
    }

    #[test]
    fn the_last_one_stays_published_until_its_tokens_are_dead() {
        let pair = [
            key("a", Some(1_000_000), Some(1_001_300)),
            key("b", Some(1_001_000), Some(1_090_000)),
        ];
        let retired = |now| plan(&pair, None, at(now), WINDOWS).retired;
        assert!(retired(1_001_300 + 87_000).is_empty());
        assert_eq!(retired(1_001_300 + 87_001), [0]);
    }

    #[test]
    fn what_was_withdrawn_is_followed_by_who_signed_last() {
        // All windows restart after a gap, or after a loss of the records.
        let pair = [
            key("a", Some(2_000_000), Some(1_500_000)),
            key("b", Some(2_000_000), Some(1_900_000)),
        ];
        assert_eq!(signing(&pair, 2_000_001), (1, true));
        let lost = [key("a", None, None), key("b", None, None)];
        assert_eq!(signing(&lost, 1), (0, true));
        assert_eq!(plan(&lost, Some("b"), at(1), WINDOWS).signing, Some(1));
        assert_eq!(plan(&[], Some("b"), at(1), WINDOWS).signing, None);
    }

    #[test]
    fn a_key_that_never_signed_is_never_retired() {
        let pair = [key("a", Some(1), None), key("b", Some(1), Some(1_000_000))];
        assert!(plan(&pair, None, at(1_000_000), WINDOWS).retired.is_empty());
    }

    proptest! {
        /// Properties for any input: the signing key is published, no key
        /// within its window signs while a ripe one exists, no key is retired
        /// early.
        /// window signs while a ripe one is there, none is retired early.
        #[test]
        fn unsafe_windows_are_never_taken(
            keys in prop::collection::vec(
                (prop::option::of(0_u64..200_000), prop::option::of(0_u64..200_000), 0_u64..1000, any::<bool>()), 0..6),
            now in 0_u64..400_000,
        ) {
            let candidates: Vec<_> = keys
                .iter()
                .enumerate()
                .map(|(n, (since, signed, here, known))| Candidate {
                    published_here: Duration::from_secs(*here),
                    known_at_start: *known,
                    ..key(&format!("k{n}"), *since, *signed)
                })
                .collect();
            let plan = plan(&candidates, None, at(now), WINDOWS);
            prop_assert_eq!(plan.signing.is_none(), candidates.is_empty());
            if let Some(signing) = plan.signing {
                prop_assert!(!plan.retired.contains(&signing));
                let key = &candidates[signing];
                let since = key.published_since.unwrap_or(Timestamp::from_millis(u64::MAX));
                let waited = at(now).since(since) >= WINDOWS.before_signing
                    && (key.known_at_start || key.published_here >= WINDOWS.before_signing);
                prop_assert!(waited || plan.premature);
            }
            for place in plan.retired {
                let signed = candidates[place].signed_at.unwrap();
                prop_assert!(at(now).since(signed) > WINDOWS.after_signing);
            }
        }
    }
}
