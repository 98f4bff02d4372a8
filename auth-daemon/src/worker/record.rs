//! Records between the daemon and its workers.
//!
//! Trust: either end may have been taken over: lengths are checked against what is there, and odd values refused.
//! Never: give half of a record a meaning.

use auth_wire::Secret;

use super::{Account, Answer, Checked, Effects, Facts, Question, StateRules};

/// Version of the records; both ends are the same executable, so anything else is an upgrade half done.
const VERSION: u8 = 1;
/// Longest question.
pub(super) const MAX: usize = 256 * 1024;
/// Longest answer: a list of all accounts of a large system.
pub(super) const MAX_REPLY: usize = 16 * 1024 * 1024;

/// A question as bytes, length first.
pub(super) struct Wanted(Secret);

/// A question as a worker reads it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Check a password.
    Verify { question: Question, user: String, password: Secret, facts: Facts },
    /// Look up an account.
    Account(String),
    /// List the accounts from this uid on.
    Accounts(u32),
    /// Look up the gid of a group.
    Group(String),
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// About a password.
    Answer(Checked),
    /// About an account.
    Account(Option<Account>),
    /// Of a list.
    Names(Vec<String>),
    /// About a group.
    Group(Option<u32>),
    /// From the worker's manager: there is no worker any more, and why.
    Ended(String),
}

impl Wanted {
    pub(super) fn verify(question: &Question, user: &str, password: &[u8], facts: &Facts) -> Wanted {
        let mut out = Writer::new(1);
        let (kind, service, flags) = match question {
            Question::Pam { service, effects, messages, .. } => {
                let Effects { session, setcred } = *effects;
                let flags = u8::from(session) | u8::from(setcred) << 1 | u8::from(*messages) << 2;
                (1, service.as_str(), flags)
            }
            Question::Shadow(_) => (2, "", 0),
            Question::Passwd(_) => (3, "", 0),
            Question::Imap { host, .. } => (4, host.as_str(), 0),
        };
        out.0.extend([kind, flags, question.rules().bits()]);
        let port = if let Question::Imap { port, .. } = question { *port } else { 0 };
        out.0.extend(u32::from(port).to_le_bytes());
        let texts =
            [service.as_bytes(), user.as_bytes(), password, facts.rhost.as_bytes(), facts.service.as_bytes()];
        for text in texts {
            out.string(text);
        }
        Wanted(Secret::new(out.finish()))
    }

    pub(super) fn account(user: &str) -> Wanted {
        let mut out = Writer::new(2);
        out.string(user.as_bytes());
        Wanted(Secret::new(out.finish()))
    }

    pub(super) fn accounts(first_uid: u32) -> Wanted {
        let mut out = Writer::new(3);
        out.0.extend(first_uid.to_le_bytes());
        Wanted(Secret::new(out.finish()))
    }

    pub(super) fn group(name: &str) -> Wanted {
        let mut out = Writer::new(4);
        out.string(name.as_bytes());
        Wanted(Secret::new(out.finish()))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Asked {
    pub(super) fn decode(body: &[u8]) -> Option<Asked> {
        let mut input = Reader::new(body)?;
        let asked = match input.byte()? {
            1 => {
                let (kind, flags) = (input.byte()?, input.byte()?);
                let rules = StateRules::from_bits(input.byte()?)?;
                let port = u16::try_from(input.number()?).ok()?;
                let service = input.text()?;
                let question = match kind {
                    1 => Question::Pam {
                        service,
                        effects: Effects { session: flags & 1 != 0, setcred: flags & 2 != 0 },
                        rules,
                        messages: flags & 4 != 0,
                    },
                    2 => Question::Shadow(rules),
                    3 => Question::Passwd(rules),
                    4 => Question::Imap { host: service, port },
                    _ => return None,
                };
                let user = input.text()?;
                let password = Secret::from(input.string()?);
                let facts = Facts { rhost: input.text()?, service: input.text()? };
                Asked::Verify { question, user, password, facts }
            }
            2 => Asked::Account(input.text()?),
            3 => Asked::Accounts(input.number()?),
            4 => Asked::Group(input.text()?),
            _ => return None,
        };
        input.end()?;
        Some(asked)
    }
}

impl Reply {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Reply::Answer(Checked { answer, message }) => {
                let (code, text) = match answer {
                    Answer::Ok(name) => (0, name.as_deref().unwrap_or_default()),
                    Answer::Mismatch => (1, ""),
                    Answer::Unknown => (2, ""),
                    Answer::Locked => (3, ""),
                    Answer::Disabled(why) => (4, why.as_str()),
                    Answer::Expired(why) => (5, why.as_str()),
                    Answer::Unavailable(why) => (6, why.as_str()),
                    Answer::Refused(why) => (7, why.as_str()),
                };
                let mut out = Writer::new(1);
                out.0.push(code);
                out.string(text.as_bytes());
                out.string(message.as_deref().unwrap_or_default().as_bytes());
                out.finish()
            }
            Reply::Ended(why) => {
                let mut out = Writer::new(4);
                out.string(why.as_bytes());
                out.finish()
            }
            Reply::Account(account) => {
                let mut out = Writer::new(2);
                out.0.push(u8::from(account.is_some()));
                if let Some(Account { name, uid, gid, home }) = account {
                    out.string(name.as_bytes());
                    out.0.extend(uid.to_le_bytes());
                    out.0.extend(gid.to_le_bytes());
                    out.string(home.as_bytes());
                }
                out.finish()
            }
            Reply::Group(gid) => {
                let mut out = Writer::new(5);
                out.0.push(u8::from(gid.is_some()));
                out.0.extend(gid.unwrap_or_default().to_le_bytes());
                out.finish()
            }
            Reply::Names(names) => {
                let mut out = Writer::new(3);
                out.0.extend(u32::try_from(names.len()).unwrap_or(u32::MAX).to_le_bytes());
                for name in names {
                    out.string(name.as_bytes());
                }
                out.finish()
            }
        }
    }

