//! Which node founds the cluster, when all boot one image and know one secret.
//!
//! Single-decree Paxos (Lamport, "Paxos Made Simple", 2001) decides on *the cluster*, not on a leader. Every node is an acceptor; quorums are
//! majorities of `nodes.expected`. A node whose ballot a majority has promised makes a cluster, which takes minutes; only when a majority has
//! accepted that cluster it is chosen, and nobody joins one that is not. A founder that dies while making is succeeded by another; if both
//! come to an end, one cluster is chosen, and the other, which nobody has used, is undone.
//!
//! There is one message, the [`Beacon`]: each node tells again and again what it has promised, accepted and learnt. That is what Paxos'
//! messages carry, so loss, doubles, delays and replays of genuine beacons can cost time but never make a second cluster.
//!
//! Nothing here reads a clock or writes a file. Whoever drives it keeps [`Votes`] on the disk before a beacon that tells of them is sent.

use std::collections::BTreeMap;
use std::time::Duration;

use layers::units::Digest;
use serde::{Deserialize, Serialize};

/// A node's machine-id(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(pub u128);

impl TryFrom<String> for NodeId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_id = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let id = is_id.then(|| u128::from_str_radix(&text, 16).ok()).flatten();
        id.map(Self).ok_or_else(|| "a machine-id has 32 hex digits".into())
    }
}

impl From<NodeId> for String {
    fn from(NodeId(id): NodeId) -> Self {
        format!("{id:032x}")
    }
}

/// The number of a proposal; no two nodes use one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ballot {
    /// Higher than any that the proposer has heard of.
    pub round: u64,
    /// Who proposes.
    pub node: NodeId,
}

/// What is chosen: a cluster, by the digest of its authority's public key.
pub type Cluster = Digest;

/// What a node may never forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Votes {
    /// No proposal below it is accepted any more.
    pub promised: Option<Ballot>,
    /// The last proposal that was accepted.
    pub accepted: Option<(Ballot, Cluster)>,
    /// What a majority is known to have accepted.
    pub chosen: Option<Cluster>,
    /// The cluster that this node has made itself, chosen or not.
    pub made: Option<Cluster>,
}

/// What a node is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Waits for others.
    Following,
    /// Asks for promises, or for its cluster to be accepted.
    Proposing,
    /// Makes a cluster.
    Founding,
}

/// What a node tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Beacon {
    /// Who tells it.
    pub node: NodeId,
    /// How often that node has started; kept on its disk.
    pub start: u64,
    /// Chosen at random at that start: a copy of the node's disk has another one.
    pub run: u64,
    /// Number of the beacon since then.
    pub number: u64,
    /// Its `nodes.expected`; only votes under the same one count.
    pub expected: usize,
    /// What it has promised, accepted, learnt.
    pub votes: Votes,
    /// What it is about.
    pub stage: Stage,
    /// Whether it may found and hears a majority.
    pub ready: bool,
}

/// What a beacon was to the node that got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    /// It tells something new.
    New,
    /// It is not newer than what was heard before.
    Old,
    /// Another machine has this node's identity: one is a copy of the other.
    Twin,
}

/// What does not change while a node runs.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Number of nodes, `nodes.expected`.
    pub expected: usize,
    /// Whether this node may become the first control plane.
    pub may_found: bool,
    /// A node that was not heard for so long is away.
    pub silence: Duration,
    /// Longest making of a cluster that others wait for.
    pub making: Duration,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Nothing but waiting.
    Wait,
    /// To make a cluster, and to tell by [`Election::made`] or [`Election::failed`] what came of it.
    Found,
    /// The own cluster was chosen.
    Lead(Cluster),
    /// Another one was chosen: what was made or begun is to be undone ([`Election::undone`]).
    Undo,
    /// To join the chosen one.
    Join(Cluster),
}

/// An own proposal.
#[derive(Clone, Copy, Debug)]
struct Proposal {
    ballot: Ballot,
    since: Duration,
}

/// The state of one node. Times are those of any clock of this node that does not stand still.
#[derive(Debug)]
pub struct Election {
    own: NodeId,
    start: u64,
    run: u64,
    rules: Rules,
    votes: Votes,
    heard: BTreeMap<NodeId, Heard>,
    proposal: Option<Proposal>,
    founding: bool,
    /// Whether this node is in the chosen cluster.
    settled: bool,
    /// Since when nobody has proposed.
    calm: Duration,
    number: u64,
}

