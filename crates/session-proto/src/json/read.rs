//! Reads messages from their JSON form: what [`super::value`] writes, with any field left out.

use crate::v1;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use std::collections::HashMap;

/// Longest duration and largest distance of a time in seconds, as in protobuf: 10 000 years.
const MAX_SECONDS: i64 = 315_576_000_000;

/// A JSON text that is not the form of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The field, e.g. `provider.static.endpoints[0].address`; empty if the text is not JSON or no
    /// object.
    pub field: String,
    /// The problem, as the rest of a sentence.
    pub problem: String,
}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(&self.problem),
            field => write!(f, "{field}: {}", self.problem),
        }
    }
}

/// Reads a message. Absent fields have their default.
///
/// # Errors
/// The first field that is unknown or has a value of another type.
pub fn from_slice<T: DeserializeOwned>(text: &[u8]) -> Result<T, Invalid> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let message = serde_path_to_error::deserialize(&mut reader).map_err(|error| invalid(&error))?;
    reader.end().map_err(|error| Invalid {
        field: String::new(),
        problem: format!("is not one JSON object: {error}"),
    })?;
    Ok(message)
}

/// Reads a message from a JSON value, as [`from_slice`] does.
///
/// # Errors
/// The first field that is unknown or has a value of another type.
pub fn from_value<T: DeserializeOwned>(value: &serde_json::Value) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(value).map_err(|error| invalid(&error))
}

fn invalid(error: &serde_path_to_error::Error<serde_json::Error>) -> Invalid {
    let path = error.path().to_string();
    let parent = if path == "." { "" } else { path.as_str() };
    let inner = error.inner();
    if inner.is_syntax() || inner.is_eof() {
        return Invalid {
            field: String::new(),
            problem: format!("the body is not JSON: {inner}"),
        };
    }
    let text = inner.to_string();
    // The position in the text does not help where the field is named.
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    let unknown = text.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
    match unknown {
        // Depending on the reader, the path ends before or with the unknown field.
        Some((name, expected)) => Invalid {
            field: match parent {
                "" => name.to_owned(),
                parent if parent == name || parent.ends_with(&format!(".{name}")) => parent.to_owned(),
                parent => format!("{parent}.{name}"),
            },
            problem: format!("is not a field of this request{expected}"),
        },
        None => Invalid {
            field: parent.to_owned(),
            problem: text.to_owned(),
        },
    }
}

pub(crate) fn enumeration<'de, D, E>(deserializer: D) -> Result<i32, D::Error>
where
    D: Deserializer<'de>,
    E: Deserialize<'de> + Into<i32>,
{
    E::deserialize(deserializer).map(Into::into)
}

pub(crate) fn enumerations<'de, D, E>(deserializer: D) -> Result<Vec<i32>, D::Error>
where
    D: Deserializer<'de>,
    E: Deserialize<'de> + Into<i32>,
{
    let values = Vec::<E>::deserialize(deserializer)?;
    Ok(values.into_iter().map(Into::into).collect())
}

pub(crate) fn timestamp<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<prost_types::Timestamp>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| {
        parse_timestamp(&text)
            .ok_or_else(|| D::Error::custom("must be a time like \"2027-01-15T08:00:00Z\" (RFC 3339)"))
    })
    .transpose()
}

pub(crate) fn duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<prost_types::Duration>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| {
        parse_duration(&text).ok_or_else(|| D::Error::custom("must be a duration in seconds like \"1800s\""))
    })
    .transpose()
}

pub(crate) fn properties<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<HashMap<String, v1::PropertyValue>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "must be a text or a list of texts")]
    enum Value {
        Text(String),
        List(Vec<String>),
    }
    let read = HashMap::<String, Value>::deserialize(deserializer)?;
    let values = read.into_iter().map(|(name, value)| {
        let value = match value {
            Value::Text(text) => v1::property_value::Value::Text(text),
            Value::List(items) => v1::property_value::Value::List(v1::TextList { items }),
        };
        (name, v1::PropertyValue { value: Some(value) })
    });
    Ok(values.collect())
}

