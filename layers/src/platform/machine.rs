//! What a virtual cluster does next: from its phase and what is seen of it to the next phase and its work. Nothing else decides that, and nothing is
//! remembered but the phase, so a controller that was killed goes on where it was.

use super::Phase;

/// What is asked for and what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The object is being deleted.
    pub deleted: bool,
    /// It shall be stopped.
    pub suspended: bool,
    /// How what is installed differs from what is asked for.
    pub release: Difference,
    /// Its API answers, its syncer's controllers run, its DNS serves.
    pub serves: bool,
    /// Neither control plane nor workloads run.
    pub stopped: bool,
    /// What is to be done with its data now.
    pub copy: Option<Copying>,
    /// In ERROR: the phase whose work failed, once the pause before the next try is over.
    pub again: Option<Phase>,
}

/// How what is installed differs from what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Nothing is installed.
    Absent,
    /// More than the number of replicas.
    Settings,
    /// The number of replicas alone.
    Replicas,
    /// In nothing.
    None,
}

/// What is done with a virtual cluster's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copying {
    /// It is copied while the virtual cluster serves.
    Snapshot,
    /// It is replaced while the control plane is stopped.
    Restore,
}

/// What the controller does in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Installs or upgrades the release, and waits until it serves.
    Install,
    /// Starts what was stopped, and waits until it serves.
    Start,
    /// Stops control plane and workloads.
    Stop,
    /// Takes the snapshot or puts one back.
    Copy,
    /// Removes all that there is on the host.
    Remove,
    /// Waits until it serves.
    Wait,
    /// Nothing.
    Rest,
}

use Phase::{Creating, Deleting, Error, Pending, Restoring, Resuming, Running, Scaling, Snapshotting, Suspended, Suspending, Updating};

/// The next phase, and its work.
pub fn next(phase: Phase, facts: Facts) -> (Phase, Work) {
    let phase = follow(phase, facts);
    (phase, work(phase, facts))
}

/// The phase after work that failed: a removal goes on being one.
pub fn failed(phase: Phase) -> Phase {
    if phase == Deleting { Deleting } else { Error }
}

fn follow(phase: Phase, facts: Facts) -> Phase {
    match phase {
        _ if facts.deleted => Deleting,
        Deleting => Deleting,
        // It may be the very help that is needed.
        Error if facts.copy == Some(Copying::Restore) && facts.release != Difference::Absent => Restoring,
        Error => match facts.again {
            // What failed in RUNNING was no work of ours: it may have come back by itself.
            Some(Running) if !facts.serves => Error,
            Some(again) if Error.may_become(again) => again,
            _ => Error,
        },
        Pending => Creating,
        Creating | Scaling | Updating | Resuming if facts.serves && facts.release == Difference::None => Running,
        Restoring if facts.copy != Some(Copying::Restore) && facts.serves => Running,
        Snapshotting if facts.copy != Some(Copying::Snapshot) => Running,
        Running if facts.suspended => Suspending,
        Running => match facts.release {
            _ if facts.copy == Some(Copying::Restore) && facts.release != Difference::Absent => Restoring,
            Difference::None if !facts.serves => Error,
            Difference::None if facts.copy.is_some() => Snapshotting,
            Difference::None => Running,
            Difference::Replicas => Scaling,
            Difference::Settings | Difference::Absent => Updating,
        },
        Suspending if facts.stopped => Suspended,
        Suspended if !facts.suspended => Resuming,
        same => same,
    }
}