    pub(super) fn decode(body: &[u8]) -> Option<Reply> {
        let mut input = Reader::new(body)?;
        let reply = match input.byte()? {
            1 => {
                let code = input.byte()?;
                let text = input.text()?;
                let message = Some(input.text()?).filter(|message| !message.is_empty());
                let answer = match code {
                    0 => Answer::Ok((!text.is_empty()).then_some(text)),
                    1 => Answer::Mismatch,
                    2 => Answer::Unknown,
                    3 => Answer::Locked,
                    4 => Answer::Disabled(text),
                    5 => Answer::Expired(text),
                    6 => Answer::Unavailable(text),
                    7 => Answer::Refused(text),
                    _ => return None,
                };
                Reply::Answer(Checked { answer, message })
            }
            2 => Reply::Account(match input.byte()? {
                0 => None,
                _ => Some(Account {
                    name: input.text()?,
                    uid: input.number()?,
                    gid: input.number()?,
                    home: input.text()?,
                }),
            }),
            3 => {
                let count = input.number()?;
                Reply::Names((0..count).map(|_| input.text()).collect::<Option<_>>()?)
            }
            4 => Reply::Ended(input.text()?),
            5 => {
                let known = input.byte()? != 0;
                let gid = input.number()?;
                Reply::Group(known.then_some(gid))
            }
            _ => return None,
        };
        input.end()?;
        Some(reply)
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8) -> Writer {
        Writer(vec![0, 0, 0, 0, VERSION, kind])
    }

    fn string(&mut self, bytes: &[u8]) {
        // Callers' strings are bounded by the line limits of the protocols.
        self.0.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX).to_le_bytes();
        for (slot, byte) in self.0.iter_mut().zip(length) {
            *slot = byte;
        }
        self.0
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn new(body: &'a [u8]) -> Option<Reader<'a>> {
        match body.split_first() {
            Some((&VERSION, rest)) => Some(Reader(rest)),
            _ => None,
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn number(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*bytes))
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.number()? as usize;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<String> {
        std::str::from_utf8(self.string()?).ok().map(str::to_owned)
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip() {
        let strict = StateRules { nologin_shell: conf::StateRule::Refuse, ..StateRules::default() };
        let lax = StateRules { inactive: conf::StateRule::Accept, ..StateRules::default() };
        let effects = Effects { session: true, setcred: false };
        for question in [
            Question::Pam { service: "smtp".into(), effects, rules: strict, messages: true },
            Question::Pam {
                service: "smtp".into(),
                effects: Effects::default(),
                rules: lax,
                messages: false,
            },
            Question::Shadow(strict),
            Question::Shadow(lax),
            Question::Passwd(strict),
            Question::Imap { host: "::1".into(), port: 1143 },
        ] {
            let facts = Facts { rhost: "192.0.2.1".into(), service: "smtp".into() };
            let wanted = Wanted::verify(&question, "bob", b"p\xff", &facts);
            assert_eq!(
                Asked::decode(&wanted.bytes()[4..]),
                Some(Asked::Verify {
                    question,
                    user: "bob".into(),
                    password: Secret::from(b"p\xff".as_slice()),
                    facts
                })
            );
        }
        assert_eq!(Asked::decode(&Wanted::accounts(1000).bytes()[4..]), Some(Asked::Accounts(1000)));
        assert_eq!(Asked::decode(&Wanted::group("mail").bytes()[4..]), Some(Asked::Group("mail".into())));
        assert_eq!(Asked::decode(&Wanted::account("bob").bytes()[4..]), Some(Asked::Account("bob".into())));
        for reply in [
            Reply::Answer(Answer::Ok(None).into()),
            Reply::Answer(Answer::Ok(Some("Bob".into())).into()),
            Reply::Answer(Answer::Mismatch.into()),
            Reply::Answer(Answer::Unknown.into()),
            Reply::Answer(Answer::Locked.into()),
            Reply::Answer(Answer::Disabled("why".into()).into()),
            Reply::Answer(Checked { answer: Answer::Refused("why".into()), message: Some("text".into()) }),
            Reply::Answer(Answer::Expired("must be changed".into()).into()),
            Reply::Answer(Answer::Unavailable("why".into()).into()),
            Reply::Ended("why".into()),
            Reply::Account(None),
            Reply::Group(None),
            Reply::Group(Some(8)),
            Reply::Names(Vec::new()),
            Reply::Names(vec!["a".into(), "b".into()]),
            Reply::Account(Some(Account { name: "b".into(), uid: 1, gid: 2, home: "/".into() })),
        ] {
            let bytes = reply.encode();
            assert_eq!(Reply::decode(&bytes[4..]), Some(reply));
            for cut in 4..bytes.len() {
                assert_eq!(Reply::decode(&bytes[4..cut]), None);
            }
        }
        assert_eq!(Reply::decode(b"\x02\x01\x00"), None);
        assert_eq!((0..16).filter_map(StateRules::from_bits).map(StateRules::bits).sum::<u8>(), 120);
        assert_eq!(StateRules::from_bits(16), None);
        assert_eq!(Reply::decode(b"\x01\x03\xff\xff\xff\xff"), None);
    }
}
