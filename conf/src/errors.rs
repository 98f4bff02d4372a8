//! Everything that is wrong with a file, in one go.
//!
//! Purpose:   each mistake with line, column, the line itself and what to do; as text for people or as data.
//! Trust:     excerpts are the administrator's own lines.
//! Never:     show more than one line of the file for a mistake.

use std::ops::Range;
use std::path::PathBuf;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Serialize;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What is wrong.
    pub title: String,
    /// What to do.
    pub help: String,
    /// Line, from 1; 0 when the mistake has no place in the file.
    pub line: usize,
    /// Column in characters, from 1; 0 likewise.
    pub column: usize,
    #[serde(skip)]
    span: Option<Range<usize>>,
}

impl Problem {
    /// A mistake at a byte range of the file.
    pub(crate) fn at(span: Range<usize>, title: impl Into<String>, help: impl Into<String>) -> Self {
        Self { title: title.into(), help: help.into(), line: 0, column: 0, span: Some(span) }
    }

    /// Whether it is about a part of this range.
    pub(crate) fn is_within(&self, range: &Range<usize>) -> bool {
        self.span.as_ref().is_some_and(|span| range.start <= span.start && span.end <= range.end)
    }

    /// A mistake outside the text: an unreadable file, a missing folder.
    pub(crate) fn without_place(title: impl Into<String>, help: impl Into<String>) -> Self {
        Self { title: title.into(), help: help.into(), line: 0, column: 0, span: None }
    }
}

/// All mistakes of one file, ordered by place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors {
    origin: PathBuf,
    text: String,
    problems: Vec<Problem>,
}

impl Errors {
    /// Orders the mistakes and finds their lines. `text` is the file's.
    pub(crate) fn new(origin: PathBuf, text: &str, mut problems: Vec<Problem>) -> Self {
        for problem in &mut problems {
            if let Some(span) = &mut problem.span {
                *span = tidy(text, span);
                (problem.line, problem.column) = position(text, span.start);
            }
        }
        problems.sort_by_key(|p| (p.line, p.column));
        problems.dedup();
        Self { origin, text: text.to_owned(), problems }
    }

    /// The mistakes, ordered by place.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Where the text came from.
    pub fn origin(&self) -> &std::path::Path {
        &self.origin
    }

    /// The report, with colours if a terminal will show it.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let origin = self.origin.to_string_lossy();
        let mut out = String::new();
        for problem in &self.problems {
            let mut group = match &problem.span {
                Some(span) => Level::ERROR.primary_title(problem.title.as_str()).element(
                    Snippet::source(self.text.as_str())
                        .path(origin.as_ref())
                        .annotation(AnnotationKind::Primary.span(span.clone())),
                ),
                None => {
                    annotate_snippets::Group::with_title(Level::ERROR.primary_title(problem.title.as_str()))
                }
            };
            group = group.element(Level::HELP.message(problem.help.as_str()));
            out.push_str(&renderer.render(&[group]));
            out.push_str("\n\n");
        }
        let count = self.problems.len();
        let (verb, noun) = if count == 1 { ("is", "mistake") } else { ("are", "mistakes") };
        out.push_str(&format!("There {verb} {count} {noun} in {origin}."));
        out
    }
}

impl std::fmt::Display for Errors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Errors {}

/// A span on character boundaries inside the text that covers one line at most, so that excerpts stay short.
fn tidy(text: &str, span: &Range<usize>) -> Range<usize> {
    let mut start = span.start.min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let line_end = text.get(start..).and_then(|rest| rest.find('\n')).map_or(text.len(), |n| start + n);
    let mut end = span.end.clamp(start, line_end);
    while !text.is_char_boundary(end) {
        end += 1;
    }
    start..end
}

fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    let line = before.matches('\n').count() + 1;
    (line, before.get(line_start..).unwrap_or_default().chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::{Errors, Problem, position, tidy};

    #[test]
    fn positions_count_characters() {
        let text = "ä = 1\nbü = 2\n";
        assert_eq!(position(text, 0), (1, 1));
        assert_eq!(position(text, 7), (2, 1));
        assert_eq!(position(text, 11), (2, 4));
        assert_eq!(position(text, 999), (3, 1));
    }

    #[test]
    fn spans_never_leave_the_text() {
        let text = "ä\nb";
        for start in 0..8 {
            for end in 0..8 {
                let span = tidy(text, &(start..end));
                assert!(text.get(span.clone()).is_some(), "{start}..{end} -> {span:?}");
            }
        }
    }

    #[test]
    fn report_shows_place_excerpt_and_help() {
        let text = "version = 1\nhostnam = \"x\"\n";
        let errors = Errors::new(
            "p.toml".into(),
            text,
            vec![Problem::at(12..19, "unknown key `hostnam`", "did you mean `hostname`?")],
        );
        let report = errors.to_string();
        for part in ["unknown key `hostnam`", "p.toml:2:1", "hostnam = \"x\"", "did you mean `hostname`?"] {
            assert!(report.contains(part), "{part} not in\n{report}");
        }
    }
}
