//! Addresses of the running machine by one netlink dump (rtnetlink(7), RTM_GETADDR).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::config;
use crate::host::Host;
use crate::platform::POOL_DEVICE;
use crate::status::Address;

const GET_ADDRESS: u16 = 22;
const NEW_ADDRESS: u16 = 20;
const REQUEST_AND_DUMP: u16 = 0x301;

/// Addresses that others can reach, in the kernel's order, without the one that goes from control plane to control plane; a folder has none.
pub fn list(host: &Host) -> Vec<Address> {
    if !host.is_live() {
        return Vec::new();
    }
    let goes = config::published(host).and_then(|settings| settings.shared_address());
    // The node's own dummy, the one with what Services are reached by, and the bridge and ends of its pods.
    let is_inside = |name: &str| ["node0", POOL_DEVICE].contains(&name) || name.starts_with("cni") || name.starts_with("veth");
    let reachable = dump().unwrap_or_default().into_iter().filter(|(_, ip, _)| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    });
    let names = host.names("sys/class/net");
    let name = |index: u32| names.iter().find(|name| host.line(&format!("sys/class/net/{name}/ifindex")) == index.to_string()).cloned();
    let all = reachable
        .filter(|(_, ip, _)| Some(*ip) != goes)
        .map(|(index, ip, prefix)| Address { interface: name(index).unwrap_or_default(), address: format!("{ip}/{prefix}") });
    all.filter(|address| !is_inside(&address.interface)).collect()
}

fn dump() -> rustix::io::Result<Vec<(u32, IpAddr, u8)>> {
    // Protocol 0 of this family is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let mut request = Vec::new();
    request.extend(24u32.to_ne_bytes());
    request.extend(GET_ADDRESS.to_ne_bytes());
    request.extend(REQUEST_AND_DUMP.to_ne_bytes());
    request.extend([0; 16]);
    send(&socket, &request, SendFlags::empty())?;
    let (mut found, mut buffer) = (Vec::new(), vec![0; 32 << 10]);
    loop {
        let (_, length) = recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((kind, body, next)) = message(rest) {
            match kind {
                NEW_ADDRESS => found.extend(address(body)),
                _ => return Ok(found),
            }
            rest = next;
        }
    }
}

/// Type, body and what follows of the first message.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(16..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Interface index, address and prefix length of a struct ifaddrmsg with its attributes.
fn address(body: &[u8]) -> Option<(u32, IpAddr, u8)> {
    let (prefix, index) = (*body.get(1)?, u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?));
    let (mut rest, mut found) = (body.get(8..)?, None);
    while let Some(header) = rest.get(..4) {
        let (length, kind) = (usize::from(u16::from_ne_bytes([header[0], header[1]])), u16::from_ne_bytes([header[2], header[3]]));
        let value = rest.get(4..length)?;
        let ip = <[u8; 4]>::try_from(value).map(|v| IpAddr::V4(Ipv4Addr::from(v)));
        let ip = ip.or_else(|_| <[u8; 16]>::try_from(value).map(|v| IpAddr::V6(Ipv6Addr::from(v))));
        // IFA_LOCAL (2) is the own address of a point-to-point link, IFA_ADDRESS (1) then the other end's.
        match kind {
            2 => found = ip.ok().or(found),
            1 => found = found.or(ip.ok()),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found.map(|ip| (index, ip, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_names_loopback_and_cut_messages_are_survived() {
        let found = dump().unwrap();
        assert!(found.iter().any(|(_, ip, prefix)| *ip == IpAddr::V4(Ipv4Addr::LOCALHOST) && *prefix == 8), "{found:?}");
        let body = [2, 8, 0, 0, 1, 0, 0, 0, 8, 0, 1, 0, 127, 0, 0, 1];
        assert_eq!(address(&body).unwrap().1, IpAddr::V4(Ipv4Addr::LOCALHOST));
        (0..body.len()).for_each(|n| _ = address(&body[..n]));
    }
}
