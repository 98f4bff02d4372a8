//! The text that `doveconf -n` prints, as a tree.
//!
//! Format:    `name = value`, `name label {` … `}`, `#` comments; values stand in quotes where they begin or end with a
//!            blank (Dovecot 2.3 `config/doveconf.c`, 2.4 `lib-settings`).
//! Trust:     any text; length, depth and number of settings are bounded.
//! Never:     guess at a line that is none of these: the whole text is refused with its number.

use super::Error;

/// Longer texts are no configuration.
const MOST_BYTES: usize = 4 << 20;
/// Blocks within blocks.
const DEEPEST: usize = 16;
/// Settings and blocks in all.
const MOST_NODES: usize = 50_000;

/// One setting or block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// Line of the text, from 1.
    pub line: usize,
    /// Name of the setting, or what kind of block.
    pub name: String,
    /// What stands behind a block's kind: `imap` of `inet_listener imap {`.
    pub label: String,
    /// Value of a setting.
    pub value: String,
    /// What is in the block; `None` for settings.
    pub children: Option<Vec<Node>>,
}

impl Node {
    /// What is in the block, nothing for a setting.
    pub(super) fn inner(&self) -> &[Node] {
        self.children.as_deref().unwrap_or_default()
    }

    /// A setting of the block.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.inner().iter().rev().find(|node| node.name == name && node.children.is_none())?;
        Some(found.value.as_str())
    }

    /// `name` or `name label`, for messages.
    pub(super) fn title(&self) -> String {
        if self.label.is_empty() { self.name.clone() } else { format!("{} {}", self.name, self.label) }
    }

    /// The words of a list, in either spelling: `name = a b`, or `name { a = yes, b = yes }` as 2.4 has it.
    pub(super) fn words(&self) -> Vec<String> {
        match &self.children {
            None => words(&self.value),
            Some(inner) => {
                inner.iter().filter(|node| is_yes(&node.value)).map(|node| node.name.clone()).collect()
            }
        }
    }
}

/// A whole text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tree {
    /// Settings and blocks, in order.
    pub nodes: Vec<Node>,
    /// Comments before the first setting, without `#`: version, operating system, host name.
    pub head: Vec<String>,
}

impl Tree {
    /// The value of a setting outside all blocks.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.nodes.iter().rev().find(|node| node.name == name && node.children.is_none())?;
        Some(found.value.as_str())
    }
}

