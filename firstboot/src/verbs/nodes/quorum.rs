//! How many votes etcd has, needs, and may lose.

use crate::cluster::etcd::{Seat, Standing};

/// What to do when they never will (docs/backup.md, "Majority lost").
const ALONE: &str = "if they never will, switch them off and let one that is left go on alone: `chasi-bod restore --this-node --replace`";

/// Voters, and those of them that are well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    pub voters: usize,
    pub healthy: usize,
}

impl Quorum {
    /// Learners have no vote yet.
    pub fn of(standing: &Standing) -> Self {
        let voters = || standing.seats.iter().filter(|seat| !seat.learner);
        Self { voters: voters().count(), healthy: voters().filter(|seat| seat.answers).count() }
    }

    /// Whatever is written needs so many.
    pub fn needed(self) -> usize {
        self.voters / 2 + 1
    }

    /// How many of those that are well may be lost; nothing when there are too few already.
    pub fn spare(self) -> Option<usize> {
        self.healthy.checked_sub(self.needed())
    }

    /// What etcd is, in a sentence.
    pub fn sentence(standing: &Standing) -> String {
        let votes = Self::of(standing);
        match (votes.spare(), standing.leader.as_str()) {
            (Some(_), "") => format!("etcd: {}, but it has no leader, and nothing in the cluster can change until it elects one", votes.votes()),
            _ => format!("etcd: {}: {}", votes.votes(), votes.outlook()),
        }
    }

    /// The same, when it does not work.
    pub fn trouble(standing: &Standing) -> Option<String> {
        (Self::of(standing).spare().is_none() || standing.leader.is_empty()).then(|| Self::sentence(standing))
    }

    /// The numbers in words.
    pub fn votes(self) -> String {
        let (answer, are) = (if self.healthy == 1 { "answers" } else { "answer" }, if self.needed() == 1 { "is" } else { "are" });
        format!("{} of {} voters {answer}, {} {are} needed", self.healthy, self.voters, self.needed())
    }

    /// What the numbers mean.
    pub fn outlook(self) -> String {
        match (self.spare(), self.voters) {
            (None, _) => format!("its majority is lost, and nothing in the cluster can change until {} more answer; {ALONE}", self.lacks()),
            (Some(0), 1) => "there is no other, so the API is away whenever it is".into(),
            (Some(0), _) => "none may be lost, with the next one it stops".into(),
            (Some(spare), _) => format!("{spare} may be lost before it stops"),
        }
    }

    /// How many more have to answer.
    fn lacks(self) -> usize {
        self.needed().saturating_sub(self.healthy)
    }

