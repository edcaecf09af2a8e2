//! Which packages satisfy what was asked for: apt's preferences on top of a SAT solver.
//!
//! As apt does: only the highest version of a package counts (plus the one that a lock holds), alternatives are tried in the order of writing,
//! Recommends are ignored. A virtual package is the union of its providers; Conflicts and Breaks forbid versions.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;

use layers::profile::suggest;
use layers::{Context, Error, Result};
use resolvo::{
    Candidates, Condition, ConditionId, ConditionalRequirement, Dependencies, DependencyProvider, HintDependenciesAvailable, Interner,
    KnownDependencies, NameId, Problem, Requirement, SolvableId, Solver, SolverCache, StringId, UnsolvableOrCancelled, VersionSetId,
    VersionSetUnionId,
};

use serde::{Deserialize, Serialize};

use super::Assumed;
use super::index::{Index, Package, Rank};
use super::relation::{self, Relation};

/// What is installed without being asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Base {
    /// Essential packages and those of priority required, as mmdebstrap's variant `required` (its `minbase` adds apt).
    #[default]
    Minbase,
    /// Nothing.
    None,
}

/// The packages of one suite.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Suite.
    pub suite: &'a str,
    /// Its packages.
    pub index: &'a Index,
}

/// A package with the suite that it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Suite; empty for an assumed package.
    pub suite: &'a str,
    /// The package.
    pub package: Package<'a>,
}

/// The packages that may be chosen: of each name the kept version, if there is one, and the highest.
#[derive(Debug)]
pub struct Universe<'a> {
    /// Sorted by name; of one name the most wanted version first.
    found: Vec<Found<'a>>,
    /// Virtual package, version that it is provided as, position of the provider; sorted by name and the provider's rank.
    provided: Vec<(&'a str, Option<&'a str>, u32)>,
    /// Versions to keep where possible.
    keep: &'a BTreeMap<String, String>,
}

/// A name that means no package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The name.
    pub name: String,
    /// Why it means none.
    pub message: String,
    /// What could be meant.
    pub hint: Option<String>,
}

/// The index of assumed packages, in the form of all others.
pub fn assumed_index(assumed: &[Assumed], architecture: &str) -> Result<Index> {
    let zeros = "0".repeat(64);
    let stanza = |a: &Assumed| {
        let provides = a.provides.join(", ");
        format!(
            "Package: {}\nVersion: {}\nArchitecture: all\nFilename: pool/assumed\nSize: 0\nSHA256: {zeros}\nProvides: {provides}\n\n",
            a.name, a.version
        )
    };
    Index::read(assumed.iter().map(stanza).collect::<String>().as_bytes(), architecture).context(|| "reading assumed packages".into())
}

impl<'a> Universe<'a> {
    /// Collects the packages of all suites; `keep` holds versions by name that win over higher ones.
    pub fn new(sources: &[Source<'a>], assumed: &'a Index, keep: &'a BTreeMap<String, String>) -> Result<Self> {
        let all = sources.iter().flat_map(|s| s.index.packages().map(|package| Found { suite: s.suite, package }));
        let mut found: Vec<_> = all.chain(assumed.packages().map(|package| Found { suite: "", package })).collect();
        found.sort_by_key(|f| f.package.name());
        let mut usable = Vec::with_capacity(found.len());
        for group in found.chunk_by(|a, b| a.package.name() == b.package.name()) {
            choose(group, keep, &mut usable);
        }
        let mut universe = Self { found: usable, provided: Vec::new(), keep };
        universe.provided = universe.provisions()?;
        Ok(universe)
    }

    fn provisions(&self) -> Result<Vec<(&'a str, Option<&'a str>, u32)>> {
        let mut out = Vec::new();
        for (position, found) in self.found.iter().enumerate() {
            let provides = relation::list(found.package.provides()).context(|| format!("reading Provides of {}", found.package.name()))?;
            out.extend(provides.into_iter().map(|r| (r.name, r.version.map(|(_, v)| v), position as u32)));
        }
        out.sort_by_key(|(name, _, position)| (*name, self.at(*position).package.rank(), *position));
        Ok(out)
    }

    fn at(&self, position: u32) -> Found<'a> {
        self.found[position as usize]
    }

    /// Positions of a real package, most wanted first.
    fn positions(&self, name: &str) -> std::ops::Range<u32> {
        let start = self.found.partition_point(|f| f.package.name() < name);
        let length = self.found[start..].partition_point(|f| f.package.name() == name);
        start as u32..(start + length) as u32
    }

