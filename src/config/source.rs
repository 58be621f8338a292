//! Reading files: their text, places in it, and what they include.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::DeTable;

use super::decode::{At, Decoder, Setting};
use super::error::{ConfigError, ConfigErrors, ErrorKind};
use super::{Origin, file};

/// Largest file read: 100,000 routes are about 8 MB, and offsets fit 32 bits.
pub(super) const MAX_FILE: usize = 16 * 1024 * 1024;

/// Syntax errors kept a file: one forgotten quote can make hundreds.
const MAX_SYNTAX_ERRORS: usize = 20;

/// Longest stretch of text drawn beside an error, in bytes.
const MAX_LINE: usize = 4096;

/// Characters that make an `include` a pattern rather than a path.
const GLOB: [char; 3] = ['*', '?', '['];

/// The text of a file, and where its lines start.
pub(super) struct SourceFile {
    name: Arc<Path>,
    index: usize,
    text: String,
    lines: Vec<u32>,
}

/// A stretch of a file.
#[derive(Clone)]
pub(super) struct Place {
    file: Arc<SourceFile>,
    start: u32,
    end: u32,
}

/// Whole lines of a file.
pub(super) struct Window<'a> {
    pub(super) text: &'a str,
    /// Number of the first line.
    pub(super) line: usize,
    /// Offset of the first line in the file.
    pub(super) offset: usize,
}

/// Everything read: the main file first, then what it includes.
pub(super) struct Sources {
    pub(super) files: Vec<file::File>,
    pub(super) errors: Vec<ConfigError>,
    /// Whether some file could not be read or parsed as a whole, so that nothing may be said to be missing.
    pub(super) incomplete: bool,
    /// Whether a file has syntax errors, so that keys may be missing because of them.
    pub(super) damaged: bool,
    /// The place to speak of the configuration as a whole.
    pub(super) top: Place,
}

impl SourceFile {
    fn new(name: &Path, index: usize, text: String) -> Arc<Self> {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(ends.map(|(at, _)| offset(at + 1))).collect();
        Arc::new(Self { name: name.into(), index, text, lines })
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn name(&self) -> &Path {
        &self.name
    }

    /// Its position in the order of reading.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// The whole lines from the one of `start` to the one of `end`.
    pub(super) fn window(&self, start: u32, end: u32) -> Window<'_> {
        let line = self.line_of(start);
        let from = self.lines.get(line).copied().unwrap_or(0) as usize;
        let to = self.lines.get(self.line_of(end) + 1).map_or(self.text.len(), |next| *next as usize);
        Window { text: self.text.get(from..to).unwrap_or(""), line: line + 1, offset: from }
    }

    /// Index of the line that holds `offset`.
    fn line_of(&self, offset: u32) -> usize {
        self.lines.partition_point(|start| *start <= offset).saturating_sub(1)
    }
}

impl fmt::Debug for SourceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SourceFile").field(&self.name).finish()
    }
}

impl Place {
    pub(super) fn new(file: &Arc<SourceFile>, span: Range<usize>) -> Self {
        let len = file.text.len();
        let mut start = span.start.min(len);
        while !file.text.is_char_boundary(start) {
            start -= 1;
        }
        Self { file: Arc::clone(file), start: offset(start), end: offset(span.end.clamp(start, len)) }
    }

    pub(super) fn file(&self) -> &SourceFile {
        &self.file
    }

    pub(super) fn start(&self) -> u32 {
        self.start
    }

    /// Bytes between the two when they are in the same file.
    pub(super) fn distance(&self, other: &Self) -> Option<usize> {
        Arc::ptr_eq(&self.file, &other.file).then(|| self.start.abs_diff(other.start) as usize)
    }

    /// The part on its first line, relative to `text`, which starts at `offset`; `None` if it cannot be drawn.
    pub(super) fn span_on_line(&self, offset: usize, text: &str) -> Option<Range<usize>> {
        let start = (self.start as usize).checked_sub(offset)?;
        let rest = text.get(start..)?;
        let line_end = rest.find(['\n', '\r']).unwrap_or(rest.len());
        let line_start = text.get(..start)?.rfind('\n').map_or(0, |at| at + 1);
        let mut len = line_end.min((self.end - self.start) as usize);
        while !rest.is_char_boundary(len) {
            len += 1;
        }
        let drawable = !text.trim().is_empty() && start - line_start + line_end < MAX_LINE;
        drawable.then_some(start..start + len)
    }

