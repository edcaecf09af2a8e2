//! Nodes that are told directly: the names and addresses of `nodes.peers`.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::link::PORT;

/// How long what a name led to is taken for true.
const FRESH: Duration = Duration::from_secs(30);
/// Longest wait for a name server: nothing is heard meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where the names lead.
#[derive(Default)]
pub struct Peers {
    names: Vec<String>,
    found: Vec<IpAddr>,
    unknown: Vec<String>,
    asked: Option<Instant>,
    turn: usize,
}

impl Peers {
    /// Looks the names up when they are others or it was long ago; returns those that lead nowhere. A name may have more than one address; the node's
    /// `own` are left out.
    pub async fn look_up(&mut self, names: Vec<String>, own: &[IpAddr]) -> Vec<String> {
        if self.names == names && self.asked.is_some_and(|at| at.elapsed() < FRESH) {
            return self.unknown.clone();
        }
        let mut questions: JoinSet<_> = names.iter().cloned().map(resolve).collect();
        (self.found, self.unknown) = (Vec::new(), Vec::new());
        while let Some(Ok((name, addresses))) = questions.join_next().await {
            match addresses {
                Some(addresses) => self.found.extend(addresses.into_iter().filter(|ip| !own.contains(ip))),
                None => self.unknown.push(name),
            }
        }
        self.found.sort();
        self.found.dedup();
        self.unknown.sort();
        (self.names, self.asked) = (names, Some(Instant::now()));
        self.unknown.clone()
    }

    /// Whom to tell now: all, or one after the other when the node is in a cluster, which only wants to hear of what should not be.
    pub fn next(&mut self, one: bool) -> Vec<IpAddr> {
        self.turn = self.turn.wrapping_add(1);
        match self.found.len() {
            count if one && count > 0 => vec![self.found[self.turn % count]],
            _ => self.found.clone(),
        }
    }
}

async fn resolve(name: String) -> (String, Option<Vec<IpAddr>>) {
    let found = timeout(PATIENCE, lookup_host((name.as_str(), PORT))).await;
    let addresses = found.ok().and_then(Result::ok).map(|found| found.map(|address| address.ip()).collect());
    (name, addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_lead_to_all_their_addresses_but_the_nodes_own() {
        let (mut peers, own) = (Peers::default(), IpAddr::from([10, 0, 0, 1]));
        let names = ["10.0.0.2", "fd00::2", "10.0.0.1", "10.0.0.2", "no-such-node.invalid"].map(String::from).to_vec();
        assert_eq!(peers.look_up(names.clone(), &[own]).await, ["no-such-node.invalid"]);
        let all = [IpAddr::from([10, 0, 0, 2]), "fd00::2".parse().unwrap()];
        assert_eq!(peers.next(false), all);
        let mut turns = [peers.next(true), peers.next(true)].concat();
        turns.sort();
        assert_eq!(turns, all);
        assert_eq!(peers.look_up(names, &[own]).await, ["no-such-node.invalid"], "what leads nowhere is remembered");
        assert!(peers.look_up(Vec::new(), &[own]).await.is_empty() && peers.next(true).is_empty());
    }
}