/// The last beacon of another node.
#[derive(Debug)]
struct Heard {
    beacon: Beacon,
    at: Duration,
    /// Since when it is about what it is about now.
    since: Duration,
}

impl Election {
    /// A node that starts for the `start`-th time, which the random `run` tells from a copy's, with the votes that its disk has.
    pub fn new(own: NodeId, (start, run): (u64, u64), rules: Rules, votes: Votes, now: Duration) -> Self {
        Self { own, start, run, rules, votes, heard: BTreeMap::new(), proposal: None, founding: false, settled: false, calm: now, number: 0 }
    }

    /// What is to be on the disk before the next beacon.
    pub fn votes(&self) -> &Votes {
        &self.votes
    }

    /// The next beacon.
    pub fn beacon(&mut self, now: Duration) -> Beacon {
        self.number += 1;
        let ready = self.rules.may_found && self.hears_majority(now);
        let (expected, stage) = (self.rules.expected, self.stage());
        // What was only heard of may be a cluster that is no more: who is in it tells of it, and votes tell of what they have chosen.
        let knows = self.settled || self.votes.made == self.votes.chosen;
        let votes = Votes { chosen: self.votes.chosen.filter(|_| knows), ..self.votes };
        Beacon { node: self.own, start: self.start, run: self.run, number: self.number, expected, votes, stage, ready }
    }

    /// Takes a beacon that was heard.
    pub fn hear(&mut self, beacon: &Beacon, now: Duration) -> Hearing {
        if beacon.node == self.own {
            let is_twin = beacon.start >= self.start && beacon.run != self.run;
            return if is_twin { Hearing::Twin } else { Hearing::Old };
        }
        let before = self.heard.get(&beacon.node);
        if before.is_some_and(|before| (beacon.start, beacon.number) <= (before.beacon.start, before.beacon.number)) {
            return Hearing::Old;
        }
        let goes_on = before.filter(|before| (before.beacon.stage, before.beacon.start) == (beacon.stage, beacon.start));
        let since = goes_on.map_or(now, |before| before.since);
        self.heard.insert(beacon.node, Heard { beacon: *beacon, at: now, since });
        // What is chosen is the end of voting. Another choice than the own one cannot come from these votes and changes nothing.
        self.votes.chosen = self.votes.chosen.or(beacon.votes.chosen);
        if !self.settled && beacon.expected == self.rules.expected {
            self.votes.promised = self.votes.promised.max(beacon.votes.promised);
            if let Some((ballot, _)) = beacon.votes.accepted
                && Some(ballot) >= self.votes.promised
            {
                (self.votes.promised, self.votes.accepted) = (Some(ballot), beacon.votes.accepted);
            }
        }
        Hearing::New
    }

    /// The cluster is made.
    pub fn made(&mut self, cluster: Cluster) {
        (self.founding, self.votes.made) = (false, Some(cluster));
    }

    /// No cluster could be made; another node may try.
    pub fn failed(&mut self, now: Duration) {
        (self.founding, self.proposal, self.calm) = (false, None, now);
    }

    /// Whether this node is known to be in a cluster.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// This node is in a cluster, whoever agreed on it; what it has heard of before may be another one.
    pub fn settle(&mut self, cluster: Cluster) {
        (self.settled, self.votes.chosen) = (true, Some(cluster));
    }

    /// What was made is no more.
    pub fn undone(&mut self) {
        (self.founding, self.votes.made) = (false, None);
    }

    /// What is to be done now; to be asked after each beacon and about once a second.
    pub fn turn(&mut self, now: Duration) -> Order {
        self.votes.chosen = self.votes.chosen.or_else(|| self.majority_accepted());
        if let Some(chosen) = self.votes.chosen {
            self.proposal = None;
            return match self.votes.made {
                Some(made) if made == chosen => Order::Lead(chosen),
                None if !self.founding => Order::Join(chosen),
                _ => Order::Undo,
            };
        }
        match self.proposal {
            Some(proposal) if self.votes.promised > Some(proposal.ballot) => (self.proposal, self.calm) = (None, now),
            Some(proposal) => return self.propose(proposal, now),
            None => {}
        }
        if self.someone_proposes(now) && self.votes.made.is_none() {
            self.calm = now;
        } else if self.rules.may_found && self.hears_majority(now) && now >= self.calm + self.pause(now) {
            self.begin(now);
        }
        Order::Wait
    }

