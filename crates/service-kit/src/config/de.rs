//! Deserializer of the tree. Values of a file must have the field's type; texts
//! of the environment are parsed by it.

use super::node::Node;
use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{self, Deserializer, IntoDeserializer, Unexpected, Visitor};
use std::fmt;

/// Kind of error; a missing field is repaired differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Missing(&'static str),
    Other,
}

/// An error that never quotes a configured text.
#[derive(Debug)]
pub(super) struct Error {
    pub(super) fault: Fault,
    pub(super) text: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self {
            fault: Fault::Other,
            text: text.to_string(),
        }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("must be {expected}, not {}", Found(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("must be {expected}, not {}", Found(found)))
    }

    fn unknown_field(_: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format_args!(
            "is not a known key; known keys are: {}",
            expected.join(", ")
        ))
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            fault: Fault::Missing(field),
            text: "is required".to_owned(),
        }
    }
}

/// The value in an error message, without content that may be secret.
struct Found<'a>(Unexpected<'a>);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unexpected::Str(_) => f.write_str("this text"),
            Unexpected::Bytes(_) => f.write_str("bytes"),
            Unexpected::Map => f.write_str("a table"),
            Unexpected::Seq => f.write_str("a list"),
            Unexpected::Unit => f.write_str("empty"),
            other => other.fmt(f),
        }
    }
}

/// Deserializes one [`Node`].
pub(super) struct De(Node);

impl De {
    pub(super) fn new(node: Node) -> Self {
        Self(node)
    }
}

impl<'de> IntoDeserializer<'de, Error> for De {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

fn list<'de, V: Visitor<'de>>(items: Vec<Node>, visitor: V) -> Result<V::Value, Error> {
    SeqDeserializer::new(items.into_iter().map(De)).deserialize_any(visitor)
}

fn table<'de, V: Visitor<'de>>(
    entries: impl IntoIterator<Item = (String, Node)>,
    visitor: V,
) -> Result<V::Value, Error> {
    let entries = entries.into_iter().map(|(key, node)| (key, De(node)));
    visitor.visit_map(MapDeserializer::new(entries))
}

fn json(text: &str, opening: char) -> Option<Result<Node, Error>> {
    text.trim_start().starts_with(opening).then(|| {
        serde_json::from_str(text)
            .map(Node::from_json)
            .map_err(|_| de::Error::custom("is not valid JSON"))
    })
}

macro_rules! scalar {
    ($($method:ident, $kind:ty, $visit:ident, $empty:expr, $wanted:literal;)+) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.0 {
                Node::EnvText(text) => match text.trim().parse::<$kind>() {
                    Ok(value) => visitor.$visit(value),
                    Err(_) => Err(de::Error::custom(concat!("must be ", $wanted))),
                },
                Node::Wild => visitor.$visit($empty),
                _ => self.deserialize_any(visitor),
            }
        }
    )+};
}

impl<'de> Deserializer<'de> for De {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Node::Null | Node::Wild => visitor.visit_unit(),
            Node::Bool(value) => visitor.visit_bool(value),
            Node::Int(value) => visitor.visit_i64(value),
            Node::UInt(value) => visitor.visit_u64(value),
            Node::Float(value) => visitor.visit_f64(value),
            Node::Text(text) => visitor.visit_string(text),
            // The field has no fixed type (an untagged enum, a flattened
            // struct), so the form of the text decides.
            Node::EnvText(text) => match serde_json::from_str(&text) {
                Ok(value) => Self(Node::from_json(value)).deserialize_any(visitor),
                Err(_) => visitor.visit_string(text),
            },
            Node::List(items) => list(items, visitor),
            Node::Table(entries) => table(entries, visitor),
        }
    }

    scalar! {
        deserialize_bool, bool, visit_bool, false, "true or false";
        deserialize_i8, i64, visit_i64, 0, "a whole number";
        deserialize_i16, i64, visit_i64, 0, "a whole number";
        deserialize_i32, i64, visit_i64, 0, "a whole number";
        deserialize_i64, i64, visit_i64, 0, "a whole number";
        deserialize_u8, u64, visit_u64, 0, "a whole number, not negative";
        deserialize_u16, u64, visit_u64, 0, "a whole number, not negative";
        deserialize_u32, u64, visit_u64, 0, "a whole number, not negative";
        deserialize_u64, u64, visit_u64, 0, "a whole number, not negative";
        deserialize_f32, f64, visit_f64, 0.0, "a number";
        deserialize_f64, f64, visit_f64, 0.0, "a number";
        deserialize_char, char, visit_char, ' ', "one character";
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Node::EnvText(text) => visitor.visit_string(text),
            Node::Wild => visitor.visit_str(""),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0 {
            Node::Null | Node::Wild => visitor.visit_none(),
            Node::EnvText(text) if text.is_empty() => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Node::EnvText(text) => match json(&text, '[') {
                Some(node) => Self(node?).deserialize_any(visitor),
                None => {
                    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                    list(
                        items.map(|item| Node::EnvText(item.to_owned())).collect(),
                        visitor,
                    )
                }
            },
            Node::Wild => list(Vec::new(), visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Node::EnvText(text) => match json(&text, '{') {
                Some(node) => Self(node?).deserialize_any(visitor),
                None => Err(de::Error::custom(
                    "must be a table; from the environment, a JSON object",
                )),
            },
            Node::Wild => table(None, visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0 {
            // serde would also fill a struct from a list.
            Node::List(_) => Err(de::Error::invalid_type(Unexpected::Seq, &"a table")),
            _ => self.deserialize_map(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Node::Text(text) | Node::EnvText(text) => {
                let variant: StrDeserializer<'_, Error> = text.as_str().into_deserializer();
                visitor.visit_enum(variant)
            }
            Node::Table(entries) => {
                let entries = entries.into_iter().map(|(key, node)| (key, Self(node)));
                visitor.visit_enum(MapAccessDeserializer::new(MapDeserializer::new(entries)))
            }
            _ => Err(de::Error::custom("must be one of the known names")),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit unit_struct tuple tuple_struct ignored_any
    }
}
