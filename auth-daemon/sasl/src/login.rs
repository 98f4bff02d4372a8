//! LOGIN: two prompts, whose text some clients compare (draft-murchison-sasl-login-00).
//!
//! Trust: both answers are a stranger's.
//! Never: keep the password after it was handed out.

use crate::{Failure, Secret, Step, Verify, challenge, user_name};

#[derive(Debug, Default)]
pub(crate) struct Login {
    user: Option<String>,
}

impl Login {
    /// A non-empty initial response is the user name.
    pub(crate) fn start(initial: Option<&[u8]>) -> (Login, Step) {
        let mut login = Login::default();
        let step = match initial {
            Some(name) if !name.is_empty() => login.respond(name),
            _ => challenge(b"Username:".to_vec()),
        };
        (login, step)
    }

    pub(crate) fn respond(&mut self, data: &[u8]) -> Step {
        match self.user.take() {
            None => match user_name(data) {
                Ok(user) => {
                    self.user = Some(user);
                    challenge(b"Password:".to_vec())
                }
                Err(failure) => Step::Failure(failure),
            },
            Some(_) if data.contains(&0) => Step::Failure(Failure::Malformed),
            Some(authcid) => {
                Step::NeedVerify(Verify { authcid, authzid: None, password: Secret::new(data.to_vec()) })
            }
        }
    }
}
