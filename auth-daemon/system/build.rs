//! Stops the build at once, with one sentence, when the C libraries this crate links with are not there. Without it
//! the linker would say so minutes later, at the end of a long build.

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
}

/// Asks the linker's driver where it finds the library; it answers with the bare name when it does not. A driver that
/// cannot be asked proves nothing.
fn is_missing(library: &str) -> bool {
    let driver = ["RUSTC_LINKER", "CC"].into_iter().find_map(std::env::var_os).unwrap_or("cc".into());
    let found = |file: &str| {
        let output = Command::new(&driver).arg(format!("-print-file-name={file}")).output().ok()?;
        let path = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| path.trim().contains('/'))
    };
    let shared = found(&format!("lib{library}.so"));
    let archive = found(&format!("lib{library}.a"));
    shared == Some(false) && archive == Some(false)
}
