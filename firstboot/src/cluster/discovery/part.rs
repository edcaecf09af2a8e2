//! One node's part in discovery: the election with what it keeps on the disk, whom it has heard, and what it tells.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use layers::membership::JOIN_PORT;
use layers::{Context as _, Error, Fault, Result};
use serde::{Deserialize, Serialize};

use super::beacon::{Key, Refusal, Told};
use super::election::{self, Election, Hearing, NodeId, Order, Stage, Votes};
use super::{Next, Rules};
use crate::host::{Host, STATE};
use crate::status::Address;

/// A node that was not heard for so long is away.
const SILENCE: Duration = Duration::from_secs(20);
/// Longer than kubeadm needs on the slowest machine.
const MAKING: Duration = Duration::from_mins(40);
/// Between two beacons while a cluster is to be found or founded, and later.
const OFTEN: Duration = Duration::from_secs(2);
const SELDOM: Duration = Duration::from_secs(5);
/// Most names and addresses in what is said to people.
const FEW: usize = 4;
/// Most nodes that are told directly because they do so: whoever makes up addresses gets no more.
const ASKERS: usize = 256;

/// Whether an address means something on its link only.
fn is_of_link(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Name and addresses of the node.
#[derive(Clone)]
pub struct Place {
    name: String,
    /// The first is what its cluster knows it by.
    pub addresses: Vec<IpAddr>,
}

impl Place {
    /// With the addresses of a network device.
    pub fn of(host: &Host, device: &str, addresses: &[Address]) -> Self {
        let of_device = addresses.iter().filter(|address| address.interface == device);
        let addresses = of_device.filter_map(Address::ip).collect();
        Self { name: host.line("etc/hostname"), addresses }
    }
}

/// What survives a restart.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// How often the node has begun.
    starts: u64,
    votes: Votes,
}

/// The last that was heard of another node.
struct Other {
    told: Told,
    from: IpAddr,
    at: Duration,
}

/// A beacon for the link, and one for those who are told directly.
pub struct Datagrams {
    pub group: Vec<u8>,
    pub direct: Vec<u8>,
    /// Who has told this node directly and is to hear from it: multicast may not lead there either.
    pub askers: Vec<IpAddr>,
}

/// See the module.
pub struct Part {
    pub rules: Rules,
    pub election: Election,
    key: Key,
    kept: Kept,
    others: BTreeMap<NodeId, Other>,
    /// Whose beacons tell nothing, and why.
    refused: BTreeMap<IpAddr, (Refusal, Duration)>,
    twin: Option<(IpAddr, Duration)>,
    told: Option<(Duration, Told)>,
    /// Who has told this node directly, when, and whether it is in a cluster.
    direct: BTreeMap<IpAddr, (Duration, bool)>,
    /// Names among the nodes to be told directly that lead nowhere.
    pub unknown: Vec<String>,
}

/// Path of [`Kept`].
pub fn path() -> String {
    format!("{STATE}/discovery.json")
}

impl Part {
    /// Begins with what the disk has. A file that cannot be read may have held a promise, so nothing is promised without it.
    pub fn begin(host: &Host, rules: Rules, now: Duration) -> Result<Self> {
        let before = host.read(&path())?.map(|text| serde_json::from_str::<Kept>(&text).fault(Fault::Environment, || format!("reading /{}", path())));
        let before = before.transpose()?.unwrap_or_default();
        let own = NodeId::try_from(host.line("etc/machine-id")).map_err(|why| Error::environment(format!("reading /etc/machine-id: {why}")))?;
        let kept = Kept { starts: before.starts + 1, ..before };
        let run = u64::from_be_bytes(host.random()?);
        let for_election = election::Rules { expected: rules.expected, may_found: rules.may_found, silence: SILENCE, making: MAKING };
        let election = Election::new(own, (kept.starts, run), for_election, kept.votes, now);
        let key = Key::of(&rules.secret);
        let (others, refused, direct) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let part = Self { rules, election, key, kept, others, refused, twin: None, told: None, direct, unknown: Vec::new() };
        part.write(host).map(|()| part)
    }

