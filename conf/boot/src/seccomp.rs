//! Which system calls a process may make: seccomp filters, one per kind of process.
//!
//! Lists:   processes that read from strangers have a list of what is allowed. Those that start programs of others (PAM
//!          modules) cannot know what these need and have a list of what is forbidden; it is inherited.
//! Refusal: a call that is not on the list fails with ENOSYS, so that the C library falls back to an older one; a kill would
//!          turn every gap of the list into an outage. The kernel logs it (`SECCOMP_FILTER_FLAG_LOG`) where it audits.
//! Source:  seccomp(2), systemd.exec(5) "SystemCallFilter="; numbers from libc.
//! Trust:   nobody sends this bytes; the lists are the program's own, the same for x86-64 and aarch64.
//! Never:   a filter that another thread of the process does not have: it is set before the runtime starts.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};
use serde::{Deserialize, Serialize};

/// What kind of process is restricted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Serves connections it is handed or accepts, opens unix sockets only, starts no program: the fronts and the authentication
    /// daemon, where it does not start its workers itself.
    Front,
    /// A front that opens TCP connections of its own.
    Network,
    /// One mailbox: as [`Profile::Front`].
    Mailbox,
    /// Starts this executable under other ids and hands it descriptors: what a mailbox needs, ids, and exec.
    Broker,
    /// Runs code of others: nearly everything, but nothing that changes the machine or looks into other processes.
    Worker,
}

/// What becomes of a call that is not allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It fails.
    #[default]
    On,
    /// It succeeds and is logged by the kernel.
    Log,
    /// Nothing is restricted.
    Off,
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Restricts this thread and all it starts from now on. Needs `no_new_privs` or root, and says whether there is a filter:
/// on machines other than x86-64 and aarch64 there is none.
///
/// # Errors
/// A kernel without seccomp filters.
pub fn restrict(profile: Profile, mode: Mode) -> io::Result<bool> {
    if mode == Mode::Off {
        return Ok(false);
    }
    let Ok(arch) = std::env::consts::ARCH.try_into() else { return Ok(false) };
    let refuse = |errno: i32| match (mode, u32::try_from(errno)) {
        (Mode::On, Ok(errno)) => SeccompAction::Errno(errno),
        _ => SeccompAction::Log,
    };
    let filter = match profile {
        Profile::Worker => {
            let rules = forbidden().map_err(io::Error::other)?;
            SeccompFilter::new(rules, SeccompAction::Allow, refuse(libc::EPERM), arch)
        }
        _ => {
            let rules = allowed(profile).map_err(io::Error::other)?;
            SeccompFilter::new(rules, refuse(libc::ENOSYS), SeccompAction::Allow, arch)
        }
    };
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(io::Error::other)?;
    install(&program).map(|()| true)
}

fn install(program: &[sock_filter]) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        length: libc::c_ushort,
        filter: *const sock_filter,
    }
    let length = program.len().try_into().map_err(io::Error::other)?;
    let program = Program { length, filter: program.as_ptr() };
    // SAFETY: the kernel copies the program, whose length and address are those of a slice that lives until after the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER),
            libc::SECCOMP_FILTER_FLAG_LOG,
            &raw const program,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// For every process with a list of what is allowed.
const COMMON: &[i64] = &[
    // Descriptors and files.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_umask,
    libc::SYS_fchdir,
    libc::SYS_memfd_create,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_membarrier,
    // Threads.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_getpriority,
    libc::SYS_restart_syscall,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    // Time.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    // Oneself.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getpgid,
    libc::SYS_getsid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getrusage,
    libc::SYS_prlimit64,
    libc::SYS_getrlimit,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_times,
    libc::SYS_getrandom,
    libc::SYS_capget,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_pipe2,
    libc::SYS_signalfd4,
    // Sockets that are there.
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
];

/// The older forms that x86-64 alone still has.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = &[
    libc::SYS_open,
    libc::SYS_creat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_chmod,
    libc::SYS_utimes,
    libc::SYS_getdents,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_inotify_init,
    libc::SYS_time,
    libc::SYS_getpgrp,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

