//! What changes in header fields, and the variables of texts.

use super::super::super::decode::At;
use super::super::super::error::{ConfigError, ErrorKind};
use super::super::super::http_keys::Headers;
use super::super::super::source::Place;
use super::super::super::{HeaderChanges, Part, Template, Variable};
use super::super::{Output, strings};
use super::conditions::{bare, note, once_each};

/// `None` when an error was reported.
pub(super) fn resolve(
    prefix: &str,
    key: &str,
    at: Option<&At<Headers>>,
    groups: Option<usize>,
    out: &mut Output,
) -> Option<HeaderChanges> {
    let Some(at) = at else { return Some(HeaderChanges::default()) };
    let table = &at.value;
    if table.set.is_bad() || table.add.is_bad() || table.remove.is_bad() {
        return None;
    }
    let (mut changes, mut good) = (HeaderChanges::default(), true);
    if let Some(at) = table.remove.given() {
        once_each(at.value.0.iter().map(|at| (&at.value.0, &at.place)), out)?;
        changes.remove = at.value.0.iter().map(|at| at.value.0.clone()).collect();
        out.note(format!("{prefix}.{key}.remove"), strings(changes.remove.iter()), Some(&at.place));
    }
    if let Some(at) = table.set.given() {
        once_each(at.value.0.iter().map(|(name, _)| (&name.value.0, &name.place)), out)?;
        note(format!("{prefix}.{key}.set"), at, |name| name.0.to_string(), out);
        for (name, value) in &at.value.0 {
            good &= has_groups(&value.value, &value.place, groups, out);
            changes.set.push((name.value.0.clone(), value.value.clone()));
        }
    }
    if let Some(at) = table.add.given() {
        once_each(at.value.0.iter().map(|(name, _)| (&name.value.0, &name.place)), out)?;
        let mut entries = Vec::new();
        for (name, values) in &at.value.0 {
            let texts = strings(values.value.0.iter().map(|value| &value.value));
            entries.push(format!("{} = {texts}", bare(name.value.0.as_str())));
            for value in &values.value.0 {
                good &= has_groups(&value.value, &value.place, groups, out);
                changes.add.push((name.value.0.clone(), value.value.clone()));
            }
        }
        out.note(format!("{prefix}.{key}.add"), format!("{{ {} }}", entries.join(", ")), Some(&at.place));
    }
    good.then_some(changes)
}

/// Whether the groups that a text stands for are there; reported if not. `None`: there is no expression.
pub(super) fn has_groups(
    template: &Template,
    place: &Place,
    groups: Option<usize>,
    out: &mut Output,
) -> bool {
    let wanted = template.parts().iter().filter_map(|part| match part {
        Part::Variable(Variable::Group(number)) => Some(*number),
        Part::Text(_) | Part::Variable(_) => None,
    });
    let Some(most) = wanted.max().filter(|most| groups.is_none_or(|groups| groups < *most)) else {
        return true;
    };
    let (message, hint) = match groups {
        None => (
            format!("`{{{most}}}` is a group of a regular expression, and there is none"),
            "write the `path` of the rule as one: `'~/old/(.*)'`".to_owned(),
        ),
        Some(groups) => (
            format!(
                "`{{{most}}}` is not there: the regular expression has {groups} group{}",
                if groups == 1 { "" } else { "s" }
            ),
            "put in parentheses what is meant".to_owned(),
        ),
    };
    out.report(ConfigError::new(ErrorKind::Conflict, message).at(place).hint(hint));
    false
}