/// Labels of an update are an object of texts, as in every other message.
pub(crate) fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<v1::Labels>, D::Error> {
    let labels = Option::<HashMap<String, String>>::deserialize(deserializer)?;
    Ok(labels.map(|labels| v1::Labels { labels }))
}

/// Parses a duration: seconds, at most nine digits of a fraction, `s`.
pub fn parse_duration(text: &str) -> Option<prost_types::Duration> {
    let number = text.strip_suffix('s')?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let seconds = digits(whole, 1..=12)?;
    (seconds <= MAX_SECONDS).then_some(())?;
    Some(prost_types::Duration {
        seconds,
        nanos: nanos(fraction)?,
    })
}

/// Parses a time of RFC 3339 with any offset. A leap second is the second before it.
pub fn parse_timestamp(text: &str) -> Option<prost_types::Timestamp> {
    let (date, rest) = (text.get(..10)?, text.get(10..)?);
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (time, rest) = (rest.get(..8)?, rest.get(8..)?);
    let fraction_bytes = match rest.strip_prefix('.') {
        Some(fraction) => fraction.bytes().take_while(u8::is_ascii_digit).count() + 1,
        None => 0,
    };
    let (fraction, offset) = rest.split_at(fraction_bytes);
    let nanos = if fraction.is_empty() { 0 } else { nanos(&fraction[1..])? };
    let [year, month, day] = fields(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = fields(time, ':', [2, 2, 2])?;
    let is_valid = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour <= 23
        && minute <= 59
        && second <= 60;
    is_valid.then_some(())?;
    let local = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second.min(59);
    Some(prost_types::Timestamp {
        seconds: local - offset_seconds(offset)?,
        nanos,
    })
}

fn offset_seconds(text: &str) -> Option<i64> {
    if matches!(text, "Z" | "z") {
        return Some(0);
    }
    let sign = match text.get(..1)? {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let [hours, minutes] = fields(&text[1..], ':', [2, 2])?;
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 3600 + minutes * 60))
}

fn fields<const N: usize>(text: &str, between: char, widths: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(between);
    let mut found = [0; N];
    for (place, width) in found.iter_mut().zip(widths) {
        *place = digits(parts.next()?, width..=width)?;
    }
    parts.next().is_none().then_some(found)
}

