//! PAM's service files: which exist and what they use. Reads the files only; no module is loaded.
//!
//! Source: pam.d(5).
//! Trust:  the files are root's; the name of the service may come from a client of a mux, and selects a file only if it is
//!         a plain name.
//! Never:  leave the folders of PAM, or follow includes without end.

use std::path::Path;

/// Where libpam looks, in this order.
const FOLDERS: [&str; 3] = ["/etc/pam.d", "/usr/lib/pam.d", "/usr/share/pam.d"];
/// The service that stands in for one without a file.
const FALLBACK: &str = "other";
/// Files that may include each other.
const DEPTH: usize = 16;

/// Whether PAM has a file for the service. Without one it silently uses `other`, which an administrator rarely wants.
pub fn service_exists(service: &str) -> bool {
    is_service(service) && FOLDERS.iter().any(|folder| Path::new(folder).join(service).is_file())
}

/// Whether the service, or a file it includes, names a module such as `pam_unix.so`.
pub fn service_uses(service: &str, module: &str) -> bool {
    is_service(service) && uses(&|name| FOLDERS.iter().find_map(|folder| read(folder, name)), service, module)
}

/// libpam cuts a service at its last `/` and folds its case; only names it takes as they are pass.
pub(crate) fn is_service(service: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.@+".contains(&b);
    !service.is_empty() && service.len() <= 64 && !service.starts_with('.') && service.bytes().all(plain)
}

fn read(folder: &str, name: &str) -> Option<String> {
    // An included file may be named by its path.
    let bytes = std::fs::read(Path::new(folder).join(name)).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn uses(read: &dyn Fn(&str) -> Option<String>, service: &str, module: &str) -> bool {
    let text = read(service).or_else(|| read(FALLBACK)).unwrap_or_default();
    mentions(read, &text, module, DEPTH)
}

fn mentions(read: &dyn Fn(&str) -> Option<String>, text: &str, module: &str, depth: usize) -> bool {
    // A backslash joins lines.
    let joined = text.replace("\\\n", " ");
    joined.lines().map(|line| line.split('#').next().unwrap_or_default()).any(|line| {
        let mut words = line.split_whitespace().peekable();
        let included = match words.next() {
            Some("@include") => words.next(),
            Some(_) if matches!(words.peek(), Some(&("include" | "substack"))) => words.nth(1),
            _ => None,
        };
        match included {
            Some(name) if depth > 0 => {
                read(name).is_some_and(|text| mentions(read, &text, module, depth - 1))
            }
            Some(_) => false,
            None => words.any(|word| word.rsplit('/').next() == Some(module)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_services_use() {
        let files = |name: &str| -> Option<String> {
            let text = match name {
                "plain" => "auth required pam_unix.so nodelay\n",
                "path" => "auth [success=1 default=ignore] /lib/security/pam_unix.so\n",
                "debian" => "# comment\n@include common-auth\n",
                "redhat" => "auth\tsubstack\tcommon-auth\n",
                "include" => "auth include common-auth",
                "joined" => "auth required \\\n pam_unix.so\n",
                "common-auth" => "auth sufficient pam_sss.so\nauth required pam_unix.so\n",
                "sss" => "auth required pam_sss.so # not pam_unix.so\naccount required pam_permit.so\n",
                "loop" => "@include loop\n",
                "missing" => "@include nowhere\nauth include\n",
                "other" => "auth required pam_deny.so\n@include common-auth\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        for (service, want) in [
            ("plain", true),
            ("path", true),
            ("debian", true),
            ("redhat", true),
            ("include", true),
            ("joined", true),
            ("sss", false),
            ("loop", false),
            ("missing", false),
            ("no-such-file", true),
        ] {
            assert_eq!(uses(&files, service, "pam_unix.so"), want, "{service}");
        }
    }

    #[test]
    fn only_plain_names_are_services() {
        for (name, want) in [("smtp", true), ("../su", false), (".x", false), ("Login", false), ("", false)] {
            assert_eq!(is_service(name), want, "{name}");
        }
        assert!(!service_exists("../passwd") && !service_uses("../passwd", "root"));
    }
}
