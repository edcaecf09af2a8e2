//! Where beacons are sent and heard: one multicast group of IPv4 and one of IPv6 on the link of the node's first address, and single nodes anywhere.

use std::io::Result;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::beacon::LONGEST;

/// UDP port of beacons.
pub const PORT: u16 = 6444;
/// Of the range that no router passes on (RFC 2365, section 6.1).
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(239, 255, 64, 44);
/// Transient, of one link (RFC 4291, section 2.7).
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0x6368, 0x6264);

/// The sockets of one link; a protocol that the link does not have is missing.
pub struct Link {
    v4: Option<UdpSocket>,
    v6: Option<(UdpSocket, u32)>,
}

impl Link {
    /// Joins the groups; `index` is the number of the network device, `address` one of its IPv4 addresses. To be called in a runtime.
    pub fn open(index: u32, address: Option<Ipv4Addr>) -> Result<Self> {
        let v4 = address.map(open_v4).transpose();
        let v6 = open_v6(index).map(|socket| (socket, index));
        match (v4, v6) {
            (Err(error), Err(_)) | (Ok(None), Err(error)) => Err(error),
            (v4, v6) => Ok(Self { v4: v4.ok().flatten(), v6: v6.ok() }),
        }
    }

    /// Sends a datagram to both groups; the error is that of the last protocol when none has taken it.
    pub async fn send(&self, datagram: &[u8]) -> Result<()> {
        let mut sent = Err(std::io::ErrorKind::NotConnected.into());
        if let Some((socket, index)) = &self.v6 {
            sent = socket.send_to(datagram, SocketAddrV6::new(GROUP_V6, PORT, 0, *index)).await;
        }
        if let Some(socket) = &self.v4 {
            sent = socket.send_to(datagram, (GROUP_V4, PORT)).await.or(sent);
        }
        sent.map(|_| ())
    }

    /// Sends a datagram to one node.
    pub async fn send_to(&self, datagram: &[u8], to: IpAddr) -> Result<()> {
        let socket = match to {
            IpAddr::V4(_) => self.v4.as_ref(),
            IpAddr::V6(_) => self.v6.as_ref().map(|(socket, _)| socket),
        };
        socket.ok_or(std::io::ErrorKind::NotConnected)?.send_to(datagram, (to, PORT)).await.map(drop)
    }

    /// The next datagram and who has sent it.
    pub async fn receive(&self) -> Result<(Vec<u8>, SocketAddr)> {
        // One byte more than any beacon has tells what is longer.
        let mut buffers = [[0; LONGEST + 1]; 2];
        let [first, second] = &mut buffers;
        let (length, from, buffer) = tokio::select! {
            Some(got) = receive(self.v4.as_ref(), first) => { let (length, from) = got?; (length, from, &*first) }
            Some(got) = receive(self.v6.as_ref().map(|(socket, _)| socket), second) => { let (length, from) = got?; (length, from, &*second) }
        };
        Ok((buffer[..length].to_vec(), from))
    }
}

/// Waits for ever where there is no socket.
async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> Option<Result<(usize, SocketAddr)>> {
    match socket {
        Some(socket) => Some(socket.recv_from(buffer).await),
        None => std::future::pending().await,
    }
}

fn open_v4(address: Ipv4Addr) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())?;
    socket.join_multicast_v4(&GROUP_V4, &address)?;
    socket.set_multicast_if_v4(&address)?;
    socket.set_multicast_loop_v4(false)?;
    finish(socket)
}

fn open_v6(index: u32) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)).into())?;
    socket.join_multicast_v6(&GROUP_V6, index)?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_loop_v6(false)?;
    finish(socket)
}

fn finish(socket: Socket) -> Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}
