//! Folders of functions' users: a volume belongs to its namespace's user.

use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, fchown, fstat, open, openat},
    io::Errno,
};
use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

/// Folders within folders that are followed.
const DEPTH_MAX: usize = 256;

/// Gives a folder and all in it to a user, unless it is theirs already. Links are not followed: whoever filled the folder may have
/// laid them.
///
/// # Errors
/// It cannot be read or given away.
pub fn give(folder: &Path, user: u32) -> std::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = open(folder, flags, Mode::empty())?;
    if fstat(&top)?.st_uid == user {
        return Ok(());
    }
    let mut given = 0;
    give_inside(&top, user, DEPTH_MAX, &mut given)?;
    // Last: an interrupted gift begins anew.
    fchown(&top, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?;
    if given > 0 {
        tracing::warn!(folder = %folder.display(), user, files = given, "a volume now belongs to its namespace's user");
    }
    Ok(())
}

fn give_inside(folder: &OwnedFd, user: u32, depth: usize, given: &mut u64) -> std::io::Result<()> {
    if depth == 0 {
        return Err(std::io::Error::other(format!("its folders lie more than {DEPTH_MAX} deep")));
    }
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(folder, name, flags, Mode::empty()) {
                Ok(inner) => give_inside(&inner, user, depth - 1, given)?,
                // Replaced just now: what it is now is given below.
                Err(Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (uid, gid) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(user)));
        match chownat(folder.as_fd(), name, uid, gid, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) => *given += 1,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
