//! The states of a virtual cluster and which may follow which, written once.
//!
//! ```text
//! Pending ──► Creating ──► Running ◄──► Scaling, Updating, Snapshotting, Restoring
//!                           │ ▲
//!               Suspending ◄┘ └── Resuming ◄── Suspended ◄── Suspending
//! ```
//! From every state but the last to `Deleting`, from every one that works to `Error`, and from `Error` back to the work that failed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a virtual cluster is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Phase {
    /// Accepted, nothing made yet.
    #[default]
    Pending,
    /// Its control plane is being made.
    Creating,
    /// Its API answers, its syncer's controllers run and its DNS serves.
    Running,
    /// The number of its control plane's replicas changes.
    Scaling,
    /// Its Kubernetes version or its settings change.
    Updating,
    /// Its control plane and workloads are being stopped.
    Suspending,
    /// Stopped; its data is kept.
    Suspended,
    /// Being started again.
    Resuming,
    /// Its data is being copied.
    Snapshotting,
    /// Its data is being put back.
    Restoring,
    /// It and all that it made on the host is being removed.
    Deleting,
    /// Its last work failed; it is tried again.
    Error,
}

use Phase::{Creating, Deleting, Error, Pending, Restoring, Resuming, Running, Scaling, Snapshotting, Suspended, Suspending, Updating};

impl Phase {
    /// All of them.
    pub const ALL: [Self; 12] =
        [Pending, Creating, Running, Scaling, Updating, Suspending, Suspended, Resuming, Snapshotting, Restoring, Deleting, Error];

    /// The table: what may follow.
    pub fn next(self) -> &'static [Self] {
        match self {
            Pending => &[Creating, Deleting, Error],
            Creating | Scaling | Updating | Snapshotting | Restoring | Resuming => &[Running, Deleting, Error],
            Running => &[Scaling, Updating, Suspending, Snapshotting, Restoring, Deleting, Error],
            Suspending => &[Suspended, Deleting, Error],
            Suspended => &[Resuming, Deleting, Error],
            Error => &[Creating, Running, Scaling, Updating, Suspending, Suspended, Resuming, Snapshotting, Restoring, Deleting],
            Deleting => &[],
        }
    }

    /// Whether it may become `to`; staying is always allowed.
    pub fn may_become(self, to: Self) -> bool {
        self == to || self.next().contains(&to)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What can be reached from a phase, itself included.
    fn reachable(from: Phase) -> Vec<Phase> {
        let mut found = vec![from];
        for n in 0.. {
            let Some(phase) = found.get(n).copied() else { break };
            found.extend(phase.next().iter().filter(|next| !found.contains(next)).copied().collect::<Vec<_>>());
        }
        found
    }

    #[test]
    fn the_table_names_no_phase_twice_nor_itself() {
        for phase in Phase::ALL {
            let next = phase.next();
            assert!(!next.contains(&phase) && (1..next.len()).all(|n| !next[..n].contains(&next[n])), "{phase:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_a_cluster_can_run_again_or_be_deleted(steps in prop::collection::vec(any::<prop::sample::Index>(), 0..40)) {
            let mut phase = Pending;
            for step in steps {
                if phase.next().is_empty() {
                    break;
                }
                phase = *step.get(phase.next());
            }
            let reachable = reachable(phase);
            prop_assert!(reachable.contains(&Deleting));
            prop_assert!(phase == Deleting || reachable.contains(&Running));
            // Deletion waits for nothing, and nothing comes after it.
            prop_assert!(phase == Deleting || phase.next().contains(&Deleting));
        }
    }

    #[test]
    fn all_phases_are_reached_and_each_work_may_fail_and_be_taken_up_again() {
        assert_eq!(reachable(Pending).len(), Phase::ALL.len());
        for phase in Phase::ALL.into_iter().filter(|phase| ![Pending, Deleting, Error].contains(phase)) {
            assert!(phase.next().contains(&Error) && Error.next().contains(&phase), "{phase:?}");
        }
    }

    #[test]
    fn names_are_those_of_the_documentation() {
        assert_eq!(serde_json::to_value(Phase::ALL).unwrap()[9], "RESTORING");
    }
}
