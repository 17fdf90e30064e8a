//! Whose the other end of a connection on this machine is.
//!
//! On an open scheduler whoever reaches the door is the operator. Functions of this machine reach it too: the kernel says which user
//! made the socket at the other end (`sock_diag(7)`), and functions have users of their own.

use actix_web::HttpRequest;
use capstan_common::users::Users;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{SOCK_DIAG, SocketAddrNetlink},
    recv, sendto, socket_with,
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::OnceLock,
};

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST` of linux/netlink.h.
const REQUEST: u16 = 1;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// Bytes of a netlink header and of `struct inet_diag_req_v2` behind it.
const ASK_BYTES: usize = 16 + 56;
/// Where an answer, `struct inet_diag_msg` behind a header, has the socket's user and inode.
const USER_AT: usize = 80;
/// See there.
const INODE_AT: usize = 84;

/// What is known of a connection's other end: its user, once the kernel was asked.
#[derive(Default)]
pub struct Known(OnceLock<Option<u32>>);

/// Who is at the other end.
#[derive(Debug, PartialEq, Eq)]
pub enum Peer {
    /// Nobody whose rights are less than those of whoever may connect.
    Anybody,
    /// A function.
    Function,
    /// The kernel does not say: it has gone already.
    Unknown,
}

/// Who sent a request, where functions have these users. The kernel is asked once for each connection.
pub fn of(request: &HttpRequest, users: &Users) -> Peer {
    let asked = || user_of(request.peer_addr()?, request.app_config().local_addr()).ok().flatten();
    // A connection that nothing is known of is not one of ours.
    judged(request.conn_data::<Known>().and_then(|known| *known.0.get_or_init(asked)), users)
}

/// Who is at the other end of a connection, where functions have these users.
pub fn behind(theirs: SocketAddr, ours: SocketAddr, users: &Users) -> Peer {
    judged(user_of(theirs, ours).ok().flatten(), users)
}

fn judged(user: Option<u32>, users: &Users) -> Peer {
    match user {
        Some(user) if users.contains(user) => Peer::Function,
        Some(_) => Peer::Anybody,
        None => Peer::Unknown,
    }
}

/// The user of this machine who made the socket `local`, which is connected to `remote`; none if there is no such socket, or
/// nobody holds it any more: then the kernel has forgotten whose it was.
fn user_of(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let asking = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(SOCK_DIAG))?;
    sendto(&asking, &question(local, remote), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0u8; 1024];
    // The kernel answers before the call above comes back.
    let (read, _) = recv(&asking, &mut answer[..], RecvFlags::DONTWAIT)?;
    Ok(user_in(&answer[..read]))
}

fn question(local: SocketAddr, remote: SocketAddr) -> [u8; ASK_BYTES] {
    let family = if local.ip().to_canonical().is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let mut ask = [0u8; ASK_BYTES];
    let mut put = |at: usize, bytes: &[u8]| ask[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(ASK_BYTES as u32).to_ne_bytes());
    put(4, &BY_FAMILY.to_ne_bytes());
    put(6, &REQUEST.to_ne_bytes());
    put(16, &[family.as_raw() as u8, TCP]);
    // In any state.
    put(20, &u32::MAX.to_ne_bytes());
    put(24, &local.port().to_be_bytes());
    put(26, &remote.port().to_be_bytes());
    put(28, &address(local.ip()));
    put(44, &address(remote.ip()));
    // No cookie: any socket with these addresses.
    put(64, &[0xff; 8]);
    ask
}

fn address(ip: IpAddr) -> Vec<u8> {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn user_in(answer: &[u8]) -> Option<u32> {
    let number = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let held = kind == BY_FAMILY && number(INODE_AT)? != 0;
    if held { number(USER_AT) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_kernel_says_whose_a_local_socket_is_and_forgets_it_when_nobody_holds_it() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(loopback) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let (_server, _) = listener.accept().unwrap();
            let own = rustix::process::getuid().as_raw();
            assert_eq!(user_of(local, remote).unwrap(), Some(own), "{loopback}");
            drop(client);
            assert_eq!(user_of(local, remote).ok().flatten(), None, "{loopback}");
        }
    }
}
