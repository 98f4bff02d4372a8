//! Where figures are served: one text in the file, an address or a path afterwards.
//!
//! Trust: an address that other machines can reach needs a word of the administrator, for there is no password.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::Settings;
use crate::check::SOCKET_PATH;
use crate::schema::Cx;

/// Where `/metrics`, `/healthz` and `/readyz` are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsEndpoint {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Settings {
    /// Where figures are served; `None`: nowhere.
    pub fn metrics_endpoint(&self) -> Option<MetricsEndpoint> {
        parse(self.metrics.listen.as_deref()?, &self.state_dir)
    }
}

fn parse(text: &str, state_dir: &Path) -> Option<MetricsEndpoint> {
    let text = text.strip_prefix("unix:").unwrap_or(text);
    if text.contains('/') {
        return Some(MetricsEndpoint::Unix(state_dir.join(text)));
    }
    text.parse().ok().map(MetricsEndpoint::Tcp)
}

/// Mistakes in `[metrics]`.
pub(crate) fn check(cx: &mut Cx, settings: &Settings) {
    let Some(text) = &settings.metrics.listen else { return };
    match settings.metrics_endpoint() {
        None => cx.problem_at(
            "metrics.listen",
            format!("`{text}` is neither an address with a port nor a path"),
            "write \"127.0.0.1:9154\", \"[::1]:9154\" or a path such as \"/run/postern/metrics\"",
        ),
        Some(MetricsEndpoint::Tcp(address)) if !address.ip().is_loopback() && !settings.metrics.public => cx
            .problem_at(
                "metrics.listen",
                format!("other machines can reach {address}, and figures are served without a password"),
                "use 127.0.0.1 or a Unix socket, or add `public = true` behind a firewall",
            ),
        Some(MetricsEndpoint::Unix(path)) if path.as_os_str().len() > SOCKET_PATH => cx.problem_at(
            "metrics.listen",
            format!("the socket path {} is longer than {SOCKET_PATH} bytes", path.display()),
            "choose a shorter path or a shorter `state_dir`",
        ),
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_paths() {
        let parse = |text| parse(text, Path::new("/s"));
        assert_eq!(
            parse("127.0.0.1:9154"),
            Some(MetricsEndpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], 9154))))
        );
        assert_eq!(parse("/run/m"), Some(MetricsEndpoint::Unix("/run/m".into())));
        assert_eq!(parse("unix:/run/m"), Some(MetricsEndpoint::Unix("/run/m".into())));
        assert_eq!(parse("sockets/metrics"), Some(MetricsEndpoint::Unix("/s/sockets/metrics".into())));
        assert_eq!(parse("localhost"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn only_loopback_unless_said_otherwise() {
        let problems = |lines: &str| {
            let text = format!("version = 1\nhostname = \"a.example\"\n[metrics]\n{lines}\n");
            match crate::load(&text, Path::new("x.toml")) {
                Ok(_) => String::new(),
                Err(errors) => errors.to_string(),
            }
        };
        assert_eq!(problems("listen = \"127.0.0.1:9154\""), "");
        assert_eq!(problems("listen = \"[::1]:9154\""), "");
        assert!(problems("listen = \"0.0.0.0:9154\"").contains("without a password"));
        assert_eq!(problems("listen = \"0.0.0.0:9154\"\npublic = true"), "");
        assert!(problems("listen = \"9154\"").contains("neither an address"));
        assert!(problems(&format!("listen = \"/{}\"", "x".repeat(120))).contains("longer than"));
        let smtp = "[[smtp.listener]]\nname = \"in\"\ntype = \"inbound\"\naddress = \"127.0.0.1:9154\"";
        assert!(problems(&format!("listen = \"127.0.0.1:9154\"\n{smtp}")).contains("is taken by"));
    }
}