    /// Puts on the disk what the next beacon may tell.
    pub fn keep(&mut self, host: &Host) -> Result<()> {
        let before = self.kept;
        self.kept.votes = *self.election.votes();
        if self.kept != before
            && let Err(error) = self.write(host)
        {
            // What is not on the disk is tried again before anything is told.
            self.kept = before;
            return Err(error);
        }
        Ok(())
    }

    fn write(&self, host: &Host) -> Result<()> {
        let text = serde_json::to_string(&self.kept).fault(Fault::Internal, || "encoding the node's votes".into())?;
        host.write(&path(), format!("{text}\n").as_bytes(), 0o600)?;
        host.sync();
        Ok(())
    }

    /// Takes a datagram.
    pub fn hear(&mut self, datagram: &[u8], from: IpAddr, now: Duration) {
        match self.key.open(datagram) {
            Ok(told) => {
                let (node, number, direct) = (told.beacon.node, told.beacon.number, told.direct);
                match self.election.hear(&told.beacon, now) {
                    Hearing::New => {
                        let known = self.others.get(&node).map(|other| other.from).filter(|_| is_of_link(&from));
                        self.others.insert(node, Other { told, from: known.unwrap_or(from), at: now });
                    }
                    // The same by the other protocol.
                    Hearing::Old => self.others.get_mut(&node).into_iter().filter(|other| is_of_link(&other.from)).for_each(|o| o.from = from),
                    Hearing::Twin => self.twin = Some((from, now)),
                }
                // The newest one, which may have come by multicast before; one from long ago, sent once more, makes nobody an asker.
                let is_newest = |other: &&Other| other.told.beacon.number == number && now < other.at + OFTEN;
                if let Some(other) = self.others.get(&node).filter(is_newest).filter(|_| direct) {
                    self.direct.retain(|_, (at, _)| now < *at + SILENCE);
                    if self.direct.len() < ASKERS || self.direct.contains_key(&from) {
                        self.direct.insert(from, (now, other.told.beacon.votes.chosen.is_some()));
                    }
                }
            }
            Err(Refusal::Foreign) => {}
            // Whoever makes up addresses fills no memory.
            Err(why) if self.refused.len() < 64 || self.refused.contains_key(&from) => _ = self.refused.insert(from, (why, now)),
            Err(_) => self.refused.retain(|_, (_, at)| now < *at + SILENCE),
        }
    }

    /// Sealed beacons, if it is time for one or there is something new to tell; the votes of it are on the disk once `keep` has been called.
    pub fn tell(&mut self, place: &Place, takes: bool, nonces: [[u8; 24]; 2], now: Duration) -> Option<Datagrams> {
        self.election.turn(now);
        let beacon = self.election.beacon(now);
        let endpoints = if takes { place.addresses.iter().take(2).map(|ip| SocketAddr::new(*ip, JOIN_PORT)).collect() } else { Vec::new() };
        let mut told = Told { beacon, name: place.name.clone(), endpoints, direct: false };
        let says = |told: &Told| (told.beacon.votes, told.beacon.stage, told.beacon.ready, told.endpoints.clone());
        let pause = if beacon.votes.chosen.is_some() { SELDOM } else { OFTEN };
        if self.told.as_ref().is_some_and(|(at, before)| now < *at + pause && says(before) == says(&told)) {
            return None;
        }
        let [group, direct] = nonces.map(|nonce| {
            let datagram = self.key.seal(&told, nonce);
            told.direct = true;
            datagram
        });
        let askers = self.askers(now);
        self.told = Some((now, told));
        Some(Datagrams { group: group?, direct: direct?, askers })
    }

    /// Who is in no cluster is told directly as long as it tells directly. Two nodes that are in one need each other's beacons no more.
    fn askers(&self, now: Duration) -> Vec<IpAddr> {
        let asking = self.direct.iter().filter(|(_, (at, is_settled))| now < *at + SILENCE && !(self.election.is_settled() && *is_settled));
        asking.map(|(from, _)| *from).collect()
    }