/// Words between blanks and commas.
pub(super) fn words(text: &str) -> Vec<String> {
    text.split([' ', '\t', ',']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Dovecot's spellings of yes.
pub(super) fn is_yes(value: &str) -> bool {
    ["yes", "y", "1", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

/// Reads the text.
pub(super) fn parse(text: &str) -> Result<Tree, Error> {
    if text.len() > MOST_BYTES {
        return Err(Error::TooLarge("it is longer than 4 MiB"));
    }
    let mut tree = Tree::default();
    // Blocks that are open, the outermost first.
    let mut open: Vec<Node> = Vec::new();
    let mut count = 0;
    for (number, raw) in text.lines().enumerate() {
        let (number, line) = (number + 1, raw.trim());
        if let Some(comment) = line.strip_prefix('#') {
            if tree.nodes.is_empty() && open.is_empty() && tree.head.len() < 20 {
                tree.head.push(comment.trim().to_owned());
            }
            continue;
        }
        if line.is_empty() {
            continue;
        }
        count += 1;
        if count > MOST_NODES {
            return Err(Error::TooLarge("it has more than 50,000 settings"));
        }
        if line == "}" {
            let Some(done) = open.pop() else { return Err(Error::Closing { line: number }) };
            siblings(&mut tree, &mut open).push(done);
            continue;
        }
        let node = setting(number, line).or_else(|| block(number, line));
        let Some(mut node) = node else {
            return Err(Error::Line { line: number, text: line.chars().take(80).collect() });
        };
        match &mut node.children {
            None => siblings(&mut tree, &mut open).push(node),
            // `name {}` on one line.
            Some(_) if line.ends_with('}') => siblings(&mut tree, &mut open).push(node),
            Some(_) if open.len() >= DEEPEST => {
                return Err(Error::TooLarge("its blocks are nested too deeply"));
            }
            Some(_) => open.push(node),
        }
    }
    match open.pop() {
        Some(node) => Err(Error::Open { line: node.line, block: node.title() }),
        None => Ok(tree),
    }
}

/// Where the next setting belongs.
fn siblings<'a>(tree: &'a mut Tree, open: &'a mut [Node]) -> &'a mut Vec<Node> {
    match open.last_mut() {
        Some(node) => node.children.get_or_insert_default(),
        None => &mut tree.nodes,
    }
}

fn setting(line: usize, text: &str) -> Option<Node> {
    let (name, value) = text.split_once('=')?;
    let name = name.trim();
    // A block whose label holds an equals sign.
    if name.is_empty() || name.contains([' ', '\t', '{', '"']) {
        return None;
    }
    Some(Node { line, name: name.to_owned(), value: unquoted(value.trim()), ..Node::default() })
}

fn block(line: usize, text: &str) -> Option<Node> {
    let head = text.strip_suffix('{').or_else(|| text.strip_suffix("{}"))?.trim();
    let (name, label) = head.split_once([' ', '\t']).unwrap_or((head, ""));
    if name.is_empty() {
        return None;
    }
    let label = unquoted(label.trim());
    Some(Node { line, name: name.to_owned(), label, children: Some(Vec::new()), ..Node::default() })
}

/// Takes quotes away, and the backslashes in them.
fn unquoted(text: &str) -> String {
    let inner = ['"', '\''].iter().find_map(|&quote| text.strip_prefix(quote)?.strip_suffix(quote));
    let Some(inner) = inner else { return text.to_owned() };
    let mut out = String::with_capacity(inner.len());
    let mut letters = inner.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => out.extend(letters.next()),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_blocks_lists() {
        let text = "# 2.3.19.1 (9b5310): /etc/dovecot/dovecot.conf\n# Hostname: mx.example.org\n\
                    protocols = \" imap lmtp\"\nservice auth {\n  unix_listener /var/spool/postfix/private/auth {\n    mode = 0660\n  }\n}\n\
                    namespace inbox {\n  mailbox \"Sent Messages\" {\n    special_use = \\Sent\n  }\n  prefix = \n}\n\
                    mail_plugins {\n  quota = yes\n  acl = no\n}\nuserdb {\n}\nempty {}\n";
        let tree = parse(text).expect("right");
        assert_eq!(tree.head[1], "Hostname: mx.example.org");
        assert_eq!(tree.get("protocols"), Some(" imap lmtp"));
        assert_eq!(tree.nodes[0].words(), ["imap", "lmtp"]);
        let listener = &tree.nodes[1].inner()[0];
        assert_eq!(
            (listener.title().as_str(), listener.get("mode"), listener.line),
            ("unix_listener /var/spool/postfix/private/auth", Some("0660"), 5)
        );
        let namespace = &tree.nodes[2];
        assert_eq!(
            (namespace.inner()[0].label.as_str(), namespace.get("prefix")),
            ("Sent Messages", Some(""))
        );
        assert_eq!(namespace.inner()[0].get("special_use"), Some("\\Sent"));
        assert_eq!(tree.nodes[3].words(), ["quota"]);
        assert_eq!(tree.nodes[5].title(), "empty");
    }

    #[test]
    fn what_is_no_configuration() {
        for (text, at) in
            [("}\n", 1), ("a = b\nservice auth {\n", 2), ("a = b\n\nhello world\n", 3), ("= x\n", 1)]
        {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(&format!("line {at}")), "{error}");
        }
        assert!(parse(&"a {\n".repeat(20)).is_err());
        assert!(parse(&"a = b\n".repeat(60_000)).is_err());
    }
}