/// What the broker does beyond a mailbox: start processes under other ids.
const BROKER: &[i64] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_tgkill,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_setsid,
    libc::SYS_setpgid,
    libc::SYS_setrlimit,
    libc::SYS_capset,
    libc::SYS_chdir,
    libc::SYS_prctl,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    // The mailbox process restricts itself further.
    libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    // Name services may ask a daemon over the network (LDAP, NIS).
    libc::SYS_socket,
    libc::SYS_bind,
];

/// Never for code of others: looking into processes, kernel code, mounts, keys, the machine's clock and name.
const FORBIDDEN: &[i64] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_bpf,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_personality,
];

#[cfg(target_arch = "x86_64")]
const FORBIDDEN_OLDER: &[i64] = &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_uselib];
#[cfg(not(target_arch = "x86_64"))]
const FORBIDDEN_OLDER: &[i64] = &[];

fn forbidden() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = FORBIDDEN.iter().chain(FORBIDDEN_OLDER).map(|call| (*call, Vec::new())).collect();
    // Name spaces of one's own make much of the kernel reachable. The flags of clone3 are out of a filter's sight.
    for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWPID, libc::CLONE_NEWNET] {
        let flag = u64::from(flag.unsigned_abs());
        rules.entry(libc::SYS_clone).or_default().push(masked(0, flag, flag)?);
    }
    Ok(rules)
}

fn allowed(profile: Profile) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = COMMON.iter().chain(OLDER).map(|call| (*call, Vec::new())).collect();
    if profile == Profile::Broker {
        rules.extend(BROKER.iter().map(|call| (*call, Vec::new())));
    } else {
        // Threads, not processes; no memory that is executable once the libraries are there.
        let threads = [libc::CLONE_VM, libc::CLONE_THREAD].map(|flag| u64::from(flag.unsigned_abs()));
        let threads = threads.into_iter().fold(0, |all, flag| all | flag);
        rules.insert(libc::SYS_clone, vec![masked(0, threads, threads)?]);
        let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            rules.insert(call, vec![masked(2, executable, 0)?]);
        }
        // Signals to oneself alone.
        let own = u64::from(std::process::id());
        for call in [libc::SYS_kill, libc::SYS_tgkill] {
            rules.insert(call, vec![equal(0, own)?]);
        }
        let names = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_GET_DUMPABLE, libc::PR_SET_VMA];
        rules.insert(libc::SYS_prctl, any(0, &names)?);
        let families: &[libc::c_int] = match profile {
            Profile::Network => &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK],
            _ => &[libc::AF_UNIX],
        };
        rules.insert(libc::SYS_socket, any(0, families)?);
        if profile == Profile::Network {
            // The resolver binds its netlink socket.
            rules.insert(libc::SYS_bind, Vec::new());
        }
    }
    rules.insert(libc::SYS_socketpair, any(0, &[libc::AF_UNIX])?);
    let requests = [libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::TCGETS, libc::TIOCGWINSZ];
    let requests = requests.map(|request| u64::from(u32::try_from(request).unwrap_or(u32::MAX)));
    rules.insert(
        libc::SYS_ioctl,
        requests.iter().map(|request| equal(1, *request)).collect::<Result<_, _>>()?,
    );
    Ok(rules)
}

fn any(argument: u8, values: &[libc::c_int]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    values.iter().map(|value| equal(argument, u64::from(value.unsigned_abs()))).collect()
}

fn equal(argument: u8, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    let is = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
    SeccompRule::new(vec![is])
}