    /// What is left when members are taken out one after the other; why not, where that would cost etcd its majority.
    pub fn without<'a>(self, seats: impl IntoIterator<Item = &'a Seat>) -> Result<Self, String> {
        seats.into_iter().try_fold(self, |before, seat| {
            if before.spare().is_none() {
                return Err(format!("etcd has lost its majority ({}), and changes no members until {} more answer", before.votes(), before.lacks()));
            }
            if seat.learner {
                return Ok(before);
            }
            if before.voters == 1 {
                return Err("it is etcd's only voter, and what the cluster knows would go with it".into());
            }
            let after = Self { voters: before.voters - 1, healthy: before.healthy - usize::from(seat.answers) };
            match after.spare() {
                Some(_) => Ok(after),
                None => Err(format!("etcd would lose its majority: now {}, and without it {}", before.votes(), after.votes())),
            }
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Names of members with a letter each: `L` leads, `v` votes, `x` has a vote and does not answer, `l` learns. The first is this node's.
    pub fn standing(members: &[(&str, char)]) -> Standing {
        let seat = |(number, (name, kind)): (usize, &(&str, char))| -> Seat {
            let text = format!(r#"{{"ID":"{number}","name":"{name}","isLearner":{}}}"#, *kind == 'l');
            let mut seat: Seat = serde_json::from_str(&text).unwrap();
            seat.answers = *kind != 'x';
            seat
        };
        let leader = members.iter().position(|(_, kind)| *kind == 'L').map(|number| number.to_string()).unwrap_or_default();
        Standing { own: "0".into(), leader, seats: members.iter().enumerate().map(seat).collect() }
    }

    fn quorum(voters: usize, healthy: usize) -> Quorum {
        Quorum { voters, healthy }
    }

    #[test]
    fn a_majority_is_more_than_half() {
        assert_eq!([1, 2, 3, 4, 5, 7].map(|voters| quorum(voters, voters).needed()), [1, 2, 2, 3, 3, 4]);
        assert_eq!([1, 2, 3, 4, 5, 7].map(|voters| quorum(voters, voters).spare()), [0, 0, 1, 1, 2, 3].map(Some));
        assert_eq!([(3, 2), (3, 1), (5, 3), (2, 1)].map(|(voters, healthy)| quorum(voters, healthy).spare()), [Some(0), None, Some(0), None]);
        assert_eq!(Quorum::of(&standing(&[("a", 'L'), ("b", 'x'), ("c", 'v'), ("d", 'l')])), quorum(3, 2));
    }

    #[test]
    fn g2_a_lost_quorum_is_stated_and_so_is_one_at_its_edge() {
        let said = |voters: usize, healthy: usize| format!("{}: {}", quorum(voters, healthy).votes(), quorum(voters, healthy).outlook());
        assert_eq!(said(3, 3), "3 of 3 voters answer, 2 are needed: 1 may be lost before it stops");
        assert_eq!(said(3, 2), "2 of 3 voters answer, 2 are needed: none may be lost, with the next one it stops");
        let lost = "1 of 3 voters answers, 2 are needed: its majority is lost, and nothing in the cluster can change until 1 more answer; \
                    if they never will, switch them off and let one that is left go on alone: `chasi-bod restore --this-node --replace`";
        assert_eq!(said(3, 1), lost);
        assert_eq!(said(1, 1), "1 of 1 voters answers, 1 is needed: there is no other, so the API is away whenever it is");
        let trouble = |members: &[(&str, char)]| Quorum::trouble(&standing(members));
        assert_eq!(trouble(&[("a", 'L'), ("b", 'v'), ("c", 'x')]), None);
        assert_eq!(trouble(&[("a", 'v'), ("b", 'x'), ("c", 'x')]), Some(format!("etcd: {lost}")));
        let none = "etcd: 3 of 3 voters answer, 2 are needed, but it has no leader, and nothing in the cluster can change until it elects one";
        assert_eq!(trouble(&[("a", 'v'), ("b", 'v'), ("c", 'v')]).as_deref(), Some(none));
    }

    #[test]
    fn g2_no_member_is_taken_out_that_the_majority_needs() {
        let without = |members: &[(&str, char)], name: &str| {
            let standing = standing(members);
            Quorum::of(&standing).without(standing.seats.iter().filter(|seat| seat.member.name == name))
        };
        let three = [("a", 'L'), ("b", 'v'), ("c", 'v')];
        assert_eq!(without(&three, "c"), Ok(quorum(2, 2)));
        assert_eq!(without(&three, "z"), Ok(quorum(3, 3)), "not a member");
        let edge = [("a", 'L'), ("b", 'v'), ("c", 'x')];
        assert_eq!(without(&edge, "c"), Ok(quorum(2, 2)), "the one that is away is no loss");
        let refused = "etcd would lose its majority: now 2 of 3 voters answer, 2 are needed, and without it 1 of 2 voters answers, 2 are needed";
        assert_eq!(without(&edge, "b").unwrap_err(), refused);
        let lost = "etcd has lost its majority (1 of 3 voters answers, 2 are needed), and changes no members until 1 more answer";
        assert_eq!(without(&[("a", 'x'), ("b", 'v'), ("c", 'x')], "c").unwrap_err(), lost);
        assert!(without(&[("a", 'L')], "a").unwrap_err().contains("only voter"));
        assert_eq!(without(&[("a", 'L'), ("b", 'l')], "b"), Ok(quorum(1, 1)), "a learner has no vote");
        assert_eq!(without(&[("a", 'L'), ("b", 'v')], "b"), Ok(quorum(1, 1)));
    }
}