    /// The version that a name would be installed as, for messages.
    pub fn candidate(&self, name: &str) -> Option<Found<'a>> {
        self.positions(name).next().map(|p| self.at(p))
    }

    fn providers(&self, name: &str) -> &[(&'a str, Option<&'a str>, u32)] {
        let start = self.provided.partition_point(|(n, ..)| *n < name);
        let length = self.provided[start..].partition_point(|(n, ..)| *n == name);
        &self.provided[start..start + length]
    }

    /// All packages that satisfy a relation, grouped by name, the real package first and providers by rank.
    fn matching(&self, relation: &Relation) -> Vec<(&'a str, Vec<u32>)> {
        let real = self.positions(relation.name).filter(|p| relation.holds(self.at(*p).package.version()));
        let provided = self.providers(relation.name).iter().filter(|(_, version, _)| match version {
            Some(version) => relation.holds(version),
            None => relation.version.is_none(),
        });
        let mut out: Vec<(&str, Vec<u32>)> = Vec::new();
        for position in real.chain(provided.map(|(_, _, p)| *p)) {
            let name = self.at(position).package.name();
            match out.iter_mut().find(|(n, _)| *n == name) {
                Some((_, list)) if list.contains(&position) => {}
                Some((_, list)) => list.push(position),
                None => out.push((name, vec![position])),
            }
        }
        out
    }

    fn base(&self, base: Base) -> Vec<&'a str> {
        let wanted = |rank| matches!(rank, Rank::Essential | Rank::Required);
        match base {
            Base::None => Vec::new(),
            Base::Minbase => {
                let firsts = self.found.chunk_by(|a, b| a.package.name() == b.package.name()).map(|g| g[0].package);
                firsts.filter(|p| wanted(p.rank())).map(|p| p.name()).collect()
            }
        }
    }

    /// The real package behind a wanted name; a virtual one is accepted when a single package provides it.
    fn real(&self, name: &'a str) -> Result<&'a str, Unknown> {
        if !self.positions(name).is_empty() {
            return Ok(name);
        }
        let matching = self.matching(&Relation { name, version: None });
        let providers: Vec<_> = matching.iter().map(|(n, _)| *n).collect();
        let unknown = |message: String, hint| Err(Unknown { name: name.into(), message, hint });
        match (providers.as_slice(), self.keep.get(name)) {
            ([one], _) => Ok(one),
            ([], Some(version)) => unknown(format!("{name} is not in the archive any more (it was locked as {version})"), self.near(name)),
            ([], None) => unknown(format!("there is no package {name}"), self.near(name)),
            (many, _) => unknown(format!("{name} is a virtual package"), Some(format!("choose one that provides it: {}", many.join(", ")))),
        }
    }

    fn near(&self, name: &str) -> Option<String> {
        suggest(name, self.names()).filter(|hint| hint.ends_with('?'))
    }

    /// Those of the wanted names that mean no package.
    pub fn unknown(&self, wanted: &[&'a str]) -> Vec<Unknown> {
        wanted.iter().filter_map(|name| self.real(name).err()).collect()
    }

    fn names(&self) -> impl Iterator<Item = &'a str> {
        self.found.chunk_by(|a, b| a.package.name() == b.package.name()).map(|g| g[0].package.name())
    }
}

/// Takes of one name's versions the kept one and the highest; an assumed package displaces all others.
fn choose<'a>(group: &[Found<'a>], keep: &BTreeMap<String, String>, out: &mut Vec<Found<'a>>) {
    if let Some(assumed) = group.iter().find(|f| f.suite.is_empty()) {
        out.push(*assumed);
        return;
    }
    let higher = |best: Found<'a>, next: &Found<'a>| {
        if relation::compare(next.package.version(), best.package.version()).is_gt() { *next } else { best }
    };
    let Some(highest) = group.first().map(|first| group.iter().fold(*first, higher)) else { return };
    let kept = keep.get(highest.package.name()).and_then(|version| group.iter().find(|f| f.package.version() == version));
    out.extend(kept);
    if kept.is_none_or(|k| k.package.version() != highest.package.version()) {
        out.push(highest);
    }
}