/// The argument's bits of `mask` are `value`.
fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    let is = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)?;
    SeccompRule::new(vec![is])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own: a filter can never be taken off again.
    fn restricted(profile: Profile, mode: Mode, work: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                nix::sys::prctl::set_no_new_privs().unwrap();
                assert_eq!(restrict(profile, mode).unwrap(), mode != Mode::Off);
                work();
            });
            thread.join().unwrap();
        });
    }

    fn errno(result: io::Result<impl Sized>) -> Option<i32> {
        result.err().and_then(|error| error.raw_os_error())
    }

    fn unshare() -> io::Result<()> {
        // SAFETY: no flag, so nothing is unshared; no memory is touched.
        let done = unsafe { libc::syscall(libc::SYS_unshare, 0) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    #[test]
    fn a_front_starts_nothing_and_opens_no_connections() {
        let ours = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let here = ours.local_addr().unwrap();
        restricted(Profile::Front, Mode::On, || {
            assert_eq!(errno(std::net::TcpStream::connect(here)), Some(libc::ENOSYS));
            assert_eq!(errno(std::process::Command::new("/bin/true").spawn()), Some(libc::ENOSYS));
            assert_eq!(errno(unshare()), Some(libc::ENOSYS));
            let parent = nix::unistd::getppid();
            assert_eq!(nix::sys::signal::kill(parent, None), Err(nix::errno::Errno::ENOSYS));
            let itself = nix::unistd::getpid();
            assert_eq!(nix::sys::signal::kill(itself, None), Ok(()));
            // What it is for: files, threads, unix sockets.
            assert!(std::fs::read_to_string("/proc/self/status").is_ok());
            std::os::unix::net::UnixStream::pair().unwrap();
            std::thread::spawn(|| ()).join().unwrap();
        });
        restricted(Profile::Network, Mode::On, || assert!(std::net::TcpStream::connect(here).is_ok()));
    }

    #[test]
    fn a_worker_runs_programs_but_changes_nothing_of_the_machine() {
        restricted(Profile::Worker, Mode::On, || {
            assert!(std::process::Command::new("/bin/true").status().unwrap().success());
            assert_eq!(errno(unshare()), Some(libc::EPERM));
            let keys = std::process::Command::new("/usr/bin/unshare").args(["-r", "/bin/true"]).status();
            assert!(!keys.unwrap().success());
        });
    }

    /// The calls of a list, as this file names them.
    fn listed(list: &str) -> Vec<&'static str> {
        let (_, rest) =
            include_str!("seccomp.rs").split_once(&format!("\nconst {list}: &[i64] = &[")).unwrap();
        let (rows, _) = rest.split_once("];").unwrap();
        rows.split("libc::SYS_")
            .skip(1)
            .map(|row| row.split_once(',').map_or(row, |(name, _)| name))
            .collect()
    }

    /// aarch64 has the kernel's generic table of calls and nothing else, so what is in it is what both machines have.
    #[test]
    fn both_machines_have_what_is_on_the_common_lists() {
        let Ok(generic) = std::fs::read_to_string("/usr/include/asm-generic/unistd.h") else {
            assert_ne!(
                std::env::var("POSTERN_TEST_SKIPS").as_deref(),
                Ok("fail"),
                "a skip is not allowed here"
            );
            eprintln!("SKIPPED: the kernel's headers are not installed");
            return;
        };
        // A number, or the name of one (`__NR3264_…`) that is there as well: some are for other machines.
        let numbered = |name: &str| {
            let mut rows = generic.lines().filter_map(|line| line.strip_prefix("#define ")?.split_once(' '));
            rows.find(|(known, _)| *known == name).map(|(_, value)| value.trim())
        };
        let has = |call: &str| {
            let value = numbered(&format!("__NR_{call}"));
            let value =
                value.and_then(|value| if value.starts_with("__NR") { numbered(value) } else { Some(value) });
            value.is_some_and(|value| value.starts_with(|first: char| first.is_ascii_digit()))
        };
        for list in ["COMMON", "BROKER", "FORBIDDEN"] {
            let calls = listed(list);
            assert!(calls.len() > 20, "{list}: {calls:?}");
            let missing: Vec<_> = calls.into_iter().filter(|call| !has(call)).collect();
            assert!(missing.is_empty(), "{list}: only one machine has {missing:?}");
        }
        for list in ["OLDER", "FORBIDDEN_OLDER"] {
            let calls = listed(list);
            assert!(calls.len() >= 4, "{list}: {calls:?}");
            let common: Vec<_> = calls.into_iter().filter(|call| has(call)).collect();
            assert!(common.is_empty(), "{list}: both machines have {common:?}");
        }
    }

    #[test]
    fn log_lets_everything_through() {
        restricted(Profile::Front, Mode::Log, || {
            assert!(std::process::Command::new("/bin/true").status().unwrap().success());
            unshare().unwrap();
        });
        restricted(Profile::Front, Mode::Off, || unshare().unwrap());
    }
}
