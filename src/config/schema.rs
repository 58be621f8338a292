//! The JSON schema of the configuration, from the same lists of keys that decoding uses.

use serde_json::{Map, Value, json};

use super::decode::{Decode, Key};
use super::file::File;

/// The JSON schema (draft 2020-12) of the configuration file, for editors.
pub fn json_schema() -> Value {
    let mut schema = File::schema();
    if let Some(object) = schema.as_object_mut() {
        object.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        object.insert("title".to_owned(), json!("Portcullis"));
    }
    schema
}

/// The schema of a table.
pub(super) fn table(title: &str, doc: &str, keys: &[Key]) -> Value {
    let property = |key: &Key| {
        let mut schema = (key.schema)();
        if let Some(object) = schema.as_object_mut() {
            object.insert("description".to_owned(), json!(key.doc.trim()));
        }
        (key.name.to_owned(), schema)
    };
    let properties: Map<_, _> = keys.iter().map(property).collect();
    let required: Vec<_> = keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    let mut schema = json!({
        "title": title,
        "description": doc.trim(),
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    });
    if let Some(object) = schema.as_object_mut()
        && !required.is_empty()
    {
        object.insert("required".to_owned(), json!(required));
    }
    schema
}

/// The schema of one of `words`.
pub(super) fn words<'a>(words: impl Iterator<Item = &'a str>) -> Value {
    json!({ "enum": words.collect::<Vec<_>>() })
}