/// Chooses packages that satisfy the wanted names, the base and everything that these depend on; sorted by name, assumed ones left out.
pub fn solve<'a>(universe: &Universe<'a>, base: Base, wanted: &[&'a str]) -> Result<Vec<Found<'a>>> {
    let unknown = universe.unknown(wanted).into_iter().map(|u| u.hint.into_iter().fold(u.message, |all, hint| format!("{all}; {hint}")));
    let unknown = unknown.collect::<Vec<_>>().join("\n  ");
    if !unknown.is_empty() {
        return Err(Error::input(unknown));
    }
    let mut roots: Vec<_> = wanted.iter().filter_map(|name| universe.real(name).ok()).collect();
    roots.extend(universe.base(base));
    roots.extend(universe.found.iter().filter(|f| f.suite.is_empty()).map(|f| f.package.name()));
    let provider = Provider { universe, tables: RefCell::default() };
    let requirements = roots.iter().map(|name| provider.requirement(&[Relation { name, version: None }])).collect();
    let mut solver = Solver::new(provider);
    let chosen = match solver.solve(Problem::new().requirements(requirements)) {
        Ok(chosen) => chosen,
        Err(UnsolvableOrCancelled::Cancelled(reason)) => return Err(cancelled(reason)),
        Err(UnsolvableOrCancelled::Unsolvable(conflict)) => {
            let text = conflict.display_user_friendly(&solver).to_string();
            return Err(Error::input(format!("no set of packages satisfies all wishes:\n{}", text.trim_end())));
        }
    };
    let mut found: Vec<_> = chosen.into_iter().map(|id| universe.at(id.into_raw())).filter(|f| !f.suite.is_empty()).collect();
    found.sort_by_key(|f| f.package.name());
    Ok(found)
}

/// The provider cancels with an error of ours, and only then.
fn cancelled(reason: Box<dyn std::any::Any>) -> Error {
    reason.downcast::<String>().map_or_else(|_| Error::internal("the solver stopped without a reason"), |text| Error::input(*text))
}

/// What the solver asks: names and packages are positions in the universe; sets and names that no package has lie in tables.
struct Provider<'u, 'a> {
    universe: &'u Universe<'a>,
    tables: RefCell<Tables>,
}

#[derive(Default)]
struct Tables {
    /// Names without a package; their ids follow the last position.
    strangers: Vec<String>,
    sets: Vec<Set>,
    set_ids: BTreeMap<(u32, Vec<u32>), VersionSetId>,
    unions: Vec<Vec<VersionSetId>>,
    union_ids: BTreeMap<Vec<VersionSetId>, VersionSetUnionId>,
    /// The first broken relation: the solver is stopped and this is the error.
    broken: Option<String>,
}

struct Set {
    name: NameId,
    members: Vec<u32>,
    label: String,
}

impl Provider<'_, '_> {
    /// The name's id: the position of its first package, or a number beyond all positions.
    fn name(&self, name: &str) -> NameId {
        let positions = self.universe.positions(name);
        if !positions.is_empty() {
            return NameId::from_raw(positions.start);
        }
        let strangers = &mut self.tables.borrow_mut().strangers;
        let at = strangers.iter().position(|s| s == name).unwrap_or_else(|| {
            strangers.push(name.to_string());
            strangers.len() - 1
        });
        NameId::from_raw((self.universe.found.len() + at) as u32)
    }

    fn set(&self, name: NameId, members: Vec<u32>, label: String) -> VersionSetId {
        let tables = &mut *self.tables.borrow_mut();
        *tables.set_ids.entry((name.into_raw(), members.clone())).or_insert_with(|| {
            tables.sets.push(Set { name, members, label });
            VersionSetId(tables.sets.len() as u32 - 1)
        })
    }

    /// The requirement of a group of alternatives.
    fn requirement(&self, group: &[Relation]) -> ConditionalRequirement {
        let mut sets = Vec::new();
        for relation in group {
            let matching = self.universe.matching(relation);
            if matching.is_empty() {
                sets.push(self.set(self.name(relation.name), Vec::new(), constraint(relation)));
            }
            for (name, members) in matching {
                let label = if name == relation.name { constraint(relation) } else { format!("(as {relation})") };
                sets.push(self.set(self.name(name), members, label));
            }
        }
        self.prefer_kept(&mut sets);
        match sets.as_slice() {
            [one] => Requirement::Single(*one).into(),
            _ => Requirement::Union(self.union(sets)).into(),
        }
    }

    /// Alternatives that a lock holds come before those that it does not.
    fn prefer_kept(&self, sets: &mut [VersionSetId]) {
        let tables = self.tables.borrow();
        let kept = |id: &VersionSetId| {
            let first = tables.sets[id.0 as usize].members.first();
            first.is_some_and(|p| self.universe.keep.contains_key(self.universe.at(*p).package.name()))
        };
        sets.sort_by_key(|id| !kept(id));
    }

    fn union(&self, sets: Vec<VersionSetId>) -> VersionSetUnionId {
        let tables = &mut *self.tables.borrow_mut();
        *tables.union_ids.entry(sets.clone()).or_insert_with(|| {
            tables.unions.push(sets);
            VersionSetUnionId(tables.unions.len() as u32 - 1)
        })
    }

    /// What is left of each package that a Conflicts or Breaks relation names; a package never conflicts with itself.
    fn forbidden(&self, relation: &Relation, own: &str) -> Vec<VersionSetId> {
        let others = self.universe.matching(relation).into_iter().filter(|(name, _)| *name != own);
        let rest = |(name, members): (&str, Vec<u32>)| {
            let left = self.universe.positions(name).filter(|p| !members.contains(p)).collect();
            self.set(self.name(name), left, format!("(not {relation})"))
        };
        others.map(rest).collect()
    }

    fn known(&self, position: u32) -> Result<KnownDependencies> {
        let package = self.universe.at(position).package;
        let mut known = KnownDependencies::default();
        for field in package.depends() {
            known.requirements.extend(relation::groups(field)?.iter().map(|group| self.requirement(group)));
        }
        for field in package.conflicts() {
            known.constrains.extend(relation::list(field)?.iter().flat_map(|r| self.forbidden(r, package.name())));
        }
        Ok(known)
    }
}

fn constraint(relation: &Relation) -> String {
    relation.to_string()[relation.name.len()..].trim().to_string()
}

impl Interner for Provider<'_, '_> {
    type NameId = NameId;
    type SolvableId = SolvableId;

    fn display_solvable(&self, solvable: SolvableId) -> impl Display + '_ {
        let package = self.universe.at(solvable.into_raw()).package;
        format!("{} {}", package.name(), package.version())
    }

    fn display_merged_solvables(&self, solvables: &[SolvableId]) -> impl Display + '_ {
        let Some(first) = solvables.first() else { return String::new() };
        let versions: Vec<_> = solvables.iter().map(|s| self.universe.at(s.into_raw()).package.version()).collect();
        format!("{} {}", self.universe.at(first.into_raw()).package.name(), versions.join(" | "))
    }

    fn display_name(&self, name: NameId) -> impl Display + '_ {
        let (raw, known) = (name.into_raw() as usize, self.universe.found.len());
        match raw < known {
            true => self.universe.found[raw].package.name().to_string(),
            false => self.tables.borrow().strangers[raw - known].clone(),
        }
    }

    fn display_version_set(&self, set: VersionSetId) -> impl Display + '_ {
        self.tables.borrow().sets[set.0 as usize].label.clone()
    }

    fn display_string(&self, _: StringId) -> impl Display + '_ {
        ""
    }

    fn version_set_name(&self, set: VersionSetId) -> NameId {
        self.tables.borrow().sets[set.0 as usize].name
    }

    fn solvable_name(&self, solvable: SolvableId) -> NameId {
        self.name(self.universe.at(solvable.into_raw()).package.name())
    }

    fn version_sets_in_union(&self, union: VersionSetUnionId) -> impl Iterator<Item = VersionSetId> {
        self.tables.borrow().unions[union.0 as usize].clone().into_iter()
    }

    fn resolve_condition(&self, condition: ConditionId) -> Condition {
        // We never make a conditional requirement, so the solver has no condition to ask about.
        unreachable!("condition {condition:?} was never made")
    }
}

