//! Capabilities: the parts of root's power that a process keeps.
//!
//! Trust:   nobody; sets are constants of this program and what the kernel says this thread has.
//! Never:   more than a process has; a set that a program started later could fill up again (the bounding set shrinks too).
//! Source:  capabilities(7), capset(2).

#![allow(unsafe_code)]

use std::io;

use serde::{Deserialize, Serialize};

macro_rules! capabilities {
    ($($(#[$doc:meta])* $name:ident = $number:literal $text:literal,)*) => {
        /// One capability, as far as Postern has a use for it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[repr(u8)]
        pub enum Capability {
            $($(#[$doc])* #[serde(rename = $text)] $name = $number,)*
        }

        impl Capability {
            /// All of them.
            pub const ALL: &'static [Capability] = &[$(Capability::$name),*];

            /// As capabilities(7) writes it, in small letters and without `CAP_`.
            pub fn name(self) -> &'static str {
                match self { $(Capability::$name => $text,)* }
            }
        }
    };
}

capabilities! {
    /// Change the owner of files.
    Chown = 0 "chown",
    /// Read, write and enter whatever the modes say.
    DacOverride = 1 "dac_override",
    /// Read and enter whatever the modes say.
    DacReadSearch = 2 "dac_read_search",
    /// Change modes and times of files of others.
    Fowner = 3 "fowner",
    /// Signal processes of others.
    Kill = 5 "kill",
    /// Change group ids.
    Setgid = 6 "setgid",
    /// Change user ids.
    Setuid = 7 "setuid",
    /// Take capabilities out of the bounding set.
    Setpcap = 8 "setpcap",
    /// Bind ports below 1024.
    NetBindService = 10 "net_bind_service",
    /// Go beyond hard limits.
    SysResource = 24 "sys_resource",
    /// Write records to the audit log (PAM modules).
    AuditWrite = 29 "audit_write",
}

/// A set as the kernel writes it.
fn mask(kept: &[Capability]) -> u64 {
    kept.iter().fold(0, |all, one| all | 1 << (*one as u8))
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Part {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The sets of this thread, the lower half first.
fn sets() -> io::Result<[Part; 2]> {
    let mut header = Header { version: VERSION, pid: 0 };
    let mut parts = [Part::default(); 2];
    // SAFETY: version 3 fills exactly two parts, and both structures live until after the call.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, parts.as_mut_ptr()) };
    if done == 0 { Ok(parts) } else { Err(io::Error::last_os_error()) }
}

fn permitted([low, high]: &[Part; 2]) -> u64 {
    u64::from(high.permitted) << 32 | u64::from(low.permitted)
}

/// Takes everything but `kept` out of the bounding set, so that no program started from here gets it. Without the right to do so
/// (not root) nothing is taken, and nothing could be gained either.
///
/// # Errors
/// The kernel refuses although the right is there.
pub fn bound(kept: &[Capability]) -> io::Result<()> {
    if permitted(&sets()?) & mask(&[Capability::Setpcap]) == 0 {
        return Ok(());
    }
    let kept = mask(kept);
    for number in 0..64_u64 {
        // SAFETY: plain numbers; the kernel answers -1 for a capability it does not know.
        let there = unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) };
        if there < 0 {
            break;
        }
        if there == 1 && kept >> number & 1 == 0 {
            // SAFETY: plain numbers.
            let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
            if done != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Keeps of the own capabilities only these; what is not there is not gained. Nothing is inherited by other programs beyond what
/// their uid gives them.
///
/// # Errors
/// The kernel refuses.
pub fn keep(kept: &[Capability]) -> io::Result<()> {
    // SAFETY: plain numbers; ambient capabilities do not exist before Linux 4.3, where the call fails and nothing is lost.
    let _ = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    let before = sets()?;
    let set = permitted(&before) & mask(kept);
    let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
    let part = |bits: u32| Part { effective: bits, permitted: bits, inheritable: 0 };
    let mut header = Header { version: VERSION, pid: 0 };
    let parts = [part(half(set)), part(half(set >> 32))];
    // A filter of the service manager's may refuse the call itself.
    if parts == before {
        return Ok(());
    }
    // SAFETY: version 3 reads exactly two parts, and both structures live until after the call.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, parts.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_this_thread(field: &str) -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    }

    #[test]
    fn what_is_dropped_stays_dropped() {
        // Capabilities belong to threads.
        let work = || {
            let kept = [Capability::Setuid, Capability::Setpcap];
            let before = of_this_thread("CapPrm:");
            bound(&kept).unwrap();
            keep(&kept).unwrap();
            assert_eq!(of_this_thread("CapPrm:"), before & mask(&kept));
            assert_eq!(of_this_thread("CapEff:"), before & mask(&kept));
            assert_eq!(of_this_thread("CapInh:"), 0);
            assert_eq!(of_this_thread("CapAmb:"), 0);
            if before & mask(&[Capability::Setpcap]) != 0 {
                assert_eq!(of_this_thread("CapBnd:"), mask(&kept));
            }
            keep(&[]).unwrap();
            assert_eq!(of_this_thread("CapPrm:"), 0);
            keep(&kept).unwrap();
            assert_eq!(of_this_thread("CapPrm:"), 0);
            // Nothing to give up needs no right to.
            nix::sys::prctl::set_no_new_privs().unwrap();
            crate::seccomp::restrict(crate::seccomp::Profile::Front, crate::seccomp::Mode::On).unwrap();
            keep(&[]).unwrap();
        };
        std::thread::scope(|scope| scope.spawn(work).join().unwrap());
    }

    #[test]
    fn names_and_numbers() {
        for one in Capability::ALL {
            assert_eq!(serde_json::to_value(one).unwrap(), one.name());
        }
        assert_eq!(mask(&[Capability::Chown, Capability::Setuid]), 0x81);
    }
}
