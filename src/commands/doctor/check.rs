//! One check: what was tried, as whom, what came back, what to do; and all of them, for people and for programs.
//!
//! Trust: what was found may be the words of whoever sits behind a socket.
//! Never: let such words end a line or talk to the terminal.

use serde::Serialize;

use crate::output;

/// The parts of the walk, in the order in which one is the cause of trouble in the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Part {
    Configuration,
    Clock,
    Disk,
    Certificate,
    Accounts,
    Modules,
    Daemon,
    Ports,
    Sockets,
    Postfix,
    Login,
    Names,
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// As it should be.
    Ok,
    /// Worth knowing, stops nothing.
    Note,
    /// Something does not work.
    Problem,
    /// It cannot be seen from here.
    CannotTell,
}

/// Why something does not work. The words are stable: scripts and `docs/doctor.md` rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Cause {
    ConfigurationWrong,
    FileUnreadable,
    ClockBehind,
    DiskFull,
    InodesUsedUp,
    ReadOnly,
    StateFolder,
    MailFolder,
    CertificateExpired,
    CertificateNotYetValid,
    CertificateName,
    CertificateChain,
    CertificateUnusable,
    KeyMismatch,
    KeyOpen,
    AccountMissing,
    ShadowUnreadable,
    PamServiceMissing,
    ServiceName,
    NotRunning,
    NotAnswering,
    DaemonDies,
    ReloadFailed,
    PortTaken,
    PortClosed,
    ParentMissing,
    ParentClosed,
    SocketMissing,
    NotASocket,
    StaleSocket,
    WrongOwner,
    WrongMode,
    AccessControl,
    MandatoryAccess,
    NoAnswer,
    NoMechanisms,
    LoginRefused,
    CannotDecide,
    AcceptsAnybody,
    ChrootView,
    WrongPath,
    PostfixSetting,
    SaslFile,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Advice {
    /// In words.
    pub(super) text: String,
    /// To be typed as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) command: Option<String>,
}

impl Advice {
    /// Only words.
    pub(super) fn say(text: impl Into<String>) -> Self {
        Self { text: text.into(), command: None }
    }

    /// Words and a command.
    pub(super) fn run(text: impl Into<String>, command: impl Into<String>) -> Self {
        Self { text: text.into(), command: Some(command.into()) }
    }
}

/// One step of the walk.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Check {
    pub(super) part: Part,
    /// What it is about: a path, a listener, a service.
    pub(super) name: String,
    /// What was done.
    pub(super) tried: String,
    /// The account it was done as.
    #[serde(rename = "as")]
    pub(super) whom: String,
    pub(super) outcome: Outcome,
    /// What came back.
    pub(super) found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cause: Option<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) advice: Option<Advice>,
}

/// A check that has not come to a result.
#[derive(Clone, Debug)]
pub(super) struct Trial {
    part: Part,
    name: String,
    tried: String,
    whom: String,
}

impl Trial {
    /// `tried` is done about `name`, as the account of this process unless said otherwise.
    pub(super) fn new(part: Part, name: impl Into<String>, tried: impl Into<String>) -> Self {
        Self { part, name: name.into(), tried: tried.into(), whom: crate::accounts::Account::current().name }
    }

    /// As another account.
    pub(super) fn whom(mut self, name: impl Into<String>) -> Self {
        self.whom = name.into();
        self
    }

    pub(super) fn ok(self, found: impl Into<String>) -> Check {
        self.end(Outcome::Ok, &found.into(), None, None)
    }

    pub(super) fn note(self, found: impl Into<String>, advice: Option<Advice>) -> Check {
        self.end(Outcome::Note, &found.into(), None, advice)
    }

    pub(super) fn problem(self, cause: Cause, found: impl Into<String>, advice: Advice) -> Check {
        self.end(Outcome::Problem, &found.into(), Some(cause), Some(advice))
    }

    pub(super) fn cannot_tell(self, why: impl Into<String>) -> Check {
        self.end(Outcome::CannotTell, &why.into(), None, None)
    }

    fn end(self, outcome: Outcome, found: &str, cause: Option<Cause>, advice: Option<Advice>) -> Check {
        let Self { part, name, tried, whom } = self;
        // Some of it was said by whoever sits behind a socket: not to the terminal, and not as lines of ours.
        let found = found.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Check { part, name, tried, whom, outcome, found, cause, advice }
    }
}

/// Everything that was tried.
#[derive(Debug, Default)]
pub(super) struct Report {
    checks: Vec<Check>,
}

impl Report {
    pub(super) fn add(&mut self, check: Check) {
        self.checks.push(check);
    }

    pub(super) fn extend(&mut self, checks: impl IntoIterator<Item = Check>) {
        self.checks.extend(checks);
    }

    /// The problem to begin with: the earliest of the walk, because it may be the cause of the others.
    pub(super) fn first(&self) -> Option<&Check> {
        let problems = self.checks.iter().filter(|check| check.outcome == Outcome::Problem);
        problems.min_by_key(|check| match check.cause {
            // These stop a start, so they come before "start it".
            Some(Cause::PortTaken | Cause::NotASocket) => Part::Modules,
            _ => check.part,
        })
    }