fn digits(text: &str, width: std::ops::RangeInclusive<usize>) -> Option<i64> {
    let is_number = width.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// Nanoseconds of a fraction with one to nine digits; more digits are cut.
fn nanos(fraction: &str) -> Option<i32> {
    digits(fraction, 1..=18)?;
    let nine = format!("{fraction:0<9}");
    nine.get(..9)?.parse().ok()
}

const fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a Gregorian date of the years 0 to 9999.
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // Years begin on 1 March, so that the leap day is the last day of a year.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::value;
    use serde_json::json;

    fn read<T: DeserializeOwned>(value: &serde_json::Value) -> Result<T, String> {
        from_slice(value.to_string().as_bytes()).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn what_is_written_can_be_read() {
        let cluster = v1::Cluster {
            name: "lab".into(),
            engine: v1::Engine::Sail.into(),
            status: v1::ClusterStatus::Active.into(),
            idle_timeout: Some(prost_types::Duration {
                seconds: 1800,
                nanos: 500_000_000,
            }),
            provider: Some(v1::cluster::Provider::Static(v1::StaticProvider {
                endpoints: vec![v1::StaticEndpoint {
                    address: "a:1".into(),
                    ..v1::StaticEndpoint::default()
                }],
                allow_shared_untrusted: true,
            })),
            version: 7,
            ..v1::Cluster::default()
        };
        assert_eq!(read::<v1::Cluster>(&value(&cluster)), Ok(cluster));
        let session = v1::Session {
            id: "s-1".into(),
            status: v1::SessionStatus::Idle.into(),
            created_at: Some(prost_types::Timestamp {
                seconds: 1_800_000_000,
                nanos: 0,
            }),
            labels: [("a".to_owned(), "b".to_owned())].into(),
            ..v1::Session::default()
        };
        assert_eq!(read::<v1::Session>(&value(&session)), Ok(session.clone()));
        assert_eq!(from_value(&value(&session)), Ok(session));
        let items = vec!["x".to_owned()];
        let list = v1::property_value::Value::List(v1::TextList { items });
        let catalog = v1::Catalog {
            properties: [("p".to_owned(), v1::PropertyValue { value: Some(list) })].into(),
            ..v1::Catalog::default()
        };
        assert_eq!(read::<v1::Catalog>(&value(&catalog)), Ok(catalog));
        let update = v1::UpdateSessionRequest {
            labels: Some(v1::Labels {
                labels: [("a".to_owned(), "b".to_owned())].into(),
            }),
            ..v1::UpdateSessionRequest::default()
        };
        assert_eq!(value(&update)["labels"], json!({"a": "b"}));
        assert_eq!(read::<v1::UpdateSessionRequest>(&value(&update)), Ok(update));
    }

    #[test]
    fn the_wrong_field_is_named() {
        let problem = |body| read::<v1::CreateSessionRequest>(&body).unwrap_err();
        let unknown = problem(json!({"cluster": "c", "clustre": 1}));
        assert!(unknown.starts_with("clustre: is not a field of this request, expected one of"), "{unknown}");
        assert!(unknown.contains("`idle_timeout`"), "{unknown}");
        let idle = problem(json!({"idle_timeout": "15min"}));
        assert_eq!(idle, "idle_timeout: must be a duration in seconds like \"1800s\"");
        let label = problem(json!({"labels": {"a": 1}}));
        assert!(label.starts_with("labels.a: invalid type"), "{label}");
        let body = json!({"cluster": {"provider": {"static": {"endpoints": [{"addres": "x"}]}}}});
        let nested = read::<v1::CreateClusterRequest>(&body).unwrap_err();
        assert!(nested.contains("endpoints[0].addres: is not a field"), "{nested}");
        let status = read::<v1::Cluster>(&json!({"status": "up"})).unwrap_err();
        assert!(status.starts_with("status: unknown variant `up`"), "{status}");
        let text = from_slice::<v1::Cluster>(b"{\"name\": ").unwrap_err();
        assert!(text.field.is_empty() && text.problem.starts_with("the body is not JSON"), "{text}");
        assert!(from_slice::<v1::Cluster>(b"{} {}").is_err());
        assert!(from_slice::<v1::Cluster>(b"[]").is_err());
    }

    #[test]
    fn times_and_durations_are_exact() {
        let at = |text| parse_timestamp(text).map(|at| (at.seconds, at.nanos));
        assert_eq!(at("1970-01-01T00:00:00Z"), Some((0, 0)));
        assert_eq!(at("2027-01-15T08:00:00.25Z"), Some((1_800_000_000, 250_000_000)));
        assert_eq!(at("2027-01-15t10:30:00+02:30"), Some((1_800_000_000, 0)));
        assert_eq!(at("2000-02-29T23:59:60-00:00"), Some((951_868_799, 0)));
        assert_eq!(at("1969-12-31T23:59:59Z"), Some((-1, 0)));
        for bad in [
            "",
            "2027-01-15",
            "2027-01-15T08:00:00",
            "2027-13-15T08:00:00Z",
            "2027-02-29T08:00:00Z",
            "2027-01-15T24:00:00Z",
            "2027-01-15T08:00:00.Z",
            "2027-01-15T08:00:00Zx",
            "2027-1-15T08:00:00Z",
            "2027-01-15T08:00:00+2:30",
            "２027-01-15T08:00:00Z",
        ] {
            assert_eq!(at(bad), None, "{bad}");
        }
        let lasts = |text| parse_duration(text).map(|lasts| (lasts.seconds, lasts.nanos));
        assert_eq!(lasts("1800s"), Some((1800, 0)));
        assert_eq!(lasts("0.5s"), Some((0, 500_000_000)));
        for bad in ["", "s", "-1s", "1800", "1.s", ".5s", "1e3s", "1 s", "15min", "999999999999s"] {
            assert_eq!(lasts(bad), None, "{bad}");
        }
    }
}
