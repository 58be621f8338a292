//! Errors of a configuration: what is wrong, where, and what to write instead.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Origin as Named, Renderer, Snippet};

use super::Origin;
use super::source::{Place, SourceFile};

/// Errors drawn in full; after a slip that breaks every line, more would only hide the first.
const DRAWN: usize = 50;

/// Two places of a file this near (in bytes) share one drawing.
const NEAR: usize = 64 * 1024;

/// Longest message kept, in characters; values of the file are quoted in messages.
const MESSAGE_LEN: usize = 600;

/// What kind of mistake it is; the names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A file cannot be read.
    Io,
    /// A file is larger than 16 MiB.
    TooLarge,
    /// A file is not UTF-8.
    Encoding,
    /// Not TOML.
    Syntax,
    /// A key that does not exist here.
    UnknownKey,
    /// A key that must be given is not.
    MissingKey,
    /// A value of another TOML type than the key takes.
    WrongType,
    /// A value that is not understood.
    BadValue,
    /// A duration or size as a bare number.
    MissingUnit,
    /// A value, or a number of values, outside what is allowed.
    OutOfRange,
    /// A name that is not a server name, listener name or route name.
    BadName,
    /// A regular expression that does not compile.
    BadRegex,
    /// Not an address.
    BadAddress,
    /// Not a network.
    BadNetwork,
    /// An `include` that matches nothing, the same file twice, or a file that includes again.
    BadInclude,
    /// A listener that does not exist.
    UnknownListener,
    /// A route that does not exist.
    UnknownRoute,
    /// An upstream that does not exist.
    UnknownUpstream,
    /// Two things with the same name.
    DuplicateName,
    /// Two routes that match the same thing.
    DuplicateRoute,
    /// The same value twice in a list, or the same address bound twice.
    DuplicateValue,
    /// Settings that exclude each other.
    Conflict,
    /// A backend that is the proxy itself.
    SelfLoop,
    /// A route would lead clients wherever they want.
    OpenForward,
}

/// One error of a configuration.
#[derive(Clone, Debug)]
pub struct ConfigError {
    kind: ErrorKind,
    message: String,
    place: Where,
    label: Option<String>,
    also: Vec<(Place, String)>,
    hint: Option<String>,
}

/// All errors of a configuration, in the order of the files and lines; never empty.
#[derive(Clone, Debug)]
pub struct ConfigErrors(Vec<ConfigError>);

/// How exactly an error can be placed.
#[derive(Clone, Debug)]
enum Where {
    Nowhere,
    File(Arc<Path>),
    At(Place),
}

impl ErrorKind {
    /// All of them.
    pub const ALL: [Self; 24] = [
        Self::Io,
        Self::TooLarge,
        Self::Encoding,
        Self::Syntax,
        Self::UnknownKey,
        Self::MissingKey,
        Self::WrongType,
        Self::BadValue,
        Self::MissingUnit,
        Self::OutOfRange,
        Self::BadName,
        Self::BadRegex,
        Self::BadAddress,
        Self::BadNetwork,
        Self::BadInclude,
        Self::UnknownListener,
        Self::UnknownRoute,
        Self::UnknownUpstream,
        Self::DuplicateName,
        Self::DuplicateRoute,
        Self::DuplicateValue,
        Self::Conflict,
        Self::SelfLoop,
        Self::OpenForward,
    ];

    /// Its stable name in kebab-case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::TooLarge => "too-large",
            Self::Encoding => "encoding",
            Self::Syntax => "syntax",
            Self::UnknownKey => "unknown-key",
            Self::MissingKey => "missing-key",
            Self::WrongType => "wrong-type",
            Self::BadValue => "bad-value",
            Self::MissingUnit => "missing-unit",
            Self::OutOfRange => "out-of-range",
            Self::BadName => "bad-name",
            Self::BadRegex => "bad-regex",
            Self::BadAddress => "bad-address",
            Self::BadNetwork => "bad-network",
            Self::BadInclude => "bad-include",
            Self::UnknownListener => "unknown-listener",
            Self::UnknownRoute => "unknown-route",
            Self::UnknownUpstream => "unknown-upstream",
            Self::DuplicateName => "duplicate-name",
            Self::DuplicateRoute => "duplicate-route",
            Self::DuplicateValue => "duplicate-value",
            Self::Conflict => "conflict",
            Self::SelfLoop => "self-loop",
            Self::OpenForward => "open-forward",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ConfigError {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if let Some((cut, _)) = message.char_indices().nth(MESSAGE_LEN) {
            message.truncate(cut);
            message.push('…');
        }
        Self { kind, message, place: Where::Nowhere, label: None, also: Vec::new(), hint: None }
    }

    /// Where it is.
    pub(super) fn at(mut self, place: &Place) -> Self {
        self.place = Where::At(place.clone());
        self
    }

    /// In which file it is, when no line can be told.
    pub(super) fn in_file(mut self, name: &Path) -> Self {
        self.place = Where::File(name.into());
        self
    }

    /// A word beside the caret.
    pub(super) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// A second place that belongs to it.
    pub(super) fn also(mut self, place: &Place, label: impl Into<String>) -> Self {
        self.also.push((place.clone(), label.into()));
        self
    }

