//! Folders that hold what is durable: made so that they are still there after a power cut, and closed to others.

use std::{
    fs::{DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::Path,
};

/// Who may look into a folder of ours: nobody else.
const PRIVATE: u32 = 0o700;

/// What lies in a data folder of ours.
const OURS: [&str; 5] = ["log", "blobs", "scratch", "identity.json", "authority.pem"];

/// Has the disk take a folder's entries.
///
/// # Errors
/// The disk's.
pub fn sync(folder: &Path) -> io::Result<()> {
    File::open(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?.sync_all()
}

/// Makes a folder, and those above it, durably.
///
/// # Errors
/// The disk's.
pub fn make(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent();
    if let Some(above) = above {
        make_if_named(above)?;
    }
    match DirBuilder::new().mode(PRIVATE).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    above.map_or(Ok(()), sync)
}

fn make_if_named(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() { Ok(()) } else { make(folder) }
}

/// Makes a folder that is closed to others. One of ours that is open is closed, and that is told of.
///
/// # Errors
/// The disk's; or the folder is somebody else's, who could read and change what lies in it.
pub fn make_private(folder: &Path) -> io::Result<()> {
    make(folder)?;
    let found = folder.metadata()?;
    if !found.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a folder"));
    }
    let us = rustix::process::geteuid().as_raw();
    if found.uid() != us {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "it belongs to user {}, and this is user {us}: what is kept there is for its owner alone. Give it to this user (chown), or choose another folder",
                found.uid()
            ),
        ));
    }
    if found.mode() & 0o077 != 0 {
        let is_ours = OURS.iter().any(|name| folder.join(name).exists());
        if !is_ours && std::fs::read_dir(folder)?.next().is_some() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "it is open to others and holds what is not ours: choose a folder for Capstan alone, like a new one in it",
            ));
        }
        tracing::warn!(folder = %folder.display(), mode = format!("{:o}", found.mode() & 0o777), "the data folder was open to others: inputs, outputs and keys lie there. It is closed now (0700)");
        std::fs::set_permissions(folder, Permissions::from_mode(PRIVATE))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_is_closed_to_others() {
        let base = tempfile::tempdir().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        let new = base.path().join("a/b");
        make_private(&new).unwrap();
        assert_eq!(mode(&new), 0o700);
        let open = base.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        make_private(&open).unwrap();
        assert_eq!(mode(&open), 0o700);
        // Others' folders are left as they are.
        let theirs = base.path().join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        std::fs::write(theirs.join("file"), "x").unwrap();
        std::fs::set_permissions(&theirs, Permissions::from_mode(0o1777)).unwrap();
        assert!(make_private(&theirs).unwrap_err().to_string().contains("choose a folder"));
        assert!(make_private(&theirs.join("file")).unwrap_err().to_string().contains("not a folder"));
        assert_eq!((mode(&theirs), mode(&theirs.join("file")) & 0o700), (0o777, 0o600));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&open, Some(65_534), None).unwrap();
            assert!(make_private(&open).unwrap_err().to_string().contains("belongs to user 65534"));
        }
    }
}