    /// Whether root would see more.
    fn needs_root(&self) -> bool {
        self.checks
            .iter()
            .any(|check| check.outcome == Outcome::CannotTell && check.found.contains("not root"))
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.checks.iter().filter(|check| check.outcome == outcome).count()
    }

    /// For people. What is as it should be takes one line.
    pub(super) fn text(&self) -> String {
        let me = crate::accounts::Account::current().name;
        let mut out = format!("Everything is tried as {me} unless said otherwise.\n\n");
        for check in self.in_order() {
            let mark = match check.outcome {
                Outcome::Ok => "ok",
                Outcome::Note => "note",
                Outcome::Problem => "PROBLEM",
                Outcome::CannotTell => "?",
            };
            let whom = if check.whom == me { String::new() } else { format!(", as {}", check.whom) };
            out += &format!("{mark:<8}{}: {}{whom}: {}\n", check.name, check.tried, check.found);
            if let Some(advice) = &check.advice {
                out += &told(advice, "        ");
            }
        }
        let (problems, notes, blind) =
            (self.count(Outcome::Problem), self.count(Outcome::Note), self.count(Outcome::CannotTell));
        out += &format!("\n{} checks, {problems} problems, {notes} notes", self.checks.len());
        if blind > 0 {
            out += &format!(", {blind} that could not be told from here");
        }
        out += ".\n";
        match self.first() {
            None if self.needs_root() => {
                out += "Nothing to do as far as can be seen; root sees the rest: sudo postern doctor\n";
            }
            None => out += "Nothing to do.\n",
            Some(check) => {
                out += &format!("\nDo this first: {}: {}\n", check.name, check.found);
                if let Some(advice) = &check.advice {
                    out += &told(advice, "  ");
                }
            }
        }
        out
    }

    /// For programs.
    pub(super) fn json(&self, origin: &std::path::Path, code: boot::ExitCode) -> serde_json::Value {
        let checks: Vec<&Check> = self.in_order().collect();
        let first = self.first().map(|check| {
            serde_json::json!({
                "part": check.part, "name": check.name, "cause": check.cause, "found": check.found, "advice": check.advice,
            })
        });
        serde_json::json!({
            "ok": first.is_none(),
            "exit_code": code.0,
            "file": origin,
            "counts": {
                "ok": self.count(Outcome::Ok), "note": self.count(Outcome::Note),
                "problem": self.count(Outcome::Problem), "cannot-tell": self.count(Outcome::CannotTell),
            },
            "first": first,
            "checks": checks,
        })
    }

    /// In the order of the walk.
    fn in_order(&self) -> impl Iterator<Item = &Check> {
        let mut all: Vec<&Check> = self.checks.iter().collect();
        all.sort_by_key(|check| check.part);
        all.into_iter()
    }

    /// Prints it and gives the exit code.
    pub(super) fn print(&self, origin: &std::path::Path, json: bool) -> anyhow::Result<boot::ExitCode> {
        let code = match self.first() {
            None => boot::exit::OK,
            Some(check) if check.part == Part::Configuration => boot::exit::CONFIG,
            Some(_) => boot::exit::FAILURE,
        };
        if json {
            output::json(&self.json(origin, code))?;
        } else {
            output::raw(self.text());
        }
        Ok(code)
    }
}

fn told(advice: &Advice, indent: &str) -> String {
    let mut out = format!("{indent}{}\n", advice.text);
    for line in advice.command.iter().flat_map(|command| command.lines()) {
        out += &format!("{indent}  {line}\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Advice, Cause, Part, Report, Trial};
    use std::path::Path;

    #[test]
    fn the_first_thing_is_the_earliest_cause() {
        let mut report = Report::default();
        assert!(report.text().ends_with("Nothing to do.\n"));
        let trial = |part| Trial::new(part, "x", "tried").whom("postfix");
        report.add(trial(Part::Login).problem(Cause::CannotDecide, "454", Advice::say("look at the log")));
        report.add(trial(Part::Disk).problem(
            Cause::DiskFull,
            "0 bytes",
            Advice::run("make room", "df -h /var"),
        ));
        report.add(trial(Part::Ports).ok("open\n\u{1b}[2Jok"));
        report.add(trial(Part::Clock).cannot_tell("not root"));
        assert_eq!(report.first().and_then(|check| check.cause), Some(Cause::DiskFull));
        let text = report.text();
        assert!(text.contains("Do this first: x: 0 bytes\n  make room\n    df -h /var\n"), "{text}");
        assert!(text.contains("ok      x: tried, as postfix: open  [2Jok\n"), "{text}");
        let json = report.json(Path::new("/f"), boot::exit::FAILURE);
        assert_eq!(json["first"]["cause"], "disk-full");
        assert_eq!(json["checks"][0]["outcome"], "cannot-tell");
        assert_eq!(json["checks"][0]["as"], "postfix");
        assert_eq!(json["counts"]["problem"], 2);
        // What stops a start comes before the advice to start.
        let mut report = Report::default();
        report.add(trial(Part::Daemon).problem(Cause::NotRunning, "gone", Advice::say("start it")));
        report.add(trial(Part::Ports).problem(Cause::PortTaken, "held", Advice::say("stop the other")));
        assert_eq!(report.first().and_then(|check| check.cause), Some(Cause::PortTaken));
    }
}
