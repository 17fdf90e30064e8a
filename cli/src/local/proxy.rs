//! A TCP proxy that can be cut, held and slowed, as networks are.

use anyhow::Result;
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

/// What happens to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They pass.
    Pass,
    /// Connections are refused, and those that stand are closed.
    Refuse,
    /// Nothing passes and nothing is closed: a partition.
    Hold,
    /// The same, of what the server sends alone: a partition of one direction.
    HoldAnswers,
    /// They pass late.
    Slow(Duration),
}

/// A proxy on a port of its own. Ends with this value.
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Listens at this machine's address `here`, and passes on to `target`.
    pub async fn start(here: IpAddr, target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((here, 0)).await?;
        let address = listener.local_addr()?;
        let (mode, modes) = watch::channel(Mode::Pass);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, target, modes.clone()));
            }
        });
        Ok(Self { address, mode, _accepting: AbortOnDropHandle::new(accepting) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What happens from now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn connection(client: TcpStream, target: SocketAddr, modes: watch::Receiver<Mode>) {
    let mut refused = modes.clone();
    if *refused.borrow() == Mode::Refuse {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    // Whoever waits for small messages waits for the other side, not for us.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    // What breaks on one side breaks on the other; an end of one direction leaves the other open.
    let both = async {
        tokio::try_join!(
            pass(client_read, server_write, modes.clone(), false),
            pass(server_read, client_write, modes, true)
        )
    };
    tokio::select! {
        _ = both => {}
        _ = refused.wait_for(|mode| *mode == Mode::Refuse) => {}
    }
}

/// Passes one direction on, as the mode of each moment has it.
async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
    answers: bool,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            // The other direction may still have something to say.
            return to.shutdown().await;
        }
        let held = |mode: &Mode| *mode == Mode::Hold || (answers && *mode == Mode::HoldAnswers);
        let Ok(mode) = modes.wait_for(|mode| !held(mode)).await.map(|mode| *mode) else { return Ok(()) };
        if let Mode::Slow(late) = mode {
            tokio::time::sleep(late).await;
        }
        to.write_all(&buffer[..count]).await?;
    }
}
