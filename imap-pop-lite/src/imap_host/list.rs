//! LIST with RFC 5258, 5819 and 6154, and LSUB.
//!
//! Trust: patterns are the client's, and matched without going back and forth; names are those of the user's own folders.
//! Never: tell of a folder outside of the user's tree.

use std::collections::BTreeSet;

use imap::{ListCommand, ListEntry, ListPattern, MailboxName, Response, StatusData};
use maildir::{FolderEntry, FolderName};

use super::mail::{Mail, attribute};

impl Mail {
    pub(super) fn list(&mut self, command: &ListCommand, out: &mut Vec<u8>) -> Result<(), maildir::Error> {
        let separator = self.account.separator;
        // RFC 3501 §6.3.8: the empty pattern asks for the separator only.
        if !command.extended && command.patterns.iter().all(ListPattern::is_empty) {
            Response::List(ListEntry {
                attributes: vec!["\\Noselect"],
                separator: Some(separator),
                ..ListEntry::default()
            })
            .put(out);
            return Ok(());
        }
        let patterns: Vec<ListPattern> =
            command.patterns.iter().map(|p| p.with_reference(&command.reference, separator)).collect();
        let matches = |name: &str| patterns.iter().any(|p| p.matches(name, separator));
        let subscriptions = if command.select.subscribed || command.give.subscribed {
            self.account.maildir.subscriptions()?
        } else {
            Vec::new()
        };
        let subscribed: BTreeSet<&FolderName> = subscriptions.iter().collect();
        let mut entries = self.account.maildir.folders(&[])?;
        if command.select.subscribed {
            // RFC 5258 §3.1: subscribed names are listed even when nothing is there.
            for name in &subscriptions {
                if !entries.iter().any(|e| e.name == *name) {
                    entries.push(FolderEntry {
                        name: name.clone(),
                        exists: false,
                        has_children: false,
                        special_use: None,
                    });
                }
            }
        }
        for entry in &entries {
            let name = entry.name.to_utf8(separator);
            if !matches(&name) {
                continue;
            }
            let mut selected = true;
            if command.select.subscribed {
                selected &= subscribed.contains(&entry.name);
            }
            if command.select.special_use {
                selected &= entry.special_use.is_some();
            }
            // RFC 5258 §3.5: a parent stands for children that are selected but do not match themselves.
            let child_info = command.select.recursive_match
                && entries.iter().any(|child| {
                    child.name.is_below(&entry.name)
                        && (!command.select.subscribed || subscribed.contains(&child.name))
                        && (!command.select.special_use || child.special_use.is_some())
                        && !matches(&child.name.to_utf8(separator))
                });
            if !selected && !child_info {
                continue;
            }
            let mut attributes = Vec::new();
            if !entry.exists {
                attributes.push(if command.extended { "\\NonExistent" } else { "\\Noselect" });
            }
            attributes.push(if entry.has_children { "\\HasChildren" } else { "\\HasNoChildren" });
            if subscribed.contains(&entry.name) {
                attributes.push("\\Subscribed");
            }
            if let Some(special) = entry.special_use {
                attributes.push(attribute(special));
            }
            let mut options = Vec::new();
            if child_info && command.select.subscribed {
                options.push("SUBSCRIBED");
            }
            if child_info && command.select.special_use {
                options.push("SPECIAL-USE");
            }
            Response::List(ListEntry {
                attributes,
                separator: Some(separator),
                name: name.clone(),
                child_info: options,
            })
            .put(out);
            // RFC 5819 §2: right behind its LIST line, and nothing for what cannot be selected.
            if let (Some(items), true) = (&command.give.status, entry.exists) {
                match (self.status(&entry.name, items), MailboxName::from_decoded(&name)) {
                    (Ok(items), Ok(mailbox)) => Response::Status(StatusData { mailbox, items }).put(out),
                    (Err(error), _) => tracing::warn!(%error, folder = name, "no status for LIST"),
                    (_, Err(_)) => {}
                }
            }
        }
        Ok(())
    }

    /// RFC 3501 §6.3.9.
    pub(super) fn lsub(
        &mut self,
        reference: &ListPattern,
        pattern: &ListPattern,
        out: &mut Vec<u8>,
    ) -> Result<(), maildir::Error> {
        let separator = self.account.separator;
        let pattern = pattern.with_reference(reference, separator);
        let subscriptions = self.account.maildir.subscriptions()?;
        let subscribed: BTreeSet<String> = subscriptions.iter().map(|name| name.to_utf8(separator)).collect();
        let mut parents = BTreeSet::new();
        for name in &subscribed {
            if pattern.matches(name, separator) {
                put(out, separator, name, Vec::new());
                continue;
            }
            // `%` shows the parent of a subscribed name that it does not reach.
            for (at, _) in name.match_indices(separator) {
                let Some(parent) = name.get(..at) else { continue };
                if !subscribed.contains(parent) && pattern.matches(parent, separator) {
                    parents.insert(parent.to_owned());
                }
            }
        }
        if pattern.as_str().ends_with('%') {
            for parent in &parents {
                put(out, separator, parent, vec!["\\Noselect"]);
            }
        }
        Ok(())
    }
}

fn put(out: &mut Vec<u8>, separator: char, name: &str, attributes: Vec<&'static str>) {
    let entry =
        ListEntry { attributes, separator: Some(separator), name: name.to_owned(), ..ListEntry::default() };
    Response::Lsub(entry).put(out);
}
