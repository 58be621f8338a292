//! From TOML values with places to shapes: every error is collected, none stops the rest.
//!
//! Not serde: its first error ends everything, and what is behind `untagged` or `flatten` loses its place.
//! One list of keys a table ([`shape!`]) gives the struct, its decoding, the unknown keys and the JSON schema.

use std::sync::Arc;

use serde_json::{Value, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ErrorKind};
use super::source::{Place, SourceFile};

/// Longest key or word for which a similar one is looked for; beyond it, it is no typing error.
const MAX_SIMILAR: usize = 64;

/// As many keys are listed when none is similar.
const MAX_LISTED: usize = 12;

/// A value that can stand in the file.
pub(super) trait Decode: Sized {
    /// Whether it is written as a string.
    const TEXT: bool = false;
    /// What to write, as in "expected …".
    fn expected() -> String;
    /// Its JSON schema.
    fn schema() -> Value;
    /// The value; `None` when an error was reported.
    fn decode(value: &DeValue<'_>, place: &Place, cx: &mut Decoder<'_>) -> Option<Self>;
}

/// A value written as a string.
pub(super) trait Text: Sized {
    /// What to write, as in "expected …".
    const EXPECTED: &'static str;
    /// Its JSON schema beyond `"type": "string"`.
    fn constraints() -> Value {
        json!({})
    }
    /// The error for a bare number, when there is a better one than "wrong type".
    fn bare_number(_number: &str) -> Option<Problem> {
        None
    }
    /// Parses it.
    fn parse(text: &str) -> Result<Self, Problem>;
}

/// What is wrong with a value, before its place is known.
pub(super) struct Problem {
    pub(super) kind: ErrorKind,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// What a key holds. A bad value is not an absent one: nothing else may be concluded from it.
#[derive(Clone, Debug)]
pub(super) enum Setting<T> {
    Absent,
    Bad(Place),
    Given(At<T>),
}

/// A value or an array of values; never empty.
#[derive(Clone, Debug)]
pub(super) struct OneOrMany<T>(pub(super) Vec<At<T>>);

/// An array of tables, `[[name]]`.
#[derive(Clone, Debug)]
pub(super) struct Tables<T>(pub(super) Vec<At<T>>);

/// A short form, or the table it stands for.
#[derive(Clone, Debug)]
pub(super) enum Either<S, T> {
    Short(S),
    Table(T),
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whole<const MIN: u32, const MAX: u32>(pub(super) u32);

/// A key of a shape.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
    pub(super) required: bool,
    pub(super) schema: fn() -> Value,
}

/// Collects the errors of one file.
pub(super) struct Decoder<'a> {
    source: &'a Arc<SourceFile>,
    errors: &'a mut Vec<ConfigError>,
}

