//! Frames between worker, launcher and inits: a length, JSON, and descriptors beside them.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

/// Bytes of a frame's length.
const HEAD: usize = 4;
/// Descriptors that may come with a frame.
const DESCRIPTORS: usize = 4;
/// The longest frame that a launcher or an init takes: a function's command and environment.
pub const ASK_MAX: usize = 16 << 20;
/// The longest frame that a worker takes from an init, which says what its function likes.
pub const ANSWER_MAX: usize = 16 << 10;

/// Sends a frame.
///
/// # Errors
/// Nobody listens, or (with `now`) there is no room.
pub fn send(mut socket: &UnixStream, what: &impl Serialize, fds: &[BorrowedFd<'_>], now: bool) -> io::Result<()> {
    let mut frame = vec![0; HEAD];
    serde_json::to_writer(&mut frame, what)?;
    let length = u32::try_from(frame.len() - HEAD).map_err(io::Error::other)?;
    frame[..HEAD].copy_from_slice(&length.to_le_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        beside.push(SendAncillaryMessage::ScmRights(fds));
    }
    let mut flags = SendFlags::NOSIGNAL;
    flags.set(SendFlags::DONTWAIT, now);
    let sent = sendmsg(socket, &[IoSlice::new(&frame)], &mut beside, flags)?;
    socket.write_all(&frame[sent..])
}

/// Receives a frame of at most `most` bytes, and what came with it; none at the end.
///
/// # Errors
/// It is longer, is none, or breaks off.
pub fn receive<T: DeserializeOwned>(mut socket: &UnixStream, most: usize) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut head = [0; HEAD];
    let mut fds = Vec::new();
    let read = receive_with_fds(socket, &mut head, &mut fds)?;
    if read == 0 {
        return Ok(None);
    }
    socket.read_exact(&mut head[read..])?;
    let length = u32::from_le_bytes(head) as usize;
    if length > most {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("a frame of {length} bytes, {most} are allowed")));
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, fds)))
}

fn receive_with_fds(socket: &UnixStream, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut beside, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok(received.bytes)
}