    /// What is to be done.
    pub fn next(&mut self, now: Duration) -> Next {
        match self.election.turn(now) {
            Order::Found => Next::Found,
            Order::Lead(_) => Next::Lead,
            Order::Undo => Next::Undo,
            Order::Join(cluster) => {
                let of_cluster = self.present(now).filter(|other| other.told.beacon.votes.chosen == Some(cluster));
                let endpoints: Vec<_> = of_cluster.flat_map(|other| other.told.endpoints.iter().copied()).collect();
                if endpoints.is_empty() {
                    let whose = |other: &Other| format!(", which {} ({}) is in", other.told.name, other.from);
                    let whose = self.present(now).find(|other| other.told.beacon.votes.chosen == Some(cluster)).map(whose).unwrap_or_default();
                    return Next::Wait(self.with_troubles(format!("for a control plane of cluster {}{whose}", cluster.short()), now));
                }
                Next::Join(endpoints, cluster)
            }
            Order::Wait => Next::Wait(self.with_troubles(self.why(now), now)),
        }
    }

    fn why(&self, now: Duration) -> String {
        if let Some(founder) = self.present(now).find(|other| other.told.beacon.stage == Stage::Founding) {
            return format!("for {} ({}), which founds the cluster", founder.told.name, founder.from);
        }
        let (heard, expected) = (self.present(now).count() + 1, self.rules.expected);
        let names: Vec<_> = self.present(now).take(FEW).map(|other| other.told.name.as_str()).collect();
        let names = if names.is_empty() { String::new() } else { format!(" ({}{})", names.join(", "), if heard > FEW + 1 { ", …" } else { "" }) };
        match expected {
            0 if self.rules.peers.is_empty() => "for a cluster of this secret to be heard on the link".into(),
            0 => format!("for a cluster of this secret to be heard on the link or from {}", self.rules.peers.join(", ")),
            _ if heard <= expected / 2 => {
                format!("for other nodes: {} of {} heard{names}, {} make a majority", heard - 1, expected - 1, expected / 2)
            }
            _ => format!("for agreement on a founder with {} of {} other nodes{names}", heard - 1, expected - 1),
        }
    }

    fn with_troubles(&self, text: String, now: Duration) -> String {
        let troubles = self.troubles(now);
        if troubles.is_empty() { text } else { format!("{text}; {}", troubles.join("; ")) }
    }

    /// What should not be, for people.
    pub fn troubles(&self, now: Duration) -> Vec<String> {
        let mut all = Vec::new();
        let recent = || self.refused.iter().filter(|(_, (_, at))| now < *at + SILENCE);
        // A machine is heard by both protocols; its own address says more than that of the link.
        let are_all_of_link = recent().all(|(from, _)| is_of_link(from));
        for (from, (why, _)) in recent().filter(|(from, _)| are_all_of_link || !is_of_link(from)).take(FEW) {
            all.push(match why {
                Refusal::Version(version) => format!("{from} speaks version {version} of beacons, which this node does not"),
                _ => format!("{from} has another cluster secret"),
            });
        }
        if let Some((from, _)) = self.twin.filter(|(_, at)| now < *at + SILENCE) {
            all.push(format!("{from} has this node's machine-id: one machine is a copy of the other"));
        }
        all.extend(self.unknown.iter().take(FEW).map(|name| format!("nodes.peers: {name} has no address")));
        let own = self.election.votes().chosen;
        for other in self.present(now) {
            let (told, from) = (&other.told, other.from);
            if let (Some(own), Some(theirs)) = (own, told.beacon.votes.chosen)
                && own != theirs
            {
                all.push(format!("{} ({from}) is in another cluster of the same secret, {} and not {}", told.name, theirs.short(), own.short()));
            } else if own.is_none() && told.beacon.expected != self.rules.expected && told.beacon.votes.chosen.is_none() {
                all.push(format!("{} ({from}) has nodes.expected {}, this node {}", told.name, told.beacon.expected, self.rules.expected));
            }
        }
        all
    }

    /// How many other nodes are there.
    pub fn heard(&self, now: Duration) -> usize {
        self.present(now).count()
    }

    fn present(&self, now: Duration) -> impl Iterator<Item = &Other> {
        self.others.values().filter(move |other| now < other.at + SILENCE)
    }
}

#[cfg(test)]
mod tests {
    use layers::membership::Secret;
    use layers::units::Digest;

    use super::*;

    /// Nodes of one link, each with a disk of its own.
    struct Site {
        disks: Vec<(tempfile::TempDir, Host)>,
        parts: Vec<Part>,
        /// Whom each knows, where there is no multicast; none where there is.
        peers: Vec<Vec<usize>>,
        now: Duration,
        nonce: u8,
    }

