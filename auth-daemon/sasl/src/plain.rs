//! PLAIN, RFC 4616: `authzid NUL authcid NUL password`.
//!
//! Trust: all three parts are a stranger's.
//! Never: keep the password after it was handed out.

use crate::{Failure, Secret, Step, Verify, other_name, user_name};

pub(crate) fn respond(data: &[u8]) -> Step {
    match parse(data) {
        Ok(verify) => Step::NeedVerify(verify),
        Err(failure) => Step::Failure(failure),
    }
}

fn parse(data: &[u8]) -> Result<Verify, Failure> {
    let mut fields = data.split(|&b| b == 0);
    let (Some(authzid), Some(authcid), Some(password), None) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(Failure::Malformed);
    };
    let authcid = user_name(authcid)?;
    let authzid = std::str::from_utf8(authzid).map_err(|_| Failure::Malformed)?;
    Ok(Verify { authzid: other_name(authzid, &authcid), authcid, password: Secret::new(password.to_vec()) })
}
