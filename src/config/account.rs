//! Users and groups of this machine, by name or by number.

use nix::unistd::{Gid, Group, Uid, User};
use serde_json::{Value, json};
use toml::de::DeValue;

use super::decode::{Decode, Decoder, Problem, quote};
use super::error::ErrorKind;
use super::source::Place;

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UserEntry {
    pub(super) name: String,
    pub(super) uid: u32,
    /// Its own group; `None` for a number that the machine has no entry for.
    pub(super) gid: Option<u32>,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupEntry {
    pub(super) name: String,
    pub(super) gid: u32,
}

/// What stands in the file.
enum Written {
    Name(String),
    Number(u32),
}

fn written(value: &DeValue<'_>) -> Option<Written> {
    let number = |digits: &str, radix| u32::from_str_radix(digits, radix).ok().map(Written::Number);
    match value {
        DeValue::Integer(integer) => number(integer.as_str(), integer.radix()),
        DeValue::String(text) => number(text, 10).or_else(|| Some(Written::Name(text.to_string()))),
        DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => None,
    }
}

/// The schema of both.
fn name_or_number() -> Value {
    json!({ "anyOf": [{ "type": "string", "minLength": 1 }, { "type": "integer", "minimum": 0 }] })
}

fn unknown(kind: &str, name: &str, list: &str) -> Problem {
    let problem = Problem::new(ErrorKind::BadValue, format!("there is no {kind} {}", quote(name)));
    problem.hint(format!("`getent {list}` lists those of this machine; a number needs no entry"))
}

impl Decode for UserEntry {
    const TEXT: bool = true;

    fn expected() -> String {
        "the name or number of a user".to_owned()
    }

    fn schema() -> Value {
        name_or_number()
    }

    fn decode(value: &DeValue<'_>, place: &Place, cx: &mut Decoder<'_>) -> Option<Self> {
        let found = match written(value) {
            None => return cx.wrong_type(&Self::expected(), value, place),
            // A list of users that cannot be read has no entry either.
            Some(Written::Number(uid)) => {
                let entry = User::from_uid(Uid::from_raw(uid)).ok().flatten();
                let name = entry.as_ref().map_or_else(|| uid.to_string(), |entry| entry.name.clone());
                return Some(Self { name, uid, gid: entry.map(|entry| entry.gid.as_raw()) });
            }
            Some(Written::Name(name)) => {
                User::from_name(&name).ok().flatten().ok_or_else(|| unknown("user", &name, "passwd"))
            }
        };
        match found {
            Ok(entry) => {
                Some(Self { name: entry.name, uid: entry.uid.as_raw(), gid: Some(entry.gid.as_raw()) })
            }
            Err(problem) => {
                cx.report(problem.at(place));
                None
            }
        }
    }
}

impl Decode for GroupEntry {
    const TEXT: bool = true;

    fn expected() -> String {
        "the name or number of a group".to_owned()
    }

    fn schema() -> Value {
        name_or_number()
    }

    fn decode(value: &DeValue<'_>, place: &Place, cx: &mut Decoder<'_>) -> Option<Self> {
        match written(value) {
            None => cx.wrong_type(&Self::expected(), value, place),
            Some(Written::Number(gid)) => {
                let entry = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
                Some(Self { name: entry.map_or_else(|| gid.to_string(), |entry| entry.name), gid })
            }
            Some(Written::Name(name)) => match Group::from_name(&name).ok().flatten() {
                Some(entry) => Some(Self { name: entry.name, gid: entry.gid.as_raw() }),
                None => {
                    cx.report(unknown("group", &name, "group").at(place));
                    None
                }
            },
        }
    }
}
