//! Stops the build at once, with one sentence, when the C libraries this crate links with are not there. Without it
//! the linker would say so minutes later, at the end of a long build. libsodium is optional: it makes Argon2 faster.
//!
//! Trust: nobody; runs on the machine that builds, with its own compiler and libraries.
//! Never: fetch anything.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Library, and the Debian package that lets programs link with it.
const NEEDED: [(&str, &str); 3] =
    [("pam", "libpam0g-dev"), ("pam_misc", "libpam0g-dev"), ("crypt", "libcrypt-dev")];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CC");
    for (library, package) in NEEDED {
        if is_missing(library) {
            println!(
                "cargo::error=lib{library} cannot be linked with: install the development package, on Debian `apt-get install {package}`"
            );
            return;
        }
    }
    println!("cargo::rustc-check-cfg=cfg(sodium, sodium_mmap)");
    // The archive, so that the program runs where libsodium is not installed.
    match find("libsodium.a") {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", path.display());
            let path = with_our_memory(&path).unwrap_or(path);
            if let (Some(folder), Some(name)) =
                (path.parent(), path.file_stem().and_then(|name| name.to_str()))
            {
                println!("cargo::rustc-link-search=native={}", folder.display());
                println!("cargo::rustc-link-lib=static={}", name.trim_start_matches("lib"));
                println!("cargo::rustc-cfg=sodium");
            }
        }
        None => println!(
            "cargo::warning=building without libsodium: Argon2 logins take half as long again (on Debian: apt-get install libsodium-dev)"
        ),
    }
}

/// A copy of libsodium that calls our mmap(2), which asks for huge pages. `None`, and libsodium as it is, where objcopy(1)
/// is missing or does not know the target's objects.
fn with_our_memory(archive: &Path) -> Option<PathBuf> {
    println!("cargo::rerun-if-env-changed=OBJCOPY");
    let copy = PathBuf::from(std::env::var_os("OUT_DIR")?).join("libpostern_sodium.a");
    let mut objcopy = Command::new(std::env::var_os("OBJCOPY").unwrap_or("objcopy".into()));
    objcopy.arg("--redefine-sym=mmap=postern_sodium_mmap").arg(archive).arg(&copy);
    if !objcopy.status().is_ok_and(|status| status.success()) {
        println!(
            "cargo::warning=no objcopy for this target: Argon2 logins take a third longer (on Debian: apt-get install binutils)"
        );
        return None;
    }
    println!("cargo::rustc-cfg=sodium_mmap");
    Some(copy)
}

/// A library is missing when the linker's driver finds neither form of it. A driver that cannot be asked proves nothing.
fn is_missing(library: &str) -> bool {
    asked(&format!("lib{library}.so")) == Some(None) && asked(&format!("lib{library}.a")) == Some(None)
}

fn find(file: &str) -> Option<PathBuf> {
    asked(file).flatten()
}

/// Asks the linker's driver where it finds a file; it answers with the bare name when it does not.
fn asked(file: &str) -> Option<Option<PathBuf>> {
    let driver = ["RUSTC_LINKER", "CC"].into_iter().find_map(std::env::var_os).unwrap_or("cc".into());
    let output = Command::new(&driver).arg(format!("-print-file-name={file}")).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    let path = Path::new(path.trim());
    output
        .status
        .success()
        .then(|| path.parent().filter(|p| !p.as_os_str().is_empty()).map(|_| path.to_owned()))
}
