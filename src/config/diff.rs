//! What is different between two configurations, setting by setting.

use std::collections::HashMap;
use std::fmt;

use super::Effective;

/// Settings that a running process keeps until it is started anew: its threads, its user, where it is asked.
const FIXED: [&str; 4] = ["workers", "user", "group", "sandbox"];

/// A setting that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key as `check --effective` prints it.
    pub key: String,
    /// The value before, in TOML; `None` when it was not there.
    pub before: Option<String>,
    /// The value after; `None` when it is gone.
    pub after: Option<String>,
    /// Whether it only takes effect when the process is started anew.
    pub restart: bool,
}

/// What is in `new` and was not the same in `old`, in the order of `new`; then what is gone.
pub fn diff(old: &[Effective], new: &[Effective]) -> Vec<Change> {
    let values = |settings: &[Effective]| -> HashMap<String, String> {
        settings.iter().map(|setting| (setting.key.clone(), setting.value.clone())).collect()
    };
    let (before, after) = (values(old), values(new));
    let change = |key: &String| Change {
        before: before.get(key).cloned(),
        after: after.get(key).cloned(),
        restart: is_fixed(key),
        key: key.clone(),
    };
    let changed = new.iter().map(|setting| &setting.key).filter(|key| before.get(*key) != after.get(*key));
    let gone = old.iter().map(|setting| &setting.key).filter(|key| !after.contains_key(*key));
    changed.chain(gone).map(change).collect()
}

/// The settings of `settings` that only a start takes from the configuration.
pub fn fixed(settings: &[Effective]) -> Vec<Effective> {
    settings.iter().filter(|setting| is_fixed(&setting.key)).cloned().collect()
}

fn is_fixed(key: &str) -> bool {
    FIXED.contains(&key) || key == "admin" || key.starts_with("admin.")
}

impl Change {
    /// As an object; `text` is what [`fmt::Display`] writes.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "key": self.key,
            "before": self.before,
            "after": self.after,
            "restart": self.restart,
            "text": self.to_string(),
        })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.before, &self.after) {
            (None, Some(after)) => write!(f, "+ {} = {after}", self.key)?,
            (Some(before), None) => write!(f, "- {} = {before}", self.key)?,
            (Some(before), Some(after)) => write!(f, "~ {} = {before} -> {after}", self.key)?,
            (None, None) => f.write_str(&self.key)?,
        }
        if self.restart { f.write_str("  (needs a restart)") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;
    use super::*;

    fn effective(text: &str) -> Vec<Effective> {
        Config::parse(Path::new("test.toml"), text).unwrap().effective
    }

    #[test]
    fn added_changed_and_gone() {
        let old = effective("listen = ':443'\nworkers = 2\n[[route]]\nsni = 'a.test'\nto = '10.0.0.1:1'\n");
        let new = effective("listen = ':443'\nworkers = 3\n[[route]]\nsni = 'b.test'\nto = '10.0.0.1:1'\n");
        let lines: Vec<_> = diff(&old, &new).iter().map(ToString::to_string).collect();
        assert!(lines.contains(&"~ workers = 2 -> 3  (needs a restart)".to_owned()), "{lines:#?}");
        assert!(lines.contains(&"+ route[b.test].to = \"10.0.0.1:1\"".to_owned()), "{lines:#?}");
        assert!(lines.contains(&"- route[a.test].to = \"10.0.0.1:1\"".to_owned()), "{lines:#?}");
        assert!(!lines.iter().any(|line| line.contains(" timeouts.")), "{lines:#?}");
        assert_eq!(diff(&new, &new), []);
        assert_eq!(fixed(&new).len(), 4, "{:?}", fixed(&new));
    }
}
