//! The commented sample and the manual, printed from the declarations.
//!
//! Trust:     nobody; made of the declarations, and for `config show` of the settings.
//! Never:     edit what this prints by hand; a test compares the committed files with it.

use std::fmt::Write as _;

use crate::Settings;
use crate::schema::{Field, Kind, Necessity, Section as _, TableInfo, Variant, Written, join};

impl Settings {
    /// The settings as a file: every key, resolved, without comments (`postern config show`).
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        write_table(&mut out, "", &self.write());
        out
    }
}

fn write_table(out: &mut String, path: &str, keys: &[(&'static str, Written)]) {
    for (name, written) in keys {
        if let Written::Value(text) = written {
            let _ = writeln!(out, "{name} = {text}");
        }
    }
    for (name, written) in keys {
        let full = join(path, name);
        match written {
            Written::Table(inner) => {
                let _ = writeln!(out, "\n[{full}]");
                write_table(out, &full, inner);
            }
            Written::Tables(all) => {
                for inner in all {
                    let _ = writeln!(out, "\n[[{full}]]");
                    write_table(out, &full, inner);
                }
            }
            Written::Absent | Written::Value(_) => {}
        }
    }
}

/// `conf/postern.toml`: every key with its documentation and default, ready to uncomment.
pub fn sample() -> String {
    let mut out = String::from(
        "# Postern's only configuration file: /etc/postern/postern.toml\n\
         #\n\
         # Every key is here, with its default or an example behind `#`. Relative paths are below `state_dir`.\n\
         # Durations: 500ms 30s 5m 1h 2d. Sizes: 4K 25M 1G. Check with: postern config check\n\
         # This file is generated from the program's types.\n\n",
    );
    sample_table(&mut out, "", &Settings::info(), false);
    out
}

fn sample_table(out: &mut String, path: &str, info: &TableInfo, commented: bool) {
    for field in info.fields.iter().chain(info.rules) {
        sample_field(out, field, commented);
    }
    for variant in info.variants {
        if !variant.fields.is_empty() {
            let _ = writeln!(out, "# With driver = \"{}\":\n", variant.name);
            for field in variant.fields {
                sample_field(out, field, true);
            }
        }
    }
    for field in info.fields {
        let full = join(path, field.name);
        match field.kind {
            Kind::Table(inner) => {
                let inner = inner();
                let _ = writeln!(out, "# {}\n[{full}]\n", "-".repeat(76));
                sample_table(out, &full, &inner, false);
            }
            Kind::Tables(inner) => {
                let inner = inner();
                let _ = writeln!(out, "# {}", "-".repeat(76));
                comment(out, field.doc);
                let _ = writeln!(out, "#[[{full}]]\n");
                sample_table(out, &full, &inner, true);
            }
            Kind::Value(_) | Kind::Choice(_) | Kind::Refused => {}
        }
    }
}

fn sample_field(out: &mut String, field: &Field, commented: bool) {
    if matches!(field.kind, Kind::Table(_) | Kind::Tables(_) | Kind::Refused) {
        return;
    }
    comment(out, field.doc);
    let (value, note) = match (field.necessity, (field.default)()) {
        (Necessity::Required(example), _) => (example.to_owned(), None),
        (Necessity::Optional(example), _) => (example.to_owned(), Some("Default: unset.".to_owned())),
        (Necessity::Described(text, example), _) => (example.to_owned(), Some(format!("Default: {text}."))),
        (Necessity::Default, Written::Value(value)) => (value, None),
        (Necessity::Default, _) => ("\"\"".to_owned(), None),
    };
    if let Some(note) = note {
        let _ = writeln!(out, "# {note}");
    }
    // Only what must stand in every file is not commented out.
    let live = matches!(field.necessity, Necessity::Required(_)) && !commented;
    let _ = writeln!(out, "{}{} = {value}\n", if live { "" } else { "#" }, field.name);
}

fn comment(out: &mut String, doc: &[&str]) {
    for line in doc {
        let _ = writeln!(out, "# {}", line.trim());
    }
}

/// `docs/configuration.md`: the manual of the file.
pub fn reference() -> String {
    let mut out = String::from(
        "# Configuration reference\n\n\
         Postern reads one file, `postern.toml`. It is looked for in this order: `--config FILE`, the environment\n\
         variable `POSTERN_CONFIG`, `/etc/postern/postern.toml`; without any of them the embedded default starts.\n\
         `postern config check` tells every mistake at once, `postern config show` prints the file as understood,\n\
         and [`conf/postern.toml`](../conf/postern.toml) is a sample with every key.\n\n\
         This page is printed from the program's types by `postern config reference`; a test keeps it fresh.\n\n\
         ## How values are written\n\n\
         | Kind | Form |\n| --- | --- |\n\
         | text | in quotes: `\"mail.example.org\"` |\n\
         | duration | number and unit (`ms`, `s`, `m`, `h`, `d`) in quotes: `\"30s\"`, `\"1h30m\"` |\n\
         | size | bytes, or with `K`, `M`, `G` (1024 each) in quotes: `\"25M\"` |\n\
         | permissions | octal in quotes: `\"0660\"` |\n\
         | address | numbers and port in quotes, IPv6 in brackets: `\"192.0.2.1:25\"`, `\"[::]:25\"`; one or a list |\n\
         | path | absolute, or below `state_dir`; a relative `state_dir` begins at the file's folder |\n\
         | template | a text with variables: `%{user}`, `%{user \\| username}`, `%{user \\| domain}`, `%{home}` |\n\n\
         Secrets never stand in the file: they come from files of their own (`…_file`) or the environment (`…_env`).\n\
         An unknown key is a mistake, never ignored.\n\n",
    );
    reference_table(&mut out, "", &Settings::info(), false);
    while out.ends_with("\n\n") {
        out.pop();
    }
    out
}

fn reference_table(out: &mut String, path: &str, info: &TableInfo, several: bool) {
    let title = match (path, several) {
        ("", _) => "Top of the file".to_owned(),
        (_, true) => format!("`[[{path}]]`"),
        (_, false) => format!("`[{path}]`"),
    };
    let _ = writeln!(out, "## {title}\n");
    for line in info.doc {
        let _ = writeln!(out, "{}", line.trim());
    }
    if several {
        let _ = writeln!(out, "May stand any number of times.");
    }
    out.push('\n');
    field_rows(out, info.fields);
    if !info.rules.is_empty() {
        let _ = writeln!(out, "Its part in the chain:\n");
        field_rows(out, info.rules);
    }
    for variant in info.variants {
        reference_variant(out, variant);
    }
    for field in info.fields {
        match field.kind {
            Kind::Table(inner) => reference_table(out, &join(path, field.name), &inner(), false),
            Kind::Tables(inner) => reference_table(out, &join(path, field.name), &inner(), true),
            Kind::Value(_) | Kind::Choice(_) | Kind::Refused => {}
        }
    }
}

fn reference_variant(out: &mut String, variant: &Variant) {
    let _ = writeln!(out, "### `driver = \"{}\"`\n", variant.name);
    for line in variant.doc {
        let _ = writeln!(out, "{}", line.trim());
    }
    out.push('\n');
    field_rows(out, variant.fields);
}

fn field_rows(out: &mut String, fields: &[Field]) {
    let values: Vec<&Field> = fields
        .iter()
        .filter(|f| !matches!(f.kind, Kind::Table(_) | Kind::Tables(_) | Kind::Refused))
        .collect();
    if values.is_empty() {
        return;
    }
    out.push_str("| Key | Value | Default | Meaning |\n| --- | --- | --- | --- |\n");
    for field in values {
        let kind = match field.kind {
            Kind::Choice(words) => words.iter().map(|w| format!("`\"{w}\"`")).collect::<Vec<_>>().join(", "),
            Kind::Value(what) => what.to_owned(),
            Kind::Table(_) | Kind::Tables(_) | Kind::Refused => String::new(),
        };
        let default = match (field.necessity, (field.default)()) {
            (Necessity::Required(example), _) => format!("**required**, e.g. `{example}`"),
            (Necessity::Described(text, example), _) => format!("{text}; e.g. `{example}`"),
            (Necessity::Optional(example), _) => format!("unset; e.g. `{example}`"),
            (Necessity::Default, Written::Value(value)) => format!("`{value}`"),
            (Necessity::Default, _) => "unset".to_owned(),
        };
        let doc: Vec<&str> = field.doc.iter().map(|line| line.trim()).collect();
        let cells = [kind, default, doc.join(" ")].map(|cell| cell.replace('|', "\\|"));
        let _ = writeln!(out, "| `{}` | {} |", field.name, cells.join(" | "));
    }
    out.push('\n');
}
