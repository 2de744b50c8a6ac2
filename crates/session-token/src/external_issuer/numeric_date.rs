//! `NumericDate` of RFC 7519: seconds since the epoch, with fractions. The
//! caller chooses the direction of rounding.

use serde_json::Value;
use session_core::Timestamp;
use std::time::Duration;

/// A date since the epoch, not rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NumericDate(Duration);

impl NumericDate {
    /// `None` if it is not a number, negative, or out of range.
    pub(super) fn from_json(value: &Value) -> Option<Self> {
        if let Some(seconds) = value.as_u64() {
            return Some(Self(Duration::from_secs(seconds)));
        }
        Duration::try_from_secs_f64(value.as_f64()?).ok().map(Self)
    }

    pub(super) fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// The exact time between two dates; `None` if `earlier` is the later date.
    pub(super) fn since(self, earlier: Self) -> Option<Duration> {
        self.0.checked_sub(earlier.0)
    }

    /// Rounded down to whole seconds.
    pub(super) fn rounded_down(self) -> Timestamp {
        Timestamp::from_secs(self.0.as_secs())
    }

    /// Rounded up to whole seconds.
    pub(super) fn rounded_up(self) -> Timestamp {
        let fraction = u64::from(self.0.subsec_nanos() > 0);
        Timestamp::from_secs(self.0.as_secs().saturating_add(fraction))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fractions_are_rounded_to_the_side_that_was_asked_for() {
        for (value, down, up) in [
            (json!(0), 0, 0),
            (json!(1_790_000_000), 1_790_000_000, 1_790_000_000),
            (json!(1_790_000_000.0), 1_790_000_000, 1_790_000_000),
            (json!(1_790_000_000.25), 1_790_000_000, 1_790_000_001),
            (json!(1_790_000_000.999), 1_790_000_000, 1_790_000_001),
            (json!(1.79e9), 1_790_000_000, 1_790_000_000),
        ] {
            let date = NumericDate::from_json(&value).unwrap();
            assert_eq!(date.rounded_down(), Timestamp::from_secs(down), "{value}");
            assert_eq!(date.rounded_up(), Timestamp::from_secs(up), "{value}");
        }
    }

    #[test]
    fn what_is_no_date_is_none() {
        for value in [
            json!(-1),
            json!(-0.5),
            json!(1e300),
            json!("1790000000"),
            json!(null),
            json!(true),
            json!([1]),
        ] {
            assert_eq!(NumericDate::from_json(&value), None, "{value}");
        }
        let huge = NumericDate::from_json(&json!(u64::MAX)).unwrap();
        assert_eq!(huge.rounded_up(), Timestamp::from_secs(u64::MAX));
    }
}
