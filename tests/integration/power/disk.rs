//! A disk that keeps what was synced. What was not is kept or lost by chance when the power is cut, page by page, as a kernel may
//! have written it back or not.

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, WriteFlags,
};
use rand::{Rng, rngs::StdRng};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Nothing is remembered by the kernel: after a cut it would remember what is gone.
const TTL: Duration = Duration::ZERO;
const PAGE: usize = 4096;
/// The size that the disk says it has.
const BLOCKS: u64 = 1 << 20;

type Entries = BTreeMap<OsString, u64>;

enum Kind {
    /// Its bytes, those that are synced, and the pages in which they differ.
    File {
        live: Vec<u8>,
        synced: Vec<u8>,
        dirty: BTreeSet<usize>,
    },
    Folder {
        live: Entries,
        synced: Entries,
    },
    Other(FileType),
}

struct Node {
    kind: Kind,
    perm: u16,
    links: u32,
}

struct State {
    nodes: BTreeMap<u64, Node>,
    next: u64,
}

/// A mounted disk.
pub struct Disk {
    state: Arc<Mutex<State>>,
    _session: BackgroundSession,
}

impl Disk {
    /// Mounts an empty disk.
    pub fn mount(at: &Path) -> std::io::Result<Self> {
        let root = Node { kind: Kind::folder(), perm: 0o755, links: 2 };
        let state = Arc::new(Mutex::new(State { nodes: BTreeMap::from([(INodeNo::ROOT.0, root)]), next: 2 }));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("power".into())];
        let session = fuser::spawn_mount(Shared(state.clone()), at, &config)?;
        Ok(Self { state, _session: session })
    }

    /// Cuts the power: nobody may have a file of it open any more.
    pub fn cut(&self, rng: &mut StdRng) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for node in state.nodes.values_mut() {
            match &mut node.kind {
                Kind::File { live, synced, dirty } => {
                    for page in std::mem::take(dirty) {
                        if rng.random_bool(0.5) {
                            continue;
                        }
                        // Half of the pages that were on their way are torn.
                        let length = if rng.random_bool(0.5) { PAGE } else { rng.random_range(1..8) * 512 };
                        write_back(live, synced, page, length);
                    }
                    live.clone_from(synced);
                }
                Kind::Folder { live, synced } => {
                    if rng.random_bool(0.5) {
                        synced.clone_from(live);
                    }
                    live.clone_from(synced);
                }
                Kind::Other(_) => {}
            }
        }
    }
}

fn write_back(live: &[u8], synced: &mut Vec<u8>, page: usize, length: usize) {
    let (from, to) = (page * PAGE, (page * PAGE + length).min(live.len()));
    if from < to {
        if synced.len() < to {
            synced.resize(to, 0);
        }
        synced[from..to].copy_from_slice(&live[from..to]);
    }
}

impl Kind {
    fn folder() -> Self {
        Self::Folder { live: Entries::new(), synced: Entries::new() }
    }

    fn file() -> Self {
        Self::File { live: Vec::new(), synced: Vec::new(), dirty: BTreeSet::new() }
    }

    fn file_type(&self) -> FileType {
        match self {
            Self::File { .. } => FileType::RegularFile,
            Self::Folder { .. } => FileType::Directory,
            Self::Other(kind) => *kind,
        }
    }

    fn resize(&mut self, size: usize) {
        if let Self::File { live, dirty, .. } = self {
            let (least, most) = (live.len().min(size), live.len().max(size));
            live.resize(size, 0);
            dirty.extend(least / PAGE..=most / PAGE);
        }
    }

    fn sync(&mut self) {
        match self {
            Self::File { live, synced, dirty } => {
                synced.resize(live.len(), 0);
                for page in std::mem::take(dirty) {
                    write_back(live, synced, page, PAGE);
                }
            }
            Self::Folder { live, synced } => synced.clone_from(live),
            Self::Other(_) => {}
        }
    }
}