    fn rules(secret: &str, expected: usize) -> Rules {
        let secret = Secret::parse(&format!("{secret}-0123456789abcdefghijklmnopqrstuvwxyz")).unwrap();
        Rules { secret, expected, may_found: true, peers: Vec::new() }
    }

    fn ip(n: usize) -> IpAddr {
        IpAddr::from([10, 0, 0, 1 + n as u8])
    }

    impl Site {
        fn new(rules: &[Rules]) -> Self {
            let mut site = Self { disks: Vec::new(), parts: Vec::new(), peers: Vec::new(), now: Duration::ZERO, nonce: 0 };
            for (n, rules) in rules.iter().enumerate() {
                let dir = tempfile::tempdir().unwrap();
                let host = Host::new(dir.path());
                host.write("etc/machine-id", format!("{:032x}\n", n + 1).as_bytes(), 0o444).unwrap();
                site.parts.push(Part::begin(&host, rules.clone(), site.now).unwrap());
                site.disks.push((dir, host));
            }
            site
        }

        /// A second of all nodes in which nothing is lost.
        fn second(&mut self) {
            self.now += Duration::from_secs(1);
            for from in 0..self.parts.len() {
                self.nonce = self.nonce.wrapping_add(1);
                let place = Place { name: format!("n{from}"), addresses: vec![ip(from)] };
                let takes = self.parts[from].election.votes().made.is_some();
                let datagrams = self.parts[from].tell(&place, takes, [[self.nonce; 24], [self.nonce; 24]], self.now);
                self.parts[from].keep(&self.disks[from].1).unwrap();
                for to in (0..self.parts.len()).filter(|to| *to != from) {
                    let is_told = |datagrams: &Datagrams| {
                        (self.peers[from].contains(&to) || datagrams.askers.contains(&ip(to))).then(|| datagrams.direct.clone())
                    };
                    let datagram =
                        if self.peers.is_empty() { datagrams.as_ref().map(|d| d.group.clone()) } else { datagrams.as_ref().and_then(is_told) };
                    datagram.iter().for_each(|datagram| self.parts[to].hear(datagram, ip(from), self.now));
                    self.parts[to].keep(&self.disks[to].1).unwrap();
                }
            }
        }

        fn seconds(&mut self, count: u64) {
            (0..count).for_each(|_| self.second());
        }

        fn next(&mut self, n: usize) -> Next {
            let next = self.parts[n].next(self.now);
            self.parts[n].keep(&self.disks[n].1).unwrap();
            next
        }

        /// Power off and on.
        fn restart(&mut self, n: usize) {
            let rules = self.parts[n].rules.clone();
            self.parts[n] = Part::begin(&self.disks[n].1, rules, self.now).unwrap();
        }
    }

    #[test]
    fn three_nodes_agree_on_one_founder_and_the_others_join_where_it_says() {
        let mut site = Site::new(&[rules("a", 3), rules("a", 3), rules("a", 3)]);
        assert_eq!(site.next(0), Next::Wait("for other nodes: 0 of 2 heard, 1 make a majority".into()));
        site.seconds(1);
        assert_eq!(site.next(2), Next::Wait("for agreement on a founder with 2 of 2 other nodes (n0, n1)".into()));
        site.seconds(8);
        assert_eq!(site.next(0), Next::Found);
        site.seconds(2);
        assert_eq!(site.next(1), Next::Wait("for n0 (10.0.0.1), which founds the cluster".into()));
        // Whoever restarts has forgotten nothing that counts.
        site.restart(1);
        site.seconds(3);
        assert_eq!(site.next(1), Next::Wait("for n0 (10.0.0.1), which founds the cluster".into()));
        let cluster = Digest::of(b"ca");
        site.parts[0].election.made(cluster);
        site.seconds(4);
        assert_eq!(site.next(0), Next::Lead);
        for n in [1, 2] {
            assert_eq!(site.next(n), Next::Join(vec![SocketAddr::new(ip(0), JOIN_PORT)], cluster));
        }
        site.restart(0);
        assert_eq!(site.next(0), Next::Lead);
        assert!(site.parts.iter().all(|part| part.troubles(site.now).is_empty()));
    }