/// Declares a table: the struct of its settings, how it is decoded, and its schema.
macro_rules! shape {
    (
        $(#[doc = $doc:literal])*
        struct $name:ident {
            $( $(#[doc = $field_doc:literal])* $field:ident: $type:ty $(= $required:ident)?, )*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug)]
        pub(super) struct $name {
            $( $(#[doc = $field_doc])* pub(super) $field: $crate::config::decode::Setting<$type>, )*
        }

        impl $name {
            /// Its keys.
            pub(super) const KEYS: &'static [$crate::config::decode::Key] = &[
                $( $crate::config::decode::Key {
                    name: $crate::config::decode::key_name(stringify!($field)),
                    doc: concat!($($field_doc),*),
                    required: false $(|| $crate::config::decode::is_required(stringify!($required)))?,
                    schema: <$type as $crate::config::decode::Decode>::schema,
                }, )*
            ];

            /// Decodes a table that is written at `place`.
            pub(super) fn from_table(
                table: &toml::de::DeTable<'_>,
                place: &$crate::config::source::Place,
                cx: &mut $crate::config::decode::Decoder<'_>,
            ) -> Self {
                cx.check_keys(table, Self::KEYS, place);
                Self { $( $field: cx.setting(table, $crate::config::decode::key_name(stringify!($field))), )* }
            }
        }

        impl $crate::config::decode::Decode for $name {
            fn expected() -> String {
                "a table".to_owned()
            }

            fn schema() -> serde_json::Value {
                $crate::config::schema::table(stringify!($name), concat!($($doc),*), Self::KEYS)
            }

            fn decode(
                value: &toml::de::DeValue<'_>,
                place: &$crate::config::source::Place,
                cx: &mut $crate::config::decode::Decoder<'_>,
            ) -> Option<Self> {
                match value.as_table() {
                    Some(table) => Some(Self::from_table(table, place, cx)),
                    None => cx.wrong_type("a table", value, place),
                }
            }
        }
    };
}
pub(super) use shape;

/// For `shape!`: the key that a field stands for, be it a keyword of Rust.
pub(super) const fn key_name(field: &'static str) -> &'static str {
    match field.as_bytes() {
        [b'r', b'#', name @ ..] => match str::from_utf8(name) {
            Ok(name) => name,
            Err(_) => field,
        },
        _ => field,
    }
}

/// For `shape!`: the only mark a key can have.
pub(super) const fn is_required(mark: &str) -> bool {
    matches!(mark.as_bytes(), b"required")
}

impl Problem {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn at(self, place: &Place) -> ConfigError {
        let error = ConfigError::new(self.kind, self.message).at(place);
        match self.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl<T> Setting<T> {
    /// The value, if there is a good one.
    pub(super) fn given(&self) -> Option<&At<T>> {
        match self {
            Self::Given(at) => Some(at),
            Self::Absent | Self::Bad(_) => None,
        }
    }

    /// Where it is, good or bad.
    pub(super) fn place(&self) -> Option<&Place> {
        match self {
            Self::Given(at) => Some(&at.place),
            Self::Bad(place) => Some(place),
            Self::Absent => None,
        }
    }

    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    pub(super) fn is_bad(&self) -> bool {
        matches!(self, Self::Bad(_))
    }
}

impl<T> Setting<Tables<T>> {
    /// The tables; none when the key is absent.
    pub(super) fn tables(&self) -> &[At<T>] {
        self.given().map_or(&[], |at| at.value.0.as_slice())
    }
}

impl<T> Setting<OneOrMany<T>> {
    /// The values; none when the key is absent.
    pub(super) fn values(&self) -> &[At<T>] {
        self.given().map_or(&[], |at| at.value.0.as_slice())
    }
}

impl<'a> Decoder<'a> {
    pub(super) fn new(source: &'a Arc<SourceFile>, errors: &'a mut Vec<ConfigError>) -> Self {
        Self { source, errors }
    }

    pub(super) fn place<T>(&self, spanned: &Spanned<T>) -> Place {
        Place::new(self.source, spanned.span())
    }

    pub(super) fn report(&mut self, error: ConfigError) {
        self.errors.push(error);
    }

    pub(super) fn setting<T: Decode>(&mut self, table: &DeTable<'_>, key: &str) -> Setting<T> {
        let Some(value) = table.get(key) else {
            return Setting::Absent;
        };
        match self.value(value) {
            Some(at) => Setting::Given(at),
            None => Setting::Bad(self.place(value)),
        }
    }

    pub(super) fn value<T: Decode>(&mut self, value: &Spanned<DeValue<'_>>) -> Option<At<T>> {
        if value.span().is_empty() {
            // Only what the parser puts in the place of a syntax error has no extent.
            return None;
        }
        let place = self.place(value);
        T::decode(value.get_ref(), &place, self).map(|value| At { value, place })
    }

    /// Reports what is in `table` and not in `keys`, and what is required and not in `table`.
    pub(super) fn check_keys(&mut self, table: &DeTable<'_>, keys: &[Key], place: &Place) {
        for key in table.keys().filter(|key| keys.iter().all(|known| known.name != *key.get_ref())) {
            let at = self.place(key);
            let message = format!("unknown key {}", quote(key.get_ref()));
            let error = ConfigError::new(ErrorKind::UnknownKey, message).at(&at);
            let names = || keys.iter().map(|key| key.name);
            let top = super::file::File::KEYS.iter().any(|top| top.name == key.get_ref().as_ref());
            self.errors.push(match similar(key.get_ref(), names()) {
                None if top => error.hint(format!(
                    "`{}` belongs at the top of the file, before the first `[…]`",
                    key.get_ref()
                )),
                Some(name) => error.hint(format!("did you mean `{name}`?")),
                None if keys.len() <= MAX_LISTED => {
                    error.hint(format!("the keys here are {}", list(names())))
                }
                None => error.hint("`portcullis schema` lists all keys"),
            });
        }
        for key in keys.iter().filter(|key| key.required && !table.contains_key(key.name)) {
            let message = format!("`{}` is missing", key.name);
            self.errors.push(ConfigError::new(ErrorKind::MissingKey, message).at(place));
        }
    }

    /// Reports that `value` is of another type.
    pub(super) fn wrong_type<T>(&mut self, expected: &str, value: &DeValue<'_>, place: &Place) -> Option<T> {
        let message = format!("expected {expected}, found {}", type_name(value));
        self.errors.push(ConfigError::new(ErrorKind::WrongType, message).at(place));
        None
    }
}

impl<T: Text> Decode for T {
    const TEXT: bool = true;

    fn expected() -> String {
        T::EXPECTED.to_owned()
    }

    fn schema() -> Value {
        let mut schema = T::constraints();
        if let Some(object) = schema.as_object_mut() {
            object.insert("type".to_owned(), json!("string"));
        }
        schema
    }

    fn decode(value: &DeValue<'_>, place: &Place, cx: &mut Decoder<'_>) -> Option<Self> {
        let problem = match value {
            DeValue::String(text) => match T::parse(text) {
                Ok(value) => return Some(value),
                Err(problem) => Some(problem),
            },
            DeValue::Integer(number) => T::bare_number(number.as_str()),
            DeValue::Float(number) => T::bare_number(number.as_str()),
            DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
        };
        match problem {
            Some(problem) => {
                cx.report(problem.at(place));
                None
            }
            None => cx.wrong_type(T::EXPECTED, value, place),
        }
    }
}

impl Decode for bool {
    fn expected() -> String {
        "true or false".to_owned()
    }

    fn schema() -> Value {
        json!({ "type": "boolean" })
    }

    fn decode(value: &DeValue<'_>, place: &Place, cx: &mut Decoder<'_>) -> Option<Self> {
        match value {
            DeValue::Boolean(value) => Some(*value),
            _ => cx.wrong_type(&Self::expected(), value, place),
        }
    }
}

impl<const MIN: u32, const MAX: u32> Decode for Whole<MIN, MAX> {
    fn expected() -> String {
        "a whole number".to_owned()
    }

    fn schema() -> Value {
        json!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }

    fn decode(value: &DeValue<'_>, place: &Place, cx: &mut Decoder<'_>) -> Option<Self> {
        let DeValue::Integer(number) = value else {
            return cx.wrong_type(&Self::expected(), value, place);
        };
        match u32::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) if (MIN..=MAX).contains(&number) => Some(Self(number)),
            _ => {
                let message = format!("{} is not between {MIN} and {MAX}", quote(number.as_str()));
                cx.report(ConfigError::new(ErrorKind::OutOfRange, message).at(place));
                None
            }
        }
    }
}

impl<S: Decode, T: Decode> Decode for Either<S, T> {
    fn expected() -> String {
        format!("{} or {}", S::expected(), T::expected())
    }

    fn schema() -> Value {
        json!({ "anyOf": [S::schema(), T::schema()] })
    }

    fn decode(value: &DeValue<'_>, place: &Place, cx: &mut Decoder<'_>) -> Option<Self> {
        match value {
            DeValue::Table(_) => T::decode(value, place, cx).map(Self::Table),
            DeValue::Array(_) | DeValue::Datetime(_) | DeValue::Boolean(_) => {
                cx.wrong_type(&Self::expected(), value, place)
            }
            DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) => {
                S::decode(value, place, cx).map(Self::Short)
            }
        }
    }
}

impl<T: Decode> Decode for OneOrMany<T> {
    fn expected() -> String {
        format!("{}, or an array of them", T::expected())
    }

    fn schema() -> Value {
        let item = T::schema();
        json!({ "anyOf": [item, { "type": "array", "items": item, "minItems": 1 }] })
    }

    fn decode(value: &DeValue<'_>, place: &Place, cx: &mut Decoder<'_>) -> Option<Self> {
        let DeValue::Array(items) = value else {
            let value = T::decode(value, place, cx)?;
            return Some(Self(vec![At { value, place: place.clone() }]));
        };
        if items.is_empty() {
            let error = ConfigError::new(ErrorKind::OutOfRange, "the list is empty").at(place);
            cx.report(error.hint("leave the key out, or write at least one value"));
            return None;
        }
        let items: Vec<_> = items.iter().map(|item| cx.value(item)).collect();
        items.into_iter().collect::<Option<_>>().map(Self)
    }
}

impl<T: Decode> Decode for Tables<T> {
    fn expected() -> String {
        "an array of tables".to_owned()
    }

    fn schema() -> Value {
        json!({ "type": "array", "items": T::schema() })
    }

    fn decode(value: &DeValue<'_>, place: &Place, cx: &mut Decoder<'_>) -> Option<Self> {
        let items = match value {
            DeValue::Array(items) => items,
            DeValue::Table(table) => {
                cx.report(single_table(table, place));
                return None;
            }
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => return cx.wrong_type(&Self::expected(), value, place),
        };
        let items: Vec<_> = items.iter().map(|item| cx.value(item)).collect();
        items.into_iter().collect::<Option<_>>().map(Self)
    }
}

/// `[route]` or `[route.app.example.com]` where `[[route]]` is meant.
fn single_table(table: &DeTable<'_>, place: &Place) -> ConfigError {
    let mut name = Vec::new();
    let mut inner = table;
    while let Some((key, value)) = inner.iter().next()
        && inner.len() == 1
        && let Some(next) = value.get_ref().as_table()
    {
        name.push(key.get_ref().as_ref());
        inner = next;
    }
    let error =
        ConfigError::new(ErrorKind::WrongType, "expected an array of tables, found one table").at(place);
    match name.as_slice() {
        [] => error.hint("write the header in double brackets, as in `[[route]]`"),
        name => error.hint(format!(
            "write `[[route]]` with `sni = \"{}\"` below it; dots in a header nest tables",
            name.join(".")
        )),
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// `text` in backticks, without control characters and not too long.
pub(super) fn quote(text: &str) -> String {
    let mut quoted: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        quoted.push('…');
    }
    format!("`{quoted}`")
}

/// The one of `names` that `text` was probably meant to be.
pub(super) fn similar<'n>(text: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    if text.len() > MAX_SIMILAR {
        return None;
    }
    let allowed = (text.chars().count() / 3).clamp(1, 3);
    names
        .take(1000)
        .filter(|name| name.len() <= MAX_SIMILAR)
        .map(|name| {
            (strsim::osa_distance(&text.to_lowercase().replace('-', "_"), &name.replace('-', "_")), name)
        })
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `` `a`, `b` and `c` ``.
pub(super) fn list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    match names.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [rest @ .., last] => format!("{} and {last}", rest.join(", ")),
    }
}

/// Looks `text` up among `words`.
pub(super) fn word<T: Copy>(text: &str, words: &[(&'static str, T)]) -> Result<T, Problem> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let names = || words.iter().map(|(word, _)| *word);
    let problem =
        Problem::new(ErrorKind::BadValue, format!("{} is not one of {}", quote(text), list(names())));
    Err(match similar(text, names()) {
        Some(name) => problem.hint(format!("did you mean `{name}`?")),
        None => problem,
    })
}
