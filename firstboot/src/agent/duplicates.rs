//! Whether somebody else on a link has an IPv4 address of this node: by probes as of RFC 5227 (arping(8)), before a cluster is formed with it.
//!
//! networkd could look as well, but it also takes an address from a node that runs when somebody else comes with the same.

use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use crate::exec;
use crate::host::Host;
use crate::status::Address;

/// Between two looks at an address that somebody else has.
const AGAIN: Duration = Duration::from_secs(30);
/// For a program that its own deadline does not end.
const LIMIT: Duration = Duration::from_secs(10);

/// What is known of the node's addresses.
#[derive(Default)]
pub struct Duplicates {
    addresses: Vec<Address>,
    asking: Option<Receiver<Vec<String>>>,
    asked: Option<Instant>,
    found: Vec<String>,
}

impl Duplicates {
    /// Asks for addresses that are new, and again for ones that somebody else has; never waits.
    pub fn look(&mut self, host: &Host, addresses: &[Address]) {
        match self.asking.as_ref().map(Receiver::try_recv) {
            Some(Ok(found)) => (self.found, self.asking, self.asked) = (found, None, Some(Instant::now())),
            Some(Err(TryRecvError::Disconnected)) => self.asking = None,
            _ => {}
        }
        let is_due = !self.found.is_empty() && self.asked.is_some_and(|at| at.elapsed() >= AGAIN);
        if self.asking.is_some() || self.addresses == addresses && !is_due {
            return;
        }
        self.addresses = addresses.to_vec();
        let (sender, receiver) = channel();
        let (host, addresses) = (host.clone(), self.addresses.clone());
        std::thread::spawn(move || sender.send(addresses.iter().filter_map(|address| owner(&host, address)).collect()));
        self.asking = Some(receiver);
    }

    /// Whether all addresses have been asked for and are this node's alone.
    pub fn are_none(&self) -> bool {
        self.asking.is_none() && self.found.is_empty()
    }

    /// Whose the addresses are that are not this node's alone, for people.
    pub fn found(&self) -> Option<String> {
        (!self.found.is_empty()).then(|| self.found.join(", "))
    }
}

/// Who else answers for an address; what cannot be asked, as IPv6, has its own ways.
fn owner(host: &Host, address: &Address) -> Option<String> {
    let ip = address.address.split('/').next().filter(|ip| ip.parse::<std::net::Ipv4Addr>().is_ok())?;
    let mut command = host.program("arping");
    let said = exec::within(command.args(["-D", "-c", "2", "-w", "2", "-I", &address.interface, ip]), LIMIT, 4096).ok()?;
    Some(format!("{ip} of {} is also in use by {}", address.interface, answered(&String::from_utf8_lossy(&said.output))?))
}

/// The card that answered: `Unicast reply from ADDRESS [MAC]  TIME`. A wrong argument has the same exit code as an answer.
fn answered(said: &str) -> Option<String> {
    let reply = said.lines().find(|line| line.contains(" reply from "))?;
    Some(reply.split_once('[')?.1.split_once(']')?.0.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_from_silence_and_from_what_could_not_be_asked() {
        let answer = "ARPING 10.9.0.1 from 0.0.0.0 lan1\nUnicast reply from 10.9.0.1 [AA:88:7F:BE:75:4C]  0.524ms\nSent 1 probes (1 broadcast(s))\n";
        assert_eq!(answered(answer).as_deref(), Some("aa:88:7f:be:75:4c"));
        assert_eq!(answered("ARPING 10.9.0.7 from 0.0.0.0 lan1\nSent 2 probes (2 broadcast(s))\nReceived 0 response(s)\n"), None);
        assert_eq!(answered("arping: invalid argument: '0.3'\n"), None);
    }

    /// `arping` says what the file `answer` has, and notes for which address; each look is one of the agent's rounds.
    #[test]
    fn f2_an_address_of_somebody_else_is_named_until_it_is_free() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (host, program) = (Host::new(dir.path()), dir.path().join("usr/bin/arping"));
        std::fs::create_dir_all(program.parent().unwrap()).unwrap();
        let answer = dir.path().join("answer");
        std::fs::write(&program, format!("#!/bin/sh\necho $8 >> {0}.asked\ncat {0} 2> /dev/null\n", answer.display())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let addresses = ["10.0.0.5/24", "fd00::5/64"].map(|address| Address { interface: "lan".into(), address: address.into() });
        let settle = |duplicates: &mut Duplicates| {
            duplicates.look(&host, &addresses);
            let end = Instant::now() + LIMIT;
            while duplicates.asking.is_some() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
                duplicates.look(&host, &addresses);
            }
        };
        let mut duplicates = Duplicates::default();
        std::fs::write(&answer, "Unicast reply from 10.0.0.5 [02:00:00:00:00:09]  1ms\n").unwrap();
        duplicates.look(&host, &addresses);
        assert!(!duplicates.are_none(), "nobody knows before the answer");
        settle(&mut duplicates);
        assert_eq!(duplicates.found().as_deref(), Some("10.0.0.5 of lan is also in use by 02:00:00:00:00:09"));
        std::fs::remove_file(&answer).unwrap();
        duplicates.asked = Instant::now().checked_sub(AGAIN);
        settle(&mut duplicates);
        assert!(duplicates.are_none() && duplicates.found().is_none());
        settle(&mut duplicates);
        assert_eq!(
            std::fs::read_to_string(answer.with_extension("asked")).unwrap(),
            "10.0.0.5\n10.0.0.5\n",
            "IPv6 is not asked for, nor a free one again"
        );
    }
}
