//! The only place with `unsafe`: system calls whose safety the caller's circumstances must grant.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::UnshareFlags;

/// Moves this process into new user, mount, pid (for its children), network, host name and IPC namespaces; refused while other threads run.
pub fn unshare() -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("other threads run"));
    }
    let flags =
        UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWNET | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    // SAFETY: what makes it unsafe is sharing the file table or the working directory with other threads; there is only this one.
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    Ok(())
}

/// A child of this command is told to end (SIGTERM) when the thread that starts it ends, however that comes about.
pub fn end_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only one system call is made, which takes plain numbers.
    unsafe { command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?)) };
}

/// Lets this process and its children's requests to flush to disk succeed without doing anything: a scratch root need not survive a power cut,
/// and flushing is most of what dpkg waits for. Needs to be root of the user namespace.
#[cfg(target_arch = "x86_64")]
pub fn ignore_flushes() -> io::Result<()> {
    const CALLS: [i64; 6] = [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync, libc::SYS_syncfs, libc::SYS_sync_file_range, libc::SYS_msync];
    const ARCH_X86_64: u32 = 0xC000_003E;
    let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, equal, answer) =
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::BPF_RET | libc::BPF_K);
    // struct seccomp_data: the call's number at 0, the architecture at 4.
    let mut filter = vec![op(load, 4, 0, 0), op(equal, ARCH_X86_64, 1, 0), op(answer, libc::SECCOMP_RET_ALLOW, 0, 0), op(load, 0, 0, 0)];
    for (i, call) in CALLS.iter().enumerate() {
        filter.push(op(equal, *call as u32, (CALLS.len() - i) as u8, 0));
    }
    filter.extend([op(answer, libc::SECCOMP_RET_ALLOW, 0, 0), op(answer, libc::SECCOMP_RET_ERRNO, 0, 0)]);
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which lives until after the call; the other arguments are plain numbers.
    let failed = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// On other machines flushing stays.
#[cfg(not(target_arch = "x86_64"))]
pub fn ignore_flushes() -> io::Result<()> {
    Ok(())
}
