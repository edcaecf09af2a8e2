//! What a check comes to, for people and for programs.

use serde::Serialize;

use crate::verbs::table;

/// How something fares in a virtual cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// It works.
    Pass,
    /// It runs, but otherwise than its author may think, or nobody can tell from here.
    Warn,
    /// It is refused or will not run.
    Fail,
}

impl Grade {
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub result: Grade,
    /// Where: an object's kind and name, an image, a file.
    pub object: String,
    pub message: String,
}

impl Finding {
    pub fn pass(object: impl Into<String>, message: impl Into<String>) -> Self {
        Self { result: Grade::Pass, object: object.into(), message: message.into() }
    }

    pub fn warn(object: impl Into<String>, message: impl Into<String>) -> Self {
        Self { result: Grade::Warn, ..Self::pass(object, message) }
    }

    pub fn fail(object: impl Into<String>, message: impl Into<String>) -> Self {
        Self { result: Grade::Fail, ..Self::pass(object, message) }
    }
}

/// What was looked at, with all that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Point {
    pub point: &'static str,
    pub result: Grade,
    pub findings: Vec<Finding>,
}

impl Point {
    pub fn new(point: &'static str, findings: Vec<Finding>) -> Self {
        Self { point, result: findings.iter().map(|found| found.result).max().unwrap_or(Grade::Pass), findings }
    }
}

/// A template, and why that one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    pub name: &'static str,
    pub reason: String,
}

/// All points of a chart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub chart: String,
    pub version: String,
    pub result: Grade,
    pub points: Vec<Point>,
    pub template: Advice,
}

impl Report {
    pub fn new(chart: &str, version: &str, points: Vec<Point>, template: Advice) -> Self {
        let result = points.iter().map(|point| point.result).max().unwrap_or(Grade::Pass);
        Self { chart: chart.into(), version: version.into(), result, points, template }
    }

    fn count(&self, grade: Grade) -> usize {
        self.points.iter().flat_map(|point| &point.findings).filter(|found| found.result == grade).count()
    }

    /// In one line.
    pub fn sum(&self) -> String {
        let (failed, warned) = (self.count(Grade::Fail), self.count(Grade::Warn));
        format!("chart {} {}: {} ({failed} fail, {warned} warn)", self.chart, self.version, self.result.word())
    }

    pub fn text(&self) -> String {
        let rows = self.points.iter().flat_map(|point| {
            let name = point.point.to_string();
            let whole = point.findings.is_empty().then(|| [name.clone(), point.result.word().into(), String::new(), String::new()]);
            let each =
                point.findings.iter().map(move |found| [name.clone(), found.result.word().into(), found.object.clone(), found.message.clone()]);
            whole.into_iter().chain(each)
        });
        let Advice { name, reason } = &self.template;
        format!("{}\ntemplate {name}: {reason}\n{}\n", table(["POINT", "RESULT", "OBJECT", "FINDING"], rows), self.sum())
    }
}
