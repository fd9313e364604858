//! How two runs differ: keys, data, model, program, machine, curves.
//!
//! In: two [`KeptRun`]s → out: [`RunDiff`], and its text (stage 14).

use super::KeptRun;
use crate::run_record::FileKind;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::{self, Display};

/// How two runs differ.
#[derive(Debug, Clone, PartialEq)]
pub struct RunDiff {
    names: [String; 2],
    /// Keys of the configuration with both values.
    pub keys: Vec<(String, [Value; 2])>,
    /// Files by kind and name, with the digests, `-` where there is none; all of a kind at once while not known.
    pub files: Vec<(FileKind, String, [String; 2])>,
    /// Program and machine: what, and both values.
    pub others: Vec<(&'static str, [String; 2])>,
    /// Curves.
    pub curves: Vec<CurveDiff>,
    /// Digests of the trained weights, where both runs have one.
    pub digests: Option<[String; 2]>,
}

/// How a curve of two runs differs.
#[derive(Debug, Clone, PartialEq)]
pub struct CurveDiff {
    /// Its name.
    pub name: String,
    /// Steps that both have.
    pub common: usize,
    /// The first of them with two values.
    pub first: Option<u64>,
    /// The largest difference, and its step.
    pub largest: Option<(f64, u64)>,
    /// The last value of each.
    pub last: [Option<f64>; 2],
}

impl RunDiff {
    /// Compares two runs.
    pub fn of(a: &KeptRun, b: &KeptRun) -> Self {
        let digest = |run: &KeptRun| Some(run.record.end.as_ref()?.digest.clone()).filter(|d| !d.is_empty());
        let mut names: Vec<&String> = a.curves.keys().chain(b.curves.keys()).collect();
        names.sort();
        names.dedup();
        let (pa, pb) = (&a.record.program, &b.record.program);
        let (ma, mb) = (&a.record.machine, &b.record.machine);
        let others = [
            ("version of the program", [&pa.version, &pb.version]),
            ("executable (SHA-256)", [&pa.sha256, &pb.sha256]),
            ("device", [&ma.device, &mb.device]),
            ("system", [&ma.system, &mb.system]),
            ("machine", [&ma.host, &mb.host]),
        ];
        Self {
            names: [a.name(), b.name()],
            keys: keys(a, b),
            files: [FileKind::Data, FileKind::Model].into_iter().flat_map(|kind| files(kind, a, b)).collect(),
            others: others
                .into_iter()
                .filter(|(_, [a, b])| a != b)
                .map(|(what, values)| (what, values.map(String::clone)))
                .collect(),
            curves: names.into_iter().map(|name| curve(name, a, b)).collect(),
            digests: digest(a).zip(digest(b)).map(|(a, b)| [a, b]),
        }
    }
}

fn keys(a: &KeptRun, b: &KeptRun) -> Vec<(String, [Value; 2])> {
    let (a, b) = (&a.record.config, &b.record.config);
    let mut names: Vec<&String> = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))).collect();
    // Every run has a folder of its own; that says nothing.
    names.retain(|name| *name != "output_dir");
    let value =
        |config: &serde_json::Map<String, Value>, key: &String| config.get(key).cloned().unwrap_or_default();
    let both = |key: &String| (key.clone(), [value(a, key), value(b, key)]);
    names.into_iter().map(both).filter(|(_, [a, b])| a != b).collect()
}

fn files(kind: FileKind, a: &KeptRun, b: &KeptRun) -> Vec<(FileKind, String, [String; 2])> {
    let of = |run: &KeptRun| -> BTreeMap<String, String> {
        let name =
            |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let files = run.record.files.iter().filter(|file| file.kind == kind);
        files.map(|file| (name(&file.path), file.sha256.clone())).collect()
    };
    let (a, b) = (of(a), of(b));
    if a.is_empty() || b.is_empty() {
        // One of them ended before its files were read through.
        let known = |files: &BTreeMap<_, _>| if files.is_empty() { "not known" } else { "known" }.to_owned();
        let both = [known(&a), known(&b)];
        return if a.is_empty() && b.is_empty() { Vec::new() } else { vec![(kind, "all".into(), both)] };
    }
    let mut names: Vec<&String> = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))).collect();
    names.sort();
    let digest =
        |files: &BTreeMap<String, String>, name: &String| files.get(name).cloned().unwrap_or("-".into());
    let both = |name: &String| (kind, name.clone(), [digest(&a, name), digest(&b, name)]);
    names.into_iter().map(both).filter(|(.., [a, b])| a != b).collect()
}

fn curve(name: &str, a: &KeptRun, b: &KeptRun) -> CurveDiff {
    let points = |run: &KeptRun| run.curves.get(name).cloned().unwrap_or_default();
    let of_b: BTreeMap<u64, f64> = points(b).into_iter().collect();
    let pairs: Vec<(u64, f64, f64)> =
        points(a).into_iter().filter_map(|(step, value)| Some((step, value, *of_b.get(&step)?))).collect();
    let differing = || pairs.iter().filter(|(_, a, b)| a != b);
    let largest =
        differing().map(|(step, a, b)| (b - a, *step)).max_by(|x, y| x.0.abs().total_cmp(&y.0.abs()));
    CurveDiff {
        name: name.to_owned(),
        common: pairs.len(),
        first: differing().map(|(step, ..)| *step).min(),
        largest,
        last: [a.last(name), b.last(name)],
    }
}

impl Display for RunDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |text: &str| text.chars().take(16).collect::<String>();
        let [a, b] = &self.names;
        writeln!(f, "{a} → {b}")?;
        writeln!(f, "configuration: {}", same_or(self.keys.is_empty(), "these keys differ"))?;
        for (key, [a, b]) in &self.keys {
            writeln!(f, "  {key}: {a} → {b}")?;
        }
        for (kind, what) in [(FileKind::Data, "data"), (FileKind::Model, "model")] {
            let files: Vec<_> = self.files.iter().filter(|file| file.0 == kind).collect();
            writeln!(f, "{what}: {}", same_or(files.is_empty(), "these files differ"))?;
            for (_, name, [a, b]) in files {
                writeln!(f, "  {name}: {} → {}", short(a), short(b))?;
            }
        }
        writeln!(f, "program and machine: {}", same_or(self.others.is_empty(), "these differ"))?;
        for (what, [a, b]) in &self.others {
            writeln!(f, "  {what}: {} → {}", a.trim(), b.trim())?;
        }
        writeln!(f, "curves:")?;
        for curve in &self.curves {
            writeln!(f, "  {curve}")?;
        }
        match &self.digests {
            Some([a, b]) if a == b => writeln!(f, "trained weights: the same bits ({})", short(a)),
            Some([a, b]) => writeln!(f, "trained weights: {} → {}", short(a), short(b)),
            None => writeln!(f, "trained weights: one of the runs has not ended"),
        }
    }
}

fn same_or(is_same: bool, otherwise: &'static str) -> &'static str {
    if is_same { "the same" } else { otherwise }
}

impl Display for CurveDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.6}"));
        let [a, b] = self.last.map(last);
        write!(f, "{}: last {a} → {b}; ", self.name)?;
        match (self.common, self.first, self.largest) {
            (0, ..) => write!(f, "no step in common"),
            (common, None, _) => write!(f, "the same at all {common} common steps"),
            (_, Some(first), largest) => {
                let (by, step) = largest.unwrap_or_default();
                write!(f, "differs from step {first} on, most at step {step} by {by:+.3e}")
            }
        }
    }
}