fn work(phase: Phase, facts: Facts) -> Work {
    match phase {
        Creating | Scaling | Updating if facts.release == Difference::None => Work::Wait,
        Creating | Scaling | Updating => Work::Install,
        // Settings that changed meanwhile come with the start.
        Resuming if facts.release == Difference::None => Work::Start,
        Resuming => Work::Install,
        Suspending => Work::Stop,
        Deleting => Work::Remove,
        Restoring if facts.copy != Some(Copying::Restore) => Work::Start,
        Snapshotting | Restoring => Work::Copy,
        Pending | Running | Suspended | Error => Work::Rest,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts() -> impl Strategy<Value = Facts> {
        let differences = prop::sample::select(vec![Difference::Absent, Difference::Settings, Difference::Replicas, Difference::None]);
        let again = prop::option::of(prop::sample::select(Phase::ALL.to_vec()));
        let copy = prop::option::of(prop::sample::select(vec![Copying::Snapshot, Copying::Restore]));
        let flags = (prop::bool::weighted(0.1), any::<bool>(), any::<bool>(), any::<bool>());
        (differences, again, copy, flags).prop_map(|(release, again, copy, (deleted, suspended, serves, stopped))| Facts {
            deleted,
            suspended,
            release,
            serves,
            stopped,
            copy,
            again,
        })
    }

    /// A host on which all work succeeds at once.
    fn after(work: Work, facts: Facts) -> Facts {
        match work {
            Work::Install => Facts { release: Difference::None, serves: true, stopped: false, ..facts },
            Work::Start | Work::Wait => Facts { serves: true, stopped: false, ..facts },
            Work::Stop => Facts { serves: false, stopped: true, ..facts },
            Work::Copy => Facts { copy: None, serves: facts.copy == Some(Copying::Snapshot), ..facts },
            Work::Remove | Work::Rest => facts,
        }
    }

    /// The phases that follow until nothing changes any more.
    fn converge(mut phase: Phase, mut facts: Facts, mut failed: Phase) -> Vec<Phase> {
        let mut seen = Vec::new();
        loop {
            facts.again = (phase == Error).then_some(failed);
            let (to, work) = next(phase, facts);
            let mut then = after(work, facts);
            // No work of ours failed: it comes back by itself.
            if (phase, to) == (Running, Error) {
                (failed, then.serves) = (Running, true);
            }
            seen.push(to);
            if (to, then) == (phase, facts) || seen.len() > 20 {
                return seen;
            }
            (phase, facts) = (to, then);
        }
    }

    proptest! {
        #[test]
        fn only_what_the_table_allows_follows(from in prop::sample::select(Phase::ALL.to_vec()), facts in prop::collection::vec((facts(), any::<bool>()), 1..30)) {
            let mut phase = from;
            for (facts, fails) in facts {
                let (to, _) = next(phase, facts);
                prop_assert!(phase.may_become(to), "{phase:?} → {to:?} by {facts:?}");
                phase = if fails { failed(to) } else { to };
                prop_assert!(to.may_become(phase), "{to:?} → {phase:?} by a failure");
            }
        }

        #[test]
        fn from_everywhere_it_comes_to_what_is_asked_for(
            from in prop::sample::select(Phase::ALL.to_vec()),
            failed in prop::sample::select(vec![Creating, Scaling, Updating, Suspending, Resuming, Snapshotting, Restoring]),
            facts in facts(),
        ) {
            let end = match (facts.deleted || from == Deleting, facts.suspended) {
                (true, _) => Deleting,
                (_, true) => Suspended,
                _ => Running,
            };
            let seen = converge(from, facts, failed);
            prop_assert_eq!(seen.last(), Some(&end), "{:?}", seen);
            prop_assert!(seen.len() <= 12, "{seen:?}");
        }
    }

    #[test]
    fn a_running_one_that_serves_no_more_is_in_error_until_it_does() {
        let facts = Facts { deleted: false, suspended: false, release: Difference::None, serves: false, stopped: false, copy: None, again: None };
        assert_eq!(next(Running, facts), (Error, Work::Rest));
        assert_eq!(next(Error, Facts { again: Some(Running), ..facts }).0, Error);
        assert_eq!(next(Error, Facts { again: Some(Running), serves: true, ..facts }).0, Running);
    }

    #[test]
    fn a_snapshot_waits_until_it_serves_and_a_restore_helps_one_that_does_not() {
        let facts = Facts { deleted: false, suspended: false, release: Difference::None, serves: false, stopped: false, copy: None, again: None };
        let (snapshot, restore) = (Facts { copy: Some(Copying::Snapshot), ..facts }, Facts { copy: Some(Copying::Restore), ..facts });
        assert_eq!(next(Running, snapshot), (Error, Work::Rest));
        assert_eq!(next(Running, Facts { serves: true, ..snapshot }), (Snapshotting, Work::Copy));
        assert_eq!((next(Running, restore), next(Error, restore)), ((Restoring, Work::Copy), (Restoring, Work::Copy)));
        assert_eq!(next(Error, Facts { release: Difference::Absent, ..restore }), (Error, Work::Rest));
        assert_eq!(next(Restoring, facts), (Restoring, Work::Start));
        assert_eq!(next(Suspended, Facts { suspended: true, ..snapshot }).0, Suspended);
    }
}
