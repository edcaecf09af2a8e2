//! The only unsafe code of the node: ioctls that no safe wrapper exists for, and the one thing to do between fork and exec.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};

// --- init: device mapper, partitions, ext4 -----------------------------------------------------------------------------------

/// An ioctl that reads and writes the memory behind one pointer.
struct Pointer {
    opcode: Opcode,
    memory: *mut c_void,
}

// SAFETY: the callers below pass memory of the size that the opcode's argument has, alive for the whole call.
unsafe impl Ioctl for Pointer {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.memory
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// Size of `struct dm_ioctl` (linux/dm-ioctl.h).
pub const DM_HEADER: usize = 312;

/// Runs device-mapper command `number` on a buffer that starts with a `struct dm_ioctl` whose `data_size` is the buffer's length.
pub fn device_mapper(control: impl AsFd, number: u32, buffer: &mut [u8]) -> io::Result<()> {
    assert!(buffer.len() >= DM_HEADER && buffer[12..16] == (buffer.len() as u32).to_ne_bytes(), "not a device-mapper request");
    let opcode = (3 << 30) | ((DM_HEADER as u32) << 16) | (0xfd << 8) | number;
    // SAFETY: the kernel touches at most `data_size` bytes, which is the length of the buffer.
    Ok(unsafe { ioctl(control, Pointer { opcode, memory: buffer.as_mut_ptr().cast() }) }?)
}

/// What the kernel is told about one partition (linux/blkpg.h).
#[derive(Clone, Copy, Debug)]
pub enum PartitionChange {
    /// It is new.
    Add = 1,
    /// It has another size.
    Resize = 3,
}

#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: i32,
    names: [u8; 128],
}

#[repr(C)]
struct BlkpgArgument {
    op: i32,
    flags: i32,
    length: i32,
    data: *mut BlkpgPartition,
}

/// Tells the kernel about a partition without re-reading the table, which works while others are in use; bytes from the disk's start.
pub fn partition(disk: impl AsFd, change: PartitionChange, number: u32, start: u64, length: u64) -> io::Result<()> {
    let mut data = BlkpgPartition { start: start as i64, length: length as i64, number: number as i32, names: [0; 128] };
    let mut argument = BlkpgArgument { op: change as i32, flags: 0, length: size_of::<BlkpgPartition>() as i32, data: &raw mut data };
    // SAFETY: both structures have the layout of linux/blkpg.h and outlive the call.
    Ok(unsafe { ioctl(disk, Pointer { opcode: 0x1269, memory: (&raw mut argument).cast() }) }?)
}

/// How a loop device is made (LO_FLAGS_*, linux/loop.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    /// Read-only, until nobody has it open any more.
    Once = 1 | 4,
    /// With partitions, until it is taken down.
    Disk = 8,
}

/// Makes a file the content of a loop device (LOOP_CONFIGURE).
pub fn attach_loop(device: impl AsFd, file: &File, kind: Loop) -> io::Result<()> {
    // `struct loop_config`: descriptor, block size, `struct loop_info64` of 232 bytes with its flags at 52, 64 bytes kept free.
    let mut config = [0_u8; 304];
    config[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
    config[4..8].copy_from_slice(&512_u32.to_ne_bytes());
    config[60..64].copy_from_slice(&(kind as u32).to_ne_bytes());
    // SAFETY: the argument has the structure's size; the kernel only reads it.
    Ok(unsafe { ioctl(device, Pointer { opcode: 0x4c0a, memory: config.as_mut_ptr().cast() }) }?)
}

/// Grows a mounted ext4 to `blocks` of its blocks (EXT4_IOC_RESIZE_FS); `mounted` is any folder in it.
pub fn resize_ext4(mounted: impl AsFd, mut blocks: u64) -> io::Result<()> {
    let opcode = (1 << 30) | (8 << 16) | ((b'f' as u32) << 8) | 16;
    // SAFETY: the argument is one 64-bit number.
    Ok(unsafe { ioctl(mounted, Pointer { opcode, memory: (&raw mut blocks).cast() }) }?)
}

/// Makes a command run with `root` as its root folder.
pub fn enter_root(command: &mut Command, root: &Path) {
    let root: PathBuf = root.into();
    // SAFETY: between fork and exec only two system calls are made; the path was allocated before.
    unsafe {
        command.pre_exec(move || {
            rustix::process::chroot(&root)?;
            rustix::process::chdir("/")?;
            Ok(())
        });
    }
}
