//! Gives back the pages of program code that only the start needed.
//!
//! Purpose: reading a configuration and checking it touches megabytes of code that a daemon never runs again. Unmapped,
//!          they count for no process, and the system may drop them; what is needed after all is mapped again at its
//!          next use, from the page cache.
//! Trust:   nobody; addresses come from the loader's own table of this program.
//! Never:   touch a page that was ever written to.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::time::Duration;

/// The part of a page that no segment border may cut.
const PAGE: usize = 4096;

/// The first questions, and whoever asks whether the start went well, touch the rest of it within this time.
const SETTLED: Duration = Duration::from_secs(1);

/// Gives the code of the start back now, and once more when the process has settled. Call inside a tokio runtime.
pub(crate) fn give_back_after_start() {
    give_back_start_code();
    tokio::spawn(async {
        tokio::time::sleep(SETTLED).await;
        give_back_start_code();
    });
}

/// Unmaps the program's own code and constants until they are used again.
fn give_back_start_code() {
    let mut found = Segments::default();
    // SAFETY: the callback has the type that dl_iterate_phdr wants and gets a pointer to `found`, which outlives the call
    // and is used by nothing else meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(first_program), (&raw mut found).cast()) };
    for (start, end) in found.read_only.into_iter().flatten() {
        // Whole pages only, and none that shares a page with the part that the loader wrote to.
        let (start, end) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
        if start < end {
            // SAFETY: the range lies in a private file mapping of this program that was never writable, so every page is
            // what the file holds; the next access maps the same bytes again.
            unsafe { libc::madvise(start as *mut c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
}

/// Segments of the main program that are mapped read-only from the start.
#[derive(Default)]
struct Segments {
    read_only: [Option<(usize, usize)>; 8],
}

/// Called for each loaded object; the first one is the program itself.
unsafe extern "C" fn first_program(info: *mut libc::dl_phdr_info, _size: usize, found: *mut c_void) -> c_int {
    // SAFETY: the loader passes a valid description that lives as long as this call.
    let info = unsafe { &*info };
    // SAFETY: `found` is the pointer that was given to dl_iterate_phdr, and nobody else uses its target now.
    let found = unsafe { &mut *found.cast::<Segments>() };
    // SAFETY: the loader's table has as many headers as it says.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let place = |address| usize::try_from(info.dlpi_addr + address).unwrap_or(0);
    // What is not writable in the table was never written; pages that are only protected later (RELRO) are writable
    // segments there.
    let read_only = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0)
        .map(|header| (place(header.p_vaddr), place(header.p_vaddr + header.p_memsz)));
    for (slot, segment) in found.read_only.iter_mut().zip(read_only) {
        *slot = Some(segment);
    }
    // No further object.
    1
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_program_goes_on() {
        let before: Vec<String> = (0..100).map(|n| format!("{n:x}")).collect();
        super::give_back_start_code();
        let after: Vec<String> = (0..100).map(|n| format!("{n:x}")).collect();
        assert_eq!(before, after);
    }
}