    #[test]
    fn without_multicast_nodes_that_one_of_them_names_form_one_cluster_and_fall_silent() {
        let mut site = Site::new(&[rules("a", 3), rules("a", 3), rules("a", 3)]);
        site.peers = vec![vec![1, 2], vec![], vec![0]];
        site.seconds(12);
        let founder = (0..3).find(|n| site.next(*n) == Next::Found).unwrap();
        let cluster = Digest::of(b"ca");
        site.parts[founder].election.made(cluster);
        site.seconds(8);
        assert_eq!(site.next(founder), Next::Lead);
        for n in (0..3).filter(|n| *n != founder) {
            assert_eq!(site.next(n), Next::Join(vec![SocketAddr::new(ip(founder), JOIN_PORT)], cluster), "{n}");
        }
        site.parts.iter_mut().for_each(|part| part.election.settle(cluster));
        site.seconds(25);
        assert!(site.parts.iter().all(|part| part.askers(site.now).is_empty()), "nobody waits any more");
        // A beacon from long ago, sent once more from a made-up address.
        let place = Place { name: "n".into(), addresses: vec![ip(1)] };
        let old = Site::new(&[rules("a", 3), rules("a", 3)]).parts[1].tell(&place, false, [[3; 24], [4; 24]], site.now).unwrap();
        site.parts[0].hear(&old.direct, ip(77), site.now);
        assert!(site.parts[0].askers(site.now).is_empty());
    }

    #[test]
    fn f4_f5_another_secret_a_copy_and_another_cluster_are_named() {
        let mut site = Site::new(&[rules("a", 3), rules("a", 3), rules("b", 3), rules("a", 5)]);
        site.seconds(2);
        let named = |site: &Site| site.parts[0].troubles(site.now).join("\n");
        assert_eq!(named(&site), "10.0.0.3 has another cluster secret\nn3 (10.0.0.4) has nodes.expected 5, this node 3");
        assert!(site.parts[2].troubles(site.now).iter().all(|line| line.ends_with("has another cluster secret")));
        // Votes of nodes that count differently make no majority.
        site.seconds(20);
        assert_eq!(site.parts[3].election.votes().promised, None);
        let own = Digest::of(b"one");
        site.parts[0].election.settle(own);
        site.parts[1].election.settle(Digest::of(b"two"));
        site.seconds(6);
        let said = named(&site);
        assert!(said.contains(&format!("n1 (10.0.0.2) is in another cluster of the same secret, {}", Digest::of(b"two").short())), "{said}");
        assert_eq!(site.parts[0].election.votes().chosen, Some(own), "nothing is changed");
        // A copy of the first node's disk.
        let copy = site.disks[0].1.read(&path()).unwrap().unwrap();
        site.disks[1].1.write(&path(), copy.as_bytes(), 0o600).unwrap();
        site.disks[1].1.write("etc/machine-id", format!("{:032x}\n", 1).as_bytes(), 0o444).unwrap();
        site.restart(1);
        site.seconds(1);
        assert!(named(&site).contains("10.0.0.2 has this node's machine-id: one machine is a copy of the other"));
    }

    #[test]
    fn f1_votes_that_cannot_be_read_are_not_taken_for_none() {
        let site = Site::new(&[rules("a", 3)]);
        let host = &site.disks[0].1;
        host.write(&path(), b"{\"starts\":", 0o600).unwrap();
        let error = Part::begin(host, rules("a", 3), site.now).err().unwrap().to_string();
        assert!(error.starts_with("reading /var/lib/chasi-bod/discovery.json"), "{error}");
    }

    #[test]
    fn made_up_senders_fill_no_memory() {
        let mut site = Site::new(&[rules("a", 3)]);
        let stranger = Site::new(&[rules("b", 3)]).parts[0].tell(&Place { name: "x".into(), addresses: Vec::new() }, false, [[9; 24]; 2], site.now);
        for n in 0..10_000u32 {
            site.parts[0].hear(&stranger.as_ref().unwrap().direct, IpAddr::from(n.to_be_bytes()), site.now);
        }
        assert!(site.parts[0].refused.len() <= 64 && site.parts[0].troubles(site.now).len() == FEW);
    }
}
