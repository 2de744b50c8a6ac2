//! Deserializer of one [`Value`]. Values of a file must have the field's type;
//! texts of the environment are parsed by it; placeholders are empty values of
//! it.

use super::error::Error;
use super::tree::{environment_text, is_of_environment, is_placeholder};
use config::{Value, ValueKind};
use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{Deserializer, Error as _, IntoDeserializer, Unexpected, Visitor};

/// Deserializes one value.
pub(super) struct De(pub(super) Value);

impl De {
    /// The text, if it is from the environment.
    fn environment(&self) -> Option<&str> {
        match &self.0.kind {
            ValueKind::String(text) if is_of_environment(&self.0) => Some(text),
            _ => None,
        }
    }
}

impl IntoDeserializer<'_, Error> for De {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

fn list<'de, V: Visitor<'de>>(items: impl IntoIterator<Item = Value>, visitor: V) -> Result<V::Value, Error> {
    SeqDeserializer::new(items.into_iter().map(De)).deserialize_any(visitor)
}

/// The entries in the order of their keys, so that problems have one order.
fn sorted(table: impl IntoIterator<Item = (String, Value)>) -> impl Iterator<Item = (String, De)> {
    let mut entries: Vec<_> = table.into_iter().map(|(key, value)| (key, De(value))).collect();
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    entries.into_iter()
}

fn json(text: &str) -> Result<Value, Error> {
    serde_json::from_str(text).map_err(|_| Error::custom("is not valid JSON"))
}

macro_rules! scalars {
    ($($method:ident, $kind:ty, $visit:ident, $wanted:literal;)+) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.environment() {
                Some(text) => match text.trim().parse::<$kind>() {
                    Ok(value) => visitor.$visit(value),
                    Err(_) => Err(Error::custom(concat!("must be ", $wanted))),
                },
                None if is_placeholder(&self.0) => visitor.$visit(<$kind>::default()),
                None => self.deserialize_any(visitor),
            }
        }
    )+};
}

impl<'de> Deserializer<'de> for De {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let of_environment = is_of_environment(&self.0);
        match self.0.kind {
            ValueKind::Nil => visitor.visit_unit(),
            ValueKind::Boolean(value) => visitor.visit_bool(value),
            ValueKind::I64(value) => visitor.visit_i64(value),
            ValueKind::U64(value) => visitor.visit_u64(value),
            ValueKind::I128(value) => visitor.visit_i128(value),
            ValueKind::U128(value) => visitor.visit_u128(value),
            ValueKind::Float(value) => visitor.visit_f64(value),
            // The field has no fixed type (an untagged enum, a flattened
            // struct), so the form of the text decides.
            ValueKind::String(text) if of_environment => match json(&text) {
                Ok(value) => Self(value).deserialize_any(visitor),
                Err(_) => visitor.visit_string(text),
            },
            ValueKind::String(text) => visitor.visit_string(text),
            ValueKind::Array(items) => list(items, visitor),
            ValueKind::Table(table) => visitor.visit_map(MapDeserializer::new(sorted(table))),
        }
    }

    scalars! {
        deserialize_bool, bool, visit_bool, "true or false";
        deserialize_i8, i64, visit_i64, "a whole number";
        deserialize_i16, i64, visit_i64, "a whole number";
        deserialize_i32, i64, visit_i64, "a whole number";
        deserialize_i64, i64, visit_i64, "a whole number";
        deserialize_u8, u64, visit_u64, "a whole number, not negative";
        deserialize_u16, u64, visit_u64, "a whole number, not negative";
        deserialize_u32, u64, visit_u64, "a whole number, not negative";
        deserialize_u64, u64, visit_u64, "a whole number, not negative";
        deserialize_f32, f64, visit_f64, "a number";
        deserialize_f64, f64, visit_f64, "a number";
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.environment() {
            Some(text) => visitor.visit_str(text),
            None if is_placeholder(&self.0) => visitor.visit_str(""),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        // Placeholders are nil too.
        if self.0.kind == ValueKind::Nil || self.environment() == Some("") {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
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
        match self.environment() {
            Some(text) if text.trim_start().starts_with('[') => Self(json(text)?).deserialize_any(visitor),
            Some(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                list(items.map(environment_text), visitor)
            }
            None if is_placeholder(&self.0) => list(None, visitor),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.environment() {
            Some(text) if text.trim_start().starts_with('{') => Self(json(text)?).deserialize_any(visitor),
            Some(_) => Err(Error::custom(
                "must be a table; from the environment, a JSON object",
            )),
            None if is_placeholder(&self.0) => visitor.visit_map(MapDeserializer::new(sorted(None))),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0.kind {
            // serde would also fill a struct from a list.
            ValueKind::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &"a table")),
            _ => self.deserialize_map(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0.kind {
            ValueKind::String(text) => {
                let variant: StrDeserializer<'_, Error> = text.as_str().into_deserializer();
                visitor.visit_enum(variant)
            }
            ValueKind::Table(table) => {
                visitor.visit_enum(MapAccessDeserializer::new(MapDeserializer::new(sorted(table))))
            }
            _ => Err(Error::custom("must be one of the known names")),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct ignored_any
    }
}