    /// What to write instead.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The line it is on, with the file's position in the order of reading.
    pub(super) fn line_key(&self) -> Option<(usize, u32)> {
        match &self.place {
            Where::At(place) => Some((place.file().index(), place.origin().line)),
            Where::Nowhere | Where::File(_) => None,
        }
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What is wrong, in one sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to write instead.
    pub fn help(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Where it is; `None` when no line can be told, as for a file that does not exist.
    pub fn origin(&self) -> Option<Origin> {
        match &self.place {
            Where::At(place) => Some(place.origin()),
            Where::Nowhere | Where::File(_) => None,
        }
    }

    fn order(&self) -> (usize, u32) {
        match &self.place {
            Where::At(place) => (place.file().index() + 1, place.start()),
            Where::Nowhere | Where::File(_) => (0, 0),
        }
    }

    fn to_json(&self) -> serde_json::Value {
        let origin = self.origin();
        let file = match &self.place {
            Where::Nowhere => None,
            Where::File(name) => Some(name.display().to_string()),
            Where::At(place) => Some(place.file().name().display().to_string()),
        };
        serde_json::json!({
            "kind": self.kind.as_str(),
            "message": self.message,
            "file": file,
            "line": origin.as_ref().map(|origin| origin.line),
            "column": origin.as_ref().map(|origin| origin.column),
            "hint": self.hint,
        })
    }

    fn draw(&self) -> Group<'_> {
        let title = Level::ERROR.primary_title(self.message.as_str()).id(self.kind.as_str());
        let mut group = Group::with_title(title);
        match &self.place {
            Where::Nowhere => {}
            Where::File(name) => group = group.element(Named::path(name.display().to_string())),
            Where::At(place) => group = self.draw_places(group, place),
        }
        match &self.hint {
            Some(hint) => group.element(Level::HELP.message(hint.as_str())),
            None => group,
        }
    }

    fn draw_places<'a>(&'a self, mut group: Group<'a>, place: &'a Place) -> Group<'a> {
        let (near, far): (Vec<_>, Vec<_>) =
            self.also.iter().partition(|(other, _)| place.distance(other).is_some_and(|bytes| bytes < NEAR));
        let marks = std::iter::once((AnnotationKind::Primary, place, self.label.as_deref())).chain(
            near.into_iter().map(|(other, label)| (AnnotationKind::Context, other, Some(label.as_str()))),
        );
        group = draw_file(group, place.file(), &marks.collect::<Vec<_>>());
        for (other, label) in far {
            let mark = (AnnotationKind::Context, other, Some(label.as_str()));
            group = draw_file(group, other.file(), &[mark]);
        }
        group
    }
}

/// Draws the lines of `marks`, which are all in `file`; a line too long to draw is only named.
fn draw_file<'a>(
    group: Group<'a>,
    file: &'a SourceFile,
    marks: &[(AnnotationKind, &'a Place, Option<&'a str>)],
) -> Group<'a> {
    let start = marks.iter().map(|(_, place, _)| place.start()).min().unwrap_or(0);
    let end = marks.iter().map(|(_, place, _)| place.start()).max().unwrap_or(0);
    let window = file.window(start, end);
    let mut snippet =
        Snippet::source(window.text).line_start(window.line).path(file.name().to_string_lossy());
    for (kind, place, label) in marks {
        match place.span_on_line(window.offset, window.text) {
            Some(span) => snippet = snippet.annotation(kind.span(span).label(*label) as Annotation<'_>),
            None => {
                let origin = place.origin();
                let name = file.name().to_string_lossy();
                return group.element(
                    Named::path(name).line(origin.line as usize).char_column(origin.column as usize),
                );
            }
        }
    }
    group.element(snippet)
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Where::Nowhere => {}
            Where::File(name) => write!(f, "{}: ", name.display())?,
            Where::At(place) => {
                let origin = place.origin();
                write!(f, "{}:{}:{}: ", origin.file.display(), origin.line, origin.column)?;
            }
        }
        write!(f, "error[{}]: {}", self.kind, self.message)
    }
}

impl std::error::Error for ConfigError {}

impl ConfigErrors {
    /// The errors sorted by place; `None` when there are none.
    pub(super) fn of(mut errors: Vec<ConfigError>) -> Option<Self> {
        errors.sort_by_key(ConfigError::order);
        if errors.is_empty() { None } else { Some(Self(errors)) }
    }

    pub(super) fn one(error: ConfigError) -> Self {
        Self(vec![error])
    }

    /// The errors, in the order of the files and lines.
    pub fn iter(&self) -> std::slice::Iter<'_, ConfigError> {
        self.0.iter()
    }

    /// Draws them with the lines they are on, in colour if `color`.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut text = String::new();
        for error in self.0.iter().take(DRAWN) {
            text.push_str(&renderer.render(&[error.draw()]));
            text.push_str("\n\n");
        }
        let count = self.0.len();
        match count {
            1 => text.push_str("1 error in the configuration"),
            _ => text.push_str(&format!("{count} errors in the configuration")),
        }
        if count > DRAWN {
            text.push_str(&format!(", of which the first {DRAWN} are shown"));
        }
        text.push('\n');
        text
    }

    /// An array of objects with `kind`, `message`, `file`, `line`, `column` and `hint`.
    pub fn to_json(&self) -> serde_json::Value {
        self.0.iter().map(ConfigError::to_json).collect()
    }
}

impl<'a> IntoIterator for &'a ConfigErrors {
    type Item = &'a ConfigError;
    type IntoIter = std::slice::Iter<'a, ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for ConfigErrors {}
