//! A file of the log as the disk has it. What was written is durable only after a sync that succeeded: a kernel that could not
//! write pages may forget that they are dirty, so that a later sync succeeds without them.

use std::{fs::File, io, os::unix::fs::FileExt};

/// An open file.
#[derive(Debug)]
pub struct Disk {
    file: File,
    /// In tests: what a power cut would leave of it.
    #[cfg(test)]
    pages: super::power::Shared,
}

impl Disk {
    /// Over a file whose content is durable.
    pub fn of(file: File) -> Self {
        Self {
            #[cfg(test)]
            pages: super::power::pages_of(&file),
            file,
        }
    }

    /// What a power cut would leave of it.
    #[cfg(test)]
    pub fn pages(&self) -> &super::power::Shared {
        &self.pages
    }

    /// Writes all of `bytes` at an offset.
    pub fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        #[cfg(test)]
        self.pages.lock().unwrap().write(&self.file, bytes.len() as u64, at)?;
        self.file.write_all_at(bytes, at)
    }

    /// Has the disk take what was written.
    pub fn sync_data(&self) -> io::Result<()> {
        #[cfg(test)]
        self.pages.lock().unwrap().sync()?;
        self.file.sync_data()
    }

    /// Reads exactly so many bytes at an offset.
    pub fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    /// Reads as many bytes as there are.
    pub fn read_some_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        let mut got = 0;
        while got < bytes.len() {
            match self.file.read_at(&mut bytes[got..], at + got as u64)? {
                0 => break,
                n => got += n,
            }
        }
        Ok(got)
    }

    /// Its length.
    pub fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}
