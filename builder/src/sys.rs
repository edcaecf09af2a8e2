//! The only place with `unsafe`: system calls whose safety the caller's circumstances must grant.
#![allow(unsafe_code)]

use std::io;

use rustix::thread::UnshareFlags;

/// Moves this process into new user, mount, pid (for its children), network, host name and IPC namespaces; refused while other threads run.
pub fn unshare() -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("other threads run"));
    }
    let flags = UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWNET | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    // SAFETY: what makes it unsafe is sharing the file table or the working directory with other threads; there is only this one.
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    Ok(())
}