impl State {
    fn node(&mut self, ino: INodeNo) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&ino.0).ok_or(Errno::ENOENT)
    }

    fn entries(&mut self, folder: INodeNo) -> Result<&mut Entries, Errno> {
        match &mut self.node(folder)?.kind {
            Kind::Folder { live, .. } => Ok(live),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn attr(&mut self, ino: INodeNo) -> Result<FileAttr, Errno> {
        let node = self.node(ino)?;
        let size = if let Kind::File { live, .. } = &node.kind { live.len() as u64 } else { 0 };
        Ok(FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: node.kind.file_type(),
            perm: node.perm,
            nlink: node.links,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            rdev: 0,
            blksize: PAGE as u32,
            flags: 0,
        })
    }

    fn add(&mut self, parent: INodeNo, name: &OsStr, kind: Kind, mode: u32) -> Result<FileAttr, Errno> {
        let ino = self.next;
        let entries = self.entries(parent)?;
        if entries.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        entries.insert(name.into(), ino);
        self.next += 1;
        self.nodes.insert(ino, Node { kind, perm: (mode & 0o7777) as u16, links: 1 });
        self.attr(INodeNo(ino))
    }

    fn find(&mut self, parent: INodeNo, name: &OsStr) -> Result<INodeNo, Errno> {
        self.entries(parent)?.get(name).map(|ino| INodeNo(*ino)).ok_or(Errno::ENOENT)
    }

    /// Takes a name away. The file stays: a cut may bring its name back.
    fn remove(&mut self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let found = self.find(parent, name)?;
        if let Kind::Folder { live, .. } = &self.node(found)?.kind
            && !live.is_empty()
        {
            return Err(Errno::ENOTEMPTY);
        }
        self.entries(parent)?.remove(name);
        Ok(())
    }
}

struct Shared(Arc<Mutex<State>>);

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry(reply: ReplyEntry, found: Result<FileAttr, Errno>) {
    match found {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn empty(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Shared {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.state();
        let found = state.find(parent, name).and_then(|ino| state.attr(ino));
        entry(reply, found);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.state().attr(ino) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<fuser::TimeOrNow>,
        _: Option<fuser::TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.state();
        let changed = state.node(ino).map(|node| {
            if let Some(mode) = mode {
                node.perm = (mode & 0o7777) as u16;
            }
            if let Some(size) = size {
                node.kind.resize(size as usize);
            }
        });
        match changed.and_then(|()| state.attr(ino)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: u32, reply: ReplyEntry) {
        let kind = match mode & 0o170_000 {
            0o140_000 => Kind::Other(FileType::Socket),
            0o010_000 => Kind::Other(FileType::NamedPipe),
            _ => Kind::file(),
        };
        entry(reply, self.state().add(parent, name, kind, mode));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        entry(reply, self.state().add(parent, name, Kind::folder(), mode));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.state().remove(parent, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.state().remove(parent, name));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut state = self.state();
        let moved = state.find(parent, name).and_then(|ino| {
            state.entries(to)?.insert(new.into(), ino.0);
            state.entries(parent)?.remove(name);
            Ok(())
        });
        empty(reply, moved);
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.state();
        let taken = state.find(parent, name).is_ok();
        let linked = if taken { Err(Errno::EEXIST) } else { state.entries(parent).map(drop) }.and_then(|()| {
            state.entries(parent)?.insert(name.into(), ino.0);
            state.node(ino)?.links += 1;
            state.attr(ino)
        });
        entry(reply, linked);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        match self.state().add(parent, name, Kind::file(), mode) {
            Ok(attr) => reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.state().node(ino).map(|node| &node.kind) {
            Ok(Kind::File { live, .. }) => {
                let from = (offset as usize).min(live.len());
                reply.data(&live[from..(from + size as usize).min(live.len())]);
            }
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.state().node(ino).map(|node| &mut node.kind) {
            Ok(Kind::File { live, dirty, .. }) => {
                let (from, to) = (offset as usize, offset as usize + data.len());
                if live.len() < to {
                    live.resize(to, 0);
                }
                live[from..to].copy_from_slice(data);
                dirty.extend(from / PAGE..to.div_ceil(PAGE));
                reply.written(data.len() as u32);
            }
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(reply, self.state().node(ino).map(|node| node.kind.sync()));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(reply, self.state().node(ino).map(|node| node.kind.sync()));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut state = self.state();
        let entries: Vec<(OsString, u64)> = match state.entries(ino) {
            Ok(entries) => entries.iter().map(|(name, ino)| (name.clone(), *ino)).collect(),
            Err(error) => return reply.error(error),
        };
        for (n, (name, ino)) in entries.into_iter().enumerate().skip(offset as usize) {
            let Ok(node) = state.node(INodeNo(ino)) else { continue };
            if reply.add(INodeNo(ino), n as u64 + 1, node.kind.file_type(), name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCKS, PAGE as u32, 255, PAGE as u32);
    }
}