    fn begin(&mut self, now: Duration) {
        let round = self.votes.promised.map_or(0, |ballot| ballot.round) + 1;
        let ballot = Ballot { round, node: self.own };
        self.votes.promised = Some(ballot);
        self.proposal = Some(Proposal { ballot, since: now });
    }

    fn propose(&mut self, proposal: Proposal, now: Duration) -> Order {
        let has_promised = |votes: &Votes| votes.promised == Some(proposal.ballot);
        if self.count(has_promised) < self.majority() {
            if now > proposal.since + self.rules.silence {
                // Promises got lost on their way, or another majority is needed.
                (self.proposal, self.calm) = (None, now);
            }
            return Order::Wait;
        }
        if self.votes.accepted.is_some_and(|(ballot, _)| ballot == proposal.ballot) {
            return Order::Wait;
        }
        // A cluster that any of them has accepted may be chosen already.
        let accepted = self.every_votes().filter(|votes| has_promised(votes)).filter_map(|votes| votes.accepted).max();
        if let Some(value) = accepted.map(|(_, cluster)| cluster).or(self.votes.made) {
            self.votes.accepted = Some((proposal.ballot, value));
            return Order::Wait;
        }
        self.founding = true;
        Order::Found
    }

    /// What a majority has accepted in one ballot.
    fn majority_accepted(&self) -> Option<Cluster> {
        let (ballot, cluster) = self.every_votes().filter_map(|votes| votes.accepted).max()?;
        let same = self.count(|votes| votes.accepted.is_some_and(|(other, _)| other == ballot));
        (same >= self.majority()).then_some(cluster)
    }

    fn every_votes(&self) -> impl Iterator<Item = &Votes> {
        let counts = |heard: &&Heard| heard.beacon.expected == self.rules.expected;
        self.heard.values().filter(counts).map(|heard| &heard.beacon.votes).chain([&self.votes])
    }

    fn count(&self, is_so: impl Fn(&Votes) -> bool) -> usize {
        self.every_votes().filter(|votes| is_so(votes)).count()
    }

    fn majority(&self) -> usize {
        self.rules.expected / 2 + 1
    }

    fn stage(&self) -> Stage {
        match self.proposal {
            _ if self.votes.chosen.is_some() => Stage::Following,
            _ if self.founding => Stage::Founding,
            Some(_) => Stage::Proposing,
            None => Stage::Following,
        }
    }

    fn present(&self, now: Duration) -> impl Iterator<Item = &Heard> {
        self.heard.values().filter(move |heard| now < heard.at + self.rules.silence)
    }

    fn hears_majority(&self, now: Duration) -> bool {
        self.present(now).filter(|heard| heard.beacon.expected == self.rules.expected).count() + 1 >= self.majority()
    }

    /// Whether a node that is there is about to make a cluster, and not for longer than can be waited for.
    fn someone_proposes(&self, now: Duration) -> bool {
        self.present(now).any(|heard| match heard.beacon.stage {
            Stage::Following => false,
            Stage::Proposing => now < heard.since + self.rules.silence * 2,
            Stage::Founding => now < heard.since + self.rules.making,
        })
    }

    /// How long nobody may have proposed before this node does: one after the other, so that they seldom meet; in later rounds by chance.
    fn pause(&self, now: Duration) -> Duration {
        let round = self.votes.promised.map_or(0, |ballot| ballot.round);
        let before = self.present(now).filter(|heard| heard.beacon.ready && heard.beacon.node < self.own).count();
        let chance = Digest::of_parts([&self.own.0.to_be_bytes()[..], &round.to_be_bytes()]).0[0];
        // The first pause is for those that start together to hear each other.
        let places = if round == 0 { u32::try_from(before).unwrap_or(u32::MAX).min(8) } else { u32::from(chance) % 8 };
        self.rules.silence / 8 * (1 + places)
    }
}
