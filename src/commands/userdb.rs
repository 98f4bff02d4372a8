//! `postern auth lookup --socket`: a user asked for at a userdb socket, ours or another daemon's.
//!
//! Trust:     the daemon at the socket is believed; its lines are length-limited.
//! Never:     wait for a daemon that is not there.

use std::path::Path;
use std::time::Duration;

use auth_client::{AuthClient, Config, Error, UserRequest};
use boot::ExitCode;
use boot::exit::{self, Coded};
use serde_json::{Map, Value, json};

use crate::cli::AuthLookupArgs;
use crate::output;

/// How long the answer may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// `EX_NOUSER` of `sysexits.h`; what `doveadm user` answers as well.
pub(super) const NOUSER: ExitCode = ExitCode(67);

/// The client library waits for a daemon to come back; a person wants to hear at once that none is there.
pub(super) fn somebody_listens(socket: &Path) -> Result<(), Coded> {
    std::os::unix::net::UnixStream::connect(socket).map(drop).map_err(|error| nobody(socket, &error))
}

/// There is no daemon at this socket.
pub(super) fn nobody(socket: &Path, why: &dyn std::fmt::Display) -> Coded {
    let text = format!("no authentication daemon answers at {}: {why}; {}", socket.display(), output::DOCTOR);
    Coded::new(exit::TEMPFAIL, text)
}

/// Asks `USER` and prints the answer.
pub(super) fn lookup(socket: &Path, args: &AuthLookupArgs, json: bool) -> anyhow::Result<ExitCode> {
    let mut request = UserRequest::new(args.user.as_str(), args.service.as_str());
    request.rip = args.ip;
    somebody_listens(socket)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(async {
        // Only the userdb socket is used.
        let config = Config::new(socket, socket, socket).deadline(DEADLINE);
        AuthClient::new(config).user_with(request).await
    });
    let record = match found {
        Ok(record) => record,
        Err(Error::Request(error)) => return Err(Coded::new(exit::USAGE, error.to_string()).into()),
        Err(error) => {
            let text = format!("no answer from {}: {error}", socket.display());
            return Err(Coded::new(exit::TEMPFAIL, text).into());
        }
    };
    let Some(record) = record else {
        if json {
            output::json(&json!({ "user": args.user, "found": "no", "exit_code": NOUSER.0 }))?;
        } else {
            output::line(format!("user: {}\nfound: no", args.user));
        }
        return Ok(NOUSER);
    };
    if json {
        let fields: Map<String, Value> =
            record.fields.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
        output::json(&json!({
            "user": args.user, "found": "yes", "canonical": record.user, "userdb_fields": fields, "exit_code": 0,
        }))?;
    } else {
        output::line(format!("user: {}\nfound: yes\ncanonical: {}", args.user, record.user));
        for (name, value) in record.fields {
            output::line(format!("  {name}: {value}"));
        }
    }
    Ok(exit::OK)
}