    pub(super) fn origin(&self) -> Origin {
        let line = self.file.line_of(self.start);
        let from = self.file.lines.get(line).copied().unwrap_or(0) as usize;
        let before = self.file.text.get(from..self.start as usize).unwrap_or("");
        Origin {
            file: Arc::clone(&self.file.name),
            line: u32::try_from(line).unwrap_or(u32::MAX).saturating_add(1),
            column: u32::try_from(before.chars().count()).unwrap_or(u32::MAX).saturating_add(1),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.origin();
        write!(f, "{}:{}:{}", origin.file.display(), origin.line, origin.column)
    }
}

/// Files are at most [`MAX_FILE`], so offsets fit.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// Reads the file at `path` and what it includes.
pub(super) fn read(path: &Path) -> Result<Sources, ConfigErrors> {
    match read_file(path) {
        Ok(bytes) => from_bytes(path, bytes),
        Err(error) => {
            let error = unreadable(path, &error).in_file(path);
            Err(ConfigErrors::one(match path.to_str() {
                Some("-") => error.hint("standard input is `/dev/stdin`"),
                _ => error.hint("give the path of the configuration with `--config` or PORTCULLIS_CONFIG"),
            }))
        }
    }
}

/// Takes `text` for the file `name`, and reads what it includes.
pub(super) fn from_text(name: &Path, text: &str) -> Result<Sources, ConfigErrors> {
    from_bytes(name, text.as_bytes().to_vec())
}

fn from_bytes(name: &Path, bytes: Vec<u8>) -> Result<Sources, ConfigErrors> {
    if bytes.len() > MAX_FILE {
        return Err(ConfigErrors::one(too_large(name).in_file(name)));
    }
    let mut errors = Vec::new();
    let (source, utf8) = decode_text(name, 0, bytes, &mut errors);
    let top = Place::new(&source, 0..0);
    let mut sources = Sources { files: Vec::new(), errors, incomplete: !utf8, damaged: false, top };
    if utf8 {
        let main = parse(&source, &mut sources);
        sources.include(name, &main);
        sources.files.insert(0, main);
    }
    Ok(sources)
}

/// What an `include` stands for.
enum Included {
    File(PathBuf),
    /// A pattern as `glob` takes it.
    Pattern(String),
}

/// What `text` in the file `name` stands for.
fn absolute(name: &Path, text: &str) -> Included {
    let folder = name.parent().unwrap_or(Path::new(""));
    if !text.contains(GLOB) {
        return Included::File(folder.join(text));
    }
    Included::Pattern(match folder.to_str() {
        _ if Path::new(text).is_absolute() => text.to_owned(),
        Some("") | None => text.to_owned(),
        Some(folder) => format!("{}/{text}", glob::Pattern::escape(folder)),
    })
}

/// What the file `name` includes, as far as it can be read, whatever is wrong with it.
pub(super) fn includes(name: &Path) -> Vec<String> {
    let text = read_file(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let source = SourceFile::new(name, 0, text);
    let (table, _) = DeTable::parse_recoverable(&source.text);
    let (top, mut errors) = (Place::new(&source, 0..0), Vec::new());
    let file = file::File::from_table(table.get_ref(), &top, &mut Decoder::new(&source, &mut errors));
    file.include.values().iter().map(|at| at.value.clone()).collect()
}

/// The files that `text` in the file `name` stands for now, sorted.
pub(super) fn expand(name: &Path, text: &str) -> Vec<PathBuf> {
    let mut files = match absolute(name, text) {
        Included::File(path) => vec![path],
        Included::Pattern(full) => {
            glob::glob(&full).map(|paths| paths.filter_map(Result::ok).collect()).unwrap_or_default()
        }
    };
    files.sort();
    files
}

impl Sources {
    /// Reads what `main` includes, in the order of the patterns and of the names that each matches.
    fn include(&mut self, name: &Path, main: &file::File) {
        let patterns = match &main.include {
            Setting::Given(patterns) => &patterns.value.0,
            Setting::Bad(_) => {
                self.incomplete = true;
                return;
            }
            Setting::Absent => return,
        };
        let mut seen = HashMap::new();
        seen.extend(name.canonicalize().map(|path| (path, None)));
        for pattern in patterns {
            for path in self.matches(name, pattern) {
                if let Some(bytes) = self.read_included(&path, pattern, &mut seen) {
                    self.parse_included(&path, bytes);
                }
            }
        }
    }

    /// The files that `pattern` stands for, sorted.
    fn matches(&mut self, name: &Path, pattern: &At<String>) -> Vec<PathBuf> {
        let text = pattern.value.as_str();
        let full = match absolute(name, text) {
            Included::File(path) => return vec![path],
            Included::Pattern(full) => full,
        };
        let paths = match glob::glob(&full) {
            Ok(paths) => paths,
            Err(error) => {
                let message = format!("`{text}` is not a pattern: {}", error.msg);
                self.fail(ConfigError::new(ErrorKind::BadInclude, message).at(&pattern.place));
                return Vec::new();
            }
        };
        let mut found = Vec::new();
        for path in paths {
            match path {
                Ok(path) => found.push(path),
                Err(error) => self.fail(unreadable(error.path(), error.error()).at(&pattern.place)),
            }
        }
        found.sort();
        found
    }

    /// Reads one included file, unless it was read before.
    fn read_included(
        &mut self,
        path: &Path,
        pattern: &At<String>,
        seen: &mut HashMap<PathBuf, Option<Place>>,
    ) -> Option<Vec<u8>> {
        let read = path.canonicalize().and_then(|real| Ok((real, read_file(path)?)));
        let (real, bytes) = match read {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let message = format!("`{}` does not exist", path.display());
                let error = ConfigError::new(ErrorKind::BadInclude, message).at(&pattern.place);
                self.fail(error.hint("paths are relative to the folder of the file that includes them"));
                return None;
            }
            Err(error) => {
                self.fail(unreadable(path, &error).at(&pattern.place));
                return None;
            }
        };
        if bytes.len() > MAX_FILE {
            self.fail(too_large(path).at(&pattern.place));
            return None;
        }
        match seen.insert(real, Some(pattern.place.clone())) {
            None => Some(bytes),
            Some(before) => {
                let message = format!("`{}` is included twice", path.display());
                let error = ConfigError::new(ErrorKind::BadInclude, message).at(&pattern.place);
                self.fail(match before {
                    Some(before) => error.also(&before, "first included here"),
                    None => error.label("this is the file itself"),
                });
                None
            }
        }
    }

    fn parse_included(&mut self, path: &Path, bytes: Vec<u8>) {
        let (source, utf8) = decode_text(path, self.files.len() + 1, bytes, &mut self.errors);
        self.incomplete |= !utf8;
        if !utf8 {
            return;
        }
        let file = parse(&source, self);
        if let Some(place) = file.include.place() {
            let error = ConfigError::new(ErrorKind::BadInclude, "an included file may not include others");
            self.errors.push(error.at(place).hint("name all files in the `include` of the main file"));
        }
        self.files.push(file);
    }

    fn fail(&mut self, error: ConfigError) {
        self.errors.push(error);
        self.incomplete = true;
    }
}

/// Parses one file; what a syntax error left behind is decoded too, so that errors elsewhere are told.
fn parse(source: &Arc<SourceFile>, sources: &mut Sources) -> file::File {
    let (table, syntax) = DeTable::parse_recoverable(&source.text);
    let syntax: Vec<_> =
        syntax.iter().take(MAX_SYNTAX_ERRORS).map(|error| syntax_error(source, error)).collect();
    let mut decoded = Vec::new();
    let top = Place::new(source, 0..0);
    let file = file::File::from_table(table.get_ref(), &top, &mut Decoder::new(source, &mut decoded));
    if !syntax.is_empty() {
        sources.incomplete = true;
        sources.damaged = true;
        // What stands on a broken line, or is missing, may be a consequence.
        let broken: HashSet<_> = syntax.iter().filter_map(ConfigError::line_key).collect();
        decoded.retain(|error| {
            error.kind() != ErrorKind::MissingKey
                && error.line_key().is_none_or(|line| !broken.contains(&line))
        });
    }
    sources.errors.extend(syntax);
    sources.errors.extend(decoded);
    file
}

fn syntax_error(source: &Arc<SourceFile>, error: &toml::de::Error) -> ConfigError {
    let len = source.text.len();
    let place = Place::new(source, error.span().unwrap_or(len..len));
    let result = ConfigError::new(ErrorKind::Syntax, error.message()).at(&place);
    if error.message().starts_with("duplicate key") {
        return result.hint("a key may be given once; several routes are several `[[route]]`");
    }
    result
}

/// The text of a file, and whether it is UTF-8; if not, the first bad byte is an error.
pub(super) fn decode_text(
    name: &Path,
    index: usize,
    bytes: Vec<u8>,
    errors: &mut Vec<ConfigError>,
) -> (Arc<SourceFile>, bool) {
    match String::from_utf8(bytes) {
        Ok(text) => (SourceFile::new(name, index, text), true),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let source = SourceFile::new(name, index, text);
            let place = Place::new(&source, at..at + 1);
            let error = ConfigError::new(ErrorKind::Encoding, "the file is not UTF-8 here").at(&place);
            errors.push(error.hint("files are UTF-8; convert it, for instance with `iconv -t UTF-8`"));
            (source, false)
        }
    }
}

/// At most one byte more than [`MAX_FILE`], so that devices and growing files end too.
pub(super) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> ConfigError {
    ConfigError::new(ErrorKind::Io, format!("cannot read `{}`: {error}", path.display()))
}

fn too_large(path: &Path) -> ConfigError {
    let message = format!("`{}` is larger than 16 MiB", path.display());
    ConfigError::new(ErrorKind::TooLarge, message).hint("split it with `include`")
}