impl DependencyProvider for Provider<'_, '_> {
    async fn filter_candidates(&self, candidates: &[SolvableId], set: VersionSetId, inverse: bool) -> Vec<SolvableId> {
        let tables = self.tables.borrow();
        let members = &tables.sets[set.0 as usize].members;
        candidates.iter().copied().filter(|c| members.contains(&c.into_raw()) != inverse).collect()
    }

    async fn get_candidates(&self, name: NameId) -> Option<Candidates> {
        let first = self.universe.found.get(name.into_raw() as usize)?;
        let candidates = self.universe.positions(first.package.name()).map(SolvableId::from_raw).collect();
        Some(Candidates { candidates, hint_dependencies_available: HintDependenciesAvailable::None, ..Candidates::default() })
    }

    async fn sort_candidates(&self, _: &SolverCache<Self>, solvables: &mut [SolvableId]) {
        solvables.sort();
    }

    async fn get_dependencies(&self, solvable: SolvableId) -> Dependencies {
        match self.known(solvable.into_raw()) {
            Ok(known) => Dependencies::Known(known),
            Err(error) => {
                let package = self.universe.at(solvable.into_raw()).package;
                self.tables.borrow_mut().broken = Some(format!("reading dependencies of {} {}: {error}", package.name(), package.version()));
                Dependencies::Known(KnownDependencies::default())
            }
        }
    }

    fn should_cancel_with_value(&self) -> Option<Box<dyn std::any::Any>> {
        self.tables.borrow().broken.clone().map(|text| Box::new(text) as Box<dyn std::any::Any>)
    }
}
